"""Tensors on disk: a file is complete or untouched, and nothing in it is run."""

import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from npbgpp.core.files import load_tensors, save_tensors, write_atomically
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
