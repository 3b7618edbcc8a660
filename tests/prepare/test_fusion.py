"""Fused depth maps: on the drawn balls, in their colours, from the given views alone; what few views claim; what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import npbgpp.prepare.depth_fusion as fusion
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import View
from npbgpp.errors import InputError
from npbgpp.geometry.point_cloud import read_ply
from npbgpp.parsers.scannet import parse_scannet_raw
from npbgpp.prepare.depth_fusion import fuse_depth, read_depth

from .balls import DEPTH_UNIT, camera, cast_depth, farthest_uncovered, to_surfaces, write_depth, write_views, wrong_colours

SIZE = (96, 128)
VOXEL = 0.02


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> tuple[View, ...]:
    """Depth maps of a size that is not that of the photos, as real ones have."""
    folder = tmp_path_factory.mktemp("balls")
    return tuple(
        replace(view, mask=None, depth=write_depth(folder / "depth" / f"{k}.png", camera(k, 16, (120, 160))))
        for k, view in enumerate(write_views(folder, size=SIZE))
    )


def rewrite(view: View, folder, steps: np.ndarray) -> View:
    path = folder / f"{view.name}.png"
    Image.fromarray(steps).save(path)
    return replace(view, depth=replace(view.depth, path=path))


def test_points_lie_on_the_balls_and_cover_them(views):
    cloud = fuse_depth(views, VOXEL)
    outside, ball = to_surfaces(cloud.xyz)
    # means of points on a sphere lie inside it, by the arrow of a voxel's diagonal at most
    assert outside.min() > -0.003 and outside.max() < DEPTH_UNIT
    assert farthest_uncovered(cloud.xyz) < 4 * VOXEL  # at the poles, which the ring of cameras hardly sees
    assert wrong_colours(cloud.rgb, ball) < 0.05  # of border pixels, where the photo is coarser than the depth map


def test_there_is_one_point_in_each_voxel(views):
    xyz = fuse_depth(views, VOXEL).xyz.double()
    assert len((xyz / VOXEL).floor().unique(dim=0)) == len(xyz)


def test_voxel_from_the_depths(views):
    """Depths are about 3, so voxels are about 0.012 and make more points than larger ones."""
    assert torch.equal(fuse_depth(views, None).xyz, fuse_depth(views, _median_of_medians(views) / 250).xyz)
    assert len(fuse_depth(views, None)) > len(fuse_depth(views, VOXEL)) > 100


def _median_of_medians(views: tuple[View, ...]) -> float:
    depths = [read_depth(view.depth) for view in views]
    return float(torch.stack([d[d > 0].median() for d in depths]).median())


def test_views_that_are_held_out_are_not_opened(tmp_path):
    views = [replace(v, depth=write_depth(tmp_path / f"{v.name}.png", v.camera)) for v in write_views(tmp_path, views=8, size=(48, 64))]
    expected = fuse_depth(views[::2], None, 1)
    for view in views[1::2]:
        view.image.write_bytes(b"held out")
        view.depth.path.write_bytes(b"held out")
    found = fuse_depth(views[::2], None, 1)
    assert torch.equal(found.xyz, expected.xyz) and torch.equal(found.rgb, expected.rgb)


def test_what_one_view_claims_is_dropped(tmp_path, views):
    """A depth in front of a ball where there is nothing."""
    steps = np.asarray(Image.open(views[3].depth.path)).copy()
    row, column = np.argwhere(steps > 0)[len(np.argwhere(steps > 0)) // 2]
    steps[row, column] //= 2
    liar = rewrite(views[3], tmp_path, steps)
    mixed = [liar if view.name == "3" else view for view in views]
    assert to_surfaces(fuse_depth(mixed, VOXEL).xyz)[0].max() < 0.01
    assert to_surfaces(fuse_depth(mixed, VOXEL, min_hits=1).xyz)[0].max() > 0.5
    # twice the same view counts as two, many pixels of one view as one
    assert to_surfaces(fuse_depth([*mixed, liar], VOXEL).xyz)[0].max() > 0.5
    assert len(fuse_depth(mixed, 0.5, min_hits=len(views))) < len(fuse_depth(mixed, 0.5, min_hits=1))


def test_when_sums_are_merged_does_not_matter(views, monkeypatch):
    expected = fuse_depth(views, VOXEL)
    monkeypatch.setattr(fusion, "_SMALLEST_MERGE", 1)
    found = fuse_depth(views, VOXEL)
    torch.testing.assert_close(found.xyz, expected.xyz)
    assert (found.rgb.int() - expected.rgb.int()).abs().max() <= 1


def test_views_without_depth_are_passed_over(tmp_path, views):
    bare = replace(views[0], name="bare", image=tmp_path / "none.png", depth=None)
    assert torch.equal(fuse_depth([bare, *views], VOXEL).xyz, fuse_depth(views, VOXEL).xyz)


def test_depth_outside_the_photo_is_left_out(views):
    """The left half of every photo stands for a camera that shows less than its depth map."""
    narrow = replace(views[0], camera=views[0].camera.crop(0, 64, SIZE))
    whole, half = fuse_depth([views[0]], VOXEL, 1), fuse_depth([narrow], VOXEL, 1)
    assert 0.2 * len(whole) < len(half) < 0.8 * len(whole)
    assert (views[0].camera.project(half.xyz)[0][..., 0] > 63).all()


def test_depths_are_read_in_scene_units(views):
    depth = views[5].depth
    torch.testing.assert_close(read_depth(depth).double(), torch.from_numpy(cast_depth(depth.camera)), rtol=0, atol=0.51 * DEPTH_UNIT)


def test_no_depth_is_refused(tmp_path, views):
    with pytest.raises(InputError, match="at least one of 16 views to have one, got none"):
        fuse_depth([replace(view, depth=None) for view in views], None)
    black = rewrite(views[0], tmp_path, np.zeros((120, 160), np.uint16))
    with pytest.raises(InputError, match="expected known depths, got 0 everywhere"):
        fuse_depth([black], None)
    with pytest.raises(InputError, match="lower min_hits"):
        fuse_depth([black], VOXEL)
    with pytest.raises(InputError, match="at least 2 of 1 views hit, got none"):
        fuse_depth(views[:1], VOXEL)


@pytest.mark.parametrize(("voxel", "hits", "words"), [(-1.0, 2, "voxel: expected a positive"), (0.1, 0, "min_hits: expected a positive")])
def test_choices_out_of_range_are_refused(views, voxel, hits, words):
    with pytest.raises(InputError, match=words):
        fuse_depth(views, voxel, hits)


def test_pictures_that_are_no_depth_maps_are_refused(tmp_path, views):
    with pytest.raises(InputError, match="one channel with 16 bits, got L"):
        fuse_depth([rewrite(views[0], tmp_path, np.ones((120, 160), np.uint8))], VOXEL)
    with pytest.raises(InputError, match="one channel with 16 bits, got RGB"):
        fuse_depth([rewrite(views[0], tmp_path, np.ones((120, 160, 3), np.uint8))], VOXEL)
    with pytest.raises(InputError, match="expected 160x120 pixels as its camera has, got 80x60"):
        fuse_depth([rewrite(views[0], tmp_path, np.ones((60, 80), np.uint16))], VOXEL)
    cut = tmp_path / "cut.png"
    cut.write_bytes(views[0].depth.path.read_bytes()[:200])
    with pytest.raises(InputError, match="expected a readable"):
        fuse_depth([replace(views[0], depth=replace(views[0].depth, path=cut))], VOXEL)
    with pytest.raises(InputError, match="no such file"):
        fuse_depth([replace(views[0], depth=replace(views[0].depth, path=tmp_path / "none.png"))], VOXEL)


def test_real_depth_maps_give_the_cloud_that_came_with_them(shared):
    root = shared / "data" / "scannet_like"
    raw = root / "raw" / "kitchen0000_00"
    scene = parse_scannet_raw(raw, raw, "kitchen", CloudFile(raw / "none.ply"))
    cloud = fuse_depth(scene.views[::4], 0.03)
    known = read_ply(root / "npbgpp" / "kitchen0000_00" / "full.ply")
    drawn = cloud.xyz[torch.randperm(len(cloud))[:500]]
    assert torch.cdist(drawn, known.xyz).amin(1).median() < 0.02  # the sides of its voxels are 0.012, of these 0.03
