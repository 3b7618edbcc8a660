"""Points triangulated from exact observations of known points, with outliers; photos that may not be used leave no trace; what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from npbgpp.data.colmap_model import ColmapModel, ModelImage, read_points
from npbgpp.data.lens import Lens
from npbgpp.errors import InputError
from npbgpp.prepare.sparse import sparse_points

from ..helpers.scenes import look_at_origin, save_picture

SIZE = (120, 160)
LENSES = {
    1: Lens("PINHOLE", (150.0, 155.0, 83.0, 58.0), SIZE),
    7: Lens("SIMPLE_RADIAL", (150.0, 80.0, 60.0, -0.15), SIZE),
    9: Lens("OPENCV_FISHEYE", (120.0, 121.0, 80.0, 60.0, 0.02, 0.0, 0.0, 0.0), SIZE),
}
VIEWS = 8
NUMBERS = np.arange(60) * 3 + 11  # of the points; COLMAP leaves gaps
NAMES = [f"set/photo_{k}.png" for k in range(VIEWS)]


def known_points() -> np.ndarray:
    return np.random.default_rng(4).uniform(-0.7, 0.7, (len(NUMBERS), 3)) + [0.0, 0.0, 0.1]


def exact_model(folder: Path = Path("nowhere")) -> ColmapModel:
    """Every photo shows every point, in an order of its own, among pixels that show none."""
    images = []
    for k, name in enumerate(NAMES):
        generator = np.random.default_rng(k)
        number = list(LENSES)[k % len(LENSES)]
        w2c = look_at_origin(0.6 * k)
        xyz = known_points() @ w2c[:3, :3].T + w2c[:3, 3]
        uv_px = LENSES[number].shown_at(xyz[:, :2] / xyz[:, 2:])
        assert (uv_px > 0).all() and (uv_px < SIZE[::-1]).all()
        order = generator.permutation(len(NUMBERS) + 20)
        uv_px = np.concatenate([uv_px, generator.uniform(0, 100, (20, 2))])[order]
        point = np.concatenate([NUMBERS, np.full(20, -1)])[order]
        images.append(ModelImage(name, number, torch.from_numpy(w2c), uv_px, point))
    return ColmapModel(folder, LENSES, tuple(images))


def changed(model: ColmapModel, k: int, **values) -> ColmapModel:
    images = list(model.images)
    images[k] = replace(images[k], **values)
    return replace(model, images=tuple(images))


def moved(model: ColmapModel, k: int, points, by: tuple[float, float]) -> ColmapModel:
    """The model with a photo that shows some points elsewhere."""
    uv_px = model.images[k].uv_px.copy()
    uv_px[np.isin(model.images[k].point, NUMBERS[points])] += by
    return changed(model, k, uv_px=uv_px)


def without(model: ColmapModel, k: int, points) -> ColmapModel:
    point = model.images[k].point.copy()
    point[np.isin(point, NUMBERS[points])] = -1
    return changed(model, k, point=point)


def assert_known(found: torch.Tensor, points=slice(None)) -> None:
    torch.testing.assert_close(found, torch.from_numpy(known_points()[points]).float(), rtol=0, atol=1e-5)


def test_exact_observations_give_the_points_through_every_lens():
    assert_known(sparse_points(exact_model(), set(NAMES)).xyz)


def test_two_photos_are_enough():
    assert_known(sparse_points(exact_model(), {NAMES[1], NAMES[4]}).xyz)


def test_a_wrong_observation_leaves():
    model = moved(moved(exact_model(), 2, [5, 6], (15.0, -9.0)), 6, [6, 30], (-20.0, 0.0))
    assert_known(sparse_points(model, set(NAMES)).xyz)


def test_points_without_agreement_are_dropped():
    """With three photos, all wrong about point 0, and two that differ about point 1."""
    model = exact_model()
    for k, by in ((0, (30.0, 10.0)), (2, (-25.0, 30.0)), (4, (10.0, -35.0))):
        model = moved(model, k, [0], by)
    model = moved(without(model, 4, [1]), 2, [1], (0.0, 30.0))
    assert_known(sparse_points(model, {NAMES[0], NAMES[2], NAMES[4]}).xyz, slice(2, None))


def test_small_errors_are_borne_up_to_the_limit():
    model = moved(exact_model(), 3, [8], (0.0, 4.0))
    strict, loose = (sparse_points(model, set(NAMES), max_error_px=limit).xyz[8] for limit in (0.5, 5.0))
    true = torch.from_numpy(known_points()[8]).float()
    assert (strict - true).norm() < 1e-5 < 1e-3 < (loose - true).norm() < 0.1


def test_points_that_too_few_used_photos_show_are_dropped():
    model = exact_model()
    for k in range(1, VIEWS):
        model = without(model, k, [k, 0])  # point 0 is left in one photo, points 1 to 7 in seven
    assert_known(sparse_points(model, set(NAMES)).xyz, slice(1, None))
    assert_known(sparse_points(model, set(NAMES), min_views=8).xyz, slice(VIEWS, None))


def test_a_photo_that_shows_a_point_twice_counts_once():
    model = exact_model()
    for k in range(1, VIEWS):
        model = without(model, k, [0])
    image = model.images[0]
    at = image.uv_px[image.point == NUMBERS[0]]
    model = changed(model, 0, uv_px=np.concatenate([image.uv_px, at + 0.5]), point=np.append(image.point, NUMBERS[0]))
    assert_known(sparse_points(model, set(NAMES)).xyz, slice(1, None))


def test_rays_that_hardly_diverge_give_no_point():
    model = exact_model()
    near = model.images[0].world_to_cam.clone()
    near[0, 3] += 0.02  # of a distance of 3: 0.4 degrees
    twin = replace(model.images[0], name="twin", world_to_cam=near)
    model = replace(model, images=(*model.images, twin))
    with pytest.raises(InputError, match="got none"):
        sparse_points(model, {NAMES[0], "twin"}, max_error_px=50.0)


def test_photos_that_may_not_be_used_leave_no_trace(tmp_path):
    write_photos(tmp_path)
    used = set(NAMES[::2])
    model = exact_model(tmp_path)
    expected = sparse_points(model, used, photos={name: tmp_path / name for name in NAMES})
    for k in range(1, VIEWS, 2):
        model = changed(model, k, world_to_cam=torch.eye(4, dtype=torch.float64), uv_px=model.images[k].uv_px[::-1].copy())
        (tmp_path / NAMES[k]).write_bytes(b"held out")
    found = sparse_points(model, used, photos={name: tmp_path / name for name in NAMES})
    assert torch.equal(found.xyz, expected.xyz) and torch.equal(found.rgb, expected.rgb)


def write_photos(folder: Path) -> None:
    """Photo k is 10 k red, and green to the right of column 80."""
    for k, name in enumerate(NAMES):
        pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
        pixels[..., 0] = 10 * k
        pixels[:, 80:, 1] = 200
        save_picture(folder / name, pixels)


def test_colours_are_those_of_the_photos_that_agree(tmp_path):
    write_photos(tmp_path)
    used = [1, 2, 6]
    model = exact_model(tmp_path)
    rgb = sparse_points(model, {NAMES[k] for k in used}, photos={name: tmp_path / name for name in NAMES}).rgb
    right = np.mean([[model.images[k].uv_px[model.images[k].point == n][0, 0] > 80 for n in NUMBERS] for k in used], axis=0)
    assert (rgb[:, 0] == 30).all()
    assert rgb[:, 1].tolist() == (right * 200 + 0.5).astype(int).tolist()
    far = moved(moved(model, 6, [4], (0.0, 40.0)), 0, [4], (0.0, 0.0))
    assert (
        sparse_points(far, {NAMES[k] for k in (*used, 0)}, photos={name: tmp_path / name for name in NAMES}).rgb[4, 0] == 10
    )  # photos 0, 1, 2


def test_photos_of_another_size_are_looked_up_where_they_show_the_point(tmp_path):
    for name in NAMES:
        pixels = np.zeros((60, 80, 3), dtype=np.uint8)
        pixels[:, 40:, 1] = 200
        save_picture(tmp_path / name, pixels)
    model = exact_model(tmp_path)
    rgb = sparse_points(model, set(NAMES[:2]), photos={name: tmp_path / name for name in NAMES}).rgb
    uv_px = np.stack([[image.uv_px[image.point == n][0] for n in NUMBERS] for image in model.images[:2]])
    clear = (np.abs(uv_px[..., 0] - 80) > 3).all(0)
    expected = (uv_px[..., 0] > 80).mean(0) * 200
    assert clear.sum() > 20 and np.abs(rgb[:, 1].numpy() - expected)[clear].max() <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"used": {"elsewhere.png"}}, "expected some of its 8 photos"),
        ({"used": {NAMES[0]}}, "got none; use more photos"),
        ({"min_views": 1}, "min_views: expected 2 or more"),
        ({"max_error_px": 0.0}, "max_error_px: expected a positive"),
        ({"max_error_px": float("nan")}, "max_error_px: expected a positive"),
    ],
)
def test_what_gives_no_points_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        sparse_points(exact_model(), **{"used": set(NAMES)} | options)


def test_a_model_without_observations_is_refused():
    model = exact_model()
    for k in range(VIEWS):
        model = changed(model, k, uv_px=np.zeros((0, 2)), point=np.zeros(0, dtype=np.int64))
    with pytest.raises(InputError, match="got none"):
        sparse_points(model, set(NAMES))


def test_missing_photos_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        sparse_points(exact_model(), set(NAMES), photos={name: tmp_path / name for name in NAMES})


def test_real_points_are_those_of_the_model_when_every_photo_is_used(shared):
    model = ColmapModel.read(shared / "data" / "colmap" / "alexander" / "sparse" / "0")
    known = read_points(model.points_file())
    cloud = sparse_points(model, {image.name for image in model.images})
    reference = known.cloud.xyz[torch.from_numpy(np.argsort(known.number))]
    assert len(cloud) == len(reference)
    size = (reference.quantile(0.95, 0) - reference.quantile(0.05, 0)).norm()
    assert (cloud.xyz - reference).norm(dim=1).median() < 3e-4 * size
