"""COLMAP models, binary and text: read as pycolmap reads them; damaged files are refused."""

import random
import struct
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from npbgpp.data import ColmapModel, find_models, read_cloud, read_points
from npbgpp.data.lens import MODELS
from npbgpp.errors import InputError

from ..helpers.layouts.colmap import CAMERA, write


@pytest.fixture(params=["binary", "text"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model in either form; may be spoilt."""
    write(tmp_path / "scene", views=3, text=request.param == "text", model="OPENCV")
    return tmp_path / "scene" / "sparse" / "0"


def assert_same(model: ColmapModel, points_file: Path, reference: pycolmap.Reconstruction) -> None:
    """Everything that is read, against COLMAP's own reading."""
    assert sorted(model.lenses) == sorted(reference.cameras)
    for number, lens in model.lenses.items():
        camera = reference.cameras[number]
        assert (lens.model, lens.image_size) == (camera.model_name, (camera.height, camera.width))
        np.testing.assert_allclose(lens.params, camera.params, rtol=1e-15)
    images = {image.name: image for image in reference.images.values()}
    assert [image.name for image in model.images] == sorted(images)
    for image in model.images:
        other = images[image.name]
        assert image.camera == other.camera_id and len(image.point) == len(other.points2D)
        np.testing.assert_allclose(image.world_to_cam[:3], other.cam_from_world().matrix(), atol=1e-12)
        np.testing.assert_array_equal(image.uv_px, np.array([p.xy for p in other.points2D]).reshape(-1, 2))
        np.testing.assert_array_equal(image.point, [p.point3D_id if p.has_point3D() else -1 for p in other.points2D])
    points = read_points(points_file)
    assert sorted(points.number.tolist()) == sorted(reference.points3D)
    np.testing.assert_array_equal(points.cloud.xyz, np.array([reference.points3D[n].xyz for n in points.number], dtype=np.float32))
    np.testing.assert_array_equal(points.cloud.rgb_u8, [reference.points3D[n].color for n in points.number])


def test_files_are_read_as_colmap_reads_them(folder):
    reference = pycolmap.Reconstruction(str(folder))
    assert reference.num_images() == 3 and reference.num_points3D() > 50
    assert reference.compute_mean_reprojection_error() < 0.6, "the observations belong to these cameras and points"
    model = ColmapModel.read(folder)
    assert_same(model, model.points_file(), reference)


@pytest.mark.parametrize(("lens", "form"), [(name, ("binary", "text")[k % 2]) for k, (name, _) in MODELS.items()])
def test_files_written_by_colmap_are_read(tmp_path, form, lens):
    """COLMAP writes more than the three files, and photos in an order of its own."""
    write(tmp_path / "scene", views=2, size=(24, 32), model=lens)
    reference = pycolmap.Reconstruction(str(tmp_path / "scene" / "sparse" / "0"))
    target = tmp_path / form
    target.mkdir()
    (reference.write_binary if form == "binary" else reference.write_text)(str(target))
    model = ColmapModel.read(target)
    assert_same(model, model.points_file(), pycolmap.Reconstruction(str(target)))
    assert model.lenses[CAMERA].model == lens


def test_binary_and_text_agree(tmp_path):
    for name in ("binary", "text"):
        write(tmp_path / name, views=3, text=name == "text")
    one, other = (ColmapModel.read(tmp_path / name / "sparse" / "0") for name in ("binary", "text"))
    assert one.lenses == other.lenses
    for a, b in zip(one.images, other.images, strict=True):
        assert (a.name, a.camera) == (b.name, b.camera) and a.world_to_cam.equal(b.world_to_cam)
        np.testing.assert_array_equal(a.uv_px, b.uv_px)
        np.testing.assert_array_equal(a.point, b.point)
    a, b = read_points(one.points_file()), read_cloud(other.points_file())
    assert a.cloud.xyz.equal(b.xyz) and a.cloud.rgb_u8.equal(b.rgb_u8)


TEXT_CAMERA = "1 PINHOLE 64 48 72 72 32 24"


def write_text_model(folder: Path, images: str, cameras: str = TEXT_CAMERA, points: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / f"{name}.txt").write_text(content)
    return folder


def test_edited_text_files(tmp_path):
    """Quaternions of any length, names with spaces and folders, photos without points, tabs, comments, no line after the last photo."""
    images = "# a comment\n9 2 0 0 0 1 2 3 1 left/a b.jpg\n\n8 0 0 0 -5e-3 0 0 0 1 a.png\n1.5 2.5 -1 3 4 17\n7\t1 0 0 0 0 0 0 1 c.jpg"
    model = ColmapModel.read(write_text_model(tmp_path / "model", images))
    c, a, b = (model.images[k] for k in (1, 0, 2))
    assert [a.name, c.name, b.name] == ["a.png", "c.jpg", "left/a b.jpg"]
    assert a.uv_px.tolist() == [[1.5, 2.5], [3, 4]] and a.point.tolist() == [-1, 17] and len(b.point) == len(c.point) == 0
    np.testing.assert_allclose(a.world_to_cam, np.diag([-1.0, -1, 1, 1]), atol=1e-15)
    np.testing.assert_allclose(b.world_to_cam, [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    assert find_models(tmp_path / "model") == [(tmp_path / "model", 3)]


def test_keypoints_that_are_not_finite_observe_no_point(tmp_path):
    model = ColmapModel.read(write_text_model(tmp_path, "1 1 0 0 0 0 0 0 1 a.jpg\nnan 2 5 3 4 6 7 8 nan"))
    assert model.images[0].point.tolist() == [-1, 6, -1]


def test_sub_models_are_sorted_by_number_of_photos(tmp_path):
    for place, views in (("0", 2), ("1", 4), ("10", 3)):
        write(tmp_path / place, views=views, size=(12, 16), text=place == "1")
        (tmp_path / "scene" / "sparse").mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "sparse" / "0").rename(tmp_path / "scene" / "sparse" / place)
    (tmp_path / "scene" / "sparse" / "notes.txt").write_text("x")
    (tmp_path / "scene" / "sparse" / "2").mkdir()
    sparse = tmp_path / "scene" / "sparse"
    assert find_models(tmp_path / "scene") == [(sparse / "1", 4), (sparse / "10", 3), (sparse / "0", 2)]
    assert find_models(sparse) == [] and find_models(sparse / "1") == [(sparse / "1", 4)]
    assert find_models(tmp_path / "nothing") == []
    for path in (sparse / "0").iterdir():
        path.rename(sparse / path.name)
    assert find_models(tmp_path / "scene")[-1] == (sparse, 2), "as image_undistorter writes it"


def test_a_model_without_points_has_no_file_of_them(folder):
    (path,) = folder.glob("points3D.*")
    path.unlink()
    assert ColmapModel.read(folder).points_file() is None
    with pytest.raises(InputError, match="points3D.*no such file"):
        read_points(path)


# ------------------------------------------------------------------ damaged files
def one_camera(number: int = 1, model: int = 1, width: int = 64, height: int = 48, params: tuple[float, ...] = (72, 72, 32, 24)) -> bytes:
    return struct.pack(f"<QiiQQ{len(params)}d", 1, number, model, width, height, *params)


def one_image(name: bytes = b"a.png", pose: tuple[float, ...] = (1, 0, 0, 0, 0, 0, 0), camera: int = 1, copies: int = 1) -> bytes:
    return struct.pack("<Q", copies) + copies * (struct.pack("<i7di", 1, *pose, camera) + name + b"\0" + bytes(8))


def one_point(xyz: tuple[float, ...] = (1, 2, 3), track: int = 0) -> bytes:
    return struct.pack("<Q", 1) + struct.pack("<Q3d3BdQ", 5, *xyz, 1, 2, 3, 0.5, track)


GOOD = {"cameras.bin": one_camera(), "images.bin": one_image(), "points3D.bin": one_point(track=1) + bytes(8)}
NAN, INF = float("nan"), float("inf")
DAMAGED = {
    "no cameras": ("cameras.bin", None, "no such file"),
    "empty file of cameras": ("cameras.bin", b"", ""),
    "camera cut off": ("cameras.bin", one_camera()[:-1], ""),
    "many cameras": ("cameras.bin", struct.pack("<Q", 1 << 60) + one_camera()[8:], "1152921504606846976"),
    "unknown model": ("cameras.bin", one_camera(model=99), "camera 1 has model number 99"),
    "negative model": ("cameras.bin", one_camera(model=-1), "camera 1 has model number -1"),
    "no width": ("cameras.bin", one_camera(width=0), "0x48"),
    "gigantic": ("cameras.bin", one_camera(height=1 << 40), "64x1099511627776"),
    "focal length not finite": ("cameras.bin", one_camera(params=(NAN, 72, 32, 24)), "nan"),
    "focal length negative": ("cameras.bin", one_camera(params=(72, -72, 32, 24)), "-72"),
    "principal point far away": ("cameras.bin", one_camera(params=(72, 72, 1e300, 24)), "1e+300"),
    "camera twice": ("cameras.bin", struct.pack("<Q", 2) + 2 * one_camera()[8:], "1 numbers for 2 cameras"),
    "other camera": ("images.bin", one_image(camera=3), "photo a.png has camera 3"),
    "no photos": ("images.bin", bytes(8), "none"),
    "photo twice": ("images.bin", one_image(copies=2), "a.png"),
    "photo cut off": ("images.bin", one_image()[:-1], ""),
    "name without end": ("images.bin", one_image()[:-9] + b"x" * 9, ""),
    "name not UTF-8": ("images.bin", one_image(b"\xff\xfe.png"), ""),
    "no name": ("images.bin", one_image(b""), "''"),
    "root as name": ("images.bin", one_image(b"/"), "'/'"),
    "folder above as name": ("images.bin", one_image(b"b/.."), "'b/..'"),
    "many observations": ("images.bin", one_image()[:-8] + struct.pack("<Q", 1 << 61), "2305843009213693952"),
    "quaternion of zero": ("images.bin", one_image(pose=(0, 0, 0, 0, 1, 2, 3)), "a.png"),
    "quaternion not finite": ("images.bin", one_image(pose=(INF, 0, 0, 0, 1, 2, 3)), "a.png"),
    "translation not finite": ("images.bin", one_image(pose=(1, 0, 0, 0, NAN, 2, 3)), "a.png"),
    "translation too long": ("images.bin", one_image(pose=(1, 0, 0, 0, 1e300, 2, 3)), "a.png"),
    "no points": ("points3D.bin", bytes(8), "none"),
    "point cut off": ("points3D.bin", one_point()[:-1], ""),
    "track cut off": ("points3D.bin", one_point(track=1), "59"),
    "endless track": ("points3D.bin", one_point(track=(1 << 64) - 1), ""),
    "point not finite": ("points3D.bin", one_point((1, NAN, 3)), "1 of 1"),
    "point far away": ("points3D.bin", one_point((1, 1e300, 3)), "1e+300"),
    "text camera": ("cameras.txt", b"1 PINHOLE 64 48 72 72 32", "got 3"),
    "text camera of no model": ("cameras.txt", b"1 EYE 64 48 72 72 32 24", "EYE"),
    "text photo": ("images.txt", b"1 1 0 0 0 0 0 0 1", ""),
    "text pose": ("images.txt", b"1 1 0 0 x 0 0 0 1 a.png", ""),
    "text observations": ("images.txt", b"1 1 0 0 0 0 0 0 1 a.png\n1 2 3 4", ""),
    "text of other bytes": ("images.txt", b"\xff\xfe\x00", ""),
    "text point": ("points3D.txt", b"5 1 2 3 4 5", ""),
    "text colour": ("points3D.txt", b"5 1 2 3 4 5 256 0.5", "256"),
    "text number": ("points3D.txt", b"99999999999999999999999 1 2 3 4 5 6 0.5", ""),
}


def read_all(folder: Path) -> None:
    model = ColmapModel.read(folder)
    for image in model.images:
        assert image.world_to_cam.float().isfinite().all()
    assert read_points(model.points_file() or folder / "points3D.bin").cloud.xyz.isfinite().all()


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_models_are_refused(tmp_path, case):
    for name, content in GOOD.items():
        (tmp_path / name).write_bytes(content)
    read_all(tmp_path)
    name, content, value = DAMAGED[case]
    (tmp_path / Path(name).with_suffix(".bin")).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_all(tmp_path)
    assert str(tmp_path / Path(name).stem) in str(caught.value) and value in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("stored", "name"), [(b"/etc/a.png", "etc/a.png"), (b"b/../../a.png", "a.png"), (b"C:\\b\\a.png", "b/a.png"), (b"..\\a.png", "a.png")]
)
def test_names_never_leave_the_image_folder(tmp_path, stored, name):
    for file, content in GOOD.items():
        (tmp_path / file).write_bytes(content)
    (tmp_path / "images.bin").write_bytes(one_image(stored))
    assert [image.name for image in ColmapModel.read(tmp_path).images] == [name]


def test_random_damage_is_read_or_refused(folder):
    """Bytes are replaced, or the end is lost."""
    chance = random.Random(0)
    refused = 0
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for _ in range(40):
            content = bytearray(good)
            for _ in range(chance.randint(1, 4)):
                content[chance.randrange(min(len(content), chance.choice((100, 10_000))))] = chance.randrange(256)
            path.write_bytes(content[: chance.randrange(len(content))] if chance.random() < 0.2 else content)
            try:
                find_models(folder)
                read_all(folder)
            except InputError:
                refused += 1
        path.write_bytes(good)
    assert refused > 30


# ------------------------------------------------------------------ real models
@pytest.mark.parametrize(
    "place", ["colmap/alexander/sparse/0", "colmap/alexander/dense/sparse", "llff/fern/sparse/0", "monocular/lady-running/sparse/0"]
)
def test_real_models_are_read_as_colmap_reads_them(shared, place):
    folder = shared / "data" / place
    if not folder.is_dir():
        pytest.skip(f"{place} is not among the shared data")
    model = ColmapModel.read(folder)
    assert_same(model, model.points_file(), pycolmap.Reconstruction(str(folder)))
