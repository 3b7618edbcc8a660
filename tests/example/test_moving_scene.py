"""The moving scene: images, flow, disparity, masks and model against the ray tracer that makes them."""

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

EXAMPLE = Path(__file__).resolve().parents[2] / "example"
FRAMES, SIZE = 8, (32, 48)


@pytest.fixture(scope="module")
def scene(moving_root: Path) -> Scene:
    root = moving_root / "hop"
    return read_scene("auto", root, root, "hop", CloudFile(root / "none.ply"), {})


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch):
    """The modules of the generator."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from moving_scene_maker import measure, room

    return measure, room


def test_layout_and_splits(scene):
    assert scene.layout == "monocular" and len(scene.frames) == FRAMES and len(scene.views) == 2 * FRAMES
    assert scene.splits == {"train": tuple(range(FRAMES)), "val": (4,), "test": tuple(range(FRAMES, 2 * FRAMES))}
    assert [view.time_step for view in scene.views] == [*range(FRAMES)] * 2
    assert all(view.camera.image_size == SIZE for view in scene.views)


@pytest.mark.parametrize("k", range(FRAMES - 1))
@pytest.mark.parametrize("forward", [True, False])
def test_flow_connects_the_same_object_points(scene, generator, k, forward):
    """Rays through both ends of a flow vector hit the same point of the same object, unless it is occluded."""
    measure, room = generator
    objects = room.room(0)
    here, there = (k, k + 1) if forward else (k + 1, k)
    cameras = [measure.Pinhole(room.path_camera(time), SIZE) for time in (here / (FRAMES - 1), there / (FRAMES - 1))]
    uv = cameras[0].centres()
    start = measure.trace(objects, here / (FRAMES - 1), cameras[0], uv)
    end = measure.trace(objects, there / (FRAMES - 1), cameras[1], uv + read_uv(scene.views[here], forward).numpy().reshape(-1, 2))
    visible = (end.index == start.index) & (np.linalg.norm(end.position - start.position, axis=1) < 1e-4)  # float32 in the file
    assert visible.sum() > 0.85 * len(uv)
    _, depth = cameras[1].project(measure.to_world(objects, start, there / (FRAMES - 1)))
    assert (end.depth[~visible] < depth[~visible] - 1e-6).all()  # occluded
    assert np.array([obj.moves for obj in objects])[start.index][visible].sum() > 20


def test_flow_predicts_the_next_image(scene):
    """Frames warped by the flow differ from their neighbours by no more than resampling does."""
    for here, there in zip(scene.views[: FRAMES - 1], scene.views[1:FRAMES], strict=True):
        rows, columns = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
        grid = (torch.stack([columns, rows], -1) + read_uv(here, True)) / torch.tensor([SIZE[1], SIZE[0]]) * 2 - 1
        first, second = (read_photo(view).image.float() / 255 for view in (here, there))
        warped = torch.nn.functional.grid_sample(second[None], grid[None], align_corners=False)[0]
        inside = (grid.abs() < 0.95).all(-1)
        error, unwarped = ((image - first).abs().mean(0)[inside].median() for image in (warped, second))
        assert error < 0.03 and error < 0.6 * unwarped


def test_disparity_is_proportional_to_inverse_depth(scene, moving_root):
    """Up to an offset, at the points of the model."""
    model = ColmapModel.read(moving_root / "hop" / "sparse")
    points = read_points(model.folder / "points3D.txt")
    index = {n: k for k, n in enumerate(points.number.tolist())}
    for view, image in zip(scene.frames, model.images, strict=True):
        uv_px, depth = double(view).project(points.cloud.xyz[[index[n] for n in image.point.tolist()]].double())
        np.testing.assert_allclose(uv_px[0].numpy(), image.uv_px, atol=1e-3)  # 9 digits in the file
        column, row = np.floor(image.uv_px).astype(int).T
        disparity = read_disparity(view).numpy()[row, column]
        fit = np.polyfit(1 / depth[0].numpy(), disparity, 1)
        error = np.abs(np.polyval(fit, 1 / depth[0].numpy()) - disparity)
        # points are anywhere in their pixel, disparities at its centre: they may differ at edges
        assert fit[0] > 0 and np.median(error) < 0.005 and (error < 0.05).mean() > 0.9


def test_masks_cover_moving_objects_and_points_are_static(scene, generator):
    measure, room = generator
    objects = room.room(0)
    moves = np.array([obj.moves for obj in objects])
    images = ColmapModel.read(scene.carried_points.parent).images
    for k, view in enumerate(scene.views):
        time = view.time_step / (FRAMES - 1)
        camera = measure.Pinhole(room.path_camera(time) if k < FRAMES else room.static_camera(), SIZE)
        static = read_static(view).numpy().ravel()
        assert not static[moves[measure.trace(objects, time, camera, camera.centres()).index]].any()
        assert 0.02 < (~static).mean() < 0.25
        if k < FRAMES:
            assert not moves[measure.trace(objects, time, camera, images[k].uv_px).index].any()


def test_depth_of_held_out_views(scene, generator):
    measure, room = generator
    for view in scene.views[FRAMES:]:
        camera = measure.Pinhole(room.static_camera(), SIZE)
        depth = measure.trace(room.room(0), view.time_step / (FRAMES - 1), camera, camera.centres()).depth.reshape(SIZE)
        assert view.depth is not None
        np.testing.assert_allclose(np.asarray(Image.open(view.depth.path)).astype(float) * view.depth.unit, depth, atol=0.51e-3)
        origins, along = double(view).rays()
        np.testing.assert_allclose(origins[0, 0, 0].numpy(), camera.pose[:3, 3], atol=1e-6)
        expected = camera.rays(camera.centres())[1]
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(along[0].reshape(-1, 3).numpy(), expected, atol=1e-6)


@pytest.mark.usefixtures("generator")
def test_seed_changes_the_textures_alone(tmp_path, capsys):
    import make_moving_scene

    options = ["--frames", "3", "--size", "24", "16", "--samples", "1"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "5")):
        make_moving_scene.main(["--out", str(tmp_path / name), *options, "--seed", seed])
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    np.testing.assert_array_equal(*(read_flow(tmp_path / name / "flow_fw" / "00001.flo") for name in "ac"))
    images = [read_numbers(tmp_path / name / "images" / "00001.png") for name in "ac"]
    assert np.abs(images[0] - images[1]).mean() > 0.03
    for arguments, message in ((["--out", str(tmp_path / "a")], "--out"), (["--out", str(tmp_path / "d"), "--frames", "2"], "--frames")):
        with pytest.raises(SystemExit):
            make_moving_scene.main(arguments)
        assert message in capsys.readouterr().err
