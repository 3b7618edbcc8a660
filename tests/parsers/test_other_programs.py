"""Scenes as other programs write them: names, text models, masks and folders of COLMAP; Metashape's rigs, chunks and lenses; alpha; order of frames."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data import CloudFile, Scene, read_photo
from npbgpp.data.motion_maps import write_flow
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PointCloud, write_ply
from npbgpp.parsers import layouts, read_scene, recognise, with_cloud
from npbgpp.parsers.metashape import MetashapeFile

from ..helpers.damage import edit
from ..helpers.layouts import colmap, llff, monocular, npbg, npcr, scannet, scannet_raw
from ..helpers.layouts.npbg import metashape_xml
from ..helpers.scenes import central_intrinsics, look_at_origin, projection_errors

SIZE = (48, 64)
MODEL = "sparse/0"


def parse(folder: Path, layout: str = "auto", **choices) -> Scene:
    return read_scene(layout, folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), choices)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for text in (True, False):
        colmap.write(root / str(text) / "scene", 3, SIZE, text=text)
    return {"text": root / "True" / "scene", "binary": root / "False" / "scene"}


@pytest.fixture(params=["text", "binary"])
def scene_folder(written, tmp_path, request) -> Path:
    return Path(shutil.copytree(written[request.param], tmp_path / "scene"))


@pytest.fixture
def text_folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written["text"], tmp_path / "scene"))


def name_in_model(folder: Path, old: bytes, new: bytes) -> None:
    path = next((folder / MODEL).glob("images.*"))
    path.write_bytes(path.read_bytes().replace(old, new))


# ------------------------------------------------------------------ COLMAP: names
@pytest.mark.parametrize(
    ("in_model", "file"),
    [
        (b"left\\view_0.png", "left/view_0.png"),
        (b"images/view_0.png", "view_0.png"),
        (b"/data/cap/images/view_0.png", "view_0.png"),
        (b"D:\\cap\\view_0.png", "view_0.png"),
        (b"../photos/view_0.png", "view_0.png"),
        (b"view_0.png", "left/view_0.png"),
        (b"2021.05.00", "2021.05.00.png"),
        (b"2021.05.00.JPG", "2021.05.00.png"),
        (b"images/view_0.tif", "left/view_0.png"),
    ],
)
def test_photos_are_found_by_the_names_that_other_programs_write(scene_folder, in_model, file):
    """And their masks with them."""
    name_in_model(scene_folder, b"view_0.png", in_model)
    (scene_folder / "images" / file).parent.mkdir(exist_ok=True)
    (scene_folder / "images" / "view_0.png").rename(scene_folder / "images" / file)
    shutil.copytree(scene_folder / "images", scene_folder / "masks")
    for path in [path for path in (scene_folder / "masks").rglob("*") if path.is_file()]:
        Image.new("L", SIZE[::-1], 255).save(path)
    scene = parse(scene_folder)
    assert len(scene.views) == 3
    view = next(view for view in scene.views if view.image == scene_folder / "images" / file)
    assert view.mask == scene_folder / "masks" / file
    assert projection_errors(scene).abs().max() < 1


def test_ambiguous_names_are_not_guessed(scene_folder):
    name_in_model(scene_folder, b"view_0.png", b"/data/view_0.png")
    for side in ("left", "right"):
        (scene_folder / "images" / side).mkdir()
        shutil.copy(scene_folder / "images" / "view_0.png", scene_folder / "images" / side)
    (scene_folder / "images" / "view_0.png").unlink()
    scene = parse(scene_folder)
    assert len(scene.views) == 2 and any("data/view_0.png" in note for note in scene.notes)


def test_names_that_are_not_utf_8_are_named_as_such(scene_folder):
    name_in_model(scene_folder, b"view_0.png", "照片_0.png".encode("gbk"))
    with pytest.raises(InputError, match=r"images\.(bin|txt): expected names in UTF-8, got other bytes \(.*_0\.png.*rename the photos"):
        parse(scene_folder)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".png.png"])
def test_masks_with_the_names_of_the_photos(scene_folder, suffix):
    (scene_folder / "masks").mkdir()
    for k in range(3):
        values = np.zeros(SIZE, np.uint8)
        values[:12] = 255
        Image.fromarray(values).save(scene_folder / "masks" / f"view_{k}{suffix}")
    photo = read_photo(parse(scene_folder).views[0])
    assert photo.mask is not None and (photo.mask > 127).float().mean() == 0.25


def test_masks_are_resampled_for_reduced_photos(scene_folder):
    for folder, size in (("images_2", (32, 24)), ("masks", (64, 48))):
        (scene_folder / folder).mkdir()
        for path in sorted((scene_folder / "images").glob("view_*.png")):
            values = np.zeros(size[::-1], np.uint8)
            values[: size[1] // 4] = 255
            Image.fromarray(values).save(scene_folder / folder / path.name)
    view = parse(scene_folder, downscale=2.0).views[0]
    photo = read_photo(view)
    assert view.image.parent.name == "images_2" and photo.mask is not None and (photo.mask > 127).float().mean() == 0.25


# ------------------------------------------------------------------ COLMAP: files
@pytest.mark.parametrize(
    "old_new", [("\n", "\n\n\n"), ("# Image", "\n \n# Image"), ("# Image", "   # Image"), ("# Image", "\ufeff# Image")]
)
def test_blank_lines_comments_and_marks_in_text_models(text_folder, old_new):
    path = text_folder / MODEL / "images.txt"
    comment, *lines = path.read_text().splitlines()
    poses = "\n".join(f"{pose}\n" for pose in lines[::2])  # without keypoints, so that the second lines are empty
    path.write_text(f"{comment}\n{poses}\n".replace(*old_new))
    edit(f"{MODEL}/cameras.txt", "#", "  #")(text_folder)
    edit(f"{MODEL}/points3D.txt", "#", "\n\n  #")(text_folder)
    scene = parse(text_folder)
    assert len(scene.views) == 3 and scene.carried_points is not None and len(CloudFile(scene.carried_points).read()) > 10


def test_spherical_photos_are_refused_in_both_forms(scene_folder):
    path = next((scene_folder / MODEL).glob("cameras.*"))
    if path.suffix == ".txt":
        path.write_text(path.read_text().replace("PINHOLE", "EQUIRECTANGULAR"))
    else:
        content = bytearray(path.read_bytes())
        content[12:16] = (17).to_bytes(4, "little")
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"spherical photos \(EQUIRECTANGULAR\) are not read; split them"):
        parse(scene_folder)


def test_points_as_ply_alone_are_used(scene_folder):
    for path in (scene_folder / MODEL).glob("points3D.*"):
        path.unlink()
    (scene_folder / "mvs_pc.ply").unlink()
    write_ply(scene_folder / MODEL / "points3D.ply", PointCloud(torch.ones(5, 3)))
    scene = with_cloud(parse(scene_folder), scene_folder)
    assert scene.cloud.path.name == "points3D.ply" and len(scene.cloud.read()) == 5


@pytest.mark.parametrize(
    ("place", "photos"), [("colmap/sparse/0", "images"), ("sparse_undistorted", "images"), ("distorted/sparse/0", "input")]
)
def test_models_in_the_folders_of_other_programs(scene_folder, place, photos):
    target = scene_folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(scene_folder / MODEL, target)
    shutil.rmtree(scene_folder / "sparse")
    if photos != "images":
        (scene_folder / "images").rename(scene_folder / photos)
    scene = parse(scene_folder)
    assert scene.layout == "colmap" and len(scene.views) == 3 and scene.views[0].image.parent.name == photos
    assert scene.carried_points is not None and scene.carried_points.parent == target


def test_the_undistorted_model_is_preferred(scene_folder):
    shutil.copytree(scene_folder / MODEL, scene_folder / "distorted" / "sparse" / "0")
    points = parse(scene_folder).carried_points
    assert points is not None and points.parent == scene_folder / MODEL


# ------------------------------------------------------------------ Metashape
POSES = {f"P{k}": np.linalg.inv(look_at_origin(k)) for k in range(4)}
LENS = "<f>72.5</f>"


def read(folder: Path, content: str) -> MetashapeFile:
    (folder / "cameras.xml").write_text(content)
    return MetashapeFile.read(folder / "cameras.xml")


def test_cameras_of_a_rig_have_the_pose_of_their_master_and_of_their_sensor(tmp_path):
    angle = 0.1
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    text = metashape_xml({"P0": POSES["P0"], "P1": None}, SIZE, LENS)
    numbers = " ".join(map(str, turn.ravel()))
    second = '<sensor id="1" type="frame" master_id="0"><resolution width="64" height="48"/><calibration type="frame" class="adjusted"><f>60</f></calibration>'
    second += f"<rotation>{numbers}</rotation><location>0.2 0 0.1</location></sensor></sensors>"
    text = text.replace("</sensors>", second).replace('<camera id="1" sensor_id="0"', '<camera id="1" sensor_id="1" master_id="0"')
    found = read(tmp_path, text)
    assert [camera.label for camera in found.cameras] == ["P0", "P1"] and found.unaligned == ()
    pose, master = found.cameras[1].cam_to_world.numpy(), POSES["P0"]
    np.testing.assert_allclose(pose[:3, 3], master[:3, :3] @ [0.2, 0, 0.1] + master[:3, 3], atol=1e-12)
    np.testing.assert_allclose(pose[:3, :3], master[:3, :3] @ turn, atol=1e-12)
    assert found.cameras[1].sensor.focal_length == 60
    with pytest.raises(InputError, match=r"camera P1: expected rotation and location of the sensor 1 in its rig.*got none"):
        read(tmp_path, text.replace(f"<rotation>{numbers}</rotation><location>0.2 0 0.1</location>", ""))


def test_the_chunk_with_cameras_is_used_and_others_are_named(tmp_path):
    empty = '<chunk label="Chunk 0" enabled="true"><sensors next_id="0"/><cameras next_id="0"/></chunk>'
    few = metashape_xml({"Q0": POSES["P0"]}, SIZE, LENS).partition('<document version="1.5.0">')[2].partition("</document>")[0]
    few = few.replace("Chunk 1", "Chunk 2")
    text = metashape_xml(POSES, SIZE, LENS).replace('<document version="1.5.0">', f'<document version="1.5.0">{empty}{few}')
    found = read(tmp_path, text)
    assert [camera.label for camera in found.cameras] == list(POSES) and found.ignored == ("chunk Chunk 2 (1 cameras)",)


def test_the_component_with_most_cameras_is_used(tmp_path):
    text = metashape_xml(POSES, SIZE, LENS)
    for k in range(4):
        text = text.replace(f'<camera id="{k}" ', f'<camera id="{k}" component_id="{int(k != 1)}" ')
    found = read(tmp_path, text)
    assert [camera.label for camera in found.cameras] == ["P0", "P2", "P3"] and found.ignored == ("component 0 (1 cameras)",)


def test_labels_of_several_groups_are_told_apart_by_the_group(tmp_path):
    text = metashape_xml({"A0": POSES["P0"], "B0": POSES["P1"]}, SIZE, LENS)
    text = text.replace('<camera id="0"', '<group id="0" label="left"><camera id="0"').replace(
        '<camera id="1"', '</group><group id="1" label="right"><camera id="1"'
    )
    text = text.replace("</cameras>", "</group></cameras>").replace('label="A0"', 'label="DJI_0"').replace('label="B0"', 'label="DJI_0"')
    assert [camera.label for camera in read(tmp_path, text).cameras] == ["left/DJI_0", "right/DJI_0"]


@pytest.mark.parametrize("kind", ["spherical", "cylindrical"])
def test_panoramas_are_named(tmp_path, kind):
    text = metashape_xml(POSES, SIZE, LENS).replace('type="frame"', f'type="{kind}"')
    with pytest.raises(InputError, match=rf"camera P0: expected a perspective or fisheye photo, got a {kind} one.*split"):
        read(tmp_path, text)


def npbg_scene(folder: Path, kind: str, calibration: str) -> Path:
    """Photos drawn through a lens, beside the cameras that Metashape would export."""
    from pycolmap import Camera

    focal = central_intrinsics(SIZE)[0, 0]
    camera = Camera(model="OPENCV_FISHEYE", width=SIZE[1], height=SIZE[0], params=[focal, focal, 32.5, 23.5, 0.1, 0, 0, 0])
    npbg.write(folder, 3, SIZE)
    shutil.rmtree(folder / "images_undistorted")
    (folder / "images").mkdir()
    for k in range(3):
        picture = colmap.draw_through(camera, look_at_origin(2 * np.pi * k / 3))
        Image.fromarray(picture).save(folder / "images" / f"IMG_{k:04}.png")
    path = folder / "cameras.xml"
    path.write_text(path.read_text().replace('type="frame"', f'type="{kind}"').replace(f"<f>{focal}</f>", f"<f>{focal}</f>{calibration}"))
    return folder


def test_fisheye_sensors_are_equidistant(tmp_path):
    scene = parse(npbg_scene(tmp_path / "scene", "fisheye", "<cx>0.5</cx><cy>-0.5</cy><k1>0.1</k1>"))
    assert projection_errors(scene).norm(dim=1).max() < 0.75
    with pytest.raises(InputError, match=r"cameras\.xml: expected a fisheye lens with coefficients k1 to k4, got p1 too"):
        parse(npbg_scene(tmp_path / "other", "fisheye", "<p1>0.1</p1>"))


# ------------------------------------------------------------------ alpha, order, poses
@pytest.mark.parametrize("name", ["llff", "npcr", "npbg"])
@pytest.mark.parametrize("white_bg", [True, False])
def test_alpha_of_photos_is_their_mask(tmp_path, name, white_bg):
    folder = tmp_path / "scene"
    {"llff": llff, "npcr": npcr, "npbg": npbg}[name].write(folder, 3, SIZE)
    for path in folder.rglob("*_alpha.png"):
        path.unlink()
    for path in [path for path in folder.rglob("*") if path.suffix in (".png", ".jpg")]:
        pixels = np.full((*SIZE, 4), 60, np.uint8)
        pixels[:12, :, 3] = 255
        pixels[12:, :, 3] = 0
        path.unlink()
        Image.fromarray(pixels).save(path.with_suffix(".png"))
    scene = parse(folder, name, white_bg=white_bg)
    photo = read_photo(scene.views[1])
    assert photo.mask is not None and (photo.mask > 127).float().mean() == 0.25 and (photo.image[:, :12] == 60).all()
    assert (photo.image[:, 12:] == (255 if white_bg else 60)).all() and any("alpha" in note for note in scene.notes)


def test_frames_and_maps_have_one_order(tmp_path):
    folder = tmp_path / "scene"
    monocular.write(folder, 12, (12, 16))
    for kind in ("disps", "masks", "flow_fw", "flow_bw", "images"):
        for path in sorted((folder / kind).iterdir()):
            number = int(path.stem.removeprefix("photo_")) + (kind == "flow_bw")
            path.rename(folder / kind / f"f{number}{path.suffix}")
    for k in range(11):
        write_flow(folder / "flow_fw" / f"f{k}.flo", np.full((12, 16, 2), k, np.float32))
    scene = parse(folder, "monocular")
    assert [view.name for view in scene.frames] == [f"f{k}" for k in range(12)]
    for k, view in enumerate(scene.frames):
        motion = view.motion
        assert (
            motion is not None
            and motion.disparity == folder / "disps" / f"f{k}.png"
            and motion.static_mask == folder / "masks" / f"f{k}.png"
        )
        assert motion.flow_forward == (None if k == 11 else folder / "flow_fw" / f"f{k}.flo")
        assert motion.flow_backward == (None if k == 0 else folder / "flow_bw" / f"f{k}.flo")


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_frames_without_tracking_are_left_out(tmp_path, value):
    scannet_raw.write(tmp_path / "raw", 4, SIZE)
    files = sorted((tmp_path / "raw" / "pose").iterdir(), key=lambda path: int(path.stem))
    files[1].write_text(f"{value} {value} {value} {value}\n" * 4)
    scene = parse(tmp_path / "raw", "scannet")
    assert len(scene.views) == 3 and any("1 of 4 photos are left out" in note for note in scene.notes)
    scannet.write(tmp_path / "prepared", 4, SIZE)
    matrices = np.load(tmp_path / "prepared" / "extrinsics.npy")
    matrices[1] = float(value)
    np.save(tmp_path / "prepared" / "extrinsics.npy", matrices)
    scene = parse(tmp_path / "prepared", "scannet")
    assert len(scene.views) == 3 and any("1 of 4 photos are left out" in note for note in scene.notes)
    np.save(tmp_path / "prepared" / "extrinsics.npy", np.full((4, 4, 4), float(value)))
    with pytest.raises(InputError, match="expected poses, got 4 matrices that are not finite"):
        parse(tmp_path / "prepared", "scannet")


# ------------------------------------------------------------------ folders that are no scene
@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ((), ["empty"]),
        (("images/a.jpg", "images/b.JPG"), ["2 photos in images without poses", "npbgpp prepare photos", "/images <scene>", "COLMAP"]),
        (("a.png",), ["is 1 photo without poses", "npbgpp prepare photos"]),
        (("film.mp4",), ["a video (film.mp4)", "npbgpp prepare photos", "/film.mp4 <scene>"]),
        (("sfm_data.json", "images/a.jpg"), ["OpenMVG", "export to COLMAP"]),
        (("cameras.xml", "images/a.jpg"), ["Metashape, but without a chunk", "export the cameras again"]),
        (("scores.csv", "images/a.jpg"), ["Internal/External camera parameters"]),
        (("keyframes/images/a.jpg",), ["Polycam", "ns-process-data"]),
        (("bundle.rd.out",), ["Bundler"]),
        (("cloud.las",), ["clouds (cloud.las)", "neither photos nor poses"]),
        (("chair/images/a.jpg",), ["scenes in it (chair)"]),
        (("notes.txt",), ["there is notes.txt"]),
    ],
)
def test_a_folder_that_is_no_scene_is_described(tmp_path, files, parts):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert recognise(tmp_path) == ()
    with pytest.raises(InputError) as caught:
        parse(tmp_path)
    assert all(part in str(caught.value) for part in (*parts, *layouts(), "datasets.layout=<name>")), caught.value


def test_scenes_of_other_layouts_keep_their_cameras(scene_folder):
    """A model in ``colmap`` beside photos is that of ``sparse``."""
    views = parse(scene_folder).views
    assert Cameras.cat([view.camera for view in views]).R.isfinite().all() and len(views) == 3


def test_prepare_finds_photos_by_these_names_too(tmp_path):
    """In natural order, which is not that of the names in the model."""
    from npbgpp.prepare.cloud import make_cloud
    from npbgpp.prepare.llff import prepare_llff
    from npbgpp.prepare.settings import CloudSettings, LlffSettings

    folder = tmp_path / "scene"
    colmap.write(folder, 12, SIZE, text=True)
    clouds, rows = [], []
    for old, new in ((b"", b""), (b"view_", b"/data/cap/images/view_")):
        name_in_model(folder, old, new)
        make_cloud(CloudSettings(scene=str(folder), pc_name="made.ply", method="sparse", overwrite=True), "test")
        prepare_llff(LlffSettings(scene=folder, overwrite=True))
        rows.append(np.load(folder / "poses_bounds.npy"))
        clouds.append(CloudFile(folder / "made.ply").read())
        (folder / "poses_bounds.npy").unlink()
    assert torch.equal(clouds[0].xyz, clouds[1].xyz) and torch.equal(clouds[0].rgb_u8, clouds[1].rgb_u8)
    np.testing.assert_array_equal(*rows)


def test_prepare_keeps_alpha(scene_folder, tmp_path):
    from npbgpp.prepare.cloud import make_cloud
    from npbgpp.prepare.llff import prepare_llff
    from npbgpp.prepare.settings import CloudSettings, LlffSettings

    for path in sorted((scene_folder / "images").iterdir()):
        with Image.open(path) as image:
            rgba = np.asarray(image.convert("RGBA")).copy()
        rgba[:12, :, 3] = 0
        Image.fromarray(rgba).save(path)
    make_cloud(CloudSettings(scene=str(scene_folder), pc_name="made.ply", method="sparse"), "test")
    cloud = CloudFile(scene_folder / "made.ply").read()
    assert cloud.rgb_u8 is not None and cloud.rgb_u8.float().mean() < 230
    out = tmp_path / "llff"
    prepare_llff(LlffSettings(scene=scene_folder, out=out))
    photo = read_photo(read_scene("llff", out, out, "llff", CloudFile(out / "mvs_pc.ply"), {}).views[0])
    assert photo.mask is not None and (photo.mask > 127).float().mean() == 0.75
