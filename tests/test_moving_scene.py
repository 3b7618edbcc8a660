"""The moving example scene: its motion maps say exactly how its pictures change, and its model agrees with its disparity."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.colmap_model import ColmapModel, read_points
from npbgpp.data.images import read_photo
from npbgpp.data.motion_maps import read_disparity, read_flow, read_numbers, read_static, read_uv
from npbgpp.data.normalisation import double
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.parsers import read_scene

EXAMPLE = Path(__file__).resolve().parents[1] / "example"
FRAMES, SIZE = 8, (32, 48)


@pytest.fixture(scope="module")
def scene(moving_root: Path) -> Scene:
    root = moving_root / "hop"
    return read_scene("auto", root, root, "hop", CloudFile(root / "none.ply"), {})


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch):
    """The generator's modules, as they are for `python example/make_moving_scene.py`."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from moving_scene_maker import measure, room

    return measure, room


def test_the_folder_is_recognised_and_complete(scene):
    assert scene.layout == "monocular" and len(scene.frames) == FRAMES and len(scene.views) == 2 * FRAMES
    assert scene.splits == {"train": tuple(range(FRAMES)), "val": (4,), "test": tuple(range(FRAMES, 2 * FRAMES))}
    assert [view.moment for view in scene.views] == [*range(FRAMES)] * 2
    assert all(view.camera.image_size == SIZE for view in scene.views)


@pytest.mark.parametrize("k", range(FRAMES - 1))
@pytest.mark.parametrize("forward", [True, False])
def test_flow_leads_to_the_same_place_of_the_same_thing(scene, maker, k, forward):
    """Where it is not hidden: what rays through the ends of the flow hit in the other frame is what they hit in this one."""
    measure, room = maker
    things = room.room(0)
    here, there = (k, k + 1) if forward else (k + 1, k)
    cameras = [measure.Pinhole(room.path_camera(moment), SIZE) for moment in (here / (FRAMES - 1), there / (FRAMES - 1))]
    uv = cameras[0].centres()
    hit = measure.trace(things, here / (FRAMES - 1), cameras[0], uv)
    arrived = uv + read_uv(scene.views[here], forward).numpy().reshape(-1, 2)
    found = measure.trace(things, there / (FRAMES - 1), cameras[1], arrived)
    same = found.thing == hit.thing
    apart = np.linalg.norm(found.place - hit.place, axis=1)[same]
    seen = apart < 1e-4  # float32 of the file; elsewhere another side of the same thing hides it
    assert seen.sum() > 0.85 * len(uv)
    hidden = ~same
    hidden[same] = ~seen
    _, depth = cameras[1].project(measure.world(things, hit, there / (FRAMES - 1)))
    assert (found.depth[hidden] < depth[hidden] - 1e-6).all()  # there is something in front of it
    moving = np.array([thing.moves for thing in things])[hit.thing]
    assert moving[~hidden].sum() > 20


def test_pictures_are_those_that_flow_predicts(scene):
    """The colours of a frame, looked up in the next one along the flow, differ by no more than resampling does."""
    for k in range(FRAMES - 1):
        here, there = scene.views[k], scene.views[k + 1]
        rows, columns = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
        at = (torch.stack([columns, rows], -1) + read_uv(here, True)) / torch.tensor([SIZE[1], SIZE[0]]) * 2 - 1
        image = read_photo(there).image.float()[None] / 255
        warped = torch.nn.functional.grid_sample(image, at[None], align_corners=False)[0]
        error = (warped - read_photo(here).image.float() / 255).abs().mean(0)
        inside = (at.abs() < 0.95).all(-1)
        unmoved = (image[0] - read_photo(here).image.float() / 255).abs().mean(0)
        assert error[inside].median() < 0.03
        assert error[inside].median() < 0.6 * unmoved[inside].median()


def test_disparity_is_one_over_depth_of_the_points_that_a_frame_sees(scene, moving_root):
    model = ColmapModel.read(moving_root / "hop" / "sparse")
    points = read_points(model.folder / "points3D.txt")
    number = {n: k for k, n in enumerate(points.number.tolist())}
    for view, image in zip(scene.frames, model.images, strict=True):
        uv_px, depth = double(view).project(points.cloud.xyz[[number[n] for n in image.point.tolist()]].double())
        np.testing.assert_allclose(uv_px[0].numpy(), image.uv_px, atol=1e-3)  # 9 digits of the points
        column, row = np.floor(image.uv_px).astype(int).T
        shown = read_disparity(view).numpy()[row, column]
        fit = np.polyfit(1 / depth[0].numpy(), shown, 1)
        left = np.abs(np.polyval(fit, 1 / depth[0].numpy()) - shown)
        # points lie anywhere in their pixels, disparity is that of the centres; at edges these are other things
        assert fit[0] > 0 and np.median(left) < 0.005 and (left < 0.05).mean() > 0.9


def test_points_stand_still_and_masks_cover_what_moves(scene, maker):
    measure, room = maker
    things = room.room(0)
    moves = np.array([thing.moves for thing in things])
    for k, view in enumerate(scene.views):
        moment = view.moment / (FRAMES - 1)
        camera = measure.Pinhole(room.path_camera(moment) if k < FRAMES else room.still_camera(), SIZE)
        hit = measure.trace(things, moment, camera, camera.centres())
        static = read_static(view).numpy().ravel()
        assert not static[moves[hit.thing]].any()
        assert 0.02 < (~static).mean() < 0.25
    for k, view in enumerate(scene.frames):
        image = ColmapModel.read(scene.carried_points.parent).images[k]
        hit = measure.trace(
            things, view.moment / (FRAMES - 1), measure.Pinhole(room.path_camera(view.moment / (FRAMES - 1)), SIZE), image.uv_px
        )
        assert not moves[hit.thing].any()


def test_held_out_depth_is_that_of_the_room(scene, maker):
    measure, room = maker
    for view in scene.views[FRAMES:]:
        camera = measure.Pinhole(room.still_camera(), SIZE)
        depth = measure.trace(room.room(0), view.moment / (FRAMES - 1), camera, camera.centres()).depth.reshape(SIZE)
        assert view.depth is not None
        stored = np.asarray(Image.open(view.depth.path)).astype(float) * view.depth.unit
        np.testing.assert_allclose(stored, depth, atol=0.51e-3)
        origins, along = double(view).rays()
        np.testing.assert_allclose(origins[0, 0, 0].numpy(), camera.pose[:3, 3], atol=1e-6)
        np.testing.assert_allclose(along[0].reshape(-1, 3).numpy(), _unit(camera.rays(camera.centres())[1]), atol=1e-6)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_another_seed_paints_otherwise_and_moves_alike(maker, tmp_path, moving_root, monkeypatch):
    import make_moving_scene

    words = ["--frames", "3", "--size", "24", "16", "--samples", "1"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "5")):
        make_moving_scene.main(["--out", str(tmp_path / name), *words, "--seed", seed])
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    flows = [read_flow(tmp_path / name / "flow_fw" / "00001.flo") for name in "ac"]
    np.testing.assert_array_equal(*flows)
    pictures = [read_numbers(tmp_path / name / "images" / "00001.png") for name in "ac"]
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.03
    with pytest.raises(SystemExit):
        make_moving_scene.main(["--out", str(tmp_path / "a")])
