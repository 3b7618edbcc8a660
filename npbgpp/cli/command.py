"""Commands whose arguments are the fields of a dataclass: reading them, checking them, and help. Nothing here imports torch."""

import difflib
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from npbgpp.core.config import GROUPS, describe, literals, require_known, typed, typed_value
from npbgpp.errors import InputError, original_message

# ----------------------------------------------------------------------
# Hints for misspelt words


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant; None where all are too different.

    Of dotted names, those with the same last part come first, then those in the same place.
    """
    known = list(known)
    place, _, last = word.rpartition(".")
    same_end = [name for name in known if name.rpartition(".")[2] == last]
    if same_end:
        return difflib.get_close_matches(word, same_end, n=1, cutoff=0.0)[0]
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == place}
    for close in difflib.get_close_matches(last, beside, n=1, cutoff=0.6):
        return beside[close]
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.8)), None)


def hint(word: str, known: Iterable[str]) -> str:
    """``did you mean ...?``, or the known words."""
    known = list(known)
    close = nearest(word, known)
    return f"did you mean {close}?" if close is not None else f"expected one of {', '.join(known)}"


# ----------------------------------------------------------------------
# Layout of help texts: keys with their defaults and meaning


_WIDEST_NAMES = 34
_LONGEST_LINE = 140


@dataclass(frozen=True)
class KeyHelp:
    """One key of a command.

    Attributes:
        name: as it is typed.
        default: its value when it is not given, as it would be typed; None: it must be given.
        help: what it means.
        choices: all values that it accepts; empty: any of its type.
        takes_list: it accepts several of the choices.
    """

    name: str
    default: str | None
    help: str
    choices: tuple[str, ...] = ()
    takes_list: bool = False

    def entry(self) -> tuple[str, str]:
        """The key with its default, and the text that explains it."""
        sentences = [self.help]
        if self.choices:
            sentences = [f"{self.help.rstrip('.')}.", f"{'Any' if self.takes_list else 'One'} of {', '.join(self.choices)}."]
        if self.default is None:
            sentences.append("(required)")
        return f"{self.name}={self.default or ''}", " ".join(sentences).strip()


def columns(entries: Iterable[tuple[str, str]]) -> list[str]:
    """Names and the texts that explain them, in two columns; the lines of a text are wrapped one by one."""
    entries = list(entries)
    left = min(max((len(name) for name, _ in entries), default=0) + 4, _WIDEST_NAMES)
    lines = []
    for name, text in entries:
        body = [part for line in text.splitlines() for part in _wrapped(line, _width() - left)] or [""]
        if len(name) + 3 > left:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name}".ljust(left) + body.pop(0))
        lines += [" " * left + line for line in body]
    return [line.rstrip() for line in lines]


def section(title: str, keys: Iterable[KeyHelp]) -> list[str]:
    """A titled list of keys, with an empty line before it."""
    return ["", f"{title}:", *columns(key.entry() for key in keys)]


def paragraph(text: str) -> list[str]:
    """Running text in lines of the terminal's width."""
    return _wrapped(text, _width())


def _width() -> int:
    return min(shutil.get_terminal_size().columns, _LONGEST_LINE) - 1


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 30), break_long_words=False, break_on_hyphens=False)


# ----------------------------------------------------------------------
# Commands


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
        self._require(given)
        settings = typed(self.schema, given, "")
        for field in _keys(self.schema):
            known = self._choices(field)
            value = getattr(settings, field.name)
            if known and isinstance(value, str) and value not in known:
                raise InputError(f"{field.name}={value}: unknown choice; {hint(value, known)}")
            if expected := field.metadata.get("exists"):
                for path in value if isinstance(value, tuple) else (value,):
                    require_exists(field.name, path, expected)
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

    def _require(self, given: Mapping[str, Any]) -> None:
        """Raises InputError for a key that is needed and not given, with the whole command."""
        hints = get_type_hints(self.schema)
        require_known(given, hints, "")
        needed = [field.name for field in _keys(self.schema) if field.default is MISSING and field.default_factory is MISSING]
        for key in needed:
            if key not in given:
                words = [self._typed(name, given.get(name)) for name in self.positional if name in given or name in needed]
                words += [f"{name}=<...>" for name in needed if name not in (*given, *self.positional)]
                raise InputError(f"{key}: expected {describe(hints[key])}, got nothing; npbgpp {self.name} {' '.join(words)}")

    def _typed(self, key: str, value: Any) -> str:
        """A positional key as it is typed; None for one that is to be filled in."""
        if value is None:
            return f"<{key}>"
        return shlex.join(map(str, value)) if isinstance(value, list) else shlex.quote(str(value))

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


def require_exists(key: str, path: Path | None, expected: str) -> None:
    """Raises InputError for a path at which nothing lies."""
    if path is not None and not path.expanduser().exists():
        raise InputError(f"{key}={path}: expected {expected}, {path.expanduser().absolute()} does not exist; correct the path")


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
