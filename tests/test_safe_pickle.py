"""Dictionaries that numpy pickled: read without running anything that the file names."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npbgpp.core.safe_pickle import read_pickled_dict
from npbgpp.errors import InputError

CONTENT = {
    "K": np.array([[262.5, 0.25, 159.5], [0.0, 260.5, 119.5], [0.0, 0.0, 1.0]]),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big-endian": np.array([1.5, -2.5], dtype=">f8"),
    "whole": np.array([[-3, 4]], dtype=np.int16),
    "yes": np.array([True, False]),
    "empty": np.zeros((0, 4)),
    "height": 240,
    "width": np.int64(320),
    "scale": np.float32(0.5),
    "name": "küche",
    "nothing": None,
    "list": [1, 2.5, "x"],
}


def write(path: Path, data: bytes, shape: tuple[int, ...] = ()) -> Path:
    """An .npy file of objects with this pickle as data."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": shape})
        file.write(data)
    return path


def check(found: dict[str, Any]) -> None:
    assert list(found) == list(CONTENT)
    for key, value in CONTENT.items():
        assert np.array_equal(found[key], value), key
        if isinstance(value, np.ndarray):
            assert found[key].shape == value.shape and found[key].dtype == value.dtype.newbyteorder("=") and found[key].flags.writeable, key
    assert type(found["width"]) is int and type(found["scale"]) is float


def test_what_numpy_writes_is_read(tmp_path):
    np.save(tmp_path / "a.npy", np.array(CONTENT, dtype=object))
    check(read_pickled_dict(tmp_path / "a.npy"))


def test_what_numpy_1_wrote_is_read(tmp_path):
    """Its module had another name, and its pickles were of protocol 3."""
    data = pickle.dumps(np.array(CONTENT, dtype=object), 3)
    assert b"numpy._core.multiarray" in data
    check(read_pickled_dict(write(tmp_path / "a.npy", data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))))


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, np.save, np.fromfile, getattr, __import__, io.open, pickle.loads])
@pytest.mark.parametrize("place", ["value", "key", "element", "array"])
def test_calls_are_refused_and_not_made(tmp_path, monkeypatch, function, place):
    """os.mkdir would leave a folder: the others are refused in the same way, before their arguments matter."""
    monkeypatch.chdir(tmp_path)
    bad = Calls(function, "made")
    content: Any = {"value": {"K": bad}, "key": {bad: 1}, "element": {"K": [bad]}, "array": {"K": np.array([bad, 1], dtype=object)}}[place]
    path = write(tmp_path / "a.npy", pickle.dumps(np.array(content, dtype=object), 4))
    with pytest.raises(InputError, match=r"a\.npy.*it names"):
        read_pickled_dict(path)
    assert os.listdir(tmp_path) == ["a.npy"]


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


OBJECT_TYPE = global_("numpy", "dtype") + b"(X\x02\x00\x00\x00O8I00\nI01\ntR"
NUMBER_TYPE = OBJECT_TYPE.replace(b"O8", b"f8")
NEW_ARRAY = global_("numpy.core.multiarray", "_reconstruct") + global_("numpy", "ndarray") + b"\x87".join([b"I0\n\x85C\x01b", b"R"])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (NEW_ARRAY + b"(I1\nI1\n\x85" + OBJECT_TYPE + b"I00\nC\x08\x41\x41\x41\x41\x41\x41\x41\x41tb.", "addresses as objects"),
        (NEW_ARRAY + b"(I1\nI9\n\x85" + NUMBER_TYPE + b"I00\nC\x08\x41\x41\x41\x41\x41\x41\x41\x41tb.", "less data than the shape says"),
        (NEW_ARRAY + b"(I1\nI1\n\x85" + NUMBER_TYPE.replace(b"f8", b"V8") + b"I00\nC\x08AAAAAAAAtb.", "records"),
        (global_("numpy", "dtype") + b"}X\x01\x00\x00\x00aI1\nsb.", "changes to a class"),
        (global_("numpy", "ndarray") + b"N}X\x01\x00\x00\x00aI1\ns\x86b.", "changes to a class in its second form"),
        (global_("numpy.core.multiarray", "scalar") + b"N}X\x05\x00\x00\x00dtypeI1\ns\x86b.", "changes to another class"),
        (global_("numpy", "ndarray") + b"(I1000000000\ntR.", "arrays by their constructor"),
        (global_("numpy", "load") + b".", "other functions of numpy"),
        (b"\x80\x04\x8c\x04evil.", "a name alone"),
        (b"}.", "no array"),
        (b"", "nothing"),
        (b"N.", "None"),
    ],
)
def test_forged_pickles_are_refused(tmp_path, data, why):
    with pytest.raises(InputError, match=r"a\.npy.*is not unpickled"):
        read_pickled_dict(write(tmp_path / "a.npy", data))
    test_what_numpy_writes_is_read(tmp_path)  # and nothing has been altered


def test_every_damaged_byte_ends_in_a_dictionary_or_one_message(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array({"K": np.eye(3), "height": 240, "width": np.int64(320)}, dtype=object))
    whole = path.read_bytes()
    refused = 0
    for k in range(len(whole)):
        for spoilt in (whole[:k], whole[:k] + bytes([whole[k] ^ 0xFF]) + whole[k + 1 :], whole[:k] + b"0" + whole[k + 1 :]):
            path.write_bytes(spoilt)
            try:
                assert isinstance(read_pickled_dict(path), dict)
            except InputError as error:
                assert "a.npy" in str(error)
                refused += 1
    assert refused > len(whole)


@pytest.mark.parametrize(
    "content",
    [np.eye(3), np.array([{}, {}], dtype=object), np.array({"a"}, dtype=object), np.array([1, 2], dtype=object), np.array(3, dtype=object)],
)
def test_other_contents_are_refused(tmp_path, content):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(InputError, match=r"a\.npy: expected the dictionary"):
        read_pickled_dict(tmp_path / "a.npy")


def test_missing_large_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.npy: no such file"):
        read_pickled_dict(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array({"K": np.zeros(1 << 18)}, dtype=object))
    with pytest.raises(InputError, match=r"a\.npy.*too many"):
        read_pickled_dict(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_text("not an array")
    with pytest.raises(InputError, match=r"a\.npy.*expected the dictionary"):
        read_pickled_dict(tmp_path / "a.npy")
