"""``npbgpp auto``: its stages, what a second call repeats, and refusals. The stages themselves have tests of their own; commands are recorded here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from npbgpp import auto
from npbgpp.geometry import PointCloud, write_ply
from npbgpp.prepare.photo_poses import Similarity
from npbgpp.prepare.photos_manifest import PhotosManifest, ScenePhoto

from ..helpers.commands import exit_of
from ..helpers.layouts import colmap

VIEWS = 12


def costs(steps: int, seconds: float) -> dict[str, object]:
    times = {"train_seconds": seconds, "data_seconds": 0.0, "step_seconds": seconds, "validation_seconds": 0.0, "test_seconds": 1.0}
    speed = {"unit": "points", "units_per_s": 1.0, "images_per_s": 1.0, "peak_host_mib": 1.0, "peak_device_mib": None}
    return {"device": "cpu", "processes": 1, "epochs": 1, "steps": steps, "batches": steps, **times, **speed}


def write_run(folder: Path, steps: int, seconds: float) -> None:
    """What a training leaves."""
    rendered = folder / "rendered" / "scene_holdout" / "test_epoch0"
    rendered.mkdir(parents=True, exist_ok=True)
    for kind in ("gt", "rendered"):
        Image.new("RGB", (16, 12), (90, 90, 90)).save(rendered / f"a_{kind}.png")
    view = {"psnr": 21.5, "ssim": 0.7, "lpips": None, "seconds": 0.1}
    scores = {"psnr": 21.5, "ssim": 0.7, "lpips": None, "views": 1, "seconds_per_view": 0.1, "per_view": {"a": view}}
    (folder / "config.yaml").write_text("system: {}\n")
    (folder / "metrics.json").write_text(json.dumps({"datasets": {"scene_holdout": scores}, "costs": costs(steps, seconds)}))


class Stages:
    """Stands for the stages: records their names, and writes what they leave."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails_at: str | None = None

    def prepare_photos(self, settings, command: str) -> None:
        self.done.append("poses")
        colmap.write(settings.scene, VIEWS, (48, 64))
        names = sorted(path.name for path in (settings.scene / "images").iterdir())
        photos = tuple(ScenePhoto(name, name, True, 200, "", 5.0) for name in names)
        similarity = Similarity(1.0, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.0))
        PhotosManifest("photos", photos, 400, 0.5, (), similarity, {}, {}, (), command).write(settings.scene)

    def cloud(self, settings: auto.AutoSettings, scene: Path, command: str) -> None:
        self.done.append("cloud")
        write_ply(scene / "mvs_pc.ply", PointCloud(torch.randn(50, 3), torch.zeros(50, 3, dtype=torch.uint8)), None)

    def run(self, words: list[str]) -> subprocess.CompletedProcess:
        assert words[:3] == [sys.executable, "-m", "npbgpp"]
        name, *arguments = words[3:]
        keys = dict(word.split("=", 1) for word in arguments)
        folder = Path(keys.get("hydra.run.dir", keys.get("out", "")))
        self.done.append(f"{name} {folder.name}")
        if folder.name == self.fails_at:
            return subprocess.CompletedProcess(words, 75)
        if folder.name.endswith("_speed"):
            steps = int(keys["datasets.train_num_samples"])
            (folder / "csv_logs").mkdir(parents=True)
            lines = ("epoch,time/data_s,time/step_s", "0,30.0,50.0", "0,,", f"1,{0.02 * steps},{0.08 * steps}")  # the first epoch compiles
            (folder / "csv_logs" / "metrics.csv").write_text("\n".join(lines) + "\n")
        elif name == "train":
            self.keys = keys
            write_run(folder, int(keys["datasets.train_num_samples"]), 0.1 * int(keys["datasets.train_num_samples"]))
        else:
            self.film = arguments
            folder.mkdir()
            (folder / "film.mp4").write_bytes(b"film")
        return subprocess.CompletedProcess(words, 0)


@pytest.fixture
def stages(monkeypatch, tmp_path) -> Stages:
    """In a folder with two photos."""
    found = Stages()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("npbgpp.prepare.photos.prepare_photos", found.prepare_photos)
    monkeypatch.setattr(auto, "_make_cloud", found.cloud)
    monkeypatch.setattr(auto.subprocess, "run", found.run)
    (tmp_path / "photos").mkdir()
    for k in range(2):
        Image.new("RGB", (640, 480), (k, k, k)).save(tmp_path / "photos" / f"{k}.jpg")
    return found


def test_stages_in_order(stages, monkeypatch, tmp_path):
    assert exit_of(auto.main, monkeypatch, "photos", "out=there", "minutes=10", "size=32") == 0
    assert stages.done == ["poses", "cloud", "train gaussians_speed", "train gaussians", "render gaussians_film"]
    assert stages.keys["experiment"] == "gaussians_quick" and stages.keys["datasets.downscale"] == "2" and stages.keys["resume"] == "auto"
    steps = int(stages.keys["datasets.train_num_samples"])
    assert 4500 < steps < 6000  # 10 minutes less what the other stages take, at 0.1 s a step
    assert "path=circle" in stages.film  # the cameras of this scene stand around it
    page = (tmp_path / "there" / "report.html").read_text()
    assert "21.50 dB" in page and "data:video/mp4" in page and f"{VIEWS} of {VIEWS} with a pose" in page
    assert (tmp_path / "there" / "report.png").is_file()


def test_a_second_call_repeats_nothing(stages, monkeypatch, tmp_path):
    exit_of(auto.main, monkeypatch, "photos", "out=there")
    stages.done.clear()
    assert exit_of(auto.main, monkeypatch, "photos", "out=there") == 0 and stages.done == ["cloud"]  # this cloud has no manifest
    assert exit_of(auto.main, monkeypatch, "photos", "out=there", "system=npbg") == 0
    assert stages.done[-3:] == ["train npbg_speed", "train npbg", "render npbg_film"]


@pytest.mark.parametrize("stage", ["gaussians", "gaussians_film"])
def test_a_stage_that_failed_is_repeated(stages, monkeypatch, tmp_path, stage):
    """A training continues with the number of steps that was chosen before."""
    stages.fails_at = stage
    assert exit_of(auto.main, monkeypatch, "photos", "out=there") == 75 and not (tmp_path / "there" / "report.html").exists()
    steps = json.loads((tmp_path / "there" / "gaussians.json").read_text())["steps"]
    stages.fails_at = None
    stages.done.clear()
    assert exit_of(auto.main, monkeypatch, "photos", "out=there") == 0
    assert stages.done[-1] == "render gaussians_film" and "train gaussians_speed" not in stages.done
    assert int(stages.keys["datasets.train_num_samples"]) == steps


def test_film_of_cameras_on_one_side(stages, monkeypatch, tmp_path):
    """No circle where a large part of it was not photographed."""
    original = stages.prepare_photos

    def half(settings, command):
        original(settings, command)
        for path in sorted((settings.scene / "images").iterdir())[VIEWS // 2 :]:
            path.unlink()
        manifest = PhotosManifest.read(settings.scene)
        kept = tuple(photo for photo in manifest.photos if (settings.scene / "images" / photo.name).is_file())
        PhotosManifest(**{**manifest.__dict__, "photos": kept}).write(settings.scene)

    monkeypatch.setattr("npbgpp.prepare.photos.prepare_photos", half)
    assert exit_of(auto.main, monkeypatch, "photos", "out=there") == 0
    assert stages.film[1] == "path=interpolate" and stages.film[2] == "views=[0,1,2,3,4,5]"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["photos", "minutes=0"], "minutes"),
        (["photos", "size=3"], "size"),
        (["photos", "system=magic"], "gaussians"),
        (["photos", "out=other"], "other"),
    ],
)
def test_refusals(stages, monkeypatch, tmp_path, arguments, named):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    message = exit_of(auto.main, monkeypatch, *arguments)
    assert str(message).startswith("error: ") and named in str(message) and not stages.done
    assert not (tmp_path / "experiments").exists()


def test_a_call_without_results_does_not_bind_the_next(stages, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "expected" in str(exit_of(auto.main, monkeypatch, "empty", "out=there"))
    assert exit_of(auto.main, monkeypatch, "photos", "out=there", "minutes=3") == 0


def test_results_of_other_keys_are_kept(stages, monkeypatch, tmp_path):
    exit_of(auto.main, monkeypatch, "photos", "out=there")
    shutil.copytree(tmp_path / "photos", tmp_path / "others")
    for arguments in (["others", "out=there"], ["photos", "out=there", "minutes=3"]):
        assert "choose another folder" in str(exit_of(auto.main, monkeypatch, *arguments))
