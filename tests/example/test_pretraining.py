"""Random scenes for the pretraining of NPBG++: shapes, pictures, clouds, and the command that writes them."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from npbgpp import load_cloud, load_scene

EXAMPLE = Path(__file__).resolve().parents[2] / "example"
sys.path.insert(0, str(EXAMPLE))

import make_pretraining_scenes  # noqa: E402
from pretraining_maker.clouds import Faults, one_per_cell, scene_cloud  # noqa: E402
from pretraining_maker.scenes import draw_scene  # noqa: E402
from pretraining_maker.shapes import STEP, Kind, distance, reach  # noqa: E402
from pretraining_maker.textures import Pattern, albedo  # noqa: E402
from pretraining_maker.tracer import Light, Solids, clearance, normal_at, render, surface_points  # noqa: E402

SIZES = {
    Kind.ELLIPSOID: (0.4, 0.3, 0.2),
    Kind.BOX: (0.4, 0.3, 0.2),
    Kind.CYLINDER: (0.3, 0.3, 0.4),
    Kind.TORUS: (0.4, 0.1, 0.3),
    Kind.CONE: (0.4, 0.1, 0.5),
    Kind.CUP: (0.3, 0.3, 0.4),
    Kind.LUMP: (0.4, 0.12, 0.3),
    Kind.PAIR: (0.3, 0.2, 0.4),
    Kind.ROOM: (1.0, 0.8, 0.6),
}


def solid(kind: Kind, position=(0.0, 0.0, 0.0), gloss: float = 0.0) -> Solids:
    size = np.array([SIZES[kind]])
    return Solids(
        kind=np.array([int(kind)]),
        size=size,
        rounding=np.array([0.02]),
        reach=np.array([reach(kind, size[0], 0.02)]),
        rotation=np.eye(3)[None],
        position=np.array([position]),
        pattern=np.array([int(Pattern.PLAIN)]),
        colours=np.full((1, 3, 3), 0.5),
        frequency=np.array([4.0]),
        gloss=np.array([gloss]),
        metal=np.zeros(1),
        exponent=np.full(1, 30.0),
    )


LIGHT = Light(
    np.array([0.0, 0.0, 5.0]),
    0.1 * np.eye(3)[:2],
    np.full(3, 0.5),
    np.full((2, 3), 0.4),
    np.array([[0.0, 1.0, 0.0, 0.2, 1.0, 1.0, 1.0, 1.0]]),
)


def camera(distance_: float) -> np.ndarray:
    """At (0, -distance, 0), looking along +y with z up."""
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = (1, 0, 0), (0, 0, 1), (0, -1, 0), (0, -distance_, 0)
    return pose


@pytest.mark.parametrize("kind", Kind)
def test_distances_do_not_pass_the_surface(kind):
    """A step of ``STEP`` times the distance stays before the surface: no two points differ by more than their distance allows."""
    rng = np.random.default_rng(0)
    p, step = rng.uniform(-1.0, 1.0, (2000, 3)), rng.normal(size=(2000, 3))
    step *= 0.02 / np.linalg.norm(step, axis=1, keepdims=True)
    size = np.array(SIZES[kind])
    near = np.array([distance(int(kind), size, 0.02, *q) for q in p])
    moved = np.array([distance(int(kind), size, 0.02, *q) for q in p + step])
    outside = near > 0
    assert (np.abs(moved - near)[outside] <= 0.02 / STEP + 1e-9).all()
    assert outside.any() and (~outside).any()


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind != Kind.ROOM])
def test_solids_lie_in_their_bounding_sphere(kind):
    rng = np.random.default_rng(1)
    p, size = rng.uniform(-1.2, 1.2, (20000, 3)), np.array(SIZES[kind])
    inside = np.array([distance(int(kind), size, 0.02, *q) <= 0 for q in p])
    assert inside.any() and np.linalg.norm(p[inside], axis=1).max() <= reach(kind, size, 0.02) + 1e-9


def test_a_ball_covers_the_pixels_of_its_silhouette():
    ball = solid(Kind.ELLIPSOID)._replace(size=np.full((1, 3), 0.5), reach=np.array([0.5]))
    image = render(ball, LIGHT, camera(2.0), 0.7, 64, 3)
    focal = 32 / math.tan(0.35)
    y, x = np.mgrid[:64, :64] + 0.5 - 32
    radius = focal * math.tan(math.asin(0.25))
    away = np.hypot(x, y) - radius
    assert (image[away < -1, 3] == 255).all() and (image[away > 1, 3] == 0).all() and (image[away > 1, :3] == 0).all()
    assert image[20, 32, :3].mean() > image[44, 32, :3].mean() + 10  # the lamp is above


def test_normals_point_outwards():
    ball = solid(Kind.ELLIPSOID)._replace(size=np.full((1, 3), 0.5))
    p = np.random.default_rng(2).normal(size=(50, 3))
    p *= 0.5 / np.linalg.norm(p, axis=1, keepdims=True)
    found = np.empty((50, 3))
    for k in range(50):
        normal_at(ball, 0, p[k], found[k])
    np.testing.assert_allclose(found, 2 * p, atol=1e-3)


def test_rooms_have_no_background():
    image = render(solid(Kind.ROOM), LIGHT, camera(0.3), 1.2, 32, 2)
    assert (image[..., 3] == 255).all() and image[..., :3].min() > 10


@pytest.mark.parametrize("pattern", Pattern)
def test_patterns_stay_between_their_colours(pattern):
    colours, out = np.array([[0.1, 0.2, 0.3], [0.8, 0.7, 0.6], [0.4, 0.5, 0.5]]), np.empty(3)
    seen = []
    for p in np.random.default_rng(3).uniform(-3, 3, (500, 3)):
        albedo(int(pattern), colours, 2.0, 7, *p, out)
        seen.append(out.copy())
    seen = np.array(seen)
    assert (seen >= 0.9 * colours.min(0) - 1e-9).all() and (seen <= 1.1 * colours.max(0) + 1e-9).all()
    assert (seen.std(0) > 0.05).all() == (pattern != Pattern.PLAIN)


@pytest.mark.parametrize("seed", [0, 3])
def test_scenes_are_made_by_their_seed_and_cameras_stand_free(seed):
    scene, again, other = draw_scene(seed, 12), draw_scene(seed, 12), draw_scene(seed + 100, 12)
    for first, second in zip(scene.solids, again.solids, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(scene.poses, other.poses)
    assert scene.room == (seed == 3)
    assert all(clearance(scene.solids, pose[:3, 3]) > 0.2 for pose in scene.poses)
    np.testing.assert_allclose(
        scene.poses[:, :3, :3] @ scene.poses[:, :3, :3].transpose(0, 2, 1), np.broadcast_to(np.eye(3), (12, 3, 3)), atol=1e-12
    )


def test_exact_clouds_lie_on_the_surface_and_faults_are_those_that_were_asked_for():
    scene, views = draw_scene(1, 12), np.arange(12)
    exact, rgb = scene_cloud(scene, views, 3000, Faults(), np.random.default_rng(4))
    assert len(exact) <= 3000 and len(exact) > 2000 and rgb.dtype == np.uint8
    assert np.abs([clearance(scene.solids, p.astype(float)) for p in exact]).max() < 2e-3
    holed, _ = scene_cloud(scene, views, 3000, Faults(holes=0.2), np.random.default_rng(4))
    assert len(holed) == pytest.approx(0.8 * len(exact), rel=0.02)
    noisy, _ = scene_cloud(scene, views, 3000, Faults(noise=0.01), np.random.default_rng(4))
    moved = np.linalg.norm(noisy - exact, axis=1) / np.linalg.norm(scene.poses[:, :3, 3], axis=1).mean()
    assert np.sqrt((moved**2).mean()) == pytest.approx(0.01, rel=0.25)
    wrong, _ = scene_cloud(scene, views, 3000, Faults(outliers=0.1), np.random.default_rng(4))
    assert (np.linalg.norm(wrong - exact, axis=1) > 1e-3).mean() == pytest.approx(0.1, abs=0.03)


def test_points_are_evenly_spread():
    p = np.random.default_rng(5).uniform(0, 1, (20000, 3)) * [1, 1, 0]
    p[:10000] *= 0.1  # a hundred times as dense
    kept = one_per_cell(p, 1000)
    assert 700 < len(kept) <= 1000
    gaps = cKDTree(p[kept]).query(p[kept], k=2)[0][:, 1]
    dense = (p[kept] < 0.1)[:, :2].all(1)
    assert dense.sum() < 50 and np.median(gaps) > 0.01


def test_no_surface_has_no_point():
    points, _, which = surface_points(solid(Kind.BOX), camera(3.0), 0.7, np.array([[0.0, 0.0], [0.5, 0.5]]))
    assert np.isnan(points[0]).all() and list(which) == [-1, 0]
    np.testing.assert_allclose(points[1], [0, -0.3, 0], atol=2e-3)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    make_pretraining_scenes.main(
        ["--out", str(folder), "--scenes", "2", "--views", "10", "--size", "32", "--points", "600", "--samples", "2"]
    )
    return folder


def test_the_command_writes_scenes_that_the_project_reads(written):
    for name in ("scene_000", "scene_001"):
        scene = load_scene(written / name)
        assert {split: len(views) for split, views in scene.splits.items()} == {"train": 8, "val": 1, "test": 1}
        cloud = load_cloud(written / name / "exact_pc.ply")
        # points lie before opaque pixels
        view = scene.views[scene.splits["train"][0]]
        with Image.open(written / name / "train" / "r_0.png") as image:
            alpha = np.asarray(image)[..., 3]
        uv, depth = (found[0] for found in view.camera.project(cloud.xyz))
        inside = (depth > 0) & (uv >= 0).all(-1) & (uv < 32).all(-1)
        columns, rows = uv[inside].long().unbind(-1)
        assert (alpha[rows.numpy(), columns.numpy()] > 0).mean() > 0.97
    assert json.loads((written / "scene_000" / "scene.json").read_text())["seed"] == 0


def test_scenes_that_are_there_are_kept(written, capsys):
    before = (written / "scene_001" / "train" / "r_0.png").stat().st_mtime_ns
    (written / "scene_000" / "scene.json").unlink()  # of a call that was stopped
    content = (written / "scene_000" / "mvs_pc.ply").read_bytes()
    make_pretraining_scenes.main(
        ["--out", str(written), "--scenes", "2", "--views", "10", "--size", "32", "--points", "600", "--samples", "2"]
    )
    assert (written / "scene_001" / "train" / "r_0.png").stat().st_mtime_ns == before
    assert (written / "scene_000" / "mvs_pc.ply").read_bytes() == content
    assert capsys.readouterr().out.splitlines() == [str(written / "scene_000")]


@pytest.mark.slow
def test_clouds_of_stereo(tmp_path):
    words = ["--scenes", "1", "--first", "1", "--dense", "2", "--views", "16", "--size", "64", "--points", "2000", "--samples", "1"]
    make_pretraining_scenes.main(["--out", str(tmp_path), *words])
    folder = tmp_path / "scene_001"
    exact, stereo = (load_cloud(folder / f"{name}_pc.ply").xyz for name in ("exact", "mvs"))
    gaps = cKDTree(exact).query(stereo)[0]
    assert 300 < len(stereo) <= 2000 and json.loads((folder / "scene.json").read_text())["faults"] == "stereo"
    assert 1e-4 < np.median(gaps) < 0.1


@pytest.mark.parametrize("word", ["--scenes=0", "--views=3", "--size=x", "--seed=-1"])
def test_wrong_numbers_are_refused(word, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        make_pretraining_scenes.main(["--out", str(tmp_path / "new"), *word.split("=")])
    assert stopped.value.code == 2 and not (tmp_path / "new").exists()
