"""NPBG scenes: cameras in XML and text, photos, what is left out, paths files and their name rules; and a real scene."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from npbgpp.data import CloudFile, ColmapModel, Scene, image_size, read_photo
from npbgpp.errors import InputError
from npbgpp.parsers.npbg import NameRule, parse_npbg, scene_folder

from ..helpers.damage import edit
from ..helpers.layouts.npbg import metashape_xml
from ..helpers.scenes import look_at_origin

SIZE = (48, 64)


def parse(folder: Path, name: str = "ball", **options) -> Scene:
    return parse_npbg(folder, folder, name, CloudFile(folder / "point_cloud.ply"), **options)


@pytest.fixture
def xml(drawn, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn["npbg"], tmp_path / "xml"))


@pytest.fixture
def text(drawn, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn["npbg_text"], tmp_path / "text"))


def test_views_splits_and_points(drawn):
    for kind in ("npbg", "npbg_text"):
        scene = parse(drawn[kind])
        assert scene.splits == {"train": tuple(range(8)), "val": (4,), "test": (0,)} and scene.notes == ()
        assert scene.carried_points == drawn[kind] / "point_cloud.ply" and len(scene.cloud.read()) == 400
        for k, view in enumerate(scene.views):
            assert view.name == view.image.stem == (f"IMG_{k:04}" if kind == "npbg" else str(k))
            assert view.mask is None and not view.resized


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
    edit("scene.yaml", "intrinsic_matrix: intrinsic_matrix.txt", "proj_matrix: projection.txt")(text)
    camera = parse(text).views[0].camera
    torch.testing.assert_close(camera.focal_length, stored.focal_length)
    torch.testing.assert_close(camera.principal_point, stored.principal_point)
    assert stored.focal_length.tolist() == [[70.0, 75.0]] and stored.principal_point.tolist() == [[30.0, 26.0]]
    # the same through the formula of the projection: where OpenGL puts a point in the window
    xyz = torch.tensor([[0.2, -0.3, 0.1]])
    x, y, _, w = P @ camera.to_opengl()[0].inverse().double().numpy() @ [0.2, -0.3, 0.1, 1]
    np.testing.assert_allclose(camera.project(xyz)[0][0, 0], [(x / w + 1) * width / 2, (1 - y / w) * height / 2], rtol=1e-5)


def test_intrinsics_and_poses_from_different_kinds_of_files(drawn, xml, text):
    shutil.copy(drawn["npbg"] / "cameras.xml", text)
    edit("scene.yaml", "intrinsic_matrix.txt", "cameras.xml")(text)
    shutil.copy(drawn["npbg_text"] / "intrinsic_matrix.txt", xml)
    edit("scene.yaml", "intrinsic_matrix: cameras.xml", "intrinsic_matrix: intrinsic_matrix.txt")(xml)
    for folder, kind in ((text, "npbg_text"), (xml, "npbg")):
        for mixed, pure in zip(parse(folder).views, parse(drawn[kind]).views, strict=True):
            torch.testing.assert_close(mixed.camera, pure.camera)


def test_photos_are_found_in_three_folders_and_by_several_names(xml):
    folder = xml / "images_undistorted"
    (folder / "IMG_0000.png").rename(folder / "IMG_0000")
    (folder / "IMG_0001.png").rename(xml / "IMG_0001.JPG")
    (xml / "images").mkdir()
    shutil.copy(folder / "IMG_0002.png", xml / "images" / "IMG_0002.png")
    (folder / "IMG_0003.png").rename(xml / "images" / "IMG_0003.jpg")
    found = [view.image.relative_to(xml).as_posix() for view in parse(xml).views[:4]]
    assert found == ["images_undistorted/IMG_0000", "IMG_0001.JPG", "images_undistorted/IMG_0002.png", "images/IMG_0003.jpg"]


def test_only_original_photos_have_the_principal_point_of_the_calibration(xml):
    edit("cameras.xml", "</f>", "</f><cx>3</cx><cy>-2</cy><k1>0.1</k1>")(xml)
    centred = parse(xml)
    assert {tuple(v.camera.principal_point[0].tolist()) for v in centred.views} == {(32.0, 24.0)} and centred.notes == ()
    (xml / "images_undistorted").rename(xml / "images")
    shot = parse(xml)
    assert {tuple(v.camera.principal_point[0].tolist()) for v in shot.views} == {(35.0, 22.0)}
    assert len(shot.notes) == 1 and "undistorted" in shot.notes[0] and "k1 0.1" in shot.notes[0]
    edit("paths.yaml", "target_path: images_undistorted", "target_path: images")(xml)
    named = parse(xml, paths_file=xml / "paths.yaml")
    assert {tuple(v.camera.principal_point[0].tolist()) for v in named.views} == {(32.0, 24.0)} and named.notes == shot.notes


def test_photos_of_another_size_are_resampled(xml):
    path = xml / "images_undistorted" / "IMG_0002.png"
    with Image.open(path) as image:
        image.resize((128, 96)).save(path)
    views = parse(xml).views
    assert [view.resized for view in views] == [k == 2 for k in range(8)] and views[2].camera.image_size == SIZE
    assert read_photo(views[2]).image.shape == (3, *SIZE)


def test_cameras_without_pose_or_photo_are_left_out(xml, text):
    poses = {f"IMG_{k:04}": None if k == 2 else np.linalg.inv(look_at_origin(k)) for k in range(8)}
    more = "<transform><rotation>0 1 0 -1 0 0 0 0 1</rotation></transform>"
    (xml / "cameras.xml").write_text(metashape_xml(poses, SIZE, "<f>72</f>", more))
    (xml / "images_undistorted" / "IMG_0005.png").unlink()
    (xml / "point_cloud.ply").unlink()
    with (xml / "scene.yaml").open("a") as file:
        file.write("net_ckpt: a.pth\nmesh:\nsun: 1\nmodel3d_origin: o.txt\n")
    scene = parse(xml)
    assert [view.name for view in scene.views] == [f"IMG_{k:04}" for k in (0, 1, 3, 4, 6, 7)] and scene.carried_points is None
    named = ["sun", "model3d_origin", "chunk", "IMG_0002", "IMG_0005", "point_cloud.ply"]
    for name, note in zip(named, scene.notes, strict=True):
        assert name in note and "net_ckpt" not in note and "mesh" not in note

    matrices = np.loadtxt(text / "view_matrix.txt").reshape(8, 4, 4)
    matrices[3, 1, 2], matrices[6] = np.nan, np.inf
    np.savetxt(text / "view_matrix.txt", matrices.reshape(8, 16))  # one row for each is as good
    scene = parse(text)
    assert [view.name for view in scene.views] == ["0", "1", "2", "4", "5", "7"]
    assert len(scene.notes) == 1 and scene.notes[0].endswith("3, 6")


def test_the_order_is_that_of_the_file_and_folders_become_part_of_names(xml):
    poses = {f"{side}/{k}": np.linalg.inv(look_at_origin(k)) for k, side in ((7, "b"), (1, "a"), (7, "a"))}
    (xml / "cameras.xml").write_text(metashape_xml(poses, SIZE, "<f>72</f>"))
    for label in poses:
        (xml / "images" / label).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(xml / "images_undistorted" / "IMG_0000.png", xml / "images" / f"{label}.png")
    assert [view.name for view in parse(xml).views] == ["b-7", "a-1", "a-7"]


def test_another_name_of_the_scene_file(xml):
    (xml / "scene.yaml").rename(xml / "person.yaml")
    assert len(parse(xml).views) == 8, "paths.yaml is no scene file"


# ------------------------------------------------------------------ paths files
def test_paths_file_with_masks(xml, tmp_path):
    """Root and image folder are ignored."""
    assert scene_folder(xml / "paths.yaml", "ball") == xml
    empty = tmp_path / "empty"
    scene = parse_npbg(empty, empty, "ball", CloudFile(xml / "point_cloud.ply"), paths_file=xml / "paths.yaml")
    for view, plain in zip(scene.views, parse(xml).views, strict=True):
        assert (view.image, view.mask) == (plain.image, xml / "masks" / f"{view.name}.jpg") and plain.mask is None


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
    edit("paths.yaml", "        target_name_func: \"lambda i: f'{i}.png'\"\n", "")(text)
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
        ("{}.jpg", "DSC1", "DSC1.jpg"),
        ("img_{:03}.jpg", "7", "img_007.jpg"),
        ("lambda i: f'{i:03}.png'", "{7}", "{7}.png"),
    ],
)
def test_name_rules(rule, label, expected):
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
        "lambda i: 'one.png'",
        "lambda i: f'{{{i}}}.png'",
        "lambda i: f'{i}' + f'{open(1)}'",
        "{int()}.png",
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
def test_other_code_is_refused_and_not_executed(rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        NameRule.parse(rule, "paths.yaml: ball: target_name_func")
    assert str(caught.value).startswith("paths.yaml: ball: target_name_func") and not any(tmp_path.iterdir())
    assert (rule[:200] if isinstance(rule, str) else type(rule).__name__) in str(caught.value)


# ------------------------------------------------------------------ a real scene
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
