"""NPBG scenes: cameras that agree with the pictures, both kinds of camera files, paths files, what is left out or refused; and a real scene."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from npbgpp.data.colmap_model import ColmapModel
from npbgpp.data.images import image_size, read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.parsers.npbg import NameRule, parse_npbg, scene_folder

from ..helpers.layouts.npbg import metashape_xml, write
from ..helpers.scenes import look_at_origin, projection_errors

SIZE = (48, 64)


def parse(folder: Path, name: str = "ball", **options) -> Scene:
    return parse_npbg(folder, folder, name, CloudFile(folder / "point_cloud.ply"), **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes xml and text, with paths files. Never write into it: copy it."""
    folder = tmp_path_factory.mktemp("npbg")
    write(folder / "xml", paths=True)
    write(folder / "text", text=True, paths=True)
    return folder


@pytest.fixture
def xml(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "xml", tmp_path / "xml"))


@pytest.fixture
def text(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "text", tmp_path / "text"))


def replace(path: Path, old: str, new: str, count: int = -1) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, count))


@pytest.mark.parametrize("kind", ["xml", "text"])
def test_cameras_are_those_of_the_pictures(written, kind):
    scene = parse(written / kind)
    assert len(scene.views) == 8 and scene.notes == ()
    for k, view in enumerate(scene.views):
        torch.testing.assert_close(view.camera.to_opencv()[0], torch.from_numpy(look_at_origin(2 * math.pi * k / 8)).float())
        assert view.camera.focal_length.tolist() == [[72.0, 72.0]] and view.camera.principal_point.tolist() == [[32.0, 24.0]]
        assert view.camera.image_size == SIZE and not view.resized and view.mask is None
        assert view.name == view.image.stem == (f"IMG_{k:04}" if kind == "xml" else str(k))
    error = projection_errors(scene)
    assert error.abs().max() < 0.5 and (error.mean(0).abs() < 0.1).all()


def test_splits_and_points(written, tmp_path):
    scene = parse(written / "xml")
    assert scene.splits == {"train": tuple(range(8)), "val": (4,), "test": (0,)}
    assert scene.carried_points == written / "xml" / "point_cloud.ply" and len(scene.cloud.read()) == 400
    write(tmp_path, views=2)
    assert parse(tmp_path).with_splits(None, None).splits == {"train": (1,), "val": (), "test": (0,)}


def test_projection_matrix_in_place_of_intrinsics(text):
    """P of other intrinsics than the centred ones; and K in a 4x4 text, of which the first 3x3 count."""
    K = np.array([[70.0, 0, 30, 0], [0, 75, 26, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.savetxt(text / "intrinsic_matrix.txt", K)
    stored = parse(text).views[0].camera
    width, height, near, far = 64, 48, 0.1, 1000
    P = np.zeros((4, 4))
    P[0, 0], P[0, 2], P[1, 1], P[1, 2] = 2 * 70 / width, 1 - 2 * 30 / width, 2 * 75 / height, 2 * 26 / height - 1
    P[2, 2], P[2, 3], P[3, 2] = (far + near) / (near - far), 2 * far * near / (near - far), -1
    np.savetxt(text / "projection.txt", P)
    replace(text / "scene.yaml", "intrinsic_matrix: intrinsic_matrix.txt", "proj_matrix: projection.txt")
    camera = parse(text).views[0].camera
    torch.testing.assert_close(camera.focal_length, stored.focal_length)
    torch.testing.assert_close(camera.principal_point, stored.principal_point)
    assert stored.focal_length.tolist() == [[70.0, 75.0]] and stored.principal_point.tolist() == [[30.0, 26.0]]
    # the same through the formula of the projection: where OpenGL puts a point in the window
    xyz = torch.tensor([[0.2, -0.3, 0.1]])
    x, y, _, w = P @ camera.to_opengl()[0].inverse().double().numpy() @ [0.2, -0.3, 0.1, 1]
    np.testing.assert_allclose(camera.project(xyz)[0][0, 0], [(x / w + 1) * width / 2, (1 - y / w) * height / 2], rtol=1e-5)


def test_intrinsics_and_poses_from_different_kinds_of_files(written, xml, text):
    shutil.copy(written / "xml" / "cameras.xml", text)
    replace(text / "scene.yaml", "intrinsic_matrix.txt", "cameras.xml")
    shutil.copy(written / "text" / "intrinsic_matrix.txt", xml)
    replace(xml / "scene.yaml", "intrinsic_matrix: cameras.xml", "intrinsic_matrix: intrinsic_matrix.txt")
    for folder in (text, xml):
        for mixed, pure in zip(parse(folder).views, parse(written / folder.name).views, strict=True):
            torch.testing.assert_close(mixed.camera, pure.camera)


def test_photos_are_looked_for_in_three_folders_and_under_several_names(xml):
    folder = xml / "images_undistorted"
    (folder / "IMG_0000.png").rename(folder / "IMG_0000")
    (folder / "IMG_0001.png").rename(xml / "IMG_0001.JPG")
    (xml / "images").mkdir()
    shutil.copy(folder / "IMG_0002.png", xml / "images" / "IMG_0002.png")
    (folder / "IMG_0003.png").rename(xml / "images" / "IMG_0003.jpg")
    found = [view.image.relative_to(xml).as_posix() for view in parse(xml).views[:4]]
    assert found == ["images_undistorted/IMG_0000", "IMG_0001.JPG", "images_undistorted/IMG_0002.png", "images/IMG_0003.jpg"]


def test_only_photos_as_shot_have_the_principal_point_of_the_calibration(xml):
    replace(xml / "cameras.xml", "</f>", "</f><cx>3</cx><cy>-2</cy><k1>0.1</k1>")
    centred = parse(xml)
    assert {tuple(v.camera.principal_point[0].tolist()) for v in centred.views} == {(32.0, 24.0)} and centred.notes == ()
    (xml / "images_undistorted").rename(xml / "images")
    shot = parse(xml)
    assert {tuple(v.camera.principal_point[0].tolist()) for v in shot.views} == {(35.0, 22.0)}
    assert len(shot.notes) == 1 and "undistorted" in shot.notes[0] and "k1 0.1" in shot.notes[0]
    replace(xml / "paths.yaml", "target_path: images_undistorted", "target_path: images")
    named = parse(xml, paths_file=xml / "paths.yaml")
    assert {tuple(v.camera.principal_point[0].tolist()) for v in named.views} == {(32.0, 24.0)} and named.notes == shot.notes


def test_photos_of_another_size_are_resampled(xml):
    path = xml / "images_undistorted" / "IMG_0002.png"
    with Image.open(path) as image:
        image.resize((128, 96)).save(path)
    views = parse(xml).views
    assert [view.resized for view in views] == [k == 2 for k in range(8)] and views[2].camera.image_size == SIZE
    assert read_photo(views[2]).image.shape == (3, *SIZE)


def test_cameras_without_pose_or_photo_are_left_out_and_told(xml, text):
    poses = {f"IMG_{k:04}": None if k == 2 else np.linalg.inv(look_at_origin(k)) for k in range(8)}
    more = "<transform><rotation>0 1 0 -1 0 0 0 0 1</rotation></transform>"
    (xml / "cameras.xml").write_text(metashape_xml(poses, SIZE, "<f>72</f>", more))
    (xml / "images_undistorted" / "IMG_0005.png").unlink()
    (xml / "point_cloud.ply").unlink()
    with (xml / "scene.yaml").open("a") as file:
        file.write("net_ckpt: a.pth\nmesh:\nsun: 1\nmodel3d_origin: o.txt\n")
    scene = parse(xml)
    assert [view.name for view in scene.views] == [f"IMG_{k:04}" for k in (0, 1, 3, 4, 6, 7)] and scene.carried_points is None
    words = ["sun", "model3d_origin", "transform of chunk", "1 cameras have no pose and are left out: IMG_0002"]
    words += ["1 cameras have no photo and are left out: IMG_0005", "point_cloud.ply"]
    assert len(scene.notes) == len(words)
    for word, note in zip(words, scene.notes, strict=True):
        assert word in note and "net_ckpt" not in note and "mesh" not in note

    matrices = np.loadtxt(text / "view_matrix.txt").reshape(8, 4, 4)
    matrices[3, 1, 2], matrices[6] = np.nan, np.inf
    np.savetxt(text / "view_matrix.txt", matrices.reshape(8, 16))  # one row for each is as good
    scene = parse(text)
    assert [view.name for view in scene.views] == ["0", "1", "2", "4", "5", "7"]
    assert scene.notes == ("2 cameras have no pose and are left out: 3, 6",)


def test_the_order_is_that_of_the_file_and_folders_become_part_of_names(xml):
    poses = {f"{side}/{k}": np.linalg.inv(look_at_origin(k)) for k, side in ((7, "b"), (1, "a"), (7, "a"))}
    (xml / "cameras.xml").write_text(metashape_xml(poses, SIZE, "<f>72</f>"))
    for label in poses:
        (xml / "images" / label).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(xml / "images_undistorted" / "IMG_0000.png", xml / "images" / f"{label}.png")
    assert [view.name for view in parse(xml).views] == ["b-7", "a-1", "a-7"]


def test_another_name_of_the_scene_file(xml):
    (xml / "scene.yaml").rename(xml / "person.yaml")
    assert len(parse(xml).views) == 8, "paths.yaml describes no scene"
    shutil.copy(xml / "person.yaml", xml / "other.yaml")
    with pytest.raises(InputError, match=r"scene\.yaml.*other\.yaml, person\.yaml"):
        parse(xml)


# ------------------------------------------------------------------------------------------------------------- paths files
@pytest.mark.parametrize("white_bg", [True, False])
def test_paths_file_with_masks(xml, tmp_path, white_bg):
    """Root and image folder play no part; without the white background photos are as they are stored."""
    assert scene_folder(xml / "paths.yaml", "ball") == xml
    empty = tmp_path / "empty"
    scene = parse_npbg(empty, empty, "ball", CloudFile(xml / "point_cloud.ply"), paths_file=xml / "paths.yaml", white_bg=white_bg)
    for view, plain in zip(scene.views, parse(xml).views, strict=True):
        assert (view.image, view.mask) == (plain.image, xml / "masks" / f"{view.name}.jpg")
        photo, stored = read_photo(view), read_photo(plain)
        dark = (photo.mask < 128)[0]
        assert 0 < dark.float().mean() < 1 and stored.mask is None
        assert torch.equal(photo.image[:, dark], torch.full_like(stored.image, 255)[:, dark] if white_bg else stored.image[:, dark])
        assert torch.equal(photo.image[:, ~dark], stored.image[:, ~dark])


def test_relative_paths_refer_to_the_file_then_to_the_root_of_a_host(xml, tmp_path):
    paths = tmp_path / "configs" / "paths.yaml"
    paths.parent.mkdir()
    entry = {"scene_path": "xml/scene.yaml", "target_path": str(xml / "images_undistorted"), "target_name_func": "{}.png"}
    paths.write_text(yaml.safe_dump({"datasets": {7: entry}, "some-host": {"data_root": "/nowhere"}, "other": {"data_root": ".."}}))
    assert len(parse(tmp_path, "7", paths_file=paths).views) == 8 and scene_folder(paths, "7").samefile(xml)
    near = paths.parent / "xml"
    shutil.copytree(xml, near)
    assert scene_folder(paths, "7") == near


def test_without_function_names_are_numbers_of_six_digits(text):
    for photo in (text / "images_undistorted").iterdir():
        photo.rename(photo.with_stem(photo.stem.zfill(6)))
    replace(text / "paths.yaml", "        target_name_func: \"lambda i: f'{i}.png'\"\n", "")
    scene = parse(text, paths_file=text / "paths.yaml")
    assert [view.name for view in scene.views] == [str(k) for k in range(8)]
    assert [view.image.name for view in scene.views] == [f"{k:06}.png" for k in range(8)]


@pytest.mark.parametrize(
    ("rule", "label", "expected"),
    [
        ("lambda i: f'{i}.png'", "DSC1", "DSC1.png"),
        ('  lambda name: f"a/{name}_{name}.jpg"', "x", "a/x_x.jpg"),
        ("lambda i: f'{i:06}.png'", "42", "000042.png"),
        ("lambda i: f'{i:06d}.png'", "42", "000042.png"),
        ("lambda i: f'{int(i):04}.png'", "000042", "0042.png"),
        ("lambda i: f'{int(i)}.png'", "000", "0.png"),
        ("lambda i: f'{{{i}}}.png'", "1", "{1}.png"),
        ("lambda i: 'one.png'", "7", "one.png"),
        ("{}.jpg", "DSC1", "DSC1.jpg"),
        ("img_{:03}.jpg", "7", "img_007.jpg"),
        ("lambda i: f'{i:03}.png'", "{7}", "{7}.png"),
    ],
)
def test_names_of_files(rule, label, expected):
    assert NameRule.parse(rule, "here").name(label) == expected


@pytest.mark.parametrize(
    "rule",
    [
        "lambda i: open('MARK', 'w')",
        "lambda i: f\"{open('MARK', 'w')}\"",
        "lambda i, j=open('MARK', 'w'): f'{i}'",
        "lambda i: f'{i!r}'",
        "lambda i: f'{i.__class__}'",
        "lambda i: f'{j}.png'",
        "lambda i: f'{i:{i}}'",
        "lambda i: f'{i:999}'",
        "lambda i: f'{i:>9}'",
        "lambda i: f'{str(i)}'",
        "lambda i: f'{int(i, 16)}'",
        "lambda i: f'{int(i, base=9)}'",
        "lambda *i: f'{i}'",
        "lambda i, j: f'{i}'",
        "lambda: 'a'",
        "lambda i: i + '.png'",
        "lambda i: b'a'",
        "lambda i: f'{i'",
        "lambda",
        "open('MARK', 'w')",
        "__import__('os').system('touch MARK')",
        "'{}.png'.format",
        "{0.__class__}.png",
        "{i}.png",
        "{!r}.png",
        "{:>9}.png",
        "{:09999999999}.png",
        "{.png",
        "plain.png",
        "lambda i: " + "(" * 150 + "i" + ")" * 150,
        "lambda i: " + "-" * 189 + "i",
        "{}" * 101,
        7,
        None,
        ["{}"],
    ],
)
def test_other_functions_are_refused_and_never_run(rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected one argument") as caught:
        NameRule.parse(rule, "paths.yaml: ball: target_name_func")
    assert str(caught.value).startswith("paths.yaml: ball: target_name_func") and not any(tmp_path.iterdir())
    assert (rule[:200] if isinstance(rule, str) else type(rule).__name__) in str(caught.value)


def test_a_hostile_paths_file_is_refused_and_nothing_is_run(xml, monkeypatch):
    monkeypatch.chdir(xml)
    replace(xml / "paths.yaml", "f'{i}.jpg'", "open('MARK', 'w').name")
    with pytest.raises(InputError, match=r"paths\.yaml: ball: mask_name_func.*open\('MARK'"):
        parse(xml, paths_file=xml / "paths.yaml")
    (xml / "paths.yaml").write_text('datasets: !!python/object/apply:os.system ["touch MARK"]')
    with pytest.raises(InputError, match=r"paths\.yaml: expected a yaml"):
        parse(xml, paths_file=xml / "paths.yaml")
    assert not (xml / "MARK").exists()


# ------------------------------------------------------------------------------------------------------------- bad input
def edit(name: str, old: str, new: str, count: int = -1) -> Callable[[Path], None]:
    return lambda folder: replace(folder / name, old, new, count)


def put(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def loop(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return make


def no_photos(folder: Path) -> None:
    shutil.rmtree(folder / "images_undistorted")
    (folder / "images_undistorted").mkdir()


def odd_mask(folder: Path) -> None:
    Image.new("L", (64, 47)).save(folder / "masks" / "IMG_0001.jpg")


BAD_XML = {
    "no scene file": (drop("scene.yaml"), "scene.yaml"),
    "scene file that refers to itself": (loop("scene.yaml"), "scene.yaml"),
    "no yaml": (put("scene.yaml", "a: [1"), "scene.yaml: expected a yaml file"),
    "deep yaml": (put("scene.yaml", "[" * 2000), "scene.yaml: expected a yaml file"),
    "list": (put("scene.yaml", "- 1"), "expected a yaml file with keys, got list"),
    "not UTF-8": (put("scene.yaml", b"\xff\xfe: 1"), "scene.yaml: expected a yaml file"),
    "no viewport": (edit("scene.yaml", "viewport_size", "size"), "viewport_size: expected [width, height] in pixels, got None"),
    "one side": (edit("scene.yaml", "[64, 48]", "64"), "viewport_size: expected [width, height] in pixels, got 64"),
    "three sides": (edit("scene.yaml", "[64, 48]", "[64, 48, 3]"), "got 64, 48, 3"),
    "sides of words": (edit("scene.yaml", "[64, 48]", "[64, yes]"), "got 64, True"),
    "negative": (edit("scene.yaml", "[64, 48]", "[64, -48]"), "got 64, -48"),
    "not a number": (edit("scene.yaml", "[64, 48]", "[64, .nan]"), "got 64, nan"),
    "huge number": (edit("scene.yaml", "[64, 48]", "[64, 0x" + "f" * 5000 + "]"), "got 64, int"),
    "other viewport": (edit("scene.yaml", "[64, 48]", "[48, 64]"), "viewport_size: expected [64, 48], the resolution in"),
    "no poses": (edit("scene.yaml", "view_matrix", "views"), "expected view_matrix"),
    "no intrinsics": (edit("scene.yaml", "intrinsic_matrix", "intrinsics"), "expected intrinsic_matrix or proj_matrix"),
    "number for a file": (
        edit("scene.yaml", "view_matrix: cameras.xml", "view_matrix: [3]"),
        "view_matrix: expected the name of a file, got 3",
    ),
    "file elsewhere": (edit("scene.yaml", "view_matrix: cameras.xml", "view_matrix: a.xml"), "a.xml: no such file"),
    "number for points": (edit("scene.yaml", "point_cloud.ply", "1"), "pointcloud: expected the name of a file, got 1"),
    "no camera file": (drop("cameras.xml"), "cameras.xml: no such file"),
    "damaged camera file": (put("cameras.xml", "<document>"), "cameras.xml: expected XML"),
    "nothing aligned": (edit("cameras.xml", "transform>", "nothing>"), "cameras.xml: expected the poses of cameras, got none of 8"),
    "no photos": (no_photos, "expected photos of the cameras IMG_0000"),
    "photo that is no picture": (put("images_undistorted/IMG_0003.png", "hello"), "IMG_0003.png: expected a readable image"),
    "labels above the folder": (
        edit("cameras.xml", 'label="IMG', 'label="../xml/images_undistorted/IMG'),
        "expected photos of the cameras ../xml",
    ),
    "labels of one name": (lambda folder: rename_labels(folder), "expected a label of its own for every camera, got a-b for several"),
}


def rename_labels(folder: Path) -> None:
    for k, label in enumerate(("a/b", "a-b")):
        replace(folder / "cameras.xml", f'label="IMG_000{k}"', f'label="{label}"')
        (folder / f"{label}.png").parent.mkdir(exist_ok=True)
        shutil.copy(folder / "images_undistorted" / "IMG_0000.png", folder / f"{label}.png")


BAD_TEXT = {
    "no matrices": (drop("view_matrix.txt"), "view_matrix.txt: no such file"),
    "no numbers": (put("view_matrix.txt", "a b c d"), "view_matrix.txt: expected a table of numbers"),
    "empty": (put("view_matrix.txt", "# nothing\n\n"), "view_matrix.txt: expected a table of numbers, got an empty file"),
    "ragged": (put("view_matrix.txt", "1 0\n1"), "view_matrix.txt: expected a table of numbers"),
    "three rows": (put("view_matrix.txt", "1 0 0 0\n0 1 0 0\n0 0 1 0"), "expected 4x4 camera-to-world matrices below each other, got 3x4"),
    "scaled": (put("view_matrix.txt", "2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1"), "matrix 0: expected a rigid camera-to-world pose"),
    "far": (put("view_matrix.txt", "1 0 0 1e200 0 1 0 0 0 0 1 0 0 0 0 1"), "camera 0: expected a position of usual size"),
    "no pose": (put("view_matrix.txt", "nan " * 16), "expected the poses of cameras, got none of 1"),
    "not UTF-8": (put("view_matrix.txt", b"\xff"), "view_matrix.txt: expected a table of numbers"),
    "no K": (drop("intrinsic_matrix.txt"), "intrinsic_matrix.txt: no such file"),
    "K of 2x2": (put("intrinsic_matrix.txt", "1 0\n0 1"), "intrinsic_matrix.txt: expected K, 3x3 numbers"),
    "K without last row": (put("intrinsic_matrix.txt", "9 0 9\n0 9 9\n0 0 0"), "intrinsic_matrix.txt: expected K, 3x3 numbers"),
    "skew": (put("intrinsic_matrix.txt", "9 1 9\n0 9 9\n0 0 1"), "without skew"),
    "NaN": (put("intrinsic_matrix.txt", "nan 0 9\n0 9 9\n0 0 1"), "expected positive focal lengths"),
    "negative": (put("intrinsic_matrix.txt", "9 0 9\n0 -9 9\n0 0 1"), "expected positive focal lengths"),
    "infinite": (put("intrinsic_matrix.txt", "9 0 inf\n0 9 9\n0 0 1"), "expected positive focal lengths"),
    "other projection": (edit("scene.yaml", "intrinsic_matrix:", "proj_matrix:"), "expected an OpenGL projection"),
    "XML without sensor": (
        lambda folder: (put("a.xml", "<document><chunk/></document>")(folder), edit("scene.yaml", "intrinsic_matrix.txt", "a.xml")(folder))[
            1
        ],
        "a.xml: expected a sensor",
    ),
}
BAD_PATHS = {
    "no paths file": (drop("paths.yaml"), "paths.yaml: no such file"),
    "no data sets": (put("paths.yaml", "a: 1"), "paths.yaml: expected datasets"),
    "other data sets": (edit("paths.yaml", "ball:", "cube:"), "no dataset ball; it holds cube"),
    "no keys": (put("paths.yaml", "datasets: {ball: 1}"), "paths.yaml: ball: expected scene_path and target_path, got int"),
    "no scene": (
        edit("paths.yaml", "scene_path: scene.yaml", "scene_path: a.yaml"),
        "ball: scene_path: expected a.yaml to exist, looked at",
    ),
    "no target": (edit("paths.yaml", "target_path", "path"), "ball: target_path: expected a path, got NoneType"),
    "no name of masks": (edit("paths.yaml", "mask_name_func", "name"), "ball: mask_name_func: expected one argument"),
    "number of a word": (edit("paths.yaml", "{i}.png", "{int(i)}.png"), "expected labels that are numbers, got IMG_0000"),
    "other names": (edit("paths.yaml", "{i}.png", "{i}.tif"), "expected photos of the cameras IMG_0000"),
    "no mask": (drop("masks/IMG_0004.jpg"), "masks/IMG_0004.jpg: no such file"),
    "mask of another size": (odd_mask, "mask"),
    "zero in a path": (edit("paths.yaml", "scene_path: scene.yaml", 'scene_path: "a\\0b"'), "scene_path: expected"),
}


def refuses(folder: Path, words: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        parse(folder, **options)
    assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize("case", BAD_XML)
def test_a_spoilt_scene_ends_in_one_message(xml, case):
    spoil, words = BAD_XML[case]
    spoil(xml)
    refuses(xml, words)


@pytest.mark.parametrize("case", BAD_TEXT)
def test_spoilt_text_files_end_in_one_message(text, case):
    spoil, words = BAD_TEXT[case]
    spoil(text)
    refuses(text, words)


@pytest.mark.parametrize("case", BAD_PATHS)
def test_a_spoilt_paths_file_ends_in_one_message(xml, case):
    spoil, words = BAD_PATHS[case]
    spoil(xml)
    refuses(xml, words, paths_file=xml / "paths.yaml")


# ------------------------------------------------------------------------------------------------------------- real data
@pytest.mark.parametrize("kind", ["xml", "text"])
def test_a_real_scene_has_the_cameras_of_its_colmap_model(shared, tmp_path, kind):
    folder = shared / "data" / "colmap" / "alexander"
    model = ColmapModel.read(folder / "dense" / "sparse")
    labels = [Path(image.name).stem for image in model.images]
    if kind == "xml":
        paths = folder / "npbg" / "paths.yaml"
    else:  # numbers are those among 57 matrices, photos are linked under these
        paths = tmp_path / "paths.yaml"
        everything = sorted(p.stem for p in (folder / "images").glob("*.jpg"))
        (tmp_path / "photos").mkdir()
        for label in labels:
            (tmp_path / "photos" / f"{everything.index(label):04}.jpg").symlink_to(folder / "dense" / "images" / f"{label}.jpg")
        for name in ("view_matrix.txt", "intrinsic_matrix.txt"):
            shutil.copy(folder / "npbg" / name, tmp_path)
        described = {"viewport_size": [512, 512], "intrinsic_matrix": "intrinsic_matrix.txt", "view_matrix": "view_matrix.txt"}
        (tmp_path / "scene.yaml").write_text(yaml.safe_dump(described))
        entry = {"scene_path": "scene.yaml", "target_path": "photos", "target_name_func": "lambda i: f'{i:04}.jpg'"}
        paths.write_text(yaml.safe_dump({"datasets": {"alexander": entry}}))
        labels = [str(everything.index(label)) for label in labels]
    scene = parse_npbg(tmp_path, tmp_path, "alexander", CloudFile(folder / "dense" / "fused.ply"), paths_file=paths)
    assert [view.name for view in scene.views] == labels and len(labels) == 53
    assert scene.notes[0].startswith("4 cameras have no pose and are left out")
    for view, image in zip(scene.views, model.images, strict=True):
        lens = model.lenses[image.camera]
        torch.testing.assert_close(view.camera.to_opencv()[0], image.world_to_cam.float(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(view.camera.focal_length[0], lens.focal_length, rtol=1e-6)
        np.testing.assert_allclose(view.camera.principal_point[0], lens.principal_point, rtol=1e-6)
        assert image_size(view.image) == lens.image_size == view.camera.image_size
