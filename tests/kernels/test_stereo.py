"""PatchMatch stereo against its reference, and against the exact depths of a textured room."""

import numpy as np
import pytest
import torch

from npbgpp.kernels import backend as backends
from npbgpp.kernels.stereo import (
    WORST,
    Neighbour,
    PlaneMap,
    StereoPyramid,
    StereoView,
    agreeing_reference,
    consistent_depth,
    estimate_planes,
    estimate_planes_reference,
    fuse_view,
)

from ..helpers.room import ROOM, Room

needs_numba = pytest.mark.skipif(not backends.numba_is_available(), reason="needs numba")
RANGE = (1 / 6.0, 1 / 0.8)


@pytest.fixture(scope="module")
def small() -> Room:
    return ROOM.rendered(5, 48, 64)


def pyramids(room: Room) -> list[StereoPyramid]:
    return [StereoPyramid(view) for view in room.views]


@needs_numba
def test_reference(small):
    """Rounding decides between planes of equal cost here and there: the maps agree in most pixels, and the costs in all but few."""
    found = estimate_planes(pyramids(small)[0], pyramids(small)[1:], RANGE, seed=3)
    levels = [pyramid.levels for pyramid in pyramids(small)]
    expected = estimate_planes_reference(levels[0], levels[1:], RANGE, seed=3)
    off = np.abs(found.inverse_depth / expected.inverse_depth - 1)
    assert (off < 1e-3).mean() > 0.9 and np.median(off) < 1e-4
    assert (np.abs(found.cost - expected.cost) < 2e-3).mean() > 0.9
    assert found.slope.shape == expected.slope.shape == (2, 48, 64)


@needs_numba
def test_threads_change_nothing(small, monkeypatch):
    one = estimate_planes(pyramids(small)[0], pyramids(small)[1:], RANGE)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    three = estimate_planes(pyramids(small)[0], pyramids(small)[1:], RANGE)
    assert all(np.array_equal(getattr(one, name), getattr(three, name)) for name in ("inverse_depth", "slope", "cost"))


@needs_numba
def test_depths_of_a_room():
    """At 160x120, where the finest texture is finer than the pixels, most pixels are found, half of them to a fifth of a per cent."""
    room = ROOM.rendered(7, 120, 160)
    maps = [estimate_planes(p, [q for q in pyramids(room) if q is not p][:4], RANGE) for p in pyramids(room)]
    depth = consistent_depth(room.views[0], maps[0], [Neighbour(v, m) for v, m in zip(room.views[1:], maps[1:], strict=True)])
    known = depth > 0
    error = np.abs(1 / depth[known] / room.depths[0][known] - 1)
    assert known.mean() > 0.65, known.mean()
    assert np.median(error) < 0.003 and (error < 0.01).mean() > 0.85, (np.median(error), (error < 0.01).mean())


def exact(room: Room) -> list[PlaneMap]:
    maps = []
    for depth in room.depths:
        w = (1 / depth).astype(np.float32)
        maps.append(PlaneMap(w, np.stack([np.gradient(w, axis=1), np.gradient(w, axis=0)]).astype(np.float32), np.zeros_like(w)))
    return maps


@needs_numba
def test_consistency_against_the_reference(small):
    maps = exact(small)
    noisy = PlaneMap(maps[1].inverse_depth * (1 + 0.02 * (np.arange(64) % 3 == 0)).astype(np.float32), maps[1].slope, maps[1].cost.copy())
    noisy.cost[10:20] = WORST
    agree, found, _ = agreeing_reference(small.views[0], maps[0].inverse_depth, small.views[1], noisy)
    depth = consistent_depth(small.views[0], maps[0], [Neighbour(small.views[1], noisy)], least=1)
    assert 0.1 < agree.mean() < 0.8
    assert ((depth > 0) == agree).mean() > 0.995, "rounding at the limits alone"
    both = (depth > 0) & agree
    np.testing.assert_allclose(depth[both], (maps[0].inverse_depth + found)[both] / 2, rtol=1e-5)


@pytest.mark.parametrize("kernels", [pytest.param("numba", marks=needs_numba), "torch"])
def test_fusion_of_exact_depths(small, monkeypatch, kernels):
    """Every point lies on the surface of the room, faces its view, is seen by as many views as asked for, and is made once."""
    monkeypatch.setenv("NPBGPP_KERNELS", kernels)
    maps, used = exact(small), [np.zeros((48, 64), bool) for _ in small.views]
    photos = [np.repeat((view.grey[..., None] * 255).astype(np.uint8), 3, 2) for view in small.views]
    points = []
    for k in range(5):
        others = [j for j in range(5) if j != k]
        points.append(fuse_view(k, small.views, [m.inverse_depth for m in maps], maps[k].slope, photos, used, others, least=3))
        assert k > 0 or used[0].sum() == len(points[0].xyz_world)
    first = points[0]
    assert len(first.xyz_world) > 1000 and sum(len(p.xyz_world) for p in points) < 5 * len(first.xyz_world) * 0.7
    camera = small.views[0].world_to_cam
    xyz_cam = first.xyz_world @ camera[:3, :3].T + camera[:3, 3]
    uv_px = (xyz_cam @ small.views[0].K.T)[:, :2] / xyz_cam[:, 2:]
    depth = small.depths[0][uv_px[:, 1].astype(int), uv_px[:, 0].astype(int)]
    np.testing.assert_allclose(xyz_cam[:, 2], depth, rtol=0.01)
    normal_cam = first.normal_world @ camera[:3, :3].T
    np.testing.assert_allclose(np.linalg.norm(normal_cam, axis=1), 1, rtol=1e-5)
    assert ((normal_cam * xyz_cam).sum(1) < 0).mean() > 0.99
    assert ((first.seen >= 0).sum(1) >= 3).all() and (first.seen[:, 0] == 0).all()
    expected = small.views[0].grey[uv_px[:, 1].astype(int), uv_px[:, 0].astype(int)] * 255
    assert np.median(np.abs(first.rgb_u8[:, 0] - expected)) < 10


def test_masked_pixels_and_a_view_from_behind(small):
    """Outside the mask nothing is estimated; a source that looks away gives the worst cost, and no error."""
    mask = np.zeros((48, 64), bool)
    mask[10:30, 20:40] = True
    turned = np.diag([-1.0, 1.0, -1.0, 1.0]) @ small.views[1].world_to_cam
    views = [StereoView(v.grey, mask, v.K, v.world_to_cam) for v in small.views[:1]]
    away = StereoPyramid(StereoView(small.views[1].grey, None, small.views[1].K, turned))
    found = estimate_planes(StereoPyramid(views[0]), [away], RANGE)
    assert (found.inverse_depth[~mask] == 0).all() and (found.cost[~mask] == WORST).all() and (found.cost >= 0).all()
    assert np.isfinite(found.inverse_depth).all() and (found.cost[mask] > 0.1).all()
