"""Descriptor tables: compaction of winners, files, refusals."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.errors import InputError
from npbgpp.points.descriptor_tables import DescriptorStore, unique_rows
from npbgpp.points.sparse_optim import SparseParameter

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(0, 300))
def test_unique_rows_is_torch_unique_up_to_order(seed, points, count):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(points, (count,), generator=generator)
    slot = torch.randint(-(2**31), 2**31, (points,), dtype=torch.int32, generator=generator)  # left over from whatever was there before
    rows, position = unique_rows(index, slot)
    assert torch.equal(rows.sort().values, torch.unique(index))
    assert torch.equal(rows[position], index)


def test_unique_rows_reuses_its_scratch():
    slot = torch.empty(10, dtype=torch.int32)
    unique_rows(torch.tensor([9, 9, 1]), slot)
    rows, position = unique_rows(torch.tensor([2, 1, 2]), slot)
    assert sorted(rows.tolist()) == [1, 2] and rows[position].tolist() == [2, 1, 2]
    rows, position = unique_rows(torch.zeros(0, dtype=torch.int64), slot)
    assert len(rows) == len(position) == 0


def store(folder: Path, pretrained: Path | None = None, max_points: int | None = None, read_saved: bool = False) -> DescriptorStore:
    return DescriptorStore(3, folder, pretrained, max_points, read_saved)


def cloud(points: int = 5) -> torch.Tensor:
    return torch.randn(points, 3)


def test_order_of_places(tmp_path):
    """Saved by this run, then (when an earlier run counts) the save folder, then the pretrained folder, then zeros."""
    save, pretrained = tmp_path / "save", tmp_path / "pretrained"
    for folder, value in ((save, 1.0), (pretrained, 2.0)):
        folder.mkdir()
        torch.save(torch.full((5, 3), value), folder / "a.pth")
    assert store(save, pretrained, read_saved=True).open("a", cloud(), CPU, True).table.values.eq(1).all()
    fresh = store(save, pretrained)
    assert fresh.open("a", cloud(), CPU, True).table.values.eq(2).all()
    fresh.save("a", SparseParameter(torch.full((5, 3), 3.0)))
    assert fresh.open("a", cloud(), CPU, True).table.values.eq(3).all()
    assert not fresh.has("b") and fresh.open("b", cloud(), CPU, False).table.values.eq(0).all()


def test_saved_tables_are_plain_tensors_of_the_cloud(tmp_path):
    values = torch.randn(5, 3)
    path = store(tmp_path / "new" / "folder").save("a", SparseParameter(values))
    assert path == tmp_path / "new" / "folder" / "a.pth"
    assert torch.equal(torch.load(path, weights_only=True), values)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(6, 3), "expected 5 x 3 for the cloud of scene a, got 6 x 3"),
        (torch.zeros(5, 8), "expected 5 x 3 for the cloud of scene a, got 5 x 8"),
        (torch.full((5, 3), float("nan")), "not finite"),
        (torch.full((5, 3), float("inf")), "not finite"),
        ({"weights": torch.zeros(5, 3)}, "expected a tensor .* got dict"),
        ([torch.zeros(5, 3)], "expected a tensor .* got list"),
        (torch.zeros(15), "expected a tensor"),
        (Path("pickled"), "holds other Python objects"),
    ],
)
def test_unusable_files_are_named(tmp_path, content, message):
    write(tmp_path / "a.pth", content)
    with pytest.raises(InputError, match=message) as caught:
        store(tmp_path, read_saved=True).open("a", cloud(), CPU, True)
    assert str(tmp_path / "a.pth") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_truncated_files_are_named(tmp_path, kept):
    write(tmp_path / "a.pth", torch.zeros(500, 3))
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[:kept])
    with pytest.raises(InputError, match="damaged") as caught:
        store(tmp_path, read_saved=True).open("a", cloud(500), CPU, True)
    assert str(tmp_path / "a.pth") in str(caught.value)


def test_required_descriptors_that_nobody_has(tmp_path):
    with pytest.raises(InputError, match="descriptors of scene a") as caught:
        store(tmp_path / "save", tmp_path / "start").open("a", cloud(), CPU, True)
    for part in (str(tmp_path / "save"), str(tmp_path / "start"), "a.pth", "system.descriptors_pretrained_dir"):
        assert part in str(caught.value)


def test_max_points_refuses_larger_clouds(tmp_path):
    assert len(store(tmp_path, max_points=5).open("a", cloud(5), CPU, False).table.values) == 5
    with pytest.raises(InputError, match="system.max_points: scene a has 6 points, more than 5"):
        store(tmp_path, max_points=5).open("a", cloud(6), CPU, False)


def test_leftovers_are_refused_unless_they_are_the_start(tmp_path):
    write(tmp_path / "b.pth", torch.zeros(5, 3))
    store(tmp_path).refuse_leftovers(["a"])
    store(tmp_path, tmp_path).refuse_leftovers(["a", "b"])
    with pytest.raises(InputError, match="already holds descriptors of b") as caught:
        store(tmp_path).refuse_leftovers(["a", "b"])
    for way_out in ("hydra.run.dir", f"system.descriptors_pretrained_dir={tmp_path}", "system.overwrite_descriptors=true"):
        assert way_out in str(caught.value)
    assert (tmp_path / "b.pth").exists()
