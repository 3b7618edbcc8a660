"""Bundler, RealityCapture and Metashape beside photos: values as their manuals define them, what is left out, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data import CloudFile, Scene, read_photo
from npbgpp.errors import InputError
from npbgpp.parsers import read_scene, recognise, with_cloud

from ..helpers.damage import Damage, edit, line, move, put, remove
from ..helpers.layouts import colmap
from ..helpers.layouts.camera_files import write_bundler, write_metashape, write_reality_capture
from ..helpers.scenes import projection_errors

SIZE = (48, 64)
CSV = "#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2\n"


def parse(folder: Path, layout: str = "auto", **choices) -> Scene:
    return read_scene(layout, folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), choices)


@pytest.mark.parametrize(
    ("angles", "forward", "up"),
    [
        ("0,0,0", (0, 0, -1), (0, 1, 0)),
        ("90,0,0", (0, 0, -1), (1, 0, 0)),
        ("0,90,0", (0, 1, 0), (0, 0, 1)),
        ("90,90,0", (1, 0, 0), (0, 0, 1)),
        ("180,45,0", (0, -(0.5**0.5), -(0.5**0.5)), (0, -(0.5**0.5), 0.5**0.5)),
        ("0,0,90", (-1, 0, 0), (0, 1, 0)),
    ],
)
def test_angles_of_reality_capture(tmp_path, angles, forward, up):
    """Looking down with north above, then turned: heading from north to east, pitch up from the ground, roll to the left."""
    write_reality_capture(tmp_path / "scene", 2, SIZE)
    rows = "".join(f"view_{k}.png,1,2,3,{angles},18,1.8,-0.9,0,0,0,0,0,0\n" for k in range(2))
    (tmp_path / "scene" / "cameras.csv").write_text(CSV + rows)
    camera = parse(tmp_path / "scene").views[0].camera
    torch.testing.assert_close(camera.centers()[0], torch.tensor([1.0, 2.0, 3.0]))
    right, down_up, ahead = camera.to_opengl()[0, :3, :3].T
    torch.testing.assert_close(-ahead, torch.tensor(forward, dtype=torch.float32), atol=1e-6, rtol=0)
    torch.testing.assert_close(down_up, torch.tensor(up, dtype=torch.float32), atol=1e-6, rtol=0)
    # 36 mm are 64 pixels
    assert camera.focal_length[0].tolist() == pytest.approx([32, 32])
    assert camera.principal_point[0].tolist() == pytest.approx([32 + 3.2, 24 - 1.6])


def test_lenses_are_those_of_the_files(tmp_path):
    write_metashape(tmp_path / "m", 2, SIZE)
    edit("cameras.xml", "</f>", "</f><cx>2</cx><cy>-1</cy><b1>0.5</b1><k3>0.01</k3>")(tmp_path / "m")
    edit("cameras.xml", "<k1>0</k1><k2>0</k2><p1>0</p1><p2>0</p2>", "<k1>0.1</k1><p1>0.02</p1><p2>0.03</p2>")(tmp_path / "m")
    lens = parse(tmp_path / "m").views[0].lens
    assert lens is not None and lens.model == "FULL_OPENCV"
    assert lens.params == pytest.approx((72.5, 72, 34, 23, 0.1, 0, 0.03, 0.02, 0.01, 0, 0, 0))
    # Metashape: x (1 + k1 r^2 + k3 r^6) + p1 (r^2 + 2 x^2) + 2 p2 x y
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    u = 32 + 2 + (x * (1 + 0.1 * r2 + 0.01 * r2**3) + 0.02 * (r2 + 2 * x * x) + 2 * 0.03 * x * y) * 72.5
    v = 24 - 1 + (y * (1 + 0.1 * r2 + 0.01 * r2**3) + 0.03 * (r2 + 2 * y * y) + 2 * 0.02 * x * y) * 72
    np.testing.assert_allclose(lens.project(np.array([[x, y]])), [[u, v]], atol=1e-9)


def test_undistorted_photos_of_metashape(tmp_path):
    """The export of undistorted photos has a central principal point and no distortion."""
    write_metashape(tmp_path / "scene", 4, SIZE)
    edit("cameras.xml", "<k1>0</k1>", "<cx>2</cx><k1>0.3</k1><k4>0.1</k4>")(tmp_path / "scene")
    move("images", "images_undistorted")(tmp_path / "scene")
    scene = parse(tmp_path / "scene")
    assert all(view.lens is None for view in scene.views) and projection_errors(scene).abs().max() < 1


@pytest.mark.parametrize("write", [write_bundler, write_metashape, write_reality_capture])
@pytest.mark.parametrize("in_root", [False, True], ids=["images", "root"])
@pytest.mark.parametrize("name", ["{stem}.png", "{stem}_mask.png", "{stem}.png.png"])
def test_masks_beside_the_photos_are_used(tmp_path, write, in_root, name):
    scene_folder = tmp_path / "scene"
    write(scene_folder, 3, SIZE)
    if in_root:
        for photo in sorted((scene_folder / "images").iterdir()):
            photo.rename(scene_folder / photo.name)
        (scene_folder / "images").rmdir()
    assert all(view.mask is None for view in parse(scene_folder).views)
    (scene_folder / "masks").mkdir()
    half = np.zeros((*SIZE, 1), np.uint8).squeeze(-1)
    half[:, : SIZE[1] // 2] = 255
    for k in range(3):
        path = scene_folder / "masks" / name.format(stem=f"view_{k}")
        Image.fromarray(half).save(path)
    scene = parse(scene_folder)
    photo = read_photo(scene.views[1])
    assert photo.mask is not None and torch.equal(photo.mask[0], torch.from_numpy(half))
    assert (photo.image[:, :, SIZE[1] // 2 :] == 255).all() and not (photo.image[:, :, : SIZE[1] // 2] == 255).all()
    path.unlink()  # one photo without a mask
    scene = parse(scene_folder)
    assert all(view.mask is None for view in scene.views) and any("mask" in note for note in scene.notes)


def test_points_of_bundler_are_carried(tmp_path):
    write_bundler(tmp_path / "scene", 4, SIZE)
    remove("mvs_pc.ply")(tmp_path / "scene")
    cloud = with_cloud(parse(tmp_path / "scene"), tmp_path / "scene").cloud.read()
    assert len(cloud) == 100 and cloud.rgb_u8 is not None and cloud.rgb_u8[0].tolist() == [230, 20, 20]


def test_photos_without_a_list_are_in_natural_order(tmp_path):
    write_bundler(tmp_path / "scene", 12, SIZE)
    remove("list.txt")(tmp_path / "scene")
    scene = parse(tmp_path / "scene")
    assert [view.name for view in scene.views][:3] == ["view_0", "view_1", "view_2"] and projection_errors(scene).abs().max() < 1


@pytest.mark.parametrize("write", [write_bundler, write_reality_capture, write_metashape])
def test_cameras_without_photo_are_left_out(tmp_path, write):
    write(tmp_path / "scene", 4, SIZE)
    remove("images/view_1.png")(tmp_path / "scene")
    scene = parse(tmp_path / "scene")
    assert [view.name for view in scene.views] == ["view_0", "view_2", "view_3"]
    assert (
        any("1 of 4 cameras have no photo and are left out: " in note for note in scene.notes) and projection_errors(scene).abs().max() < 1
    )


def test_cameras_that_are_not_registered_are_left_out(tmp_path):
    write_bundler(tmp_path / "scene", 4, SIZE)
    line("bundle.out", 2, "0 0 0")(tmp_path / "scene")
    scene = parse(tmp_path / "scene")
    assert len(scene.views) == 3 and any("1 of 4 cameras are not registered" in note for note in scene.notes)


@pytest.mark.parametrize("write", [write_bundler, write_reality_capture, write_metashape])
def test_far_scenes_keep_their_precision(tmp_path, write):
    write(tmp_path / "scene", 4, SIZE)
    folder, away = tmp_path / "scene", np.array([500000.25, 4650002.3, 125.0])
    near = parse(folder)
    if write is write_bundler:
        lines = (folder / "bundle.out").read_text().splitlines()
        for k in range(4):
            rotation, shift = np.loadtxt(lines[3 + 5 * k : 6 + 5 * k]), np.array(lines[6 + 5 * k].split(), float)
            lines[6 + 5 * k] = " ".join(map(repr, (shift - rotation @ away).tolist()))
        (folder / "bundle.out").write_text("\n".join(lines))
    elif write is write_reality_capture:
        lines = [row.split(",") for row in (folder / "cameras.csv").read_text().splitlines()]
        moved = [[row[0], *map(repr, (np.array(row[1:4], float) + away).tolist()), *row[4:]] for row in lines[2:]]
        (folder / "cameras.csv").write_text(CSV + "\n".join(",".join(row) for row in moved))
    else:
        text = (folder / "cameras.xml").read_text()
        for part in text.split("<transform>")[1:]:
            old = part.split("</transform>")[0]
            matrix = np.array(old.split(), float).reshape(4, 4)
            matrix[:3, 3] += away
            text = text.replace(old, " ".join(map(repr, matrix.ravel().tolist())))
        (folder / "cameras.xml").write_text(text)
    far = parse(folder)
    offset = np.array(far.offset)
    for a, b in zip(near.views, far.views, strict=True):
        np.testing.assert_allclose(b.camera.centers().numpy() + offset - away, a.camera.centers().numpy(), atol=1e-4)
        torch.testing.assert_close(a.camera.R, b.camera.R)


@pytest.mark.parametrize(
    ("write", "damage", "parts"),
    [
        (write_bundler, edit("bundle.out", "v0.3", "v0.3\n-1 0"), ["bundle.out", "-1 cameras"]),
        (write_bundler, line("bundle.out", 3, "1 0 nan"), ["bundle.out: images/view_0.png"]),
        (write_bundler, line("list.txt", 0, None), ["as many cameras as photos in", "list.txt, 3, got 4"]),
        (write_bundler, put("list.txt", b"\xff\xfe"), ["list.txt", "unreadable"]),
        (write_reality_capture, edit("cameras.csv", ",heading", ",yaw"), ["none called heading", "Internal/External"]),
        (write_reality_capture, edit("cameras.csv", "view_1.png,", "view_1.png,much"), ["view_1.png: x", "'much"]),
        (write_reality_capture, edit("cameras.csv", "view_1.png,", "view_0.png,"), ["several of view_0.png"]),
        (write_reality_capture, line("cameras.csv", 3, "view_1.png,1,2"), ["view_1.png: expected 16 values, got 3"]),
        (write_reality_capture, line("cameras.csv", 3, "view_1.png,0,0,0,0,0,0,36,0,0,0,0,0,0.1,0,0"), ["k4", "Brown3"]),
        (write_reality_capture, line("cameras.csv", 3, "view_1.png,0,0,0,0,0,0,-36,0,0,0,0,0,0,0,0"), ["positive focal length"]),
        (write_metashape, edit("cameras.xml", "<k1>0</k1>", "<k4>0.1</k4><p3>1</p3>"), ["view_0", "k4, p3", "images_undistorted"]),
        (write_metashape, edit("cameras.xml", "<k1>0</k1>", "<b2>5</b2>"), ["b2"]),
        (write_metashape, edit("cameras.xml", "transform>", "nothing>"), ["got none of 4", "align"]),
    ],
)
def test_damaged_files_are_refused(tmp_path, write, damage: Damage, parts):
    write(tmp_path / "scene", 4, SIZE)
    damage(tmp_path / "scene")
    layout = {write_bundler: "bundler", write_reality_capture: "reality_capture", write_metashape: "metashape"}[write]
    with pytest.raises(InputError) as caught:
        parse(tmp_path / "scene", layout)
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value), str(caught.value)


def test_scenes_of_colmap_keep_their_layout(tmp_path):
    """Other files beside a model do not change how it is read."""
    colmap.write(tmp_path / "scene", 3, SIZE)
    write_metashape(tmp_path / "other", 3, SIZE)
    (tmp_path / "scene" / "cameras.xml").write_bytes((tmp_path / "other" / "cameras.xml").read_bytes())
    (tmp_path / "scene" / "table.csv").write_text("a,b\n1,2\n")
    assert recognise(tmp_path / "scene") == ("colmap", "metashape")
