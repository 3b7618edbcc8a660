"""Damaged scenes in every layout end in one InputError that names the file or key and the offending value; random damage is read or refused."""

import json
import math
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npbgpp.data import CloudFile, read_photo
from npbgpp.errors import InputError
from npbgpp.parsers import read_scene

from ..helpers.damage import Damage, archive, array, chain, clear, copy, cut, edit, entry, folder_at, image, line, loop, move, put, remove
from ..helpers.every_layout import WRITTEN, read_layout, write_layout

VIEWS, SIZE = 8, (24, 32)


# ------------------------------------------------------------------ helpers of the tables
def in_json(name: str, change: Callable[[dict], Any]) -> Damage:
    """Changes the content of a json file in place."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def angle(value: Any) -> Damage:
    return in_json("transforms_val.json", lambda content: content.__setitem__("camera_angle_x", value))


def frame(key: str, change: Any) -> Damage:
    """Sets a key of training frame 1; a function is applied to the old value."""
    return in_json(
        "transforms_train.json", lambda c: c["frames"][1].__setitem__(key, change(c["frames"][1][key]) if callable(change) else change)
    )


def pose(change: Callable[[np.ndarray], Any]) -> Damage:
    """Changes the matrix of training frame 1 in place."""

    def changed(rows: list) -> list:
        matrix = np.array(rows)
        change(matrix)
        return matrix.tolist()

    return frame("transform_matrix", changed)


def scaled(index: Any, factor: float) -> Callable[[np.ndarray], None]:
    """Multiplies part of an array."""
    return lambda values: values.__setitem__(index, values[index] * factor)


def intrinsics(**changes: Any) -> Damage:
    """Changes the dictionary in intrinsics.npy; ``...`` removes a key."""

    def damage(folder: Path) -> None:
        content = {"K": np.array([[36.0, 0, 15.5], [0, 36, 11.5], [0, 0, 1]]), "height": 24, "width": 32} | changes
        np.save(folder / "intrinsics.npy", np.array({k: v for k, v in content.items() if v is not ...}, dtype=object))

    return damage


def several_arrays(name: str) -> Damage:
    def damage(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            np.savez(file, a=1)

    return damage


def transform(*entries: Any) -> Damage:
    return put("normalization_transform.json", json.dumps({"transform": entries}))


def element(value: float, row: Any = 0) -> dict:
    return {"row": str(row), "column": "0", "element": str(value)}


def photo_without_alpha(name: str) -> Damage:
    return image(name, SIZE, "RGB")


TRAIN, VAL = "transforms_train.json", "transforms_val.json"
HUGE_PNG = b"IHDR" + struct.pack(">IIBBBBB", 200_000, 200_000, 8, 6, 0, 0, 0)
HUGE_PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + HUGE_PNG + struct.pack(">I", zlib.crc32(HUGE_PNG))
NERF_POSE = (TRAIN, "frames[1]", "transform_matrix")
NERF_SYNTHETIC = {
    "json missing": (remove("transforms_test.json"), "transforms_test.json"),
    "json broken": (put(VAL, '{"camera_angle_x": 0.7, "frames": ['), VAL),
    "json empty": (put(VAL, ""), VAL),
    "json a list": (put(VAL, "[1, 2]"), VAL, "frames", "list"),
    "json of bytes": (put(VAL, b"\xff\xfe\x00\x01"), VAL),
    "frames missing": (in_json(VAL, lambda c: c.pop("frames")), VAL, "frames"),
    "frames a number": (in_json(VAL, lambda c: c.update(frames=3)), VAL, "frames"),
    "frame a number": (in_json(VAL, lambda c: c.update(frames=[3])), VAL, "frames[0]", "file_path"),
    "no training frame": (in_json(TRAIN, lambda c: c.update(frames=[])), TRAIN, "none"),
    "frame twice": (in_json(TRAIN, lambda c: c["frames"].append(c["frames"][0])), "train-r_0"),
    "angle missing": (in_json(VAL, lambda c: c.pop("camera_angle_x")), VAL, "camera_angle_x", "None"),
    **{f"angle {a!r}": (angle(a), VAL, "camera_angle_x", f"{a!r}") for a in (math.nan, "0.7", True, 0.0, 5e-324, 3.2)},
    "pose missing": (in_json(TRAIN, lambda c: c["frames"][1].pop("transform_matrix")), *NERF_POSE, "None"),
    "pose of 3 rows": (frame("transform_matrix", lambda rows: rows[:3]), *NERF_POSE),
    "pose of 3 columns": (frame("transform_matrix", lambda rows: [row[:3] for row in rows]), *NERF_POSE),
    "pose ragged": (frame("transform_matrix", lambda rows: [*rows[:3], rows[3][:2]]), *NERF_POSE),
    "pose of text": (frame("transform_matrix", [["a"] * 4] * 4), *NERF_POSE),
    "pose of huge numbers": (frame("transform_matrix", [[10**400] * 4] * 4), *NERF_POSE),
    "pose nan": (pose(lambda m: m.__setitem__((0, 3), math.nan)), *NERF_POSE, "finite"),
    "pose last row": (pose(lambda m: m.__setitem__((3, 0), 0.5)), *NERF_POSE, "last row"),
    "pose scaled": (pose(scaled(np.s_[:3, :3], 1.1)), *NERF_POSE, "orthonormal"),
    "pose zero": (pose(scaled(np.s_[:3, :3], 0.0)), *NERF_POSE, "orthonormal"),
    "pose mirrored": (pose(scaled(np.s_[:3, 0], -1)), *NERF_POSE, "mirror"),
    "path missing": (in_json(TRAIN, lambda c: c["frames"][1].pop("file_path")), TRAIN, "frames[1]", "file_path", "None"),
    "path a number": (frame("file_path", 7), TRAIN, "frames[1]", "file_path", "7"),
    "path empty": (frame("file_path", ""), TRAIN, "frames[1]", "file_path", "''"),
    "path the root": (frame("file_path", "/"), TRAIN, "frames[1]", "file_path", "'/'"),
    "path with a zero byte": (frame("file_path", "a\0b"), "image "),
    "photo missing": (remove("train/r_3.png"), "train/r_3.png"),
    "photo a folder": (frame("file_path", "../scene"), "scene"),
    "photo of text": (put("train/r_3.png", "not a picture"), "train/r_3.png"),
    "photo empty": (put("train/r_3.png", ""), "train/r_3.png"),
    "photo of another size": (image("test/r_0.png", (32, 16), "RGBA"), "test/r_0.png", "32x24", "16x32"),
    "photo without alpha": (photo_without_alpha("val/r_0.png"), "val/r_0.png", "alpha"),
    "photo truncated": (cut("val/r_0.png"), "val/r_0.png"),
    "photo of too many pixels": (put("train/r_0.png", HUGE_PNG), "train/r_0.png"),
    "cloud missing": (remove("mvs_pc.ply"), "mvs_pc.ply"),
    "cloud truncated": (cut("mvs_pc.ply"), "mvs_pc.ply"),
    "cloud of text": (put("mvs_pc.ply", "1 2 3"), "mvs_pc.ply"),
}
DTU = {
    "no photos": (remove("image"), "image"),
    "no masks": (remove("mask"), "mask"),
    "empty folder": (clear("image"), "image", "none"),
    "no cameras": (remove("cameras.npz"), "cameras.npz"),
    "a photo less": (remove("image/000004.png"), "7 photos", "8 masks", "8 matrices", "at 4)"),
    "a mask less": (remove("mask/004.png"), "7 masks", "at 4)"),
    "a matrix less": (archive("cameras.npz", "world_mat_4", lambda m: None), "7 matrices", "at 4)"),
    "photo of another size": (image("image/000004.png", (23, 32)), "000004.png", "32x24", "32x23"),
    "mask of another size": (image("mask/004.png", (16, 16)), "004.png", "32x24", "16x16"),
    "name without number": (image("image/cover.png", SIZE), "cover.png"),
    "number twice": (image("image/0004.png", SIZE), "0004.png", "000004.png"),
    "not finite": (archive("cameras.npz", "world_mat_4", lambda m: m * np.nan), "world_mat_4", "not finite"),
    "singular": (archive("cameras.npz", "world_mat_4", lambda m: m[:, [0, 1, 1, 3]]), "world_mat_4", "singular"),
    "too far": (archive("cameras.npz", "world_mat_4", lambda m: m * [1, 1, 1, 1e60]), "cameras.npz", "single precision"),
    "three rows": (archive("cameras.npz", "world_mat_4", lambda m: m[:3]), "world_mat_4", "(3, 4)"),
    "strings": (archive("cameras.npz", "world_mat_4", lambda m: m.astype(str)), "world_mat_4", "<U"),
    "objects": (archive("cameras.npz", "world_mat_4", lambda m: m.astype(object)), "cameras.npz"),
    "other arrays": (lambda folder: np.savez(folder / "cameras.npz", a=1), "cameras.npz", "world_mat_0"),
    "one array": (lambda folder: np.save((folder / "cameras.npz").open("wb"), np.eye(4)), "cameras.npz"),
    "truncated": (cut("cameras.npz", 0.3), "cameras.npz"),
    "damaged photo": (put("image/000004.png", b"x"), "000004.png"),
}
JSON = "normalization_transform.json"
H3DS = {
    "no json": (put(JSON, "{"), JSON),
    "other json": (put(JSON, "[1]"), JSON),
    "no transform": (put(JSON, '{"dimension": "3"}'), JSON, "transform"),
    "word for a number": (transform(element(1) | {"element": "x"}), JSON, "'x'"),
    "row too far": (transform(element(1, 4)), JSON, "4"),
    "singular": (transform(element(0)), JSON, "Singular"),
    "not finite": (transform(element(math.nan)), JSON, "nan"),
    "infinite row": (transform(element(1) | {"row": math.inf}), JSON, "infinity"),
    "scale beyond use": (transform(element(1e-30)), JSON, "1e-30"),
    "no photo": ((remove("image/img_0005.jpg"), {"views": (2, 5)}), "photo", "5"),
    "no mask": (remove("mask/mask_0005.jpg"), "mask", "5"),
    "no matrix": (archive("cameras.npz", "world_mat_5", lambda m: None), "matrix", "cameras.npz", "5"),
    "no view": ((chain(), {"views": ()}), "datasets.views", "[]"),
    "view twice": ((chain(), {"views": (2, 5, 2)}), "datasets.views", "[2, 5, 2]"),
    "no published photo": ((chain(), {"published_views": {"scene": (60, 61)}}), "scene scene", "[60, 61]"),
    **{
        f"published {text}": (put("config.toml", f"[views.scene]\n32 = {text}"), "config.toml", "scene scene", value)
        for text, value in (("[]", "[]"), ("2", "2"), ("[2, true]", "True"), ("[-2]", "-2"))
    },
    "broken lists": (put("config.toml", "[views"), "config.toml"),
    "lists of bytes": (put("config.toml", b"\xff\xfe"), "config.toml"),
}
ROWS = "poses_bounds.npy"
LLFF = {
    "no folder": (remove("images"), "images"),
    "no folder for the downscale": ((remove("images"), {"downscale": 2.0}), "images"),
    "a loop of links": (loop("images"), "images"),
    "no photos": (clear("images"), "images", "none"),
    "a photo less": (remove("images/photo_003.png"), ROWS, "7 photos", "8"),
    "damaged photo": (put("images/photo_003.png", b"x"), "photo_003.png"),
    "a name twice": (move("images/photo_003.png", "images/photo_002.jpg"), "photo_002.png", "photo_002.jpg"),
    "a name of other bytes": (copy("images/photo_003.png", b"images/photo_\xff.png"), "photo_\\udcff.png"),
    "cropped photo": (image("images/photo_003.png", (24, 28)), "photo_003.png", "32x24", "28x24"),
    "no cameras": (remove(ROWS), ROWS),
    "no npy": (put(ROWS, b"x"), ROWS),
    "truncated": (cut(ROWS), ROWS),
    "pickled": (array(ROWS, lambda rows: rows.astype(object)), ROWS),
    "several arrays": (several_arrays(ROWS), ROWS, "several arrays"),
    "integers": (array(ROWS, lambda rows: rows.astype(np.int64)), ROWS, "(N, 17)", "int64"),
    "no bounds": (array(ROWS, lambda rows: rows[:, :15]), ROWS, "(8, 15)"),
    "a row less": (array(ROWS, lambda rows: rows[:-1]), ROWS, "8 photos", "7"),
    "not finite": (entry(ROWS, (5, 3), np.nan), "row 5", "nan"),
    "far": (entry(ROWS, (5, 3), 1e38), "row 5", "1e+38"),
    "bound not finite": (entry(ROWS, (5, 16), np.inf), "row 5", "inf"),
    "height of zero": (entry(ROWS, (5, 4), 0.0), "row 5", "0.0"),
    "fractional width": (entry(ROWS, (5, 9), 64.5), "row 5", "64.5"),
    "huge width": (entry(ROWS, (5, 9), 1e9), "row 5", "1000000000"),
    "no focal length": (entry(ROWS, (5, 14), 0.0), "row 5", "focal length"),
    "scaled": (array(ROWS, scaled((5, [0, 1, 2, 5, 6, 7, 10, 11, 12]), 1.1)), "row 5", "orthonormal"),
    "mirrored": (array(ROWS, scaled((5, [0, 5, 10]), -1)), "row 5", "mirror"),
    "damaged model": (
        lambda folder: [
            (folder / "sparse").mkdir(),
            *((folder / "sparse" / f"{n}.txt").write_text("1 x\n") for n in ("cameras", "images")),
        ],
        "cameras.txt",
    ),
    "too small": ((chain(), {"downscale": 500.0}), "datasets.downscale", "photo_000", "500"),
}
SCANNET = {
    "no photos": (remove("images"), "images"),
    "a photo less": (remove("images/9.jpg"), "extrinsics.npy", "7 photos", "8"),
    "a matrix less": (array("extrinsics.npy", lambda m: m[:-1]), "extrinsics.npy", "8 photos", "7"),
    "damaged photo": (put("images/9.jpg", b"x"), "9.jpg"),
    "no intrinsics": (remove("intrinsics.npy"), "intrinsics.npy"),
    "plain matrix": (lambda folder: np.save(folder / "intrinsics.npy", np.eye(3)), "intrinsics.npy", "(3, 3)"),
    "no height": (intrinsics(height=...), "intrinsics.npy", "K, width"),
    "empty dictionary": (intrinsics(K=..., height=..., width=...), "intrinsics.npy", "nothing"),
    "height of zero": (intrinsics(height=0), "height", "got 0"),
    "fractional width": (intrinsics(width=80.5), "width", "80.5"),
    "infinite width": (intrinsics(width=math.inf), "width", "inf"),
    "width a string": (intrinsics(width="80"), "width", "'80'"),
    "K a string": (intrinsics(K="K"), "K: ", "'K'"),
    "K of 4x4": (intrinsics(K=np.eye(4)), "K: ", "3x3"),
    "K not finite": (intrinsics(K=np.diag([np.nan, 1, 1])), "K: ", "nan"),
    "K singular": (intrinsics(K=np.diag([0.0, 1, 1])), "K: ", "[0.0,"),
    "K too large": (intrinsics(K=np.diag([1e60, 1, 1])), "K: ", "1e+60"),
    "K of another scale": (intrinsics(K=np.diag([72.0, 72, 2])), "K: ", "2.0]"),
    "no extrinsics": (remove("extrinsics.npy"), "extrinsics.npy"),
    "flat extrinsics": (array("extrinsics.npy", lambda m: m.reshape(8, 16)), "extrinsics.npy", "(8, 16)"),
    "pickled extrinsics": (array("extrinsics.npy", lambda m: m.astype(object)), "extrinsics.npy"),
    "several arrays": (several_arrays("extrinsics.npy"), "extrinsics.npy", "several arrays"),
    "truncated": (cut("extrinsics.npy"), "extrinsics.npy"),
    "not finite": (entry("extrinsics.npy", (4, 0, 3), -np.inf), "matrix 4", "finite"),
    "too far": (entry("extrinsics.npy", (4, 0, 3), 1e60), "matrix 4", "finite"),
    "last row": (entry("extrinsics.npy", (4, 3, 0), 1.0), "matrix 4", "last row"),
    "scaled": (array("extrinsics.npy", scaled(np.s_[4, :3, :3], 1.1)), "matrix 4", "orthonormal"),
    "mirrored": (array("extrinsics.npy", scaled((4, 0), -1)), "matrix 4", "mirror"),
}
COLOUR_K, DEPTH_K = "intrinsic/intrinsic_color.txt", "intrinsic/intrinsic_depth.txt"
SCANNET_RAW = {
    "no photos": (remove("color"), "color"),
    "a photo less": (remove("color/9.jpg"), "7 photos", "8 poses", "9"),
    "a pose less": (remove("pose/9.txt"), "8 photos", "7 poses", "9"),
    "pose twice": (put("pose/09.txt", ""), "9.txt"),
    "photo twice": (copy("color/9.jpg", "color/09.jpg"), "9.jpg", "09.jpg"),
    "pose without number": (put("pose/first.txt", ""), "first.txt"),
    "all lost": (chain(*(put(f"pose/{k}.txt", "-inf -inf -inf -inf\n" * 4) for k in range(0, 24, 3))), "pose", "8", "tracking"),
    "partly lost": (entry("pose/9.txt", (0, 3), -np.inf), "9.txt", "finite"),
    "plus infinity": (put("pose/9.txt", "inf inf inf inf\n" * 4), "9.txt", "finite"),
    "not a number": (entry("pose/9.txt", (1, 1), np.nan), "9.txt", "finite"),
    "too large": (entry("pose/9.txt", (0, 3), 1e60), "9.txt", "finite"),
    "scaled": (entry("pose/9.txt", (0, 0), 7.0), "9.txt", "orthonormal"),
    "last row": (entry("pose/9.txt", (3, 3), 2.0), "9.txt", "last row"),
    "three rows": (put("pose/9.txt", "1 0 0 0\n" * 3), "9.txt", "[4, 4, 4]"),
    "five columns": (put("pose/9.txt", "1 0 0 0 0\n" * 4), "9.txt", "[5, 5, 5, 5]"),
    "empty pose": (put("pose/9.txt", ""), "9.txt", "[]"),
    "words": (put("pose/9.txt", "1 0 0 x\n" * 4), "9.txt", "'x'"),
    "not text": (put("pose/9.txt", b"\xff\xfe"), "9.txt"),
    "a loop of links": (loop("pose/9.txt"), "9.txt"),
    "no intrinsics": (remove(COLOUR_K), "intrinsic_color.txt"),
    "singular intrinsics": (entry(COLOUR_K, (0, 0), 0.0), "intrinsic_color.txt", "0.0"),
    "infinite intrinsics": (entry(COLOUR_K, (0, 2), np.inf), "intrinsic_color.txt", "inf"),
    "intrinsics too large": (entry(COLOUR_K, (1, 1), 1e60), "intrinsic_color.txt", "1e+60"),
    "skewed": (entry(COLOUR_K, (0, 1), 3.0), "intrinsic_color.txt", "3.0"),
    "depth intrinsics": (entry(DEPTH_K, (2, 3), 1.0), "intrinsic_depth.txt", "1.0"),
    "extrinsics": (entry("intrinsic/extrinsic_depth.txt", (0, 0), 2.0), "extrinsic_depth.txt", "orthonormal"),
    "damaged photo": (put("color/9.jpg", "x"), "9.jpg"),
    "damaged depth": (put("depth/9.png", "x"), "9.png"),
    "photo of another size": (image("color/9.jpg", (12, 16)), "9.jpg", "32x24", "16x12"),
    "depth of another size": (image("depth/9.png", (8, 9), "I;16"), "9.png", "16x12", "9x8"),
    "matrices of the prepared layout": (put("extrinsics.npy", b"x"), "images"),
}
PHOTO, MATTE, BLOCK = "img/0/img_0004.jpg", "img/0/img_0004_alpha.png", "36 0 16\n0 36 12\n0 0 1\n"
NPCR = {
    "no folder": (remove("img"), "img/0"),
    "a loop of links": (loop("img/0"), "img/0"),
    "no photos": (clear("img/0"), "img/0", "none"),
    "only mattes": (clear("img/0", "*.jpg"), "img_0001.jpg", "none"),
    "a photo less": (remove(PHOTO), "img/0", "1, 2, 3, 5, 6"),
    "a gap": (chain(move("img/0/img_0008.jpg", "img/0/img_0009.jpg"), remove("img/0/img_0008_alpha.png")), "img/0"),
    "first photos missing": (
        chain(*(remove(f"img/0/img_000{k}{e}") for k in (1, 2) for e in (".jpg", "_alpha.png"))),
        "img/0",
        "3, 4, 5",
    ),
    "another name": (move(PHOTO, "img/0/a.jpg"), "'a.jpg'"),
    "a number twice": (copy(PHOTO, "img/0/img_4.jpg"), "img_4.jpg", "img_0004.jpg"),
    "a matte less": (remove(MATTE), "img/0", "4"),
    "a matte of another size": (image(MATTE, (16, 16)), "img_0004_alpha.png", "32x24", "16x16"),
    "damaged photo": (put(PHOTO, b"x"), "img_0004.jpg"),
    "no poses": (remove("CamPose.inf"), "CamPose.inf"),
    "poses in other bytes": (put("CamPose.inf", b"\xff\xfe1\0"), "CamPose.inf"),
    "a pose less": (line("CamPose.inf", 3, None), "CamPose.inf", "8 photos", "7"),
    "a number less": (line("CamPose.inf", 3, "1 2 3 4 5 6 7 8 9 10 11"), "CamPose.inf: line 4", "11"),
    "a word": (line("CamPose.inf", 3, "0 0 1 1 0 0 0 1 0 1 2 x"), "CamPose.inf: line 4", "'x'"),
    "not finite": (line("CamPose.inf", 3, "0 0 1 1 0 0 0 1 0 1 2 nan"), "CamPose.inf: line 4", "nan"),
    "far": (line("CamPose.inf", 3, "0 0 1 1 0 0 0 1 0 1 2 1e38"), "CamPose.inf: line 4", "1e+38"),
    "scaled": (line("CamPose.inf", 3, "0 0 2 2 0 0 0 2 0 1 2 3"), "CamPose.inf", "pose 3", "orthonormal"),
    "mirrored": (line("CamPose.inf", 3, "1 0 0 0 0 1 0 1 0 1 2 3"), "CamPose.inf", "pose 3", "mirror"),
    "no intrinsics": (remove("Intrinsic.inf"), "Intrinsic.inf"),
    "empty intrinsics": (put("Intrinsic.inf", "0\n"), "Intrinsic.inf", "8 photos", "0 rows"),
    "two blocks": (put("Intrinsic.inf", BLOCK * 2), "Intrinsic.inf", "8 photos", "6 rows"),
    "a row of K less": (line("Intrinsic.inf", 8, None), "Intrinsic.inf", "23 rows"),
    "four numbers": (line("Intrinsic.inf", 1, "36 0 16 0"), "Intrinsic.inf: line 2", "4"),
    "a long word": (line("Intrinsic.inf", 0, "camera"), "Intrinsic.inf: line 1", "'camera'"),
    "negative focal length": (line("Intrinsic.inf", 2, "0 -36 12"), "Intrinsic.inf", "block 0", "-36"),
    "K transposed": (line("Intrinsic.inf", 2, "9 36 12"), "Intrinsic.inf", "block 0", "9.0"),
    "K of another scale": (line("Intrinsic.inf", 3, "0 0 2"), "Intrinsic.inf", "block 0", "2.0"),
}
PHOTO_1 = "images/view_1.png"
COLMAP_TEXT = {
    "no model": (remove("sparse"), "scene", "none"),
    "no cameras": (remove("sparse/0/cameras.txt"), "scene", "none"),
    "truncated": (cut("sparse/0/images.txt", 0.05), "images.txt"),
    "no photos": (remove("images"), "images", "0 of 8"),
    "one photo": (clear("images", keep=1), "images", "1 of 8"),
    "a file for the folder": (chain(remove("images"), put("images", "x")), "images", "0 of 8"),
    "a loop of links": (loop("images"), "images", "0 of 8"),
    "endless names": (edit("sparse/0/images.txt", " view_", " " + 400 * "x"), "0 of 8"),
    "damaged photo": (put(PHOTO_1, b"x"), "view_1.png"),
    "folder for a photo": (folder_at(PHOTO_1), "view_1.png"),
    "photo rotated": (image(PHOTO_1, (32, 24)), "view_1.png", "32x24", "24x32"),
    "photo cropped": (image(PHOTO_1, (20, 32)), "view_1.png", "32x24", "32x20"),
    "invalid lens": (put("sparse/0/cameras.txt", "7 SIMPLE_RADIAL 32 24 36 16 12 1e9\n"), "cameras.txt", "SIMPLE_RADIAL", "1000000000"),
    "mask of another size": (
        lambda folder: [(folder / "masks").mkdir(), *(image(f"masks/view_{k}.png", (16, 16))(folder) for k in range(8))],
        "view_0.png",
        "32x24",
        "16x16",
    ),
    "names that collide": (
        chain(
            edit("sparse/0/images.txt", "view_0.png", "left/a.png"),
            edit("sparse/0/images.txt", "view_1.png", "left-a.png"),
            lambda folder: (folder / "images" / "left").mkdir(),
            move("images/view_0.png", "images/left/a.png"),
            move("images/view_1.png", "images/left-a.png"),
        ),
        "left-a.png",
        "left/a.png",
    ),
    "too small": ((chain(), {"downscale": 200.0}), "datasets.downscale", "view_0", "200"),
}
YAML = "scene.yaml"
NPBG = {
    "no scene file": (remove(YAML), YAML),
    "a loop of links": (loop(YAML), YAML),
    "no yaml": (put(YAML, "a: [1"), YAML),
    "deep yaml": (put(YAML, "[" * 2000), YAML),
    "list": (put(YAML, "- 1"), YAML, "list"),
    "not UTF-8": (put(YAML, b"\xff\xfe: 1"), YAML),
    "two scene files": (chain(copy(YAML, "a.yaml"), move(YAML, "b.yaml")), YAML, "a.yaml, b.yaml"),
    "no viewport": (edit(YAML, "viewport_size", "size"), YAML, "viewport_size", "None"),
    **{
        f"viewport {text[:9]}": (edit(YAML, "[32, 24]", text), YAML, "viewport_size", value)
        for text, value in (
            *(("32", "32"), ("[32, 24, 3]", "32, 24, 3"), ("[32, yes]", "32, True"), ("[32, -24]", "32, -24"), ("[32, .nan]", "32, nan")),
            *(("[32, 0x" + "f" * 5000 + "]", "32, int"), ("[24, 32]", "[24, 32]")),
        )
    },
    "no poses": (edit(YAML, "view_matrix", "views"), YAML, "view_matrix"),
    "no intrinsics": (edit(YAML, "intrinsic_matrix", "intrinsics"), YAML, "intrinsic_matrix"),
    "list for a file": (edit(YAML, "view_matrix: cameras.xml", "view_matrix: [3]"), YAML, "view_matrix", "3"),
    "file elsewhere": (edit(YAML, "view_matrix: cameras.xml", "view_matrix: a.xml"), "a.xml"),
    "number for points": (edit(YAML, "point_cloud.ply", "1"), YAML, "pointcloud", "1"),
    "no camera file": (remove("cameras.xml"), "cameras.xml"),
    "damaged camera file": (put("cameras.xml", "<document>"), "cameras.xml"),
    "nothing aligned": (edit("cameras.xml", "transform>", "nothing>"), "cameras.xml", "none of 8"),
    "no photos": (clear("images_undistorted"), "IMG_0000", "images_undistorted"),
    "damaged photo": (put("images_undistorted/IMG_0003.png", "hello"), "IMG_0003.png"),
    "labels above the folder": (edit("cameras.xml", 'label="IMG', 'label="../scene/images_undistorted/IMG'), "../scene"),
    "labels of one name": (
        chain(
            *(edit("cameras.xml", f'"IMG_000{k}"', f'"{label}"') for k, label in enumerate(("a/b", "a-b"))),
            lambda folder: (folder / "a").mkdir(),
            *(copy("images_undistorted/IMG_0000.png", f"{label}.png") for label in ("a/b", "a-b")),
        ),
        "cameras",
        "a-b",
    ),
}
MATRICES, K = "view_matrix.txt", "intrinsic_matrix.txt"
NPBG_TEXT = {
    "no matrices": (remove(MATRICES), MATRICES),
    "no numbers": (put(MATRICES, "a b c d"), MATRICES, "'a'"),
    "empty": (put(MATRICES, "# nothing\n\n"), MATRICES, "empty"),
    "ragged": (put(MATRICES, "1 0\n1"), MATRICES),
    "three rows": (put(MATRICES, "1 0 0 0\n0 1 0 0\n0 0 1 0"), MATRICES, "3x4"),
    "scaled": (put(MATRICES, "2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1"), MATRICES, "matrix 0", "orthonormal"),
    "far": (put(MATRICES, "1 0 0 1e200 0 1 0 0 0 0 1 0 0 0 0 1"), MATRICES, "matrix 0", "finite"),
    "no pose": (put(MATRICES, "nan " * 16), MATRICES, "none of 1"),
    "not UTF-8": (put(MATRICES, b"\xff"), MATRICES),
    "no K": (remove(K), K),
    "K of 2x2": (put(K, "1 0\n0 1"), K, "3x3"),
    "K without last row": (put(K, "9 0 9\n0 9 9\n0 0 0"), K, "0.0]]"),
    "skew": (put(K, "9 1 9\n0 9 9\n0 0 1"), K, "skew"),
    "NaN": (put(K, "nan 0 9\n0 9 9\n0 0 1"), K, "nan"),
    "negative": (put(K, "9 0 9\n0 -9 9\n0 0 1"), K, "-9"),
    "infinite": (put(K, "9 0 inf\n0 9 9\n0 0 1"), K, "inf"),
    "K for a projection": (edit(YAML, "intrinsic_matrix:", "proj_matrix:"), K, "4x4"),
    "XML without sensor": (chain(put("a.xml", "<document><chunk/></document>"), edit(YAML, K, "a.xml")), "a.xml"),
}
PATHS = "paths.yaml"
NPBG_PATHS = {
    "no paths file": (remove(PATHS), PATHS),
    "no data sets": (put(PATHS, "a: 1"), PATHS, "datasets", "none"),
    "other data sets": (edit(PATHS, "ball:", "cube:"), PATHS, "ball", "cube"),
    "no keys": (put(PATHS, "datasets: {ball: 1}"), PATHS, "ball", "int"),
    "no scene": (edit(PATHS, "scene_path: scene.yaml", "scene_path: a.yaml"), PATHS, "scene_path", "a.yaml"),
    "no target": (edit(PATHS, "target_path", "path"), PATHS, "target_path", "NoneType"),
    "no name of masks": (edit(PATHS, "mask_name_func", "name"), PATHS, "mask_name_func", "NoneType"),
    "integer of a word": (edit(PATHS, "{i}.png", "{int(i)}.png"), "{int(i)}.png", "IMG_0000"),
    "other names": (edit(PATHS, "{i}.png", "{i}.tif"), "IMG_0000"),
    "no mask": (remove("masks/IMG_0004.jpg"), "IMG_0004.jpg"),
    "mask of another size": (image("masks/IMG_0001.jpg", (23, 32), "L"), "IMG_0001.jpg", "32x24", "32x23"),
    "zero byte in a path": (edit(PATHS, "scene_path: scene.yaml", 'scene_path: "a\\0b"'), PATHS, "scene_path"),
    "code for a name": (edit(PATHS, "f'{i}.jpg'", "open('MARK', 'w').name"), PATHS, "mask_name_func", "open('MARK'"),
    "code in yaml": (put(PATHS, 'datasets: !!python/object/apply:os.system ["touch MARK"]'), PATHS),
}
MONOCULAR = {
    "two frames": (clear("images", keep=2), "images", "2"),
    "a flow less": (remove("flow_fw/00003.flo"), "flow_fw", "7", "6"),
    "a flow more": (copy("flow_bw/00003.flo", "flow_bw/00009.flo"), "flow_bw", "7", "8"),
    "a disparity less": (remove("disps/00003.png"), "disps", "8", "7"),
    "a mask less": (remove("masks/photo_003.png"), "masks", "photo_003.png"),
    "flow of another size": (put("flow_fw/00002.flo", struct.pack("<fii", 202021.25, 20, 24) + bytes(3840)), "00002.flo", "32x24", "20x24"),
    "no flow": (put("flow_bw/00002.flo", bytes(40)), "00002.flo", "202021.25"),
    "frame of another size": (image("images/photo_004.png", (10, 32)), "photo_004.png", "32x24", "32x10"),
    "no poses": (remove(ROWS), "scene", ROWS),
    "poses of fewer frames": (array(ROWS, lambda rows: rows[:5]), ROWS, "8 photos", "5"),
    "empty novel folder": (lambda folder: (folder / "novel" / "images").mkdir(parents=True), "novel/images", "none"),
    **{
        f"frames {chosen}": ((chain(), {"start_end": chosen}), "datasets.start_end", str(list(chosen)))
        for chosen in ((0, 2), (3, 3), (-1, 5), (7, 20), (5, 2))
    },
    "size of zero": ((chain(), {"img_wh": (0, 16)}), "datasets.img_wh", "[0, 16]"),
    "two sizes": ((chain(), {"img_wh": (24, 16), "downscale": 2.0}), "datasets.img_wh", "[24, 16]", "2"),
}
TABLES = {
    **{"nerf_synthetic": NERF_SYNTHETIC, "dtu": DTU, "h3ds": H3DS, "llff": LLFF, "scannet": SCANNET, "scannet_raw": SCANNET_RAW},
    **{"npcr": NPCR, "colmap_text": COLMAP_TEXT, "npbg": NPBG, "npbg_text": NPBG_TEXT, "npbg paths": NPBG_PATHS, "monocular": MONOCULAR},
}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small scene in each layout. Never write into it: copy it."""
    root = tmp_path_factory.mktemp("written")
    return {name: write_layout(name, root / name, VIEWS, SIZE) for name in WRITTEN}


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(("table", "case"), [(table, case) for table in TABLES for case in TABLES[table]])
def test_damaged_scenes_are_refused(written, tmp_path, monkeypatch, table, case):
    """In one line with the name of the file or key and the offending value."""
    damage, *parts = TABLES[table][case]
    damage, choices = damage if isinstance(damage, tuple) else (damage, {})
    layout = table.split()[0]
    folder = Path(shutil.copytree(written[layout], tmp_path / "scene"))
    damage(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError) as caught:
        if table == "npbg paths":
            choices = {"paths_file": str(folder / PATHS)}
        scene = read_layout(layout, folder, "ball" if table == "npbg paths" else "scene", **choices)
        for view in scene.views:
            read_photo(view)
        scene.cloud.read()
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message.strip(), message
    assert not (folder / "MARK").exists()


@pytest.mark.parametrize(
    ("layout", "choices", "value"), [("colmap", {"start_end": (0, 5)}, "start_end"), ("auto", {}, "colmap"), ("x", {}, "x")]
)
def test_unknown_layouts_and_choices_are_refused(tmp_path, layout, choices, value):
    with pytest.raises(InputError, match=rf"(?=.*{value})(?=.*datasets\.(layout|start_end))"):
        read_scene(layout, tmp_path, tmp_path, "scene", CloudFile(tmp_path / "a.ply"), choices)


# ------------------------------------------------------------------ random damage
NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 1e60, 1e-308, 5.0)
WORDS = ("nan", "inf", "-1", "0", "1e400", "9" * 30, "a", "", "../..", "\u00e4", "[]", "1", "true", "null")
places = st.floats(0, 1, exclude_max=True)
damages = st.one_of(
    st.tuples(st.just("flip"), st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=6)),
    st.tuples(st.just("header"), st.lists(st.tuples(st.integers(0, 130), st.integers(1, 255)), min_size=1, max_size=3)),
    st.tuples(st.just("cut"), places),
    st.tuples(st.just("grow"), st.binary(min_size=1, max_size=40)),
    st.tuples(st.sampled_from(("remove", "empty")), st.none()),
    st.tuples(st.just("double"), st.tuples(places, st.sampled_from(NUMBERS))),
    st.tuples(st.just("word"), st.tuples(places, st.sampled_from(WORDS))),
)


def damaged(content: bytes, kind: str, what: Any) -> bytes:
    """The bytes of a file after one kind of accident."""
    changed = bytearray(content)
    if kind == "flip":
        for place, change in what:
            changed[int(place * len(changed))] ^= change
    elif kind == "header":
        for place, change in what:
            changed[min(place, len(changed) - 1)] ^= change
    elif kind == "cut":
        del changed[int(what * len(changed)) :]
    elif kind == "grow":
        changed += what
    elif kind == "empty":
        changed = bytearray()
    elif kind == "double" and len(changed) >= 8:
        place = int(what[0] * (len(changed) - 7))
        changed[place : place + 8] = struct.pack("<d", what[1])
    elif kind == "word":
        words = list(re.finditer(rb"[-+.\w]+", content))
        if words:
            word = words[int(what[0] * len(words))]
            changed[word.start() : word.end()] = what[1].encode()
    return bytes(changed)


@pytest.fixture(scope="module")
def playgrounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scenes of three small photos whose files each example damages and restores."""
    root = tmp_path_factory.mktemp("playgrounds")
    folders = {name: write_layout(name, root / name / "scene", 3, (12, 16)) for name in WRITTEN}
    assert all(len(read_layout(name, folder).views) == 3 for name, folder in folders.items())
    return folders


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=places, damage=damages)
def test_random_damage_is_read_or_refused(playgrounds, name, place, damage):
    folder = playgrounds[name]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    photos = [path for path in files if path.suffix in (".png", ".jpg")]
    files = [path for path in files if path not in photos] * 3 + photos[::2]  # metadata as often as photos
    path = files[int(place * len(files))]
    whole = path.read_bytes()
    kind, what = damage
    try:
        if kind == "remove":
            path.unlink()
        else:
            path.write_bytes(damaged(whole, kind, what))
        check_read_or_refused(folder, name)
    finally:
        path.write_bytes(whole)


def check_read_or_refused(folder: Path, name: str) -> None:
    """Everything of a scene is read with finite numbers, or one message says what is wrong where."""
    try:
        scene = read_layout(name, folder)
        for view in scene.views:
            assert read_photo(view).image.shape[1:] == view.camera.image_size
        cloud = scene.cloud.read()
    except InputError as error:
        assert str(error).strip() and ("scene" in str(error) or str(folder) in str(error)), str(error)
        return
    assert scene.views and cloud.xyz.isfinite().all() and len({view.name for view in scene.views}) == len(scene.views)
    for view in scene.views:
        camera = view.camera
        assert all(numbers.isfinite().all() for numbers in (camera.R, camera.T, camera.focal_length, camera.principal_point))
        assert (camera.focal_length > 0).all()


@pytest.mark.parametrize("name", WRITTEN)
def test_links_and_folders_in_place_of_files(playgrounds, tmp_path, name):
    """Each file in turn is a link to itself, then a folder; and a photo has a name that is not UTF-8."""
    folder = Path(shutil.copytree(playgrounds[name], tmp_path / "scene"))
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files:
        whole = path.read_bytes()
        for damage, undo in ((loop, Path.unlink), (folder_at, Path.rmdir)):
            damage(str(path.relative_to(folder)))(folder)
            check_read_or_refused(folder, name)
            undo(path)
            path.write_bytes(whole)
    photo = next(path for path in files if path.suffix in (".png", ".jpg"))
    copy(str(photo.relative_to(folder)), bytes(photo.relative_to(folder).parent) + b"/\xff\xfe3" + photo.suffix.encode())(folder)
    check_read_or_refused(folder, name)
