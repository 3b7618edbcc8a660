"""Files: writes are atomic, and reading tensors and pickled dictionaries executes nothing."""

import io
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from npbgpp.core.files import load_tensors, read_pickled_dict, save_tensors, write_atomically
from npbgpp.errors import InputError

CONTENT = {"weight": torch.arange(6.0).reshape(2, 3), "names": ["a", "b"], "step": 7, "nested": {"flag": True, "none": None}}


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "file.pth"
    save_tensors(path, CONTENT)
    read = load_tensors(path, "descriptors")
    assert torch.equal(read["weight"], CONTENT["weight"]) and read["nested"] == CONTENT["nested"] and read["names"] == ["a", "b"]
    assert os.listdir(path.parent) == ["file.pth"]


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    save_tensors(tmp_path / "ours", CONTENT)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_write_that_fails_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file.pth"
    save_tensors(path, CONTENT)
    before = path.read_bytes()

    def write(file):
        file.write(b"half of the new content")
        file.flush()
        raise error

    with pytest.raises(InputError, match=r"file\.pth: cannot be written.*unchanged"):
        write_atomically(path, write)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["file.pth"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_leaves_no_part(tmp_path, error):
    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(tmp_path / "file.pth", write)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "occupied").write_text("a file")
    with pytest.raises(InputError, match=r"occupied.*cannot be written.*no file was left behind"):
        save_tensors(tmp_path / "occupied" / "file.pth", CONTENT)


FULL_DISK = """
import sys
from pathlib import Path
import torch
from npbgpp.errors import InputError
from npbgpp.core.files import save_tensors

path = Path(sys.argv[1])
save_tensors(path, torch.zeros(4))
before = path.read_bytes()
try:
    save_tensors(path, torch.zeros(100_000))
except InputError as error:
    print(error)
assert path.read_bytes() == before
assert [p.name for p in path.parent.iterdir()] == [path.name]
"""


def run_in_small_file_system(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Runs a command that finds a file system of 64 kB at ``folder``; it is gone when the command ends."""
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c", f"mount -t tmpfs -o size=64k tmpfs '{folder}' && exec \"$@\"", "sh"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.run([*unshare, *command], capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1) to mount a small file system")
def test_a_full_disk_keeps_the_old_file(tmp_path):
    if run_in_small_file_system(tmp_path, "true").returncode != 0:
        pytest.skip("this machine does not let a small file system be mounted")
    done = run_in_small_file_system(tmp_path, sys.executable, "-c", FULL_DISK, str(tmp_path / "file.pth"))
    assert done.returncode == 0, done.stderr
    assert "file.pth: cannot be written" in done.stdout and "unchanged" in done.stdout and "free space" in done.stdout


def test_a_limit_on_the_size_of_files_keeps_the_old_file(tmp_path):
    """As a full disk does, the limit stops a write half way."""
    path = tmp_path / "file.pth"
    save_tensors(path, CONTENT)
    before = path.read_bytes()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32768, usual[1]))
    try:
        with pytest.raises(InputError, match=r"file\.pth: cannot be written.*unchanged"):
            save_tensors(path, torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["file.pth"]


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path, how):
    path, mark = tmp_path / "evil.pth", tmp_path / "was_run"
    if how == "torch":
        torch.save({"state_dict": Malicious(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(mark), protocol=2))
    with pytest.raises(InputError, match=r"checkpoint .*evil\.pth"):
        load_tensors(path, "checkpoint")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists(), "the probe itself does nothing"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_named(tmp_path, share):
    path = tmp_path / "cut.pth"
    save_tensors(path, {"x": torch.zeros(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"descriptors .*cut\.pth"):
        load_tensors(path, "descriptors")


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02garbage", b"PK\x03\x04 not a zip", "seed: 1\n".encode("utf-16"), b"\x00" * 4096])
def test_other_files_are_named(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"weights .*other\.pth"):
        load_tensors(tmp_path / "other.pth", "weights")


@pytest.mark.parametrize("place", ["absent.pth", "."])
def test_missing_files_are_named(tmp_path, place):
    with pytest.raises(InputError, match="weights .*no such file"):
        load_tensors(tmp_path / place, "weights")


# ------------------------------------------------------------------ pickled dictionaries
DICTIONARY = {
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
    assert list(found) == list(DICTIONARY)
    for key, value in DICTIONARY.items():
        assert np.array_equal(found[key], value), key
        if isinstance(value, np.ndarray):
            assert found[key].shape == value.shape and found[key].dtype == value.dtype.newbyteorder("=") and found[key].flags.writeable, key
    assert type(found["width"]) is int and type(found["scale"]) is float


def test_what_numpy_writes_is_read(tmp_path):
    np.save(tmp_path / "a.npy", np.array(DICTIONARY, dtype=object))
    check(read_pickled_dict(tmp_path / "a.npy"))


def test_what_numpy_1_wrote_is_read(tmp_path):
    """Its module had another name, and its pickles were of protocol 3."""
    data = pickle.dumps(np.array(DICTIONARY, dtype=object), 3)
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
    with pytest.raises(InputError, match=r"a\.npy.*are refused"):
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
