"""The script for Metashape, with a module in its place that records calls and writes what Metashape would: NPBG's layout reads the result."""

import math
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from npbgpp.data.point_files import CloudFile
from npbgpp.parsers import read_scene

from ..helpers.layouts.npbg import metashape_xml
from ..helpers.scenes import central_intrinsics, draw, look_at_origin, write_cloud

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "metashape_build_cloud.py"
SIZE = (48, 64)


class PretendImage:
    def __init__(self, path: str) -> None:
        self.path, self.width, self.height = path, SIZE[1], SIZE[0]

    def undistort(self, calibration: object, centred: bool, square: bool) -> "PretendImage":
        assert calibration == "calibration" and centred and square
        return self

    def save(self, path: str) -> None:
        Image.open(self.path).save(path)


class PretendChunk:
    """Aligns all photos but the last."""

    def __init__(self, calls: dict[str, dict[str, object]]) -> None:
        self.calls, self.cameras = calls, []

    def addPhotos(self, paths: list[str]) -> None:  # noqa: N802
        for k, path in enumerate(paths):
            photo, sensor = SimpleNamespace(image=lambda path=path: PretendImage(path)), SimpleNamespace(calibration="calibration")
            aligned = "transform" if k < len(paths) - 1 else None
            self.cameras.append(SimpleNamespace(label=Path(path).stem, transform=aligned, photo=photo, sensor=sensor))

    def exportPointCloud(self, path: str, source_data: str) -> None:  # noqa: N802
        assert source_data == "cloud"
        write_cloud(Path(path))

    def exportCameras(self, path: str) -> None:  # noqa: N802
        poses = {c.label: None if c.transform is None else np.linalg.inv(look_at_origin(k)) for k, c in enumerate(self.cameras)}
        Path(path).write_text(metashape_xml(poses, SIZE, f"<f>{central_intrinsics(SIZE)[0, 0]}</f>"))

    def __getattr__(self, name: str):
        if name not in ("matchPhotos", "alignCameras", "buildDepthMaps", "buildPointCloud"):
            raise AttributeError(name)
        return lambda **keys: self.calls.update({name: keys})


class OlderChunk(PretendChunk):
    """Of Metashape 1.6."""

    def __getattr__(self, name: str):
        if name == "buildPointCloud":
            raise AttributeError(name)
        return (lambda: self.calls.update({name: {}})) if name == "buildDenseCloud" else super().__getattr__(name)

    def exportPoints(self, path: str, source_data: str) -> None:  # noqa: N802
        assert source_data == "dense"
        write_cloud(Path(path))


@pytest.fixture(params=[PretendChunk, OlderChunk], ids=["2.0", "1.6"])
def calls(request, monkeypatch) -> dict[str, dict[str, object]]:
    recorded: dict[str, dict[str, object]] = {}
    module = ModuleType("Metashape")
    module.MildFiltering, module.PointCloudData, module.DenseCloudData = "mild", "cloud", "dense"
    module.Document = lambda: SimpleNamespace(
        addChunk=lambda: request.param(recorded), save=lambda path: Path(path).write_bytes(b"project")
    )
    monkeypatch.setitem(sys.modules, "Metashape", module)
    return recorded


def run(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for k in range(count):
        picture, _ = draw(central_intrinsics(SIZE), look_at_origin(2 * math.pi * k / count), SIZE)
        Image.fromarray(picture).save(folder / f"IMG_{k}.JPG", format="JPEG")


def test_files_make_a_scene_of_npbg(tmp_path, monkeypatch, calls):
    write_photos(tmp_path / "scene" / "images", 5)
    run(monkeypatch, tmp_path / "scene", "--cam_downscale", 2, "--pc_downscale", 4, "--img_ext", "jpg")
    assert calls["matchPhotos"]["downscale"] == 2 and calls["buildDepthMaps"]["downscale"] == 4
    scene = read_scene("auto", tmp_path / "scene", tmp_path / "scene", "scene", CloudFile(tmp_path / "scene" / "point_cloud.ply"), {})
    assert [view.name for view in scene.views] == ["IMG_0", "IMG_1", "IMG_2", "IMG_3"] and (tmp_path / "scene" / "project.psz").is_file()
    before = (tmp_path / "scene" / "cameras.xml").read_bytes()
    with pytest.raises(SystemExit, match="exists.*--overwrite"):
        run(monkeypatch, tmp_path / "scene")
    assert (tmp_path / "scene" / "cameras.xml").read_bytes() == before
    run(monkeypatch, tmp_path / "scene", "--overwrite")


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_photos(tmp_path, monkeypatch, calls, count):
    write_photos(tmp_path / "scene" / "images", count)
    with pytest.raises(SystemExit, match=f"at least 2 photos.*got {count}"):
        run(monkeypatch, tmp_path / "scene")
