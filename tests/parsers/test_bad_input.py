"""Whatever is wrong with a scene ends in one InputError that names the file or the key, and damaged files never end in anything else."""

import json
import math
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from npbgpp.data.images import read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.parsers import LAYOUTS


def read_everything(folder: Path) -> Scene:
    """Parses a scene, decodes all its photos and reads its cloud."""
    scene = LAYOUTS["nerf_synthetic"].parse(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"))
    for view in scene.views:
        read_photo(view)
    scene.cloud.read()
    return scene


@pytest.fixture
def ball(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of a tiny scene that may be spoilt."""
    return Path(shutil.copytree(tiny_root / "ball", tmp_path / "ball"))


def change_json(key: str, value) -> Callable[[Path], None]:
    """Sets a top-level key of the validation json; ``...`` removes it."""

    def change(folder: Path) -> None:
        path = folder / "transforms_val.json"
        content = json.loads(path.read_text())
        content.pop(key)
        path.write_text(json.dumps(content if value is ... else content | {key: value}))

    return change


def change_frame(key: str, value) -> Callable[[Path], None]:
    """Sets a key of frame 1 of the training json; a function is applied to the old value."""

    def change(folder: Path) -> None:
        path = folder / "transforms_train.json"
        content = json.loads(path.read_text())
        frame = content["frames"][1]
        if value is ...:
            del frame[key]
        else:
            frame[key] = value(frame[key]) if callable(value) else value
        path.write_text(json.dumps(content))

    return change


def on_matrix(change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def changed(rows: list) -> list:
        matrix = np.array(rows)
        change(matrix)
        return matrix.tolist()

    return change_frame("transform_matrix", changed)


def set_entry(row: int, column: int, value: float) -> Callable[[Path], None]:
    def change(matrix: np.ndarray) -> None:
        matrix[row, column] = value

    return on_matrix(change)


def scale(factor: float) -> Callable[[Path], None]:
    def change(matrix: np.ndarray) -> None:
        matrix[:3, :3] *= factor

    return on_matrix(change)


def mirror(matrix: np.ndarray) -> None:
    matrix[:3, 0] *= -1


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def cut(name: str, share: float) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return change


def redraw(name: str, mode: str, size: tuple[int, int]) -> Callable[[Path], object]:
    return lambda folder: Image.new(mode, size).save(folder / name)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


TRAIN, VAL = "transforms_train.json", "transforms_val.json"
POSE = [TRAIN, "frames[1]", "transform_matrix"]
SPOILERS = {
    "json missing": (remove("transforms_test.json"), ["transforms_test.json", "no such file"]),
    "json broken": (text(VAL, '{"camera_angle_x": 0.7, "frames": ['), [VAL, "JSON"]),
    "json empty": (text(VAL, ""), [VAL, "JSON"]),
    "json is a list": (text(VAL, "[1, 2]"), [VAL, "frames"]),
    "json of bytes": (lambda folder: (folder / VAL).write_bytes(b"\xff\xfe\x00\x01"), [VAL, "JSON"]),
    "frames missing": (change_json("frames", ...), [VAL, "frames"]),
    "frames a number": (change_json("frames", 3), [VAL, "frames"]),
    "frame a number": (change_json("frames", [3]), [VAL, "frames[0]", "file_path"]),
    "frames empty": (lambda folder: change_all_frames(folder, []), [TRAIN, "at least one frame"]),
    "frames twice": (lambda folder: change_all_frames(folder, None), ["train-r_0", "more than once"]),
    "angle missing": (change_json("camera_angle_x", ...), [VAL, "camera_angle_x", "None"]),
    "angle nan": (change_json("camera_angle_x", math.nan), [VAL, "camera_angle_x", "nan"]),
    "angle text": (change_json("camera_angle_x", "0.7"), [VAL, "camera_angle_x", "'0.7'"]),
    "angle true": (change_json("camera_angle_x", True), [VAL, "camera_angle_x", "True"]),
    "angle zero": (change_json("camera_angle_x", 0.0), [VAL, "camera_angle_x"]),
    "angle nearly zero": (change_json("camera_angle_x", 5e-324), [VAL, "camera_angle_x"]),
    "angle too wide": (change_json("camera_angle_x", 3.2), [VAL, "camera_angle_x", "3.2"]),
    "pose missing": (change_frame("transform_matrix", ...), POSE),
    "pose of 3 rows": (change_frame("transform_matrix", lambda rows: rows[:3]), POSE),
    "pose of 3 columns": (change_frame("transform_matrix", lambda rows: [row[:3] for row in rows]), POSE),
    "pose ragged": (change_frame("transform_matrix", lambda rows: [*rows[:3], rows[3][:2]]), POSE),
    "pose of text": (change_frame("transform_matrix", [["a"] * 4] * 4), POSE),
    "pose of huge numbers": (change_frame("transform_matrix", [[10**400] * 4] * 4), POSE),
    "pose nan": (set_entry(0, 3, math.nan), [*POSE, "finite"]),
    "pose last row": (set_entry(3, 0, 0.5), [*POSE, "last row"]),
    "pose scaled": (scale(1.1), [*POSE, "orthonormal"]),
    "pose zero": (scale(0.0), [*POSE, "orthonormal"]),
    "pose mirrored": (on_matrix(mirror), [*POSE, "mirror"]),
    "path missing": (change_frame("file_path", ...), [TRAIN, "frames[1]", "file_path"]),
    "path a number": (change_frame("file_path", 7), [TRAIN, "frames[1]", "file_path"]),
    "path empty": (change_frame("file_path", ""), [TRAIN, "frames[1]", "file_path"]),
    "path is the root": (change_frame("file_path", "/"), [TRAIN, "frames[1]", "file_path"]),
    "path with a zero byte": (change_frame("file_path", "a\0b"), ["image "]),
    "image missing": (remove("train/r_3.png"), ["train/r_3.png", "no such file"]),
    "image a folder": (change_frame("file_path", "../ball"), ["ball"]),
    "image of text": (text("train/r_3.png", "not a picture"), ["train/r_3.png", "readable image"]),
    "image empty": (text("train/r_3.png", ""), ["train/r_3.png", "readable image"]),
    "image too small": (redraw("test/r_1.png", "RGBA", (16, 32)), ["test/r_1.png", "expected 32x32", "got 16x32"]),
    "image without alpha": (redraw("val/r_2.png", "RGB", (32, 32)), ["val/r_2.png", "alpha"]),
    "image truncated": (cut("val/r_1.png", 0.6), ["val/r_1.png", "readable image"]),
    "cloud missing": (remove("mvs_pc.ply"), ["mvs_pc.ply", "no such file"]),
    "cloud truncated": (cut("mvs_pc.ply", 0.6), ["mvs_pc.ply"]),
    "cloud of text": (text("mvs_pc.ply", "1 2 3"), ["mvs_pc.ply", "PLY"]),
}


def change_all_frames(folder: Path, frames: list | None) -> None:
    """Replaces the training frames; None repeats the first one."""
    path = folder / TRAIN
    content = json.loads(path.read_text())
    content["frames"] = content["frames"] + content["frames"][:1] if frames is None else frames
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("spoil", "words"), SPOILERS.values(), ids=SPOILERS.keys())
def test_one_message_names_what_is_wrong(ball, spoil, words):
    read_everything(ball)
    spoil(ball)
    with pytest.raises(InputError) as caught:
        read_everything(ball)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message.strip()


def test_a_truncated_image_is_caught_when_it_is_decoded(ball):
    """Its header is whole, so that parsing alone cannot know."""
    cut("val/r_1.png", 0.6)(ball)
    scene = LAYOUTS["nerf_synthetic"].parse(ball, ball, "ball", CloudFile(ball / "mvs_pc.ply"))
    with pytest.raises(InputError, match=r"val/r_1\.png"):
        read_photo(scene.views[13])


def test_a_header_that_promises_too_many_pixels(ball):
    """200,000 x 200,000 pixels in a file of some bytes: refused before memory is asked for."""
    path = ball / "train" / "r_0.png"
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 200_000, 200_000, 8, 6, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    with pytest.raises(InputError, match=r"train/r_0\.png"):
        read_everything(ball)


FILES = ("transforms_train.json", "transforms_val.json", "train/r_0.png", "val/r_0.png", "mvs_pc.ply")
places = st.floats(0, 1, exclude_max=True)
numbers = st.one_of(
    st.floats(), st.integers(-(10**400), 10**400), st.integers(-3, 3), st.booleans(), st.text(max_size=3), st.none(), st.just([])
)
damages = st.one_of(
    st.tuples(st.just("flip"), st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=6)),
    st.tuples(st.just("header"), st.lists(st.tuples(st.integers(0, 80), st.integers(1, 255)), min_size=1, max_size=3)),
    st.tuples(st.just("cut"), places),
    st.tuples(st.just("remove"), st.none()),
    st.tuples(st.just("number"), st.tuples(places, numbers)),
)


def damage(path: Path, kind: str, what) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flip":
        for place, change in what:
            content[int(place * len(content))] ^= change
    elif kind == "header":
        for place, change in what:
            content[min(place, len(content) - 1)] ^= change
    elif kind == "cut":
        del content[int(what * len(content)) :]
    elif path.suffix == ".json":
        place, value = what
        tree = json.loads(content)
        numbered = [(tree, "camera_angle_x"), *((frame, key) for frame in tree["frames"] for key in frame)]
        numbered += [(row, k) for frame in tree["frames"] for row in frame["transform_matrix"] for k in range(4)]
        holder, key = numbered[int(place * len(numbered))]
        holder[key] = value
        content = bytearray(json.dumps(tree).encode())
    path.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def playground(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of two photos whose files every example spoils and restores."""
    folder = tmp_path_factory.mktemp("spoilt") / "ball"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((tiny_root / "ball" / name).read_bytes())
    for name in FILES[:2]:
        content = json.loads((folder / name).read_text())
        content["frames"] = content["frames"][:1]
        (folder / name).write_text(json.dumps(content))
    (folder / "transforms_test.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": []}))
    return folder


@pytest.mark.filterwarnings("ignore:Image size", "ignore:overflow encountered", "ignore:invalid value encountered")
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), spoiling=damages)
def test_damaged_files_are_read_or_refused(playground, name, spoiling):
    path = playground / name
    whole = path.read_bytes()
    kind, what = spoiling
    try:
        if kind == "remove":
            path.unlink()
        else:
            damage(path, kind, what)
        try:
            scene = read_everything(playground)
        except InputError as error:
            assert str(playground) in str(error)
        else:
            assert kind != "remove" and len(scene.views) in (1, 2)
            for view in scene.views:
                assert view.camera.focal_length.isfinite().all() and view.camera.T.isfinite().all()
            assert scene.cloud.read().xyz.isfinite().all()
    finally:
        path.write_bytes(whole)


def test_the_undamaged_playground_is_read(playground):
    assert len(read_everything(playground).views) == 2
