"""Reading a dictionary that ``np.save`` pickled, without unpickling: nothing that the file names is imported, called or built.

numpy writes a dictionary as an object array of shape (), whose data is a pickle (numpy.lib.format). The pickle names numpy's constructors; here they stand
for plain records, which are turned into arrays of numbers afterwards. Every other name is refused.
"""

import pickle
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from npbgpp.errors import InputError

_LARGEST_FILE = 1 << 20  # bytes; calibrations take less than a thousand
_NUMBERS = {f"{kind}{size}" for kind, sizes in {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "b": (1,)}.items() for size in sizes}
# what numpy, its parser of headers and the readers of pickles and zip files raise for damaged files
DAMAGED_FILE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass
class _DType:
    """What the file says about an element type: its code, such as f8, two flags that numpy always writes alike, and its byte order."""

    code: Any
    align: Any
    copy: Any
    order: str = "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "=", "=": "="}[state[1]]


@dataclass
class _Array:
    """An array whose data comes after it in the file: numbers, or a list of objects. The first fields, numpy's dummies, are not used."""

    subtype: Any
    dummy_shape: Any
    dummy_code: Any
    content: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if dtype.code in ("O", "O8") and isinstance(data, list):
            self.content = data
        else:
            self.content = _numbers(dtype, data, prod(shape)).reshape(shape, order="F" if is_fortran else "C")


@dataclass
class _Scalar:
    """A number of a numpy type."""

    dtype: Any
    data: Any

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a number with a state")


def _numbers(dtype: Any, data: Any, count: int) -> np.ndarray:
    if not isinstance(dtype, _DType) or dtype.code not in _NUMBERS:
        raise pickle.UnpicklingError(f"elements of type {dtype}")
    return np.frombuffer(data, dtype.order + dtype.code, count).astype(dtype.code)


class _Reader(pickle.Unpickler):
    """Knows four names. All stand for classes with a ``__setstate__``, which a pickle can neither alter nor use for anything but a record."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return _Array if name == "_reconstruct" else _Scalar
        if module == "numpy" and name in ("dtype", "ndarray"):
            return _DType if name == "dtype" else _Array
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _plain(value: Any) -> Any:
    if isinstance(value, _Scalar):
        return _numbers(value.dtype, value.data, 1)[0].item()
    return value.content if isinstance(value, _Array) else value


def read_pickled_dict(path: Path) -> dict[str, Any]:
    """The dictionary in an .npy file; its values are arrays of numbers, numbers, texts, None, or lists, tuples and dictionaries of plain values.

    Raises:
        InputError: missing or damaged file, another content, or a pickle with other objects, which might run code.
    """
    wanted = "expected the dictionary that np.save wrote"
    try:
        with open(path, "rb") as file:
            if path.stat().st_size > _LARGEST_FILE:
                raise ValueError(f"{path.stat().st_size} bytes are too many")
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if shape != () or not dtype.hasobject:
                raise ValueError(f"an array of shape {shape} and type {dtype}")
            (content,) = _Reader(file).load().content
            if not isinstance(content, dict):
                raise ValueError(f"a {type(content).__name__}")
            return {str(key): _plain(value) for key, value in content.items()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {wanted}: restore it") from None
    except DAMAGED_FILE as error:
        raise InputError(
            f"{path}: {wanted}, holding numbers and arrays of numbers, got something else ({error}); it is not unpickled"
        ) from error
