"""From composed Hydra nodes to typed settings: the dataclass is the schema, and an unknown key is refused by name.

This is ours because the alternatives lose what users see. OmegaConf's structured configs, pydantic and cattrs name the Python field and type of a failure,
not the key of the command line; none of them suggests the nearest key, and none turns ``6e6`` into an integer or a YAML number into a scene name while
refusing ``true`` for a number. Here every message reads ``<group>.<key>: expected <type>, got <value>``.
"""

import dataclasses
import difflib
import re
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf

from npbgpp.errors import InputError

T = TypeVar("T")

# groups of conf/config.yaml; its other keys concern the whole run
GROUPS = ("datasets", "system", "trainer", "dataloader", "callbacks", "loggers")

# keys whose values are names, however they look
_NAME_KEYS = re.compile(
    r"datasets\.(scene_name|names|scenes\.(train|val|test)|pc_name|data_root|scene_subroot|images_subroot|paths_file)|weights_path|resume"
)
_NUMBER_LIKE = re.compile(r"[-+.:\w]+")
_HYDRA_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d[\d_]*)?|\.\d[\d_]*([eE][-+]?\d[\d_]*)?|inf|nan)|true|false", re.IGNORECASE)
_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", Path: "a path", type(None): "null"}


def key(
    default: Any = dataclasses.MISSING, *, help: str, choices: Callable[[], Iterable[str]] | None = None, exists: str | None = None
) -> Any:
    """A dataclass field that is a key of a command line.

    Args:
        default: value of the field; without one the key must be given.
        help: meaning, unit and special values.
        choices: gives the accepted values where they are known at run time only; others are a Literal type.
        exists: what lies at the path, or at each of the paths, before the command: "the folder of a run".
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "exists": exists})


def as_typed(word: str) -> str:
    """A word ``key=value`` of the command line in which names that look like numbers are quoted: scene 2024_05_01 is a text, not 20240501.

    Only keys whose values are names of scenes, files and folders are changed, and of these only plain words, also in lists and sweeps.
    """
    name, separator, value = word.partition("=")
    if not separator or not _NAME_KEYS.fullmatch(name.lstrip("+")) or any(sign in value for sign in "'\"\\(){}$"):
        return word
    parts = re.split(r"([\[\],])", value)
    return name + separator + "".join(f"'{part.strip()}'" if _is_other_than_text(part.strip()) else part for part in parts)


def _is_other_than_text(word: str) -> bool:
    if word in ("", "null", "~", "???"):
        return False
    loaded = OmegaConf.create(f"- {word}") if _NUMBER_LIKE.fullmatch(word) else None
    return loaded is not None and (not isinstance(loaded[0], str) or _HYDRA_NUMBER.fullmatch(word) is not None)


def typed(schema: type[T], node: DictConfig | dict[str, Any], prefix: str) -> T:
    """Builds a dataclass from a config node.

    Values are converted as ``convert`` does. Fields may be keyword-only, and dataclasses themselves.

    Args:
        schema: a dataclass whose field types ``convert`` knows.
        node: the part of the config.
        prefix: name of the node in messages, such as ``datasets``; empty where keys are typed without one.

    Raises:
        InputError: unknown key (with the nearest known one), missing key, or a value of another type.
    """
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    assert isinstance(values, dict) and dataclasses.is_dataclass(schema)
    hints = get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema) if field.init}
    require_known(values, fields, prefix)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = convert(values[name], hints[name], _dotted(prefix, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _missing(hints[name], _dotted(prefix, name))
    return schema(**arguments)


def require_known(keys: Iterable[Any], known: Iterable[str], prefix: str) -> None:
    """Raises InputError that names the first unknown key, and the nearest known one or all of them."""
    names = sorted(known)
    for key in keys:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {_dotted(prefix, close[0])}?" if close else f"known keys: {', '.join(names)}"
            raise InputError(f"{_dotted(prefix, key)}: unknown key; {hint}")


def _dotted(prefix: str, key: Any) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def convert(value: Any, hint: Any, name: str) -> Any:
    """Converts a value of a config to the type of a field.

    Floats without a fraction become integers (``n_point=6e6``), integers become floats, numbers become strings (scene ``24``), lists become tuples and
    strings become paths. A boolean is no number.

    Args:
        value: as YAML gives it.
        hint: bool, int, float, str, Path, None, Any, a Literal, a dataclass, tuples, lists and string-keyed dictionaries of these, or a union of them. Other
            options of a union are ignored: no YAML value has their type.
        name: full key, for messages.

    Raises:
        InputError: a value of another type.
    """
    failure = InputError(f"{name}: expected {describe(hint)}, got {value!r}{_meant(value, hint)}")
    if value == "???":
        raise _missing(hint, name)
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            raise failure
        return value
    if origin in (Union, types.UnionType):
        # a value that has the type of an option already keeps it: 1.0 is a share where both shares and counts are allowed
        for option in sorted(arguments, key=lambda option: option is not type(value)):
            try:
                return convert(value, option, name)
            except InputError:
                continue
        raise failure
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise failure
        if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
            return origin(convert(v, arguments[0], name) for v in value)
        if len(value) != len(arguments):
            raise failure
        return tuple(convert(v, a, name) for v, a in zip(value, arguments, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise failure
        return {str(k): convert(v, arguments[1], f"{name}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise failure
        return typed(hint, value, name)
    return _convert_scalar(value, hint, failure)


def _convert_scalar(value: Any, hint: Any, failure: InputError) -> Any:
    if hint is type(None) and value is None:
        return None
    if hint is bool and isinstance(value, bool):
        return value
    if isinstance(value, bool) or value is None:
        raise failure
    if hint is int and (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        return int(value)
    if hint is float and isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            raise failure from None
    if hint is str and isinstance(value, str | int | float):
        return str(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    raise failure


def _meant(value: Any, hint: Any) -> str:
    close = difflib.get_close_matches(value, literals(hint), n=1) if isinstance(value, str) else []
    return f"; did you mean {close[0]}?" if close else ""


def literals(hint: Any) -> tuple[str, ...]:
    """The values of the Literal types in a type, as they are typed in YAML; empty without any."""
    if get_origin(hint) is Literal:
        return tuple({None: "null", True: "true", False: "false"}.get(a, str(a)) for a in get_args(hint))
    found = [value for argument in get_args(hint) for value in literals(argument)]
    return (*found, "null") if found and type(None) in get_args(hint) else tuple(found)


def _missing(hint: Any, name: str) -> InputError:
    # names of keys are words and dots; those of values in other files begin with a path
    advice = "set it on the command line or in the yaml" if re.fullmatch(r"[\w.]+", name) else "add it to the file"
    return InputError(f"{name}: expected {describe(hint)}, got nothing; {advice}")


def describe(hint: Any) -> str:
    """A type as messages name it, such as ``an integer or null``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        plain = [a for a in arguments if a in _NAMES or get_origin(a) is not None or dataclasses.is_dataclass(a)]
        return " or ".join(describe(a) for a in plain)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"a list (each entry {describe(arguments[0])})"
    if origin is tuple:
        return f"a list of {len(arguments)} values ({', '.join(map(describe, arguments))})"
    if origin is dict:
        return f"a mapping (each value {describe(arguments[1])})"
    if dataclasses.is_dataclass(hint):
        return f"a mapping with the keys {', '.join(field.name for field in dataclasses.fields(hint))}"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def typed_value(value: Any) -> str:
    """A value as it would be typed on the command line."""
    if isinstance(value, str | Path):
        return str(value) or "''"
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n").strip()
    return (
        text.replace(", ", ",") if isinstance(value, tuple | list) else text
    )  # without spaces, which a shell would take for ends of words


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value
