"""Scenes written by hand in NeRF-Synthetic layout, with pictures drawn by casting rays, not by projecting points.

Symbols: pose is camera-to-world (4, 4), axes right, up, backward; f is the focal length in pixels.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.parsers import LAYOUTS

ANGLE = 0.7
HEIGHT, WIDTH = 48, 64
POINTS = np.array(
    [[0.1, 0.2, -0.45], [-0.3, 0.1, -0.15], [0.3, -0.2, 0.15], [-0.1, -0.3, 0.45]]
)  # at heights of their own: none hides another
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=np.uint8)
RADIUS = 0.1


def look_at(eye: np.ndarray) -> np.ndarray:
    """Pose of a camera at ``eye`` that looks at the origin, with the world's z axis up."""
    back = eye / np.linalg.norm(eye)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :4] = np.stack([right, np.cross(back, right), back, eye], axis=1)
    return pose


def draw(pose: np.ndarray) -> np.ndarray:
    """(h, w, 4) picture of small balls around POINTS: every pixel follows its ray."""
    f = 0.5 * WIDTH / math.tan(0.5 * ANGLE)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(columns - WIDTH / 2) / f, (HEIGHT / 2 - rows) / f, -np.ones_like(rows)], -1) @ pose[:3, :3].T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    offset = POINTS - pose[:3, 3]
    along = rays @ offset.T
    hit = (offset**2).sum(1) - along**2 < RADIUS**2
    distance = np.where(hit, along, np.inf)
    nearest = distance.argmin(-1)
    picture = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    seen = hit.any(-1)
    picture[seen, :3] = COLOURS[nearest[seen]]
    picture[seen, 3] = 255
    return picture


@dataclass(frozen=True)
class Dots:
    """The drawn scene: its root folder and name, 3-D points (k, 3), and their colours (k, 3) in 0..255."""

    root: Path
    name: str
    points: np.ndarray
    colours: np.ndarray

    def parse(self, **options: bool) -> Scene:
        folder = self.root / self.name
        return LAYOUTS["nerf_synthetic"].parse(folder, folder, self.name, CloudFile(folder / "mvs_pc.ply"), **options)


@pytest.fixture(scope="session")
def dots(tmp_path_factory: pytest.TempPathFactory) -> Dots:
    """4 training, 2 validation and 2 test views of four coloured balls that do not hide each other."""
    root = tmp_path_factory.mktemp("dots")
    folder = root / "dots"
    drawn = 0
    for stage, count in (("train", 4), ("val", 2), ("test", 2)):
        frames = []
        (folder / stage).mkdir(parents=True)
        for k in range(count):
            azimuth = 0.3 + 0.8 * drawn
            pose = look_at(np.array([3 * math.cos(azimuth), 3 * math.sin(azimuth), 0.05 * drawn - 0.1]))
            drawn += 1
            Image.fromarray(draw(pose)).save(folder / stage / f"r_{k}.png")
            frames.append({"file_path": f"./{stage}/r_{k}", "rotation": 0.0, "transform_matrix": pose.tolist()})
        (folder / f"transforms_{stage}.json").write_text(json.dumps({"camera_angle_x": ANGLE, "frames": frames}))
    return Dots(root, "dots", POINTS, COLOURS)


@pytest.fixture
def numbered_scene(tmp_path: Path) -> Callable[[int, int, int], Scene]:
    """Scenes with any number of frames that share one 4x4 picture."""

    def write(train: int, val: int, test: int) -> Scene:
        folder = tmp_path / "numbered"
        folder.mkdir()
        Image.fromarray(np.zeros((4, 4, 4), dtype=np.uint8)).save(folder / "picture.png")
        pose = look_at(np.array([3.0, 0.0, 1.0])).tolist()
        for stage, count in (("train", train), ("val", val), ("test", test)):
            (folder / stage).mkdir()
            for k in range(count):
                os.link(folder / "picture.png", folder / stage / f"r_{k}.png")
            frames = [{"file_path": f"./{stage}/r_{k}", "transform_matrix": pose} for k in range(count)]
            (folder / f"transforms_{stage}.json").write_text(json.dumps({"camera_angle_x": ANGLE, "frames": frames}))
        return LAYOUTS["nerf_synthetic"].parse(folder, folder, "numbered", CloudFile(folder / "mvs_pc.ply"))

    return write
