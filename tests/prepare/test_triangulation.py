"""Points triangulated from exact observations of known points through several lenses, with outliers and unused photos."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from npbgpp.data.colmap_model import ColmapModel, ModelImage, read_points
from npbgpp.data.lens import Lens
from npbgpp.errors import InputError
from npbgpp.prepare.triangulation import triangulate_points

from ..helpers.scenes import look_at_origin, save_picture

SIZE = (120, 160)
LENSES = {
    1: Lens("PINHOLE", (150.0, 155.0, 83.0, 58.0), SIZE),
    7: Lens("SIMPLE_RADIAL", (150.0, 80.0, 60.0, -0.15), SIZE),
    9: Lens("OPENCV_FISHEYE", (120.0, 121.0, 80.0, 60.0, 0.02, 0.0, 0.0, 0.0), SIZE),
}
VIEWS = 8
IDS = np.arange(60) * 3 + 11  # of the points; COLMAP leaves gaps
NAMES = [f"set/photo_{k}.png" for k in range(VIEWS)]


def known_points() -> np.ndarray:
    return np.random.default_rng(4).uniform(-0.7, 0.7, (len(IDS), 3)) + [0.0, 0.0, 0.1]


def exact_model(folder: Path = Path("nowhere")) -> ColmapModel:
    """Each photo shows all points in an order of its own, among keypoints without a point."""
    images = []
    for k, name in enumerate(NAMES):
        generator = np.random.default_rng(k)
        camera = list(LENSES)[k % len(LENSES)]
        w2c = look_at_origin(0.6 * k)
        xyz = known_points() @ w2c[:3, :3].T + w2c[:3, 3]
        uv_px = LENSES[camera].project(xyz[:, :2] / xyz[:, 2:])
        assert (uv_px > 0).all() and (uv_px < SIZE[::-1]).all()
        order = generator.permutation(len(IDS) + 20)
        uv_px = np.concatenate([uv_px, generator.uniform(0, 100, (20, 2))])[order]
        point = np.concatenate([IDS, np.full(20, -1)])[order]
        images.append(ModelImage(name, camera, torch.from_numpy(w2c), uv_px, point))
    return ColmapModel(folder, LENSES, tuple(images))


def replace_image(model: ColmapModel, k: int, **values) -> ColmapModel:
    images = list(model.images)
    images[k] = replace(images[k], **values)
    return replace(model, images=tuple(images))


def move(model: ColmapModel, k: int, points: list[int], by: tuple[float, float]) -> ColmapModel:
    """Moves observations of some points in a photo, pixels."""
    uv_px = model.images[k].uv_px.copy()
    uv_px[np.isin(model.images[k].point, IDS[points])] += by
    return replace_image(model, k, uv_px=uv_px)


def remove(model: ColmapModel, k: int, points) -> ColmapModel:
    """Removes observations of some points from a photo."""
    point = model.images[k].point.copy()
    point[np.isin(point, IDS[points])] = -1
    return replace_image(model, k, point=point)


def assert_known(found: torch.Tensor, points=slice(None)) -> None:
    torch.testing.assert_close(found, torch.from_numpy(known_points()[points]).float(), rtol=0, atol=1e-5)


def write_photos(folder: Path) -> dict[str, Path]:
    """Photo k has a red of 10 k, and is green right of column 80."""
    for k, name in enumerate(NAMES):
        pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
        pixels[..., 0] = 10 * k
        pixels[:, 80:, 1] = 200
        save_picture(folder / name, pixels)
    return {name: folder / name for name in NAMES}


@pytest.mark.parametrize("used", [NAMES, [NAMES[1], NAMES[4]]], ids=["all photos", "two photos"])
def test_exact_observations_give_the_points(used):
    assert_known(triangulate_points(exact_model(), set(used)).xyz)


def test_outliers_are_removed():
    model = move(move(exact_model(), 2, [5, 6], (15.0, -9.0)), 6, [6, 30], (-20.0, 0.0))
    assert_known(triangulate_points(model, set(NAMES)).xyz)


def test_points_without_two_inliers_are_dropped():
    """Of three photos, all are wrong about point 0, and the two that show point 1 disagree."""
    model = exact_model()
    for k, by in ((0, (30.0, 10.0)), (2, (-25.0, 30.0)), (4, (10.0, -35.0))):
        model = move(model, k, [0], by)
    model = move(remove(model, 4, [1]), 2, [1], (0.0, 30.0))
    assert_known(triangulate_points(model, {NAMES[0], NAMES[2], NAMES[4]}).xyz, slice(2, None))


def test_largest_error_of_an_inlier():
    model = move(exact_model(), 3, [8], (0.0, 4.0))
    strict, loose = (triangulate_points(model, set(NAMES), max_error_px=limit).xyz[8] for limit in (0.5, 5.0))
    true = torch.from_numpy(known_points()[8]).float()
    assert (strict - true).norm() < 1e-5 < 1e-3 < (loose - true).norm() < 0.1


def test_min_views():
    model = exact_model()
    for k in range(1, VIEWS):
        model = remove(model, k, [k, 0])  # point 0 is left in one photo, points 1 to 7 in seven
    assert_known(triangulate_points(model, set(NAMES)).xyz, slice(1, None))
    assert_known(triangulate_points(model, set(NAMES), min_views=8).xyz, slice(VIEWS, None))
    image = model.images[0]  # two observations in the same photo count once
    twice = np.concatenate([image.uv_px, image.uv_px[image.point == IDS[0]] + 0.5])
    model = replace_image(model, 0, uv_px=twice, point=np.append(image.point, IDS[0]))
    assert_known(triangulate_points(model, set(NAMES)).xyz, slice(1, None))


def test_nearly_parallel_rays_give_no_point():
    model = exact_model()
    shifted = model.images[0].world_to_cam.clone()
    shifted[0, 3] += 0.02  # at a distance of 3: 0.4 degrees
    model = replace(model, images=(*model.images, replace(model.images[0], name="shifted", world_to_cam=shifted)))
    with pytest.raises(InputError, match="got none"):
        triangulate_points(model, {NAMES[0], "shifted"}, max_error_px=50.0)


def test_unused_photos_do_not_change_the_result(tmp_path):
    photos, used, model = write_photos(tmp_path), set(NAMES[::2]), exact_model(tmp_path)
    expected = triangulate_points(model, used, photos=photos)
    for k in range(1, VIEWS, 2):
        model = replace_image(model, k, world_to_cam=torch.eye(4, dtype=torch.float64), uv_px=model.images[k].uv_px[::-1].copy())
        photos[NAMES[k]].write_bytes(b"held out")
    found = triangulate_points(model, used, photos=photos)
    assert torch.equal(found.xyz, expected.xyz) and torch.equal(found.rgb_u8, expected.rgb_u8)


def test_colours_are_the_mean_of_the_inliers(tmp_path):
    photos, used, model = write_photos(tmp_path), [1, 2, 6], exact_model(tmp_path)
    rgb = triangulate_points(model, {NAMES[k] for k in used}, photos=photos).rgb_u8
    right = np.mean([[model.images[k].uv_px[model.images[k].point == n][0, 0] > 80 for n in IDS] for k in used], axis=0)
    assert (rgb[:, 0] == 30).all() and rgb[:, 1].tolist() == (right * 200 + 0.5).astype(int).tolist()
    outlier = move(model, 6, [4], (0.0, 40.0))
    assert triangulate_points(outlier, {NAMES[k] for k in (*used, 0)}, photos=photos).rgb_u8[4, 0] == 10  # of photos 0, 1, 2


def test_resized_photos(tmp_path):
    for name in NAMES:
        pixels = np.zeros((60, 80, 3), dtype=np.uint8)
        pixels[:, 40:, 1] = 200
        save_picture(tmp_path / name, pixels)
    model = exact_model(tmp_path)
    rgb = triangulate_points(model, set(NAMES[:2]), photos={name: tmp_path / name for name in NAMES}).rgb_u8
    uv_px = np.stack([[image.uv_px[image.point == n][0] for n in IDS] for image in model.images[:2]])
    clear = (np.abs(uv_px[..., 0] - 80) > 3).all(0)
    expected = (uv_px[..., 0] > 80).mean(0) * 200
    assert clear.sum() > 20 and np.abs(rgb[:, 1].numpy() - expected)[clear].max() <= 1


def without_observations() -> ColmapModel:
    model = exact_model()
    for k in range(VIEWS):
        model = replace_image(model, k, uv_px=np.zeros((0, 2)), point=np.zeros(0, dtype=np.int64))
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"used": {"elsewhere.png"}}, "8 photos .* got none"),
        ({"used": {NAMES[0]}}, "2 of 1 photos, got none"),
        ({"model": without_observations()}, "got none"),
        ({"min_views": 1}, "min_views: .* got 1"),
        ({"max_error_px": 0.0}, "max_error_px: .* got 0"),
        ({"max_error_px": float("nan")}, "max_error_px: .* got nan"),
        ({"photos": {name: Path("nowhere") / name for name in NAMES}}, "photo_0.png"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        triangulate_points(**{"model": exact_model(), "used": set(NAMES)} | options)


def test_real_points_match_the_model_if_all_photos_are_used(shared):
    model = ColmapModel.read(shared / "data" / "colmap" / "alexander" / "sparse" / "0")
    known = read_points(model.points_file())
    cloud = triangulate_points(model, {image.name for image in model.images})
    reference = known.cloud.xyz[torch.from_numpy(np.argsort(known.number))]
    assert len(cloud) == len(reference)
    size = (reference.quantile(0.95, 0) - reference.quantile(0.05, 0)).norm()
    assert (cloud.xyz - reference).norm(dim=1).median() < 3e-4 * size
