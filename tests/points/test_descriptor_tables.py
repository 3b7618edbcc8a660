"""Descriptor tables: unique rows, steps, files, invalid input."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.errors import InputError
from npbgpp.points.descriptor_tables import DescriptorFolders, DescriptorTables, ScenePoints, unique_rows
from npbgpp.points.sparse_optim import SparseAdam, SparseParameter, SparseRMSprop


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(0, 300))
def test_unique_rows_is_torch_unique_up_to_order(seed, points, count):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(points, (count,), generator=generator)
    slot = torch.randint(-(2**31), 2**31, (points,), dtype=torch.int32, generator=generator)  # uninitialised memory
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


def tables(
    save: Path, pretrained: Path | None = None, *, points: int = 5, max_points: int | None = None, reuse: bool = False
) -> DescriptorTables:
    """Tables (n, 3) of scenes with random points."""
    folders = DescriptorFolders(save, pretrained, reuse=reuse)
    return DescriptorTables(3, folders, SparseRMSprop(0.1), lambda scene: ScenePoints(torch.randn(points, 3)), max_points=max_points)


def test_search_order_of_files(tmp_path):
    """Saved by this run, then (with ``reuse``) the save folder, then the pretrained folder, then zeros."""
    save, pretrained = tmp_path / "save", tmp_path / "pretrained"
    for folder, value in ((save, 1.0), (pretrained, 2.0)):
        folder.mkdir()
        torch.save(torch.full((5, 3), value), folder / "a.pth")
    assert tables(save, pretrained, reuse=True).resident("a", training=False).table.values.eq(1).all()
    new = tables(save, pretrained)
    values = new.resident("a", training=False).table.values
    assert values.eq(2).all()
    values.fill_(3.0)
    new.save("a")
    assert new.resident("b", training=True).table.values.eq(0).all() and list(new.residents) == ["b"]
    assert new.resident("a", training=False).table.values.eq(3).all()


def test_saved_tables_are_plain_tensors_of_the_cloud(tmp_path):
    new = tables(tmp_path / "new" / "folder")
    values = new.resident("a", training=True).table.values.normal_()
    path = new.save("a")
    assert path == tmp_path / "new" / "folder" / "a.pth"
    assert torch.equal(torch.load(path, weights_only=True), values)


@pytest.mark.parametrize("by_view", [False, True])
def test_a_step_updates_the_rows_that_views_see(tmp_path, by_view):
    """Gradients of several batches, views and levels are summed per point, clipped per table, and update these rows alone."""
    folders, optimizer = DescriptorFolders(tmp_path / "save", tmp_path), SparseAdam(1.0, weight_decay=0.1)
    torch.save(torch.ones(5, 3), tmp_path / "a.pth")
    one = DescriptorTables(3, folders, optimizer, lambda scene: ScenePoints(torch.randn(5, 3)), drawn_from=0 if by_view else None)
    table = one.resident("a", training=True).table
    maps = [torch.tensor([[[0, 2]], [[2, -1]]]), torch.tensor([[[2]], [[4]]])]
    gradient = torch.zeros(5, 3)
    for factor in (1.0, 10.0):
        gathered = one.gather(maps, ["a", "a"], learn=True)
        assert [rows.eq(-1).tolist() for rows in gathered.rows] == [index.eq(-1).tolist() for index in maps]
        sum((level + 1) * gathered.values[rows[rows >= 0]].sum() * factor for level, rows in enumerate(gathered.rows)).backward()
        one.accumulate(gathered)
        for level, index in enumerate(maps):
            gradient.index_add_(0, index[index >= 0], (level + 1) * factor * torch.ones(int((index >= 0).sum()), 3))
    expected, seen = SparseParameter(torch.ones(5, 3)), torch.tensor([0, 2, 4])
    clip = 0.5
    SparseAdam(0.25, weight_decay=0.1).update(expected, seen, gradient[seen] * clip / (gradient.norm() + 1e-6))
    one.step(0.25, clip)
    torch.testing.assert_close(table.values, expected.values)
    assert table.changed and table.values[[1, 3]].eq(1).all()
    before = table.values.clone()
    one.step(0.25)
    assert torch.equal(table.values, before), "gradients belong to one step"


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
        tables(tmp_path, reuse=True).resident("a", training=False)
    assert str(tmp_path / "a.pth") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_truncated_files_are_named(tmp_path, kept):
    write(tmp_path / "a.pth", torch.zeros(500, 3))
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[:kept])
    with pytest.raises(InputError, match="damaged") as caught:
        tables(tmp_path, points=500, reuse=True).resident("a", training=False)
    assert str(tmp_path / "a.pth") in str(caught.value)


def test_required_descriptors_without_a_file(tmp_path):
    with pytest.raises(InputError, match="descriptors of scene a") as caught:
        tables(tmp_path / "save", tmp_path / "start").resident("a", training=False)
    for part in (str(tmp_path / "save"), str(tmp_path / "start"), "a.pth", "system.descriptors_pretrained_dir"):
        assert part in str(caught.value)


def test_max_points_refuses_larger_clouds(tmp_path):
    assert len(tables(tmp_path, max_points=5).resident("a", training=True).table.values) == 5
    with pytest.raises(InputError, match="system.max_points: scene a has 6 points, more than 5"):
        tables(tmp_path, points=6, max_points=5).resident("a", training=True)


def test_leftovers_are_refused_unless_they_are_the_start(tmp_path):
    write(tmp_path / "b.pth", torch.zeros(5, 3))
    tables(tmp_path).begin_training(["a"], [], overwrite=False)
    tables(tmp_path, tmp_path).begin_training(["a", "b"], [], overwrite=False)
    tables(tmp_path).begin_training(["a", "b"], [], overwrite=True)
    with pytest.raises(InputError, match="already holds descriptors of b") as caught:
        tables(tmp_path).begin_training(["a", "b"], [], overwrite=False)
    for way_out in ("hydra.run.dir", f"system.descriptors_pretrained_dir={tmp_path}", "system.overwrite_descriptors=true"):
        assert way_out in str(caught.value)
    assert (tmp_path / "b.pth").exists()
