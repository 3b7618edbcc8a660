"""Scene normalisation: drawn points lie on the rays of their pixels; bounds, centred scenes, NDC; and a real scene."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from npbgpp.data import CloudFile, Scene, SceneNormalisation, read_photo, scene_normalisation
from npbgpp.data.normalisation import NdcCamera, bounds_of
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PointCloud, write_ply
from npbgpp.parsers import read_scene

from ..helpers.layouts import colmap, llff, nerf_synthetic
from ..helpers.scenes import COLOURS, POINTS, RADIUS, central_intrinsics, look_at_origin

SIZE, ARC = (48, 64), 48  # of ARC views around the scene, neighbours look the same way
WRITERS = {"nerf_synthetic": nerf_synthetic.write, "llff": llff.write, "colmap": colmap.write}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """Eight views around the balls in three layouts, and ``arc``: eight neighbours of LLFF."""
    root = tmp_path_factory.mktemp("frames")
    found = {}
    for name, write in WRITERS.items():
        write(root / name, 8, SIZE)
        found[name] = read_scene(name, root / name, root / name, name, CloudFile(root / name / "mvs_pc.ply"), {})
    llff.write(root / "arc", ARC, SIZE)
    arc = read_scene("llff", root / "arc", root / "arc", "arc", CloudFile(root / "arc" / "mvs_pc.ply"), {})
    found["arc"] = replace(arc, views=arc.views[:8], splits={"train": tuple(range(8)), "val": (), "test": ()})
    return found


def hits(k: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the pixels of view k of ``count`` see a ball: (pixel number, ball, front point in the world), from the drawing alone."""
    w2c, K = look_at_origin(2 * math.pi * k / count), central_intrinsics(SIZE)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].reshape(2, -1)
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(K).T @ w2c[:3, :3]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    eye = -w2c[:3, :3].T @ w2c[:3, 3]
    along = rays @ (POINTS - eye).T
    half = RADIUS**2 - ((POINTS - eye) ** 2).sum(1) + along**2
    first = np.where(half > 0, along - np.sqrt(half.clip(0)), np.inf)
    pixel = np.flatnonzero(np.isfinite(first).any(1))
    ball = first[pixel].argmin(1)
    return pixel, ball, eye + first[pixel, ball][:, None] * rays[pixel]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in WRITERS for kind in ("plain", "inward")),
        *(("arc", kind) for kind in ("plain", "forward", "inward")),
    ],
)
def test_drawn_points_lie_on_the_rays_of_their_pixels(scenes, name, kind):
    scene = scenes[name]
    frame = scene_normalisation(scene, kind)
    for k in (0, 3, 7):
        view = scene.views[k]
        pixel, ball, xyz_world = hits(k, ARC if name == "arc" else 8)
        colours = read_photo(view).image.flatten(1)[:, pixel].T
        assert len(pixel) > 100 and (colours.int() - torch.from_numpy(COLOURS[ball]).int()).abs().max() < 5
        origins, directions = (part[0].flatten(0, 1)[pixel] for part in frame.cameras(view.camera).rays())
        origins, directions = frame.rays(origins, directions)
        points = frame.points(torch.from_numpy(xyz_world).float())
        t = ((points - origins) * directions).sum(1) / directions.square().sum(1)
        torch.testing.assert_close(origins + t[:, None] * directions, points, rtol=0, atol=2e-5)
        assert (t > frame.near).all() and (t < frame.far).all()
        torch.testing.assert_close(frame.world(points), torch.from_numpy(xyz_world).float(), rtol=0, atol=1e-4)


def test_synthetic_scenes_are_not_transformed(scenes):
    frame, camera = scene_normalisation(scenes["nerf_synthetic"], "plain"), scenes["nerf_synthetic"].views[2].camera
    assert (frame.near, frame.far, frame.scale, frame.ndc) == (2.0, 6.0, 1.0, None)
    assert torch.equal(frame.cameras(camera).R, camera.R) and torch.equal(frame.cameras(camera).T, camera.T)
    assert torch.equal(frame.points(torch.ones(2, 3)), torch.ones(2, 3))


def test_bounds_come_from_views_else_from_the_cloud(scenes):
    assert bounds_of(scenes["llff"]) == llff.BOUNDS and {view.bounds for view in scenes["llff"].views} == {llff.BOUNDS}
    depths = [view.camera.project(scenes["colmap"].cloud.read().xyz)[1] for view in scenes["colmap"].views]
    near, far = bounds_of(scenes["colmap"])
    nearest, farthest = torch.cat(depths).min().item(), torch.cat(depths).max().item()
    assert near == pytest.approx(nearest / 1.1, rel=0.01) and far == pytest.approx(1.1 * farthest, rel=0.01)
    some = (replace(scenes["llff"].views[0], bounds=None), *scenes["llff"].views[1:])
    assert bounds_of(replace(scenes["llff"], views=some)) == pytest.approx((near, far), rel=0.01)


def test_outliers_of_a_cloud_do_not_count(scenes, tmp_path):
    xyz = scenes["colmap"].cloud.read().xyz.repeat(20, 1)
    write_ply(tmp_path / "c.ply", PointCloud(torch.cat([xyz, torch.tensor([[0.0, 2.9, 0.0], [0.0, -90.0, 0.0]])]), None))
    assert bounds_of(replace(scenes["colmap"], cloud=CloudFile(tmp_path / "c.ply"))) == pytest.approx(bounds_of(scenes["colmap"]), rel=0.02)


def test_bounds_are_those_of_the_training_views(scenes):
    """A test view that is far away does not move the bounds."""
    scene = replace(scenes["colmap"], splits={"train": (0, 1, 2), "val": (), "test": (7,)})
    away = replace(scene.views[7].camera, T=scene.views[7].camera.T + torch.tensor([0.0, 0.0, 20.0]))
    moved = replace(scene, views=(*scene.views[:7], replace(scene.views[7], camera=away)))
    assert bounds_of(moved) == bounds_of(scene)


def test_large_clouds_are_sampled(scenes, tmp_path):
    xyz = scenes["colmap"].cloud.read().xyz.repeat(300, 1)
    write_ply(tmp_path / "c.ply", PointCloud(xyz, None))
    assert bounds_of(replace(scenes["colmap"], cloud=CloudFile(tmp_path / "c.ply"))) == pytest.approx(bounds_of(scenes["colmap"]), rel=1e-3)


def test_far_bound_of_plain_scenes_includes_the_image_corners(scenes):
    near, far = llff.BOUNDS
    frame = scene_normalisation(scenes["llff"], "plain")
    # the focal length is 72 pixels, the corner 40 pixels from the centre
    assert frame.near == near and frame.far == pytest.approx(far * math.hypot(40, 72) / 72)


def test_given_bounds_replace_those_of_the_scene(scenes):
    assert [(f.near, f.far) for f in (scene_normalisation(scenes[name], "plain", (0.5, 9.0)) for name in ("nerf_synthetic", "llff"))] == [
        (0.5, 9.0)
    ] * 2
    given = scene_normalisation(scenes["llff"], "inward", (1.0, 5.0))
    assert given.scale == 1 / 0.75 and given.far == pytest.approx(5 / 0.75)


# ------------------------------------------------------------------ centred scenes
def poses_in(frame: SceneNormalisation, scene: Scene) -> torch.Tensor:
    return torch.cat([frame.cameras(view.camera).to_opengl() for view in scene.views])


@pytest.mark.parametrize("kind", ["forward", "inward"])
def test_the_mean_camera_is_the_origin(scenes, kind):
    poses = poses_in(scene_normalisation(scenes["arc"], kind), scenes["arc"])
    torch.testing.assert_close(poses[:, :3, 3].mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    back, up = poses[:, :3, 2].mean(0), poses[:, :3, 1].mean(0)
    torch.testing.assert_close(back / back.norm(), torch.tensor([0.0, 0.0, 1.0]), rtol=0, atol=1e-5)
    assert abs(up[0]) < 1e-5 and up[1] > 0.9


def test_scale_and_bounds_of_centred_scenes(scenes):
    near, far = llff.BOUNDS
    forward, inward = scene_normalisation(scenes["arc"], "forward"), scene_normalisation(scenes["arc"], "inward")
    assert (forward.near, forward.far) == (0.0, 1.0) and forward.scale == inward.scale == pytest.approx(1 / (0.75 * near))
    assert inward.near == pytest.approx(1 / 0.75) and inward.far == pytest.approx(far / near / 0.75)
    deep = tuple(replace(view, bounds=(near, 100.0)) for view in scenes["arc"].views)
    assert scene_normalisation(replace(scenes["arc"], views=deep), "inward").far == pytest.approx(8 / 0.75)


@pytest.mark.parametrize("kind", ["forward", "inward"])
def test_another_world_gives_the_same_field(scenes, kind):
    """Turned, moved far away and five times larger."""
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    turn, shift = turn * turn.det(), torch.tensor([1e4, -3e4, 2e4], dtype=torch.float64)
    views = []
    for view in scenes["arc"].views:
        R, T = view.camera.R.double(), view.camera.T.double()
        R_moved = turn.T @ R  # x_moved = 5 (x @ turn) + shift
        camera = replace(view.camera, R=R_moved, T=5 * T - shift @ R_moved)
        views.append(replace(view, camera=camera, bounds=tuple(5 * bound for bound in view.bounds)))
    moved = replace(scenes["arc"], views=tuple(views))
    one, other = scene_normalisation(scenes["arc"], kind), scene_normalisation(moved, kind)
    torch.testing.assert_close(poses_in(other, moved), poses_in(one, scenes["arc"]).double(), rtol=0, atol=1e-5)
    assert other.far == pytest.approx(one.far) and other.ndc == one.ndc
    xyz = torch.from_numpy(POINTS)
    torch.testing.assert_close(other.points(5 * xyz @ turn + shift), one.points(xyz), rtol=0, atol=1e-6)


def test_surrounding_views_have_the_axes_of_the_first(scenes):
    """Their mean has no direction."""
    pose = poses_in(scene_normalisation(scenes["llff"], "inward"), scenes["llff"])[0]
    torch.testing.assert_close(pose[:3, :3], torch.eye(3), rtol=0, atol=1e-5)


# ------------------------------------------------------------------ NDC
def test_ndc_of_a_known_ray():
    frame = SceneNormalisation(torch.eye(3).double(), torch.zeros(3).double(), 1.0, 0.0, 1.0, NdcCamera(400.0, (378, 504)))
    origins, directions = frame.rays(torch.tensor([[0.1, -0.2, 0.05]]), torch.tensor([[0.1, 0.2, -0.97]]))
    torch.testing.assert_close(origins, torch.tensor([[0.330551, 0.034910, -1.0]]), rtol=0, atol=2e-6)
    torch.testing.assert_close(directions, torch.tensor([[-0.166912, 0.401462, 2.0]]), rtol=0, atol=2e-6)
    # 9 lengths of the Euclidean direction away
    t = ((frame.points(torch.tensor([[1.0, 1.6, -8.68]])) - origins) / directions)[0]
    assert t.max() - t.min() < 1e-6 and t[0] == pytest.approx(1 - 1 / 8.68, abs=1e-5)


def test_ndc_is_that_of_the_photos(scenes):
    """A point at the border of a photo of the mean camera is at the border of the box."""
    frame = scene_normalisation(scenes["arc"], "forward")
    assert frame.ndc == NdcCamera(72.0, SIZE)
    mean = Cameras.from_opengl(torch.eye(4)[None], torch.full((1, 2), 72.0), torch.tensor([[32.0, 24.0]]), SIZE)
    xyz = torch.tensor([[32 / 72, 24 / 72, -1.0]]) * torch.tensor([[1.0], [5.0]])
    assert mean.project(xyz)[0].flatten().tolist() == pytest.approx([64, 0, 64, 0], abs=1e-4)
    here = replace(frame, rotation=torch.eye(3).double(), centre=torch.zeros(3).double(), scale=1.0)
    torch.testing.assert_close(here.points(xyz), torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, 0.6]]))


# ------------------------------------------------------------------ refused
def with_bounds(bounds: tuple[float, float]) -> Callable[[Scene], Scene]:
    def change(scene: Scene) -> Scene:
        return replace(scene, views=(*scene.views[:3], replace(scene.views[3], bounds=bounds), *scene.views[4:]))

    return change


REFUSED: dict[str, tuple[str, str, Callable[[Scene], Scene], list[str]]] = {
    "nan": ("llff", "plain", with_bounds((math.nan, 3.0)), ["photo_003", "photo_003.png", "poses_bounds.npy", "nan"]),
    "infinite": ("llff", "inward", with_bounds((1.0, math.inf)), ["photo_003", "inf"]),
    "zero": ("arc", "forward", with_bounds((0.0, 3.0)), ["photo_003", "0.0"]),
    "descending": ("llff", "plain", with_bounds((3.0, 2.0)), ["photo_003", "[3.0, 2.0]"]),
    "equal": ("llff", "inward", with_bounds((2.0, 2.0)), ["photo_003", "[2.0, 2.0]"]),
    "around": ("llff", "forward", lambda scene: scene, ["system.ray_frame", "forward", "photo_0"]),
    "kind": ("llff", "sideways", lambda scene: scene, ["system.ray_frame", "sideways"]),
    "no cloud": ("colmap", "plain", lambda scene: replace(scene, cloud=CloudFile(Path("none.ply"))), ["none.ply"]),
    "cloud out of sight": ("colmap", "plain", lambda scene: replace(scene, cloud=CloudFile(away(scene))), ["away.ply", "none"]),
}


def away(scene: Scene) -> Path:
    """A cloud that no view sees."""
    path = scene.cloud.path.with_name("away.ply")
    write_ply(path, PointCloud(torch.tensor([[0.0, 0.0, 50.0]]), None))
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_bounds_and_kinds_are_refused(scenes, case):
    name, kind, change, values = REFUSED[case]
    with pytest.raises(InputError) as caught:
        scene_normalisation(change(scenes[name]), kind)
    assert all(value in str(caught.value) for value in values), str(caught.value)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (1.0, math.nan), (-1.0, 1.0)])
def test_invalid_given_bounds_are_refused(scenes, bounds):
    with pytest.raises(InputError) as caught:
        scene_normalisation(scenes["nerf_synthetic"], "plain", bounds)
    assert "system.ray_bounds" in str(caught.value) and str(list(bounds)) in str(caught.value)


# ------------------------------------------------------------------ a real scene
def test_fern(shared):
    folder = shared / "data" / "llff" / "fern"
    if not folder.is_dir():
        pytest.skip("fern is not among the shared data")
    scene = read_scene("llff", folder, folder, "fern", CloudFile(folder / "none.ply"), {"downscale": 8.0})
    frame = scene_normalisation(scene, "forward")
    rows = np.load(folder / "poses_bounds.npy")
    assert [view.bounds for view in scene.views] == [tuple(row) for row in rows[:, 15:]]
    assert min(near for near, _ in (view.bounds for view in scene.views)) * frame.scale == pytest.approx(1 / 0.75)
    assert frame.ndc is not None and frame.ndc.image_size == (378, 504) and frame.ndc.focal == pytest.approx(407.5658, abs=1e-3)
    # the arithmetic of nerf_pl on the numbers of the file
    poses = rows[:, :15].reshape(-1, 3, 5)
    poses = np.concatenate([poses[..., 1:2], -poses[..., :1], poses[..., 2:4]], -1)
    z = poses[..., 2].mean(0)
    z /= np.linalg.norm(z)
    x = np.cross(poses[..., 1].mean(0), z)
    x /= np.linalg.norm(x)
    mean = np.eye(4)
    mean[:3] = np.stack([x, np.cross(z, x), z, poses[..., 3].mean(0)], 1)
    expected = np.linalg.inv(mean) @ np.concatenate([poses, np.broadcast_to([[[0.0, 0, 0, 1]]], (len(poses), 1, 4))], 1)
    expected[:, :3, 3] /= 0.75 * rows[:, 15].min()
    torch.testing.assert_close(poses_in(frame, scene), torch.from_numpy(expected).float(), rtol=0, atol=2e-5)
