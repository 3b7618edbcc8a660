"""From composed Hydra nodes to typed settings: the constructor is the schema, and an unknown key is refused by name."""

import dataclasses
import difflib
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from npbgpp.errors import InputError

T = TypeVar("T")


def typed(schema: type[T], node: DictConfig | dict[str, Any], prefix: str) -> T:
    """Builds a dataclass from a config node.

    Whole floats become ints where ints are asked for (``n_point=6e6``), ints become floats, lists become tuples, strings become paths.

    Args:
        schema: a dataclass whose field types are plain values, Path, tuples, unions of them, or dict[str, float].
        node: the part of the config.
        prefix: what to call the node in messages, such as ``datasets``.

    Raises:
        InputError: unknown key (with the nearest known one), missing key, or a value of another type.
    """
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    assert isinstance(values, dict) and dataclasses.is_dataclass(schema)
    hints = get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {prefix}.{close[0]}?" if close else f"known keys: {', '.join(sorted(fields))}"
            raise InputError(f"{prefix}.{key!s}: unknown key; {hint}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(values[name], hints[name], f"{prefix}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{prefix}.{name}: expected {_words(hints[name])}, got nothing; set it on the command line or in the yaml")
    return schema(**arguments)


def _convert(value: Any, hint: Any, name: str) -> Any:
    failure = InputError(f"{name}: expected {_words(hint)}, got {value!r}")
    if value == "???":
        raise InputError(f"{name}: expected {_words(hint)}, got nothing; set it on the command line or in the yaml")
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        # 1.0 stays a float where both are allowed: a share is not a count
        for option in sorted(arguments, key=lambda option: option is not type(value)):
            try:
                return _convert(value, option, name)
            except InputError:
                continue
        raise failure
    if hint is type(None):
        if value is None:
            return None
        raise failure
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise failure
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(v, arguments[0], name) for v in value)
        if len(value) != len(arguments):
            raise failure
        return tuple(_convert(v, a, name) for v, a in zip(value, arguments, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise failure
        return {str(k): _convert(v, arguments[1], f"{name}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise failure
        return typed(hint, value, name)
    return _convert_scalar(value, hint, failure)


def _convert_scalar(value: Any, hint: Any, failure: InputError) -> Any:
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
    if hint is str and isinstance(value, str | int | float):  # scene names such as 24 are numbers to yaml
        return str(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    raise failure


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a) for a in arguments)
    if hint is type(None):
        return "null"
    if origin is tuple:
        return "a list of " + (
            _words(arguments[0]) if arguments[-1] is Ellipsis else f"{len(arguments)} values ({', '.join(map(_words, arguments))})"
        )
    if origin is dict:
        return "a mapping of names to " + _words(arguments[1])
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
