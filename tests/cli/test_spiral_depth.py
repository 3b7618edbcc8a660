"""The depth that a spiral looks at in LLFF scenes: one stray point decides it neither in the bounds nor in the cloud."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from npbgpp.cli.trajectory import _focus_depth
from npbgpp.data import CloudFile, Scene
from npbgpp.geometry import Cameras
from npbgpp.parsers import read_scene

from ..helpers.layouts import llff


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llff.write(tmp_path / "scene", 8, (12, 16))
    rows = np.load(tmp_path / "scene" / "poses_bounds.npy")
    rows[3, 15] = 1e-3  # a stray point before one camera
    np.save(tmp_path / "scene" / "poses_bounds.npy", rows)
    return tmp_path / "scene"


def parse(folder: Path) -> tuple[Scene, Cameras]:
    scene = read_scene("llff", folder, folder, "scene", CloudFile(folder / "mvs_pc.ply"), {})
    return scene, Cameras.cat([view.camera for view in scene.views[:2]])


def test_without_points_the_median_of_the_nearest_depths_counts(folder):
    (folder / "mvs_pc.ply").unlink()
    scene, cameras = parse(folder)
    assert _focus_depth(scene, cameras) == pytest.approx(3.5 * 0.75 * llff.BOUNDS[0])


def test_with_points_their_median_depth_counts_as_in_other_layouts(folder):
    scene, cameras = parse(folder)
    unbounded = replace(scene, views=tuple(replace(view, bounds=None) for view in scene.views))
    assert _focus_depth(scene, cameras) == _focus_depth(unbounded, cameras) > 1
