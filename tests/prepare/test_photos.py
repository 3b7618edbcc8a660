"""``npbgpp prepare photos``: scenes from photos and videos of a textured room, compared with the true poses; and every kind of bad input."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from pycolmap import CancellationToken

from npbgpp.data import CloudFile, ColmapModel, read_points
from npbgpp.parsers.colmap import parse_colmap
from npbgpp.prepare import photo_poses, photos
from npbgpp.prepare.__main__ import main
from npbgpp.prepare.photos_manifest import PhotosManifest

from ..helpers.commands import Command
from ..helpers.textured_room import FOCAL, SIZE, Room, cameras, pose_errors, write_photos, write_video

COUNT = 8


@pytest.fixture
def prepare(request, tmp_path) -> Command:
    return Command(main, request, tmp_path)


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    """Photos, one of which is damaged and one empty, a text, and the scene made from them; tests must not write into it."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "input", COUNT)
    content = (folder / "input" / "IMG_1.jpg").read_bytes()
    (folder / "input" / "broken.jpg").write_bytes(content[: len(content) // 2])
    (folder / "input" / "empty.png").write_bytes(b"")
    (folder / "input" / "notes.txt").write_text("notes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["npbgpp", "photos", "input", "scene"])
        main()
    return folder


@pytest.fixture(scope="session")
def true() -> dict[str, np.ndarray]:
    return {f"IMG_{k}.jpg": pose for k, pose in enumerate(cameras(COUNT))}


def poses(scene: Path) -> dict[str, np.ndarray]:
    return {image.name: image.world_to_cam.numpy() for image in ColmapModel.read(scene / "sparse" / "0").images}


def flat_photos(folder: Path, pictures: list[Image.Image]) -> None:
    folder.mkdir()
    for k, picture in enumerate(pictures):
        picture.save(folder / f"{k}.png")


# ------------------------------------------------------------------ good photos
def test_poses_of_photos(good, true):
    estimated = poses(good / "scene")
    assert len(estimated) == COUNT
    angle, off = pose_errors(estimated, true)
    assert angle < 0.5 and off < 0.01
    (lens,) = ColmapModel.read(good / "scene" / "sparse" / "0").lenses.values()
    assert lens.focal_length[0] == pytest.approx(FOCAL, rel=0.01) and lens.model == "SIMPLE_RADIAL"


def test_scene_is_upright_and_of_usual_scale(good, true):
    """The cameras of the room are level: its vertical is +z in the scene, too."""
    estimated = poses(good / "scene")
    tilts = [estimated[name][:3, :3].T @ pose[:3, :3] @ [0, 0, 1] for name, pose in true.items()]
    assert np.stack(tilts)[:, 2].min() > 0.9999
    xyz = read_points(good / "scene" / "sparse" / "0" / "points3D.bin").cloud.xyz.numpy()
    assert np.abs(np.median(xyz, axis=0)).max() < 0.2
    centres = np.stack([-pose[:3, :3].T @ pose[:3, 3] for pose in estimated.values()])
    distances = np.linalg.norm(xyz - centres[:, None], axis=2)
    assert np.median(distances) == pytest.approx(10, rel=0.2)


def test_manifest_takes_exports_back(good):
    """The similarity and the model before it give the model of the scene."""
    manifest = PhotosManifest.read(good / "scene")
    (before,) = (good / "scene" / "reconstruction" / "models" / "incremental_mapping").glob("*/points3D.bin")
    old = read_points(before).cloud.xyz.double().numpy()
    new = read_points(good / "scene" / "sparse" / "0" / "points3D.bin").cloud.xyz.double().numpy()
    assert np.allclose(manifest.from_colmap.apply(old), new, atol=1e-3)
    assert np.allclose(manifest.from_colmap.inverse().apply(new), old, atol=1e-3)
    assert manifest.command.endswith("prepare photos input scene") and manifest.error_px < 0.5


def test_damaged_files_are_named_and_the_others_used(good):
    reasons = {photo.source: photo.reason for photo in PhotosManifest.read(good / "scene").photos if not photo.registered}
    assert set(reasons) == {"broken.jpg", "empty.png"}
    assert "damaged" in reasons["broken.jpg"] and "empty" in reasons["empty.png"]
    assert sorted(path.name for path in (good / "scene" / "images").iterdir()) == sorted(f"IMG_{k}.jpg" for k in range(COUNT))


def test_scene_is_read_as_colmap(good):
    scene = parse_colmap(good / "scene", good / "scene", "scene", CloudFile(good / "scene" / "mvs_pc.ply"))
    assert [view.name for view in scene.views] == [f"IMG_{k}" for k in range(COUNT)] and scene.carried_points is not None


def test_report(good):
    text = (good / "scene" / "report.html").read_text()
    assert "8 of 10 with a pose" in text and "broken.jpg" in text and text.count("data:image/jpeg") == COUNT and "http" not in text
    with Image.open(good / "scene" / "report.png") as sheet:
        assert sheet.width > 900 and sheet.height > 900


def test_report_shows_the_depths_of_a_dense_cloud(prepare, good, tmp_path):
    """Below each photo; the contact sheet grows by them."""
    shutil.copytree(good / "scene", tmp_path / "scene")
    prepare("dense", "scene", "size=80", "min_views=3")
    text = (tmp_path / "scene" / "report.html").read_text()
    assert text.count("data:image/jpeg") == 2 * COUNT and 'alt="depth of IMG_0.jpg"' in text and "depths of mvs_pc.ply" in text
    with Image.open(good / "scene" / "report.png") as before, Image.open(tmp_path / "scene" / "report.png") as after:
        assert after.width == before.width and after.height > before.height + 100


def test_poses_are_replaced_only_on_request(prepare, good, tmp_path):
    shutil.copytree(good / "input", tmp_path / "input")
    shutil.copytree(good / "scene", tmp_path / "scene")
    before = (tmp_path / "scene" / "photos.json").read_bytes()
    assert "overwrite=true" in prepare.refused("photos", "input", "scene", "distance=5")
    assert (tmp_path / "scene" / "photos.json").read_bytes() == before
    output = prepare("photos", "input", "scene", "distance=5", "overwrite=true")
    assert "8 of 10 photos registered" in output
    old, new = (np.linalg.norm(pose["IMG_0.jpg"][:3, 3]) for pose in (poses(good / "scene"), poses(tmp_path / "scene")))
    assert new == pytest.approx(old / 2, rel=0.05)


def test_scene_in_the_folder_of_the_photos(prepare, tmp_path):
    """Written photos are not taken for the user's by a second call."""
    write_photos(tmp_path / "input", 3)
    for scene in ("input/scene", "input"):
        assert "3 of 3 photos registered" in prepare("photos", "input", scene)
        assert "3 of 3 photos registered" in prepare("photos", "input", scene, "overwrite=true")
        shutil.rmtree(tmp_path / "input" / "scene", ignore_errors=True)


def test_poses_of_other_programs_are_kept(prepare, good, tmp_path):
    shutil.copytree(good / "scene" / "sparse", tmp_path / "scene" / "sparse")
    marked = tmp_path / "scene" / "sparse" / "0" / "notes.txt"
    marked.write_text("mine")
    assert "overwrite=true" in prepare.refused("photos", good / "input", "scene")
    output = prepare("photos", good / "input", "scene", "overwrite=true")
    assert (tmp_path / "scene" / "sparse.before" / "0" / "notes.txt").read_text() == "mine" and "sparse.before" in output
    assert len(poses(tmp_path / "scene")) == COUNT


# ------------------------------------------------------------------ interruptions
@pytest.mark.parametrize("stage", ["photos", "features", "matching", "incremental mapping"])
def test_interrupted_call_continues(prepare, good, tmp_path, monkeypatch, stage):
    """Ctrl-C half-way in a stage that has steps, else at its begin; finished work is not repeated."""
    show, reached = photos._Stages.show, []

    def interrupted(self, name):
        progress = show(self, name)
        if name != stage:
            return progress
        if name == "incremental mapping":
            raise KeyboardInterrupt

        def stop(done, total):
            reached.append(done)
            if len(reached) == 3:
                raise KeyboardInterrupt

        return stop

    monkeypatch.setattr(photo_poses, "_PHOTOS_A_STEP", 3)
    monkeypatch.setattr(photo_poses, "_PAIRS_A_STEP", 10)
    with monkeypatch.context() as patch:
        patch.setattr(photos._Stages, "show", interrupted)
        with pytest.raises(SystemExit) as caught:
            prepare("photos", good / "input", "scene")
        assert caught.value.code == 130 and not (tmp_path / "scene" / "sparse").exists()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "scene" / "images").glob("*")}
    assert written
    assert "8 of 10 photos registered" in prepare("photos", good / "input", "scene")
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_interruption_waits_for_colmap():
    """Otherwise the interpreter ends below a thread that writes into the database."""
    ended = []

    def slow(cancellation_token: CancellationToken) -> None:
        while not cancellation_token.is_cancelled:
            time.sleep(0.01)
        time.sleep(0.5)
        ended.append(True)

    # processes of pytest-xdist, and those in the background, have no handler
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            photo_poses._interruptible(slow)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended


def test_full_disk(prepare, good, tmp_path, monkeypatch):
    """Known beforehand, and while writing: the next call continues."""
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        assert "free disk space" in prepare.refused("photos", good / "input", "scene")

    def full(path, image, exif=None):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("npbgpp.core.files.put_in_place", lambda written, path: full(path, None))
        assert "No space left" in prepare.refused("photos", good / "input", "scene")
    assert "8 of 10 photos registered" in prepare("photos", good / "input", "scene")


# ------------------------------------------------------------------ poses of other programs
def test_given_poses_are_adjusted(prepare, good, true, tmp_path):
    """Poses with errors of a degree and 2 % of the distance, as networks estimate them, with one camera per photo and a wrong focal length."""
    rng = np.random.default_rng(0)
    (tmp_path / "model").mkdir()
    lines, noisy = [], {}
    for k, (name, pose) in enumerate(true.items(), 1):
        angle = np.radians(0.6) * rng.normal(size=3)
        turn = np.eye(3) + np.array([[0, -angle[2], angle[1]], [angle[2], 0, -angle[0]], [-angle[1], angle[0], 0]])
        U, _, Vt = np.linalg.svd(turn)
        noisy[name] = np.eye(4)
        noisy[name][:3, :3] = U @ Vt @ pose[:3, :3]
        noisy[name][:3, 3] = pose[:3, 3] + 0.03 * rng.normal(size=3)
        w = np.sqrt(max(0.0, 1 + np.trace(noisy[name][:3, :3]))) / 2
        R = noisy[name][:3, :3]
        q = [w, (R[2, 1] - R[1, 2]) / (4 * w), (R[0, 2] - R[2, 0]) / (4 * w), (R[1, 0] - R[0, 1]) / (4 * w)]
        lines += [" ".join(map(repr, map(float, [*q, *noisy[name][:3, 3]]))).join([f"{k} ", f" {k} {name}"]), ""]
    (tmp_path / "model" / "images.txt").write_text("\n".join(lines) + "\n")
    size = f"{SIZE[1] // 2} {SIZE[0] // 2}"
    (tmp_path / "model" / "cameras.txt").write_text(
        "".join(f"{k} PINHOLE {size} {0.52 * FOCAL} {0.52 * FOCAL} {SIZE[1] / 4} {SIZE[0] / 4}\n" for k in range(1, COUNT + 1))
    )
    (tmp_path / "model" / "points3D.txt").write_text("")
    before = pose_errors(noisy, true)
    output = prepare("photos", good / "input", "scene", "poses=model")
    after = pose_errors(poses(tmp_path / "scene"), true)
    assert "8 of 10 photos registered" in output and before[0] > 0.6 and before[1] > 0.02
    assert after[0] < 0.3 and after[1] < 0.005
    # exports in original coordinates lie where the given cameras are
    names, found = sorted(noisy), poses(tmp_path / "scene")
    given, adjusted = (np.stack([-p[n][:3, :3].T @ p[n][:3, 3] for n in names]) for p in (noisy, found))
    back = PhotosManifest.read(tmp_path / "scene").from_colmap.inverse().apply(adjusted)
    assert np.linalg.norm(back - given, axis=1).mean() < 0.08


def test_given_poses_of_other_photos(prepare, good, tmp_path):
    shutil.copytree(good / "scene" / "sparse" / "0", tmp_path / "model")
    write_photos(tmp_path / "input", 3, prefix="other")
    assert "got 0 of 3" in prepare.refused("photos", "input", "scene", "poses=model")


# ------------------------------------------------------------------ videos and panoramas
def test_video(prepare, tmp_path):
    write_video(tmp_path / "walk.mp4", 24)
    output = prepare("photos", "walk.mp4", "scene", "frames=10")
    found = ColmapModel.read(tmp_path / "scene" / "sparse" / "0").images
    assert 8 <= len(found) <= 10 and "photos registered" in output
    true = {f"frame_{k:06d}.jpg": pose for k, pose in enumerate(cameras(96)[:24])}
    angle, off = pose_errors(poses(tmp_path / "scene"), true)
    assert angle < 1 and off < 0.03


def test_video_without_motion(prepare, tmp_path):
    write_video(tmp_path / "still.mp4", 12, moves=False)
    assert "camera that moves" in prepare.refused("photos", "still.mp4", "scene")


def test_damaged_video(prepare, tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"not a film" * 100)
    message = prepare.refused("photos", "film.mp4", "scene")
    assert "film.mp4" in message and "damaged or other file" in message


@pytest.mark.slow
def test_panoramas_are_split_into_views(prepare, tmp_path):
    (tmp_path / "input").mkdir()
    room = Room()
    for k, centre in enumerate([(1.6, 1.7, 1.5), (2.2, 1.8, 1.6), (2.3, 2.4, 1.4), (1.7, 2.3, 1.7)]):
        room.panorama(np.array(centre), 512).save(tmp_path / "input" / f"{k}.jpg", quality=95)
    prepare("photos", "input", "scene", "max_image_size=256", "panoramas=true")
    model = ColmapModel.read(tmp_path / "scene" / "sparse" / "0")
    assert len(model.images) >= 40 and {image.name.split("/")[0] for image in model.images} == {f"pano_camera{k}" for k in range(12)}
    centres = {}
    for image in model.images:
        pose = image.world_to_cam.numpy()
        centres.setdefault(image.name.split("/")[1], []).append(-pose[:3, :3].T @ pose[:3, 3])
    assert len(centres) == 4 and all(np.ptp(np.stack(same), axis=0).max() < 1e-4 for same in centres.values())


# ------------------------------------------------------------------ masks
def test_masks(prepare, good, tmp_path):
    """No feature lies in the dark part; the masks of the scene cover all photos."""
    (tmp_path / "masks").mkdir()
    for k in range(COUNT - 1):
        mask = np.full(SIZE, 255, np.uint8)
        mask[:, :100] = 0
        Image.fromarray(mask).save(tmp_path / "masks" / f"IMG_{k}.jpg.png")
    prepare("photos", good / "input", "scene", "masks=masks")
    model = ColmapModel.read(tmp_path / "scene" / "sparse" / "0")
    assert min(image.uv_px[:, 0].min() for image in model.images if image.name != "IMG_7.jpg") > 98
    assert len(list((tmp_path / "scene" / "masks").iterdir())) == COUNT
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "masks" / "IMG_3.jpg.png")
    message = prepare.refused("photos", good / "input", "second", "masks=masks")
    assert "IMG_3.jpg.png" in message and "invert" in message


def test_one_photo_with_transparency(prepare, good, tmp_path):
    """The others have features everywhere."""
    (tmp_path / "input").mkdir()
    for k in range(5):
        shutil.copy(good / "input" / f"IMG_{k}.jpg", tmp_path / "input")
    with Image.open(tmp_path / "input" / "IMG_4.jpg") as photo:
        photo.putalpha(255)
        photo.save(tmp_path / "input" / "IMG_4.png")
    (tmp_path / "input" / "IMG_4.jpg").unlink()
    prepare("photos", "input", "scene")
    assert len(poses(tmp_path / "scene")) == 5


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("nowhere scene", ["nowhere", "correct the path"]),
        ("empty scene", ["empty", "expected photos", "none"]),
        ("one scene", ["one", "IMG_0.jpg", "take more photos"]),
        ("one/IMG_0.jpg scene", ["folder of photos or a video"]),
        ("heic scene", ["a.heic", "pip install pillow-heif"]),
        ("own/images own", ["images", "rename the folder"]),
        ("pair foreign", ["foreign", "images", "choose another"]),
        ("pair scene masks=nowhere", ["masks=nowhere"]),
        ("pair scene max_image_size=8", ["max_image_size", "8"]),
        ("pair scene frames=1", ["frames", "1"]),
        ("pair scene features=7", ["features", "7"]),
        ("pair scene distance=0", ["distance", "0"]),
        ("damaged scene", ["2 photos that can be read", "a.jpg", "damaged"]),
        ("equal scene", ["different places", "3 that show the same", "move the camera"]),
        ("pair", ["scene", "nothing"]),
    ],
)
def test_refusals(prepare, refused, tmp_path, monkeypatch, arguments, expected):
    shutil.copytree(refused, tmp_path, dirs_exist_ok=True)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    before = sorted(tmp_path.rglob("*.jpg"))
    message = prepare.refused("photos", *arguments.split())
    assert all(word in message for word in expected), message
    assert set(before) <= set(tmp_path.rglob("*.jpg")) and not list(tmp_path.rglob("sparse"))


@pytest.fixture(scope="session")
def refused(tmp_path_factory) -> Path:
    """Folders without enough good photos."""
    folder = tmp_path_factory.mktemp("refused")
    room = Room(1)
    for name, count in (("one", 1), ("pair", 2), ("own/images", 2), ("foreign/images", 1)):
        (folder / name).mkdir(parents=True)
        for k, pose in enumerate(cameras(8)[:count]):
            room.photo(pose, (60, 80), 70).save(folder / name / f"IMG_{k}.jpg")
    for name in ("empty", "heic", "damaged", "equal"):
        (folder / name).mkdir()
    for name in ("a.heic", "b.HEIC"):
        (folder / "heic" / name).write_bytes(b"heic")
    for name in ("a.jpg", "b.jpg"):
        (folder / "damaged" / name).write_bytes(b"jpeg" * 50)
    picture = room.photo(cameras(8)[0], (60, 80), 70).filter(ImageFilter.GaussianBlur(2))
    for k, quality in enumerate((95, 95, 92)):
        picture.save(folder / "equal" / f"{k}.jpg", quality=quality)
    return folder


def test_photos_without_texture(prepare, tmp_path):
    """Blurred photos and photos of blank walls have no features."""
    rows = np.linspace(0, 255, 240)[:, None] * np.ones((1, 320))
    flat_photos(tmp_path / "input", [Image.fromarray(np.roll(rows, 30 * k, 1 - k % 2).astype(np.uint8)) for k in range(4)])
    message = prepare.refused("photos", "input", "scene")
    assert "sharp photos" in message and "got 0 of" in message


def test_photos_that_share_nothing(prepare, tmp_path):
    flat_photos(tmp_path / "input", [Room(seed).photo(cameras(8)[0], (120, 160), 140) for seed in range(3)])
    assert "almost nothing in common" in prepare.refused("photos", "input", "scene")


def test_photos_of_two_scenes(prepare, tmp_path):
    """The larger one is taken, the photos of the other are named, and no retry is made for them."""
    write_photos(tmp_path / "input", 6)
    write_photos(tmp_path / "input", 4, seed=5, prefix="other")
    output = prepare("photos", "input", "scene")
    assert "6 of 10 photos registered" in output and "more and affine" not in output
    assert all(f"other_{k}.jpg" in output for k in range(4)) and "another scene" in output
    assert set(poses(tmp_path / "scene")) == {f"IMG_{k}.jpg" for k in range(6)}
    assert any("other models" in warning for warning in PhotosManifest.read(tmp_path / "scene").warnings)


def estimated(good: Path, work: Path, features: int) -> photo_poses.PoseResult:
    """Poses of the imported photos of the good scene, in a folder of its own."""
    journal = [json.loads(line) for line in (good / "scene" / "reconstruction" / "photos.jsonl").read_text().splitlines()[1:]]
    imported = [photo_poses.ImportedPhoto(**photo) for record in journal for photo in record["photos"]]
    options = photo_poses.PoseOptions("SIMPLE_RADIAL", features, sequential=True, retries=True, seed=0)
    images = good / "scene" / "images"
    estimator = photo_poses.PoseEstimator(
        work, images, work / "masks", imported, options, lambda name: lambda done, total: None, lambda line: None
    )
    return estimator.estimate()


# ------------------------------------------------------------------ retries
def test_ladder_of_retries(good, tmp_path, monkeypatch):
    """Each way is tried while too few photos are registered; the best one is kept, also if it is not the last."""
    registered = iter([2, 3, 5, 4])
    tried = []

    def attempt(self, name, database, run):
        count = next(registered, 1)
        tried.append(name)
        names = tuple(photo.name for photo in self.photos[:count])
        return photo_poses.Attempt(name, database.path.name, (names,), (f"{name}/0",), (100,), (0.5,), 1.0)

    monkeypatch.setattr(photo_poses.PoseEstimator, "_attempt", attempt)
    result = estimated(good, tmp_path, features=500)
    assert len(result.registered) == 5 and result.model.parent.name == "more and affine features"
    assert tried == [
        *("incremental mapping", "all pairs matched", "more and affine features"),
        *("first pair at 8 degrees", "first pair at 4 degrees", "global mapping", "fewer inliers"),
    ]
    assert [count for _, count, _ in result.attempts] == [2, 3, 5, 4, 1, 1, 1]


@pytest.mark.slow
def test_every_retry_works(good, tmp_path, monkeypatch):
    """All ways of mapping give the same poses on good photos."""
    monkeypatch.setattr(photo_poses, "ENOUGH", 2.0)
    result = estimated(good, tmp_path, features=1000)
    assert len(result.attempts) == 7 and all(count == COUNT for _, count, _ in result.attempts)


# ------------------------------------------------------------------ real photos
@pytest.mark.slow
def test_bust(prepare, shared, tmp_path):
    """52 of the 57 photos of the bust, as COLMAP registers on larger copies."""
    folder = shared / "data" / "colmap" / "alexander"
    prepare("photos", folder / "images", "scene")
    estimated = poses(tmp_path / "scene")
    given = {image.name: image.world_to_cam.numpy() for image in ColmapModel.read(folder / "sparse" / "0").images}
    both = {name: pose for name, pose in estimated.items() if name in given}
    assert len(estimated) >= 50
    # two reconstructions of these photos of 512 pixels, with other features, differ by as much: few points join the front of the bust to its back
    angle, off = pose_errors(both, given)
    assert angle < 5 and off < 0.025
