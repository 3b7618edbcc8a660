"""A scene of coloured balls seen from a ring of cameras."""

from pathlib import Path

import pytest

from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.parsers import read_scene
from npbgpp.prepare.scene_report import SceneReport, inspect_scene

from ..helpers.layouts.dtu import write

VIEWS, SIZE, NEAR = 16, (48, 64), 1.0


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the scene; tests must not write into it."""
    path = tmp_path_factory.mktemp("check") / "balls"
    write(path, VIEWS, SIZE)
    return path


@pytest.fixture(scope="session")
def scene(folder: Path) -> Scene:
    """12 training, 2 validation and 2 test views."""
    parsed = read_scene("dtu", folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), {})
    return parsed.with_splits((4, 12), (0, 8))


@pytest.fixture(scope="session")
def report(scene: Scene) -> SceneReport:
    return inspect_scene(scene, NEAR)
