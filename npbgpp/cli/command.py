"""Commands whose arguments are the fields of a dataclass: reading them, checking them, and help. Nothing here imports torch."""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from npbgpp.cli.help import KeyHelp, columns, paragraph, section, typed_value
from npbgpp.cli.nearest import hint
from npbgpp.core.config import GROUPS, literals, typed
from npbgpp.errors import InputError, original_message

S = TypeVar("S")

# of the config of a run, beside those of its groups
_RUN_KEYS = ("weights_path", "weights_strict", "cache_dir")
_TEXTS = {str, Path, type(None), str | None, Path | None}
_NULL = ("null", "~", "")
_MANY = tuple[Path, ...]
_HELP = ("-h", "--help")


@dataclass(frozen=True)
class Command(Generic[S]):
    """A command of the form ``npbgpp <name> [<positional> ...] [key=value ...]``.

    Attributes:
        name: behind ``npbgpp``, such as ``export mesh``.
        summary: what it does, one sentence.
        schema: dataclass whose fields are the keys, see ``npbgpp.core.config.key``.
        positional: keys whose values may be given without the key, in this order; a tuple takes all that are left.
        config_keys: also takes keys of the config of a run.
        example: arguments of a typical call.
        notes: further paragraphs of the help.
    """

    name: str
    summary: str
    schema: type[S]
    positional: tuple[str, ...] = ()
    config_keys: bool = False
    example: str = ""
    notes: tuple[str, ...] = ()

    def read(self, arguments: Sequence[str]) -> tuple[S, list[str]]:
        """(the settings, overrides of the config of a run). Raises InputError for words that are neither."""
        given: dict[str, Any] = {}
        overrides, words, hints = [], [], get_type_hints(self.schema)
        for word in arguments:
            key, separator, text = word.partition("=")
            if not separator or key.startswith("-"):
                words.append(word)
            elif key not in hints and (key in _RUN_KEYS or key.partition(".")[0] in GROUPS):
                if not self.config_keys:
                    raise InputError(f"{word}: npbgpp {self.name} takes no keys of the config of a run; leave it out")
                overrides.append(word)
            elif {hints.get(key), *get_args(hints.get(key))} <= _TEXTS:
                given[key] = None if text in _NULL else text  # not YAML, in which 007 is a number
            else:
                given |= _parsed(word)
        given |= self._positional(words, given)
        settings = typed(self.schema, given, "")
        for field in _keys(self.schema):
            known = self._choices(field)
            value = getattr(settings, field.name)
            if known and isinstance(value, str) and value not in known:
                raise InputError(f"{field.name}={value}: unknown choice; {hint(value, known)}")
        return settings, overrides

    def _positional(self, words: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        hints = get_type_hints(self.schema)
        left = [key for key in self.positional if key not in given]
        for word in words:
            if word.startswith("-") or not left:
                raise InputError(
                    f"{word}: expected key=value{f', such as {self.positional[0]}=<...>' if self.positional else ''}; {self._see_help()}"
                )
            if hints[left[0]] == _MANY:
                found.setdefault(left[0], []).append(word)
            else:
                found[left.pop(0)] = word
        return found

    def _see_help(self) -> str:
        return f"npbgpp {self.name} --help lists the keys"

    def _choices(self, field: "Field[Any]") -> tuple[str, ...]:
        listed = field.metadata.get("choices")
        return tuple(listed()) if listed is not None else ()

    def help(self) -> str:
        """The help text."""
        hints = get_type_hints(self.schema)
        words = "".join(f" <{key}>" if hints[key] != _MANY else f" <{key.removesuffix('s')}> ..." for key in self.positional)
        lines = [f"usage: npbgpp {self.name}{words} [key=value ...]", "", *paragraph(self.summary)]
        keys = []
        for field in _keys(self.schema):
            default = None if field.default is MISSING else typed_value(field.default)
            hinted = hints[field.name]
            known = self._choices(field) or literals(hinted)
            keys.append(KeyHelp(field.name, default, field.metadata.get("help", ""), known, get_origin(hinted) is tuple))
        lines += section("keys", keys)
        if self.config_keys:
            groups = ", ".join(f"{group}.*" for group in GROUPS[:4])
            lines += [
                "",
                *paragraph(f"Keys of the config of the run ({groups}, {', '.join(_RUN_KEYS)}) change that config for this command."),
            ]
        for note in self.notes:
            lines += ["", *paragraph(note)]
        if self.example:
            lines += ["", f"example: npbgpp {self.name} {self.example}"]
        return "\n".join(lines)


def _keys(schema: Any) -> "list[Field[Any]]":
    return [field for field in fields(schema) if field.init]


def _parsed(word: str) -> dict[str, Any]:
    """A key and its value in YAML."""
    try:
        container = OmegaConf.to_container(OmegaConf.from_dotlist([word]))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else " ".join(str(error).split())
        raise InputError(f"{word}: expected a value in YAML, got something else ({reason})") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for help."""
    return any(word in _HELP for word in arguments)


def read_arguments(command: Command[S], arguments: Sequence[str]) -> tuple[S, list[str]]:
    """Settings and config overrides of a command line. Prints help and exits where it is asked for; exits with code 1 for mistakes, and without arguments."""
    if wants_help(arguments):
        print(command.help())
        sys.exit()
    if not arguments:
        sys.exit(command.help())
    with user_errors():
        return command.read(arguments)


def read_subcommand(
    program: str, summary: str, commands: Mapping[str, Command[Any]], arguments: Sequence[str]
) -> tuple[str, Any, list[str]]:
    """(name of the sub-command, its settings, config overrides). Exits as ``read_arguments``.

    Args:
        program: behind ``npbgpp``.
        summary: what the program does.
        commands: sub-commands by name.
        arguments: words behind the name of the program.
    """
    if not arguments or arguments[0] in _HELP:
        lines = [f"usage: npbgpp {program} <command> ...", "", *paragraph(summary), "", "commands:"]
        lines += columns((name, command.summary) for name, command in commands.items())
        lines += ["", f"npbgpp {program} <command> --help lists the keys of a command."]
        text = "\n".join(lines)
        if not arguments:
            sys.exit(text)
        print(text)
        sys.exit()
    name, *rest = arguments
    if name not in commands:
        sys.exit(f"error: {name}: unknown command; {hint(name, commands)}")
    return name, *read_arguments(commands[name], rest)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside of it prints one line and exits with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


@contextmanager
def user_errors(keys: Mapping[str, str] | None = None) -> Iterator[None]:
    """User errors inside of it print one line and exit with code 1, Ctrl-C with code 130.

    Args:
        keys: names of keys of a training that messages hold, and what they are called in this command.
    """
    try:
        with interruptible():
            yield
    except (InputError, OmegaConfBaseException, OSError, yaml.YAMLError) as error:
        message = " ".join(original_message(error).split())
        for name, called in (keys or {}).items():
            message = message.replace(name, called)
        sys.exit(f"error: {message}")
