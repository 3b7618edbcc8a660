"""What the viewer draws of runs of every method."""

import pytest
import torch

import npbgpp
from npbgpp.cli.settings import SceneSettings, ViewSettings
from npbgpp.cli.view import view, viewed_run
from npbgpp.errors import InputError
from npbgpp.geometry import TimedCamera, at_time
from npbgpp.viewer.pictures import (
    Look,
    SeenPoints,
    ViewedRun,
    error_colours,
    fitted_photo,
    nearest_view,
    normal_colours,
    photo_of,
    shown,
    swiped,
)

from ..conftest import SMALL_HAIR, TINY_GAUSSIANS, TINY_NERF, TINY_NSFF, TINY_OVERRIDES
from ..run_folders import REPOSITORY, remember

METHODS = {
    "npbg": (*TINY_OVERRIDES, "trainer.max_steps=2"),
    "gaussians": (*TINY_GAUSSIANS, "trainer.max_steps=2"),
    "nerf": (*TINY_NERF, "trainer.max_steps=2"),
    "nsff": (*TINY_NSFF, "trainer.max_steps=1"),
    "npcr": (*SMALL_HAIR, "trainer.max_steps=2"),
}


@pytest.fixture(scope="module")
def viewed(run_line, tiny_root, moving_root, tmp_path_factory):
    """Loads a run of a method; trains it when it is first asked for."""
    launch, made = tmp_path_factory.mktemp("runs"), {}

    def go(name: str) -> ViewedRun:
        if name not in made:
            root = {"nsff": moving_root, "npcr": REPOSITORY / "example"}.get(name, tiny_root)
            words = (*METHODS[name], f"datasets.data_root={root}", "test_after_fit=false")
            folder = run_line(launch, *words, f"hydra.run.dir={launch / name}")
            remember(folder, launch, *words)
            made[name] = viewed_run(SceneSettings(run=folder), [], name)
        return made[name]

    return go


def first(run: ViewedRun) -> TimedCamera:
    return TimedCamera(run.scene.views[run.scene.splits["train"][0]].camera)


@pytest.mark.parametrize("name", METHODS)
def test_every_mode_of_every_method(viewed, name):
    run = viewed(name)
    height, width = first(run).camera.image_size
    seen = {mode: run.draw(first(run), Look(mode)).rgb for mode in run.modes}
    expected = {"picture", "depth", "normals"} | ({"opacity"} if run.has_opacity else set())
    expected |= {"photos per point"} if run.scene.cloud.path.is_file() else set()
    assert expected <= set(seen)
    for mode, rgb in seen.items():
        assert rgb.shape == (3, height, width) and rgb.isfinite().all(), mode
        assert rgb.min() >= 0 and rgb.max() <= 1, mode
    layers = {"npbg": 6}.get(name, 0)
    assert len(run.system.layers()) == layers


@pytest.mark.parametrize("name", ["npbg", "gaussians", "nerf"])
def test_pictures_are_those_of_the_python_interface(viewed, name):
    run = viewed(name)
    trained = npbgpp.load_run(run.folder)
    expected = trained.render(first(run).camera)
    picture = run.draw(first(run), Look())
    torch.testing.assert_close(picture.rgb, expected.rgb[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(picture.depth, expected.depth[0, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["nerf", "nsff"])
def test_bands_make_the_whole_picture(viewed, name, monkeypatch):
    run = viewed(name)
    whole = run.draw(first(run), Look())
    monkeypatch.setattr("npbgpp.viewer.pictures._BAND_PIXELS", 5 * first(run).camera.image_size[1])
    parts = run.draw(first(run), Look())
    torch.testing.assert_close(parts.rgb, whole.rgb, atol=1e-5, rtol=0)
    asked = []
    assert run.draw(first(run), Look(), lambda: len(asked) > 1 or bool(asked.append(1))) is None, "stops between bands"
    assert len(asked) == 2


def test_time_and_parts_of_a_moving_scene(viewed):
    run = viewed("nsff")
    camera = first(run).camera
    assert run.time_steps == 8
    early, late = (run.draw(at_time(camera, time, 8), Look()).rgb for time in (0.0, 6.5))
    assert (early - late).abs().max() > 1e-4
    assert run.draw(at_time(camera, 7.0, 8), Look(part="static")).rgb.isfinite().all()


def test_history_follows_the_pictures(viewed):
    run = viewed("npcr")
    camera = first(run)
    pictures = [run.draw(camera, Look(history=True)).rgb for _ in range(3)]
    assert pictures[0].shape == pictures[2].shape
    smaller = TimedCamera(camera.camera.resize((16, 16)))
    assert run.draw(smaller, Look(history=True)).rgb.shape == (3, 16, 16), "begins anew in another size"


@pytest.mark.parametrize(("background", "corner"), [("white", 1.0), ("black", 0.0), ("checkerboard", 0.6)])
def test_backgrounds(viewed, background, corner):
    run = viewed("npcr")
    render = run.system.render(first(run).camera, run.scene.name, depth=True)
    empty = render.alpha[0, 0] == 0
    rgb = shown(render, Look(background=background), first(run).camera)
    assert empty[0, 0] and rgb[0, 0, 0] == pytest.approx(corner)


def test_normals_of_a_plane_that_faces_the_camera(viewed):
    camera = first(viewed("gaussians")).camera
    depth = torch.full(camera.image_size, 2.0)
    depth[:4] = 0
    normals = normal_colours(depth, camera)
    assert normals[:, 10, 10].tolist() == pytest.approx([0.5, 0.5, 1.0], abs=1e-5)
    assert (normals[:, :4] == 0).all()
    rows = torch.arange(camera.image_size[0])[:, None].expand(camera.image_size)
    slope = normal_colours(2 + 0.02 * (camera.image_size[0] - rows).float(), camera)
    assert slope[1, 10, 10] > 0.51, "a floor faces up"


def test_photos_per_point(viewed):
    """At most the photos whose image a point is in, and on a ball fewer, since it hides its far side."""
    scene = viewed("npbg").scene
    seen = SeenPoints(scene)
    train = [scene.views[k].camera for k in scene.splits["train"]]
    xyz = scene.cloud.read().xyz
    inside = torch.zeros(len(xyz), dtype=torch.int64)
    for camera in train:
        uv, depth = (part[0] for part in camera.project(xyz))
        size = torch.tensor(camera.image_size[::-1])
        inside += (depth > 0) & (uv > 0).all(1) & (uv < size).all(1)
    assert (seen.counts <= inside).all() and 0 < seen.counts.max() <= len(train)
    outside = xyz.norm(dim=1) > 0.9 * xyz.norm(dim=1).max()  # of the ball, half of the ring of cameras sees a point at most
    assert seen.counts[outside].float().mean() < 0.7 * len(train)
    picture = seen.picture(train[0])
    assert picture.shape == (3, *train[0].image_size) and picture.min() >= 0 and picture.max() <= 1
    assert (picture.sum(0) > 0).float().mean() > 0.2


def test_errors_and_swipes():
    one, other = torch.zeros(3, 4, 6), torch.full((3, 4, 6), 0.25)
    colours, psnr = error_colours(one, other)
    assert (colours == 1).all() and psnr == pytest.approx(12.04, abs=0.01)
    assert error_colours(one, one)[1] == pytest.approx(100)
    joined = swiped(one, other, 0.5)
    assert joined[0, 0].tolist() == [0, 0, 0, 1, 0.25, 0.25]


def test_photos(viewed):
    run = viewed("gaussians")
    scene = run.scene
    assert nearest_view(scene, scene.views[3].camera, scene.splits["train"]) == 3
    photo = photo_of(scene.views[0])
    assert fitted_photo(photo, (32, 64)).shape == (3, 32, 64)
    torch.testing.assert_close(fitted_photo(photo, photo.shape[1:]), photo)


def test_a_mode_that_is_not_there(viewed):
    with pytest.raises(InputError, match="mode: expected one of picture"):
        view(ViewSettings(runs=(viewed("nerf").folder,), mode="descriptors", screenshot=viewed("nerf").folder / "s.png"), [])


@pytest.mark.parametrize(("viewport", "size"), [("70,50", (64, 48)), (None, (32, 32))])
def test_screenshots_without_a_browser(viewed, tmp_path, viewport, size):
    from PIL import Image

    file = tmp_path / "first.png"
    view(ViewSettings(runs=(viewed("gaussians").folder,), screenshot=file, viewport=viewport, origin_view=viewport is not None), [])
    with Image.open(file) as image:
        assert image.size == size


def test_a_run_without_weights(viewed, tmp_path):
    import shutil

    shutil.copytree(viewed("npbg").folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt"))
    with pytest.raises(InputError, match="expected a checkpoint in .*checkpoints, got none; wait for the first one"):
        view(ViewSettings(runs=(tmp_path / "run",), screenshot=tmp_path / "s.png"), [])


def test_a_scene_that_was_moved(viewed, tmp_path):
    with pytest.raises(InputError, match="datasets.data_root"):
        view(ViewSettings(runs=(viewed("npbg").folder,), screenshot=tmp_path / "s.png"), [f"datasets.data_root={tmp_path / 'gone'}"])


def test_an_unknown_view(viewed, tmp_path):
    with pytest.raises(InputError, match="view: expected a name or an index of the 17 views"):
        view(ViewSettings(runs=(viewed("npbg").folder,), screenshot=tmp_path / "s.png", view="nowhere"), [])


def test_the_extra_is_named(viewed, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'npbgpp\[viewer\]'"):
        view(ViewSettings(runs=(viewed("npbg").folder,)), [])
