"""Lenses: undistortion of photos of every camera model, fold and fill of the pinhole image, resized lenses, invalid parameters."""

import math

import numpy as np
import pycolmap
import pytest
import torch

from npbgpp.data import lens as lens_module
from npbgpp.data.lens import MODELS, Lens, fill_zoom, pinhole, undistort
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras

from ..helpers.layouts.colmap import DISTORTION, MODEL_NUMBER, draw_through, parameters
from ..helpers.scenes import COLOURS, POINTS, centroid, look_at_origin

SIZE = (144, 192)
NAMES = [name for name, _ in MODELS.values()]
DISTORTING = [name for name in NAMES if "PINHOLE" not in name]


def lens_of(model: str) -> Lens:
    return Lens(model, parameters(model, SIZE), SIZE)


def pinhole_camera(lens: Lens, w2c: np.ndarray) -> Cameras:
    return Cameras.from_opencv(torch.from_numpy(w2c)[None].float(), *pinhole(lens), lens.image_size)


def turned(angle: float) -> np.ndarray:
    """Moves what a camera sees to the side."""
    turn = np.eye(4)
    turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    return turn


def inside_rays(lens: Lens) -> np.ndarray:
    """(n, 2) rays of all pixels of the pinhole image."""
    (focal,), (centre,) = (t.double().numpy() for t in pinhole(lens))
    rows, columns = np.mgrid[: lens.image_size[0], : lens.image_size[1]] + 0.5
    return (np.column_stack([columns.ravel(), rows.ravel()]) - centre) / focal


def test_models_are_those_of_colmap_with_a_focal_length():
    known = {name: int(number) for name, number in pycolmap.CameraModelId.__members__.items()}
    assert {name: number for name, number in known.items() if number >= 0 and name != "EQUIRECTANGULAR"} == MODEL_NUMBER
    assert {name: number for number, (name, _) in MODELS.items()} == MODEL_NUMBER
    for name, count in MODELS.values():
        camera = pycolmap.Camera.create_from_model_name(1, name, 100.0, 80, 60)
        lens = Lens(name, tuple(map(float, range(1, count + 1))), (60, 80))
        assert len(camera.params) == count
        camera.params = np.arange(1.0, count + 1)
        assert lens.focal_length == (camera.focal_length_x, camera.focal_length_y)
        assert lens.principal_point == (camera.principal_point_x, camera.principal_point_y)


@pytest.mark.parametrize("model", DISTORTING)
def test_undistorted_photos_are_those_of_a_pinhole_camera(model):
    """In the photo itself some are more than three quarters of a pixel off."""
    lens = lens_of(model)
    assert lens.distorts
    drawn = pycolmap.Camera(model=model, width=SIZE[1], height=SIZE[0], params=list(lens.params))
    errors, before = [], []
    for azimuth, turn in ((0.3, 0.2), (1.2, -0.2), (4.0, 0.0)):
        w2c = turned(turn) @ look_at_origin(azimuth)
        camera = pinhole_camera(lens, w2c)
        uv, _ = camera.project(torch.from_numpy(POINTS).float())
        photo = torch.from_numpy(draw_through(drawn, w2c)).permute(2, 0, 1)
        image = undistort(photo, lens, camera)
        assert image.dtype == torch.uint8 and image.shape == photo.shape
        errors += [centroid(image, colour) - uv[0, k] for k, colour in enumerate(COLOURS)]
        before += [centroid(photo, colour) - uv[0, k] for k, colour in enumerate(COLOURS)]
    error = torch.stack(errors)
    assert error.abs().max() < 0.5 and (error.mean(0).abs() < 0.15).all()
    assert torch.stack(before).abs().max() > 0.75


@pytest.mark.parametrize("model", NAMES)
def test_the_pinhole_image_lies_in_the_photo(model):
    """Also near its corners; where the zoom exceeds 1 a smaller one would not do."""
    lens = lens_of(model)
    at = lens.project(inside_rays(lens))
    assert (at >= -0.01).all() and (at <= (SIZE[1] + 0.01, SIZE[0] + 0.01)).all()
    zoom = fill_zoom(lens)
    assert zoom >= 1 and (zoom == 1 or not (lens.project(inside_rays(lens) * zoom / (zoom - 0.01)) <= (SIZE[1], SIZE[0])).all())


def test_both_signs_of_distortion():
    """A barrel shows more than a pinhole camera of its focal length, a pincushion less."""
    assert fill_zoom(lens_of("SIMPLE_RADIAL")) == 1 < fill_zoom(lens_of("RADIAL"))
    zoom = fill_zoom(Lens("SIMPLE_RADIAL", (100.0, 50.0, 50.0, 0.2), (100, 100)))
    # the middle of the corner's pixel is 49.5 from the principal point in both directions, the border of the photo 50
    x = 0.495 / zoom
    assert 100 * x * (1 + 0.4 * x * x) == pytest.approx(50, abs=0.02)


def test_folds_are_outside_of_the_pinhole_image():
    """This barrel turns back at r = 1 / sqrt(3 * 0.8) = 0.65, inside of the corners at 0.78."""
    lens = Lens("SIMPLE_RADIAL", (90.0, 50.0, 50.0, -0.8), (100, 100))
    focal, _ = pinhole(lens)
    corner = 50 * math.sqrt(2) / focal[0, 0].item()
    assert 0.6 < corner < 0.67


def test_photos_without_distortion_are_unchanged():
    for model in NAMES:
        count = len(parameters(model, SIZE)) - len(DISTORTION[model])
        head = parameters(model, SIZE)[:count]
        off = {"EUCM": (0.0, 1.1)}.get(model, (0.0,) * len(DISTORTION[model]))
        assert Lens(model, head + off, SIZE).distorts == ("FISHEYE" in model), model
    lens = Lens("OPENCV", (72.0, 70.0, 33.0, 25.0, 0.0, 0.0, 0.0, 0.0), (48, 64))
    focal, centre = pinhole(lens)
    assert focal.tolist() == [[72.0, 70.0]] and centre.tolist() == [[33.0, 25.0]]
    photo = torch.randint(256, (4, 48, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), focal, centre, (48, 64))
    assert torch.equal(undistort(photo, lens, camera), photo), "half a pixel of error would blur it"


def test_photos_are_undistorted_in_chunks(monkeypatch):
    lens = lens_of("OPENCV")
    camera = pinhole_camera(lens, np.eye(4))
    photo = torch.randint(256, (3, *SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    whole = undistort(photo, lens, camera)
    monkeypatch.setattr(lens_module, "_CHUNK", 1000)
    lens_module._sampling_grid.cache_clear()
    assert torch.equal(undistort(photo, lens, camera), whole)


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("size", [(48, 64), (47, 65), (192, 100)])
def test_resized_lenses_project_to_resized_pixels(model, size):
    lens = lens_of(model)
    resized = lens.resized(size)
    rays = inside_rays(lens)[::97]
    expected = lens.project(rays) * (size[1] / SIZE[1], size[0] / SIZE[0])
    np.testing.assert_allclose(resized.project(rays), expected, atol=1e-9)
    assert resized.image_size == size and resized.distorts == lens.distorts
    assert lens.resized(SIZE) == lens


@pytest.mark.parametrize(
    ("model", "params", "values"),
    [
        ("EQUIRECTANGULAR", (64.0, 48.0), ["EQUIRECTANGULAR"]),
        ("PINHOLE", (72.0, 32.0, 24.0), ["PINHOLE", "4", "3"]),
        ("SIMPLE_RADIAL", (72.0, 32.0, 24.0, math.nan), ["nan"]),
        ("PINHOLE", (72.0, 0.0, 32.0, 24.0), ["0.0"]),
        ("PINHOLE", (72.0, 1e-60, 32.0, 24.0), ["1e-60"]),
        ("PINHOLE", (72.0, 1e60, 32.0, 24.0), ["1e+60"]),
        ("PINHOLE", (72.0, 72.0, 32.0, -1e60), ["-1e+60"]),
    ],
)
def test_invalid_parameters_are_refused(model, params, values):
    with pytest.raises(InputError) as caught:
        Lens(model, params, (48, 64))
    assert all(value in str(caught.value) for value in values), str(caught.value)


@pytest.mark.parametrize("params", [(72.0, 32.0, 24.0, 1e9), (72.0, 32.0, 24.0, -1e9), (72.0, -500.0, 24.0, 0.1)])
def test_lenses_that_cannot_be_undistorted_are_refused(params):
    with pytest.raises(InputError, match="SIMPLE_RADIAL.*64x48"):
        pinhole(Lens("SIMPLE_RADIAL", params, (48, 64)))


def test_random_parameters_give_a_pinhole_camera_or_are_refused():
    chance = np.random.default_rng(0)
    found = 0
    for name, count in MODELS.values():
        for _ in range(8):
            params = chance.normal(size=count) * 10.0 ** chance.integers(-6, 3, count)
            params[:4] = np.abs(params[:4]) + 25
            try:
                focal, centre = pinhole(Lens(name, tuple(params.tolist()), (40, 60)))
            except InputError:
                continue
            found += 1
            assert focal.isfinite().all() and (focal > 0).all() and centre.isfinite().all()
    assert found > 10
