"""Voxel sums against plain Python, downsampled clouds, and fused depth maps of drawn balls."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import View
from npbgpp.errors import InputError
from npbgpp.geometry.point_cloud import PointCloud, read_ply
from npbgpp.parsers.scannet import parse_scannet_raw
from npbgpp.prepare import depth_fusion
from npbgpp.prepare.depth_fusion import CELL_LIMIT, VoxelSums, decimate, fuse_depth, pack_cells, read_depth, unpack_cells

from ..helpers.balls import (
    DEPTH_UNIT,
    camera,
    cast_depth,
    largest_gap,
    surface_distance,
    write_depth,
    write_views,
    wrong_colour_fraction,
)

SIZE, DEPTH_SIZE = (96, 128), (120, 160)
VOXEL = 0.02
COORDINATES = st.integers(-CELL_LIMIT, CELL_LIMIT - 1)


def random_cloud(seed: int = 0, points: int = 500) -> PointCloud:
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randn(points, 3, generator=generator) / 2
    return PointCloud(xyz, torch.randint(0, 256, (points, 3), generator=generator, dtype=torch.uint8))


# ------------------------------------------------------------------ voxel sums
@given(st.lists(st.tuples(COORDINATES, COORDINATES, COORDINATES), min_size=1, max_size=20))
def test_keys_sort_like_their_cells(cells):
    key = pack_cells(torch.tensor(cells))
    assert torch.equal(unpack_cells(key), torch.tensor(cells))
    assert [tuple(cell) for cell in unpack_cells(key.sort().values).tolist()] == sorted(cells)


def test_voxel_sums_match_a_loop():
    clouds, side = [random_cloud(seed, 200) for seed in range(3)], 0.35
    voxels = defaultdict(list)
    for k, cloud in enumerate(clouds):
        for xyz, rgb in zip(cloud.xyz.double().tolist(), cloud.rgb_u8.tolist(), strict=True):
            voxels[tuple(int(x // side) for x in xyz)].append((k, xyz, rgb))
    sums = [VoxelSums.from_cloud(cloud, side) for cloud in clouds]
    merged = VoxelSums.merge([VoxelSums.merge(sums[:2]), sums[2]])
    for hits in (1, 2, 3):
        kept = [points for _, points in sorted(voxels.items()) if len({k for k, _, _ in points}) >= hits]
        found = merged.mean_points(hits)
        torch.testing.assert_close(found.xyz, torch.tensor([np.mean([p[1] for p in points], 0).tolist() for points in kept]))
        assert np.abs(found.rgb_u8.numpy() - np.array([np.mean([p[2] for p in points], 0) for points in kept])).max() <= 0.5 + 1e-4
    assert 0 < len(kept) < len(voxels)


def test_precision_far_from_the_origin():
    xyz = torch.tensor([[60_000.0, 0.0, -60_000.0]]) + torch.tensor([[0.0, 0.0, 0.0], [0.125, 0.0, 0.0]])
    assert torch.equal(VoxelSums.from_cloud(PointCloud(xyz), 0.25).mean_points().xyz, torch.tensor([[60_000.0625, 0.0, -60_000.0]]))


# ------------------------------------------------------------------ decimation
def test_points_of_a_voxel_are_averaged():
    xyz = torch.tensor([[0.1, 0.1, 0.1], [0.3, 0.1, 0.4], [-0.1, 0.1, 0.1], [0.6, 0.1, 0.1]])
    rgb = torch.tensor([[10, 0, 0], [21, 0, 0], [0, 7, 0], [0, 0, 9]], dtype=torch.uint8)
    found = decimate(PointCloud(xyz, rgb), 0.5, None)
    torch.testing.assert_close(found.xyz, torch.tensor([[-0.1, 0.1, 0.1], [0.2, 0.1, 0.25], [0.6, 0.1, 0.1]]))
    assert found.rgb_u8.tolist() == [[0, 7, 0], [16, 0, 0], [0, 0, 9]]


def test_decimated_cloud_covers_the_cloud_in_any_order():
    cloud, shuffled = random_cloud(), torch.randperm(500)
    found = decimate(cloud, 0.25, None)
    assert len(found) < 500 and torch.cdist(cloud.xyz, found.xyz).amin(1).max() <= 0.25 * 3**0.5
    assert len((found.xyz / 0.25).floor().unique(dim=0)) == len(found)
    again = decimate(PointCloud(cloud.xyz[shuffled], cloud.rgb_u8[shuffled]), 0.25, None)
    torch.testing.assert_close(again.xyz, found.xyz)
    assert torch.equal(again.rgb_u8, found.rgb_u8)


def test_random_draw_is_reproducible_and_keeps_the_order():
    cloud = random_cloud()
    found = decimate(cloud, None, 100)
    rows = (cloud.xyz[None] == found.xyz[:, None]).all(2).nonzero()[:, 1]
    assert len(rows) == 100 and torch.equal(rows, rows.sort().values) and not torch.equal(rows, torch.arange(100))
    assert torch.equal(found.rgb_u8, cloud.rgb_u8[rows])
    torch.manual_seed(99)
    assert torch.equal(decimate(cloud, None, 100).xyz, found.xyz)


def test_voxels_before_the_draw_small_clouds_and_missing_colours():
    cloud = random_cloud()
    averaged, drawn = decimate(cloud, 0.5, None).xyz, decimate(cloud, 0.5, 20).xyz
    assert len(drawn) == 20 and (drawn[:, None] == averaged).all(2).any(1).all()
    assert all(torch.equal(decimate(cloud, None, count).xyz, cloud.xyz) for count in (500, None))
    assert decimate(PointCloud(cloud.xyz), 0.5, 10).rgb_u8 is None


# ------------------------------------------------------------------ fusion
@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> tuple[View, ...]:
    """Depth maps have another size than the photos."""
    folder = tmp_path_factory.mktemp("balls")
    return tuple(
        replace(view, mask=None, depth=write_depth(folder / "depth" / f"{k}.png", camera(k, 16, DEPTH_SIZE)))
        for k, view in enumerate(write_views(folder, size=SIZE))
    )


def replace_depth(view: View, folder, steps: np.ndarray) -> View:
    path = folder / f"{view.name}.png"
    Image.fromarray(steps).save(path)
    return replace(view, depth=replace(view.depth, path=path))


def test_depths_are_read_in_scene_units(views):
    depth = views[5].depth
    torch.testing.assert_close(read_depth(depth).double(), torch.from_numpy(cast_depth(depth.camera)), rtol=0, atol=0.51 * DEPTH_UNIT)


def test_fused_points_cover_the_balls_once_per_voxel(views):
    cloud = fuse_depth(views, VOXEL)
    distance, ball = surface_distance(cloud.xyz)
    assert distance.min() > -0.003 and distance.max() < DEPTH_UNIT  # means of points on a sphere lie inside of it
    assert largest_gap(cloud.xyz) < 4 * VOXEL  # at the poles, which the ring of cameras hardly sees
    assert wrong_colour_fraction(cloud.rgb_u8, ball) < 0.05  # at borders, where the photo is coarser than the depth map
    assert len((cloud.xyz.double() / VOXEL).floor().unique(dim=0)) == len(cloud)


def test_default_voxel_is_a_fraction_of_the_median_depth(views):
    depths = [read_depth(view.depth) for view in views]
    median = float(torch.stack([depth[depth > 0].median() for depth in depths]).median())
    cloud = fuse_depth(views, None)
    assert torch.equal(cloud.xyz, fuse_depth(views, median / 250).xyz) and len(cloud) > len(fuse_depth(views, VOXEL)) > 100


def test_files_of_other_views_are_not_opened(tmp_path):
    views = [replace(v, depth=write_depth(tmp_path / f"{v.name}.png", v.camera)) for v in write_views(tmp_path, views=8, size=(48, 64))]
    expected = fuse_depth(views[::2], None, 1)
    for view in views[1::2]:
        view.image.write_bytes(b"held out")
        view.depth.path.write_bytes(b"held out")
    found = fuse_depth(views[::2], None, 1)
    assert torch.equal(found.xyz, expected.xyz) and torch.equal(found.rgb_u8, expected.rgb_u8)


def test_depths_of_a_single_view_are_dropped(tmp_path, views):
    """One pixel in front of a ball, where there is nothing."""
    steps = np.asarray(Image.open(views[3].depth.path)).copy()
    row, column = np.argwhere(steps > 0)[len(np.argwhere(steps > 0)) // 2]
    steps[row, column] //= 2
    wrong = replace_depth(views[3], tmp_path, steps)
    mixed = [wrong if view.name == "3" else view for view in views]
    assert surface_distance(fuse_depth(mixed, VOXEL).xyz)[0].max() < 0.01
    assert surface_distance(fuse_depth(mixed, VOXEL, min_hits=1).xyz)[0].max() > 0.5
    # the same view twice counts as two, many pixels of one view as one
    assert surface_distance(fuse_depth([*mixed, wrong], VOXEL).xyz)[0].max() > 0.5
    assert len(fuse_depth(mixed, 0.5, min_hits=len(views))) < len(fuse_depth(mixed, 0.5, min_hits=1))


def test_merging_does_not_change_the_result(views, monkeypatch):
    expected = fuse_depth(views, VOXEL)
    monkeypatch.setattr(depth_fusion, "_MIN_MERGE", 1)
    found = fuse_depth(views, VOXEL)
    torch.testing.assert_close(found.xyz, expected.xyz)
    assert (found.rgb_u8.int() - expected.rgb_u8.int()).abs().max() <= 1


def test_views_without_depth_and_depths_outside_the_photo_are_skipped(tmp_path, views):
    without = replace(views[0], name="without", image=tmp_path / "none.png", depth=None)
    whole = fuse_depth([views[0]], VOXEL, 1)
    assert torch.equal(fuse_depth([without, views[0]], VOXEL, 1).xyz, whole.xyz)
    half = fuse_depth([replace(views[0], camera=views[0].camera.crop(0, 64, SIZE))], VOXEL, 1)
    assert 0.2 * len(whole) < len(half) < 0.8 * len(whole)
    assert (views[0].camera.project(half.xyz)[0][..., 0] > 63).all()


REFUSALS = {
    "no depth maps": (lambda v, out: fuse_depth([replace(view, depth=None) for view in v], None), "16 views"),
    "zero depths, default voxel": (lambda v, out: fuse_depth([replace_depth(v[0], out, np.zeros(DEPTH_SIZE, np.uint16))], None), "0.png"),
    "zero depths": (lambda v, out: fuse_depth([replace_depth(v[0], out, np.zeros(DEPTH_SIZE, np.uint16))], VOXEL), "min_hits"),
    "single view": (lambda v, out: fuse_depth(v[:1], VOXEL), "min_hits: .* 2 of 1 views"),
    "8 bits": (lambda v, out: fuse_depth([replace_depth(v[0], out, np.ones(DEPTH_SIZE, np.uint8))], VOXEL), "16-bit .* got L"),
    "3 channels": (lambda v, out: fuse_depth([replace_depth(v[0], out, np.ones((*DEPTH_SIZE, 3), np.uint8))], VOXEL), "got RGB"),
    "other size": (lambda v, out: fuse_depth([replace_depth(v[0], out, np.ones((60, 80), np.uint16))], VOXEL), "160x120 .* got 80x60"),
    "missing file": (lambda v, out: fuse_depth([replace(v[0], depth=replace(v[0].depth, path=out / "none.png"))], VOXEL), "none.png"),
    "negative voxel": (lambda v, out: fuse_depth(v, -1.0), "voxel: .* -1"),
    "no hits": (lambda v, out: fuse_depth(v, 0.1, 0), "min_hits: .* 0"),
    "zero voxel": (lambda v, out: decimate(random_cloud(), 0.0, None), "voxel: .* 0"),
    "NaN voxel": (lambda v, out: decimate(random_cloud(), float("nan"), None), "voxel: .* nan"),
    "infinite voxel": (lambda v, out: decimate(random_cloud(), float("inf"), None), "voxel: .* inf"),
    "zero points": (lambda v, out: decimate(random_cloud(), None, 0), "count: .* 0"),
    "tiny voxel": (lambda v, out: decimate(random_cloud(), 1e-9, None), "voxel: .* 1e-09"),
    "denormal voxel": (lambda v, out: decimate(random_cloud(), 1e-300, None), "voxel: .* 1e-300"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(views, tmp_path, case):
    call, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        call(views, tmp_path)


def test_truncated_depth_map_is_refused(tmp_path, views):
    (tmp_path / "cut.png").write_bytes(views[0].depth.path.read_bytes()[:200])
    with pytest.raises(InputError, match="cut.png"):
        fuse_depth([replace(views[0], depth=replace(views[0].depth, path=tmp_path / "cut.png"))], VOXEL)


def test_real_depth_maps_match_the_released_cloud(shared):
    root = shared / "data" / "scannet_like"
    raw = root / "raw" / "kitchen0000_00"
    scene = parse_scannet_raw(raw, raw, "kitchen", CloudFile(raw / "none.ply"))
    cloud = fuse_depth(scene.views[::4], 0.03)
    released = read_ply(root / "npbgpp" / "kitchen0000_00" / "full.ply")
    drawn = cloud.xyz[torch.randperm(len(cloud))[:500]]
    assert torch.cdist(drawn, released.xyz).amin(1).median() < 0.02  # its voxels have edges of 0.012
