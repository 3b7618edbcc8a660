"""Arguments of commands as the fields of a dataclass, and their help."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest

from npbgpp.cli.command import Command, KeyHelp, columns, read_arguments, read_subcommand, user_errors
from npbgpp.compare.__main__ import COMMAND as COMPARE
from npbgpp.core.config import key, literals
from npbgpp.demo import COMMAND as DEMO
from npbgpp.errors import InputError
from npbgpp.export.__main__ import COMMANDS as EXPORT
from npbgpp.prepare.__main__ import COMMANDS as PREPARE
from npbgpp.refine import COMMAND as REFINE
from npbgpp.render import COMMAND as RENDER

ALL: list[Command[Any]] = [RENDER, REFINE, COMPARE, DEMO, *EXPORT.values(), *PREPARE.values()]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Keys of every kind."""

    run: Path = key(help="folder of the run")
    other: str | None = key(None, help="second word")
    count: int = key(3, help="how many")
    mode: Literal["fast", "slow"] = key("fast", help="how fast")
    sizes: tuple[int, ...] = key((1, 2), help="sizes, pixels")
    parts: tuple[Literal["a", "b"], ...] = key((), help="which parts")
    kind: str = key("x1", help="which kind", choices=lambda: ("x1", "x2"))


COMMAND = Command("try", "Tries things.", Settings, positional=("run", "other"), config_keys=True, example="here", notes=("A note.",))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("here", Settings(run=Path("here"))),
        ("run=here", Settings(run=Path("here"))),
        ("here count=6e1 there", Settings(run=Path("here"), other="there", count=60)),
        ("run=007 other=1e3", Settings(run=Path("007"), other="1e3")),
        ("here other=null", Settings(run=Path("here"))),
        ("there run=here", Settings(run=Path("here"), other="there")),
        ("here mode=slow sizes=[5] parts=[b,a] kind=x2", Settings(run=Path("here"), mode="slow", sizes=(5,), parts=("b", "a"), kind="x2")),
    ],
)
def test_words_become_settings(words, expected):
    assert COMMAND.read(words.split()) == (expected, [])


def test_keys_of_the_run_are_kept_apart():
    words = ["datasets.data_root=data", "here", "weights_path=a.ckpt", "count=2", "system={near: 2}"]
    settings, overrides = COMMAND.read(words)
    assert settings == Settings(run=Path("here"), count=2)
    assert overrides == ["datasets.data_root=data", "weights_path=a.ckpt", "system={near: 2}"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("count=2", ["run", "nothing", "npbgpp try <run>"]),
        ("here cuont=2", ["cuont", "did you mean count?"]),
        ("here there more", ["more", "key=value", "npbgpp try --help"]),
        ("here --fast", ["--fast", "key=value"]),
        ("here --count=3", ["--count=3", "key=value"]),
        ("here count=many", ["count", "an integer", "many"]),
        ("here mode=fats", ["mode", "fast, slow", "did you mean fast?"]),
        ("here parts=[c]", ["parts", "a, b", "'c'"]),
        ("here kind=x3", ["kind=x3", "x1, x2"]),
        ("here sizes=[1", ["sizes=[1"]),
        ("here sizes=1", ["sizes", "list"]),
    ],
)
def test_mistakes_are_named_in_one_line(words, named):
    with pytest.raises(InputError) as caught:
        COMMAND.read(words.split())
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in named), str(caught.value)


def test_commands_without_a_run_take_no_keys_of_one():
    with pytest.raises(InputError, match="trainer.max_epochs=1"):
        Command("try", "", Settings).read(["run=here", "trainer.max_epochs=1"])


def test_help_shows_every_key(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = COMMAND.help()
    for line in (
        "usage: npbgpp try <run> <other> [key=value ...]",
        "  run=         folder of the run (required)",
        "  count=3      how many",
        "  mode=fast    how fast. One of fast, slow.",
        "  sizes=[1,2]  sizes, pixels",
        "  parts=[]     which parts. Any of a, b.",
        "  kind=x1      which kind. One of x1, x2.",
        "A note.",
        "example: npbgpp try here",
    ):
        assert line in text.splitlines(), f"{line}\n{text}"
    assert "datasets.*" in text and "weights_path" in text


def test_columns_are_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = columns([("name", "some words " * 8), (50 * "n", "below it"), ("empty", "")])
    assert max(len(line) for line in lines if "n" * 50 not in line) < 80
    assert lines[0].startswith("  name") and lines[1].startswith(" " * 34 + "some")
    assert lines[-3:] == ["  " + 50 * "n", " " * 34 + "below it", "  empty"]
    assert KeyHelp("a", None, "").entry() == ("a=", "(required)")


@pytest.mark.parametrize("words", [["--help"], ["here", "-h"], ["count=many", "--help"]])
def test_help_ends_with_code_0(capsys, words):
    with pytest.raises(SystemExit) as ended:
        read_arguments(COMMAND, words)
    assert not ended.value.code and "usage: npbgpp try" in capsys.readouterr().out


def test_without_arguments_the_help_ends_with_code_1():
    with pytest.raises(SystemExit, match="usage: npbgpp try"):
        read_arguments(COMMAND, [])
    with pytest.raises(SystemExit, match=r"(?s)usage: npbgpp tries.*  one .*Tries things"):
        read_subcommand("tries", "", {"one": COMMAND}, [])
    with pytest.raises(SystemExit, match="error: oen: .*did you mean one?"):
        read_subcommand("tries", "", {"one": COMMAND}, ["oen"])


@pytest.mark.parametrize("error", [InputError("a\n b"), OSError(28, "No space left on device", "a.png")])
def test_user_errors_are_one_line(error):
    with pytest.raises(SystemExit) as ended, user_errors():
        raise error
    assert str(ended.value.code).startswith("error: ") and "\n" not in str(ended.value.code)


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_every_key_is_documented(command):
    assert [field.name for field in fields(command.schema) if not field.metadata.get("help")] == []
    assert set(command.positional) <= {field.name for field in fields(command.schema)} and command.summary.endswith(".")
    assert command.example and all(f"  {field.name}=" in command.help() for field in fields(command.schema))


@pytest.mark.parametrize("command", [command for command in ALL if command is not DEMO], ids=lambda command: command.name)
def test_examples_can_be_read(command, tmp_path, monkeypatch):
    """Where the folders that they name exist."""
    monkeypatch.chdir(tmp_path)
    for word in command.example.split():
        Path(word.rpartition("=")[2]).mkdir(parents=True, exist_ok=True)
    settings, _ = command.read(command.example.split())
    assert isinstance(settings, command.schema)


def test_choices_are_those_of_the_code():
    from npbgpp.io import DEPTH_FORMATS, VIDEO_FORMATS
    from npbgpp.prepare.video import STAGES

    for command, name, known in (
        (RENDER, "video", {*VIDEO_FORMATS, "none"}),
        (RENDER, "depth", {*DEPTH_FORMATS, "picture"}),
        (PREPARE["monocular"], "stages", set(STAGES)),
    ):
        assert set(literals(get_type_hints(command.schema)[name])) == known


def test_an_interrupted_command_says_so_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended, user_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_messages_name_the_keys_of_the_command():
    with pytest.raises(SystemExit) as ended, user_errors({"datasets.layout": "layout"}):
        raise InputError("expected another one; name it with datasets.layout=<name>")
    assert ended.value.code == "error: expected another one; name it with layout=<name>"
