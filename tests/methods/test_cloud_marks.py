"""Descriptors and resumed runs are bound to their cloud by its checksum; files without metadata are accepted."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from npbgpp.core.files import read_mark, save_tensors
from npbgpp.data.point_files import cloud_checksum
from npbgpp.errors import InputError
from npbgpp.geometry.point_cloud import PointCloud, read_ply, write_ply

QUIET = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]")


@given(st.integers(0, 5), st.integers(0, 2))
def test_checksum_depends_on_values_and_order(row, axis):
    xyz = torch.arange(18.0).view(6, 3)
    assert cloud_checksum(xyz) == cloud_checksum(xyz.t().contiguous().t())  # however they lie in memory
    other = xyz.clone()
    other[row, axis] = torch.nextafter(other[row, axis], torch.tensor(100.0))
    swapped = xyz[torch.arange(6).roll(1 + row % 5)]
    found = {cloud_checksum(x) for x in (xyz, other, swapped, xyz[:5], torch.zeros(0, 3))}
    assert len(found) == 5 and all(len(checksum) == 32 for checksum in found)


def test_metadata_of_tensor_files(tmp_path):
    content = {"x": torch.arange(5.0)}
    save_tensors(tmp_path / "marked.pth", content, {"cloud": "abc"})
    save_tensors(tmp_path / "again.pth", content, {"cloud": "abc"})
    save_tensors(tmp_path / "plain.pth", content)
    for name in ("marked.pth", "plain.pth"):
        for mapped in (False, True):
            assert torch.equal(torch.load(tmp_path / name, weights_only=True, mmap=mapped)["x"], content["x"])
    assert read_mark(tmp_path / "marked.pth") == {"cloud": "abc"} and read_mark(tmp_path / "plain.pth") == {}
    (tmp_path / "other.pth").write_bytes(b"PK\x03\x04 no archive")
    assert read_mark(tmp_path / "other.pth") == read_mark(tmp_path / "absent.pth") == {}


@pytest.fixture
def moved_root(tiny_root: Path, tmp_path: Path) -> Path:
    """The scenes with the points of ball in another order: as many, and in the same places."""
    root = tmp_path / "moved"
    shutil.copytree(tiny_root, root)
    cloud = read_ply(root / "ball" / "mvs_pc.ply")
    assert cloud.rgb_u8 is not None
    write_ply(root / "ball" / "mvs_pc.ply", PointCloud(cloud.xyz.flip(0), cloud.rgb_u8.flip(0)))
    return root


def test_descriptors_of_another_cloud_are_refused(run_here, moved_root):
    folder = run_here(*QUIET)
    path = folder / "descriptors" / "ball.pth"
    assert read_mark(path)["cloud"] == torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["npbgpp"]["clouds"]["ball"]
    evaluate = ("eval_only=true", "weights_path=run/checkpoints/last.ckpt", "system.descriptors_pretrained_dir=run/descriptors")
    with pytest.raises(InputError, match=r"ball\.pth: expected those of the cloud of scene ball \(checksum \w{32}\), got those of another"):
        run_here(*evaluate, name="evaluated", root=moved_root)
    run_here(*evaluate, name="evaluated")
    save_tensors(path, torch.load(path, weights_only=True))  # as files were before they had a mark
    run_here(*evaluate, name="unmarked", root=moved_root)


def test_resuming_with_another_cloud_is_refused(run_here, moved_root):
    run_here(*QUIET)
    resume = (*QUIET, "trainer.max_epochs=2", "trainer.resume_from_checkpoint=run/checkpoints/last.ckpt")
    with pytest.raises(InputError, match="of scene ball: expected the cloud that training began with") as caught:
        run_here(*resume, root=moved_root)
    assert "datasets.n_point" in str(caught.value) and "weights_path" in str(caught.value)
    assert str(moved_root / "ball" / "mvs_pc.ply") in str(caught.value)
    run_here(*resume)


def test_coefficients_store_the_checksum(run_colours, tiny_root, tmp_path):
    folder = run_colours(tmp_path, "eval_only=true")
    assert read_mark(folder / "descriptors" / "ball.pth")["cloud"] == cloud_checksum(read_ply(tiny_root / "ball" / "mvs_pc.ply").xyz)
