"""``npbgpp auto <photos> [out=<folder>] [minutes=10] [key=value ...]``: from photos or a video to poses, a dense cloud, a trained method, a film and a report.

Every stage is a command of its own and keeps its results, so that a call that was interrupted continues.
"""

import csv
import json
import logging
import math
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from npbgpp.cli.command import Command, read_arguments, user_errors
from npbgpp.core.config import key
from npbgpp.errors import InputError

if TYPE_CHECKING:
    from npbgpp.prepare.settings import PhotoSettings

log = logging.getLogger("npbgpp.auto")

# of NPBG++ all networks are finetuned from the weights that come with the project, of NPBG the refiner
_TRAININGS = {"gaussians": ("gaussians_quick",), "npbg": ("npbg_small",), "npbgpp_sphere": ("npbgpp_small", "eval_only=false")}
_SIZE_CPU, _SIZE_GPU = 400, 1600  # longest side of the photos in stereo and training, pixels
_PROBE_STEPS = 20  # that measure the speed
_FEWEST_STEPS, _MOST_STEPS = 300, 30_000
_LEAST_SHARE = 0.3  # of the minutes that training gets, also if the stages before took longer
_START_SECONDS = 15.0  # of a command, and of an evaluation
_ASPECT = 3 / 4  # of photos, for the forecast
_MANY_PHOTOS = 10  # with fewer, three that agree on a point are enough
_FILM_FRAMES, _FILM_SECONDS = 90, 40.0
_STOPS = 8  # views that the film of other scenes goes through
_MEMORY = "auto.json"  # in the folder of results: what they are of
_PICTURES = 4  # held-out views on the page


@dataclass(frozen=True)
class AutoSettings:
    """Arguments of ``npbgpp auto``."""

    photos: Path = key(help="folder of photos, or a video file", exists="a folder of photos or a video")
    out: Path | None = key(None, help="folder of the results; null: experiments/auto/<name of the photos>")
    minutes: float = key(10.0, help="time for all stages together; training gets what poses and cloud leave, at least 30 % of it")
    system: Literal["gaussians", "npbg", "npbgpp_sphere"] = key("gaussians", help="method to train")
    size: int | None = key(
        None, help=f"longest side of the photos in stereo and training, pixels; null: {_SIZE_CPU}, with a GPU {_SIZE_GPU}"
    )
    masks: Path | None = key(None, help="folder of masks, see npbgpp prepare photos --help", exists="a folder of masks")
    max_image_size: int = key(1600, help="longest side of the photos of the scene, pixels")
    frames: int = key(100, help="largest number of frames that are taken from a video")

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise InputError(f"minutes: expected a positive number, got {self.minutes:g}")
        if self.size is not None and self.size < 32:
            raise InputError(f"size: expected at least 32 pixels, got {self.size}")

    def folder(self) -> Path:
        """Absolute path of the results."""
        photos = self.photos.expanduser().absolute()
        out = Path("experiments/auto") / (photos.stem if photos.is_file() else photos.name) if self.out is None else self.out.expanduser()
        return out.absolute()


COMMAND = Command(
    "auto",
    "Makes new views from photos or a video: poses, dense cloud, training, film and a report.",
    AutoSettings,
    positional=("photos",),
    example="holiday/statue minutes=15",
    notes=(
        "A call that was interrupted continues. The stages are npbgpp prepare photos, prepare dense, train and render, which have more keys: the scene lies in "
        "<out>/scene, the run in <out>/<system>.",
    ),
)


def main() -> None:
    """The command. Ends with the exit code of the first stage that fails."""
    settings, _ = read_arguments(COMMAND, sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with user_errors():
        run_stages(settings, f"npbgpp auto {shlex.join(sys.argv[1:])}")


def run_stages(settings: AutoSettings, command: str) -> Path:
    """Runs what is not done yet; returns the report. Raises InputError for photos that cannot be used, and SystemExit if a command fails."""
    out = settings.folder()
    scene = out / "scene"
    _check_folder(settings, out)
    start = time.monotonic()
    _forecast(settings, scene)
    _remember(settings, out)
    _poses(settings, scene, command)
    _cloud(settings, scene, command)
    run = out / settings.system
    if not (run / "metrics.json").is_file():
        left = max(settings.minutes * 60 - (time.monotonic() - start), _LEAST_SHARE * settings.minutes * 60)
        _train(settings, out, run, left)
    film = out / f"{settings.system}_film" / "film.mp4"
    if not film.is_file():
        _call("render", f"run={run}", *_film_path(scene), f"frames={_FILM_FRAMES}", "images=false", f"out={film.parent}", "overwrite=true")
    report = _report(settings, out, run, film)
    log.info("open %s (photos, cloud, held-out views and film) and %s", report, film)
    return report


def _check_folder(settings: AutoSettings, out: Path) -> None:
    """Raises InputError where the folder has results of other photos or keys; the method may differ, which has a folder of its own."""
    path = out / _MEMORY
    others = [entry for entry in out.iterdir() if entry != path] if out.is_dir() else []
    if path.is_file() and others:
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, value in _remembered(settings).items():
            if found.get(name) != value:
                words = [f"experiment={_TRAININGS[settings.system][0]}", "datasets=colmap_one_scene", f"datasets.data_root={out}"]
                longer = f", or train on its scene: npbgpp train {shlex.join(words)} datasets.scene_name=scene" if name == "minutes" else ""
                raise InputError(
                    f"out={out}: has results of {name}={found.get(name)}, got {name}={value}; choose another folder with out=<folder>{longer}"
                )
    elif others:
        raise InputError(
            f"out={out}: expected a new folder, or one of an earlier call of npbgpp auto, got one with other files; choose another"
        )


def _remember(settings: AutoSettings, out: Path) -> None:
    """Writes what the results of the folder are of; a call that ended before it had results may have left something else."""
    from npbgpp.core.files import write_atomically

    write_atomically(out / _MEMORY, lambda file: file.write(json.dumps(_remembered(settings), indent=1).encode()))


def _remembered(settings: AutoSettings) -> dict[str, str]:
    values = {name: str(value) for name, value in asdict(settings).items() if name not in ("out", "system")}
    return values | {"photos": str(settings.photos.expanduser().absolute())}


def _photo_settings(settings: AutoSettings, scene: Path) -> "PhotoSettings":
    from npbgpp.prepare.settings import PhotoSettings

    return PhotoSettings(settings.photos, scene, masks=settings.masks, max_image_size=settings.max_image_size, frames=settings.frames)


def _forecast(settings: AutoSettings, scene: Path) -> None:
    """Says how the minutes will be spent."""
    from npbgpp.prepare.dense import forecast_seconds
    from npbgpp.prepare.forecast import in_words
    from npbgpp.prepare.photo_import import PhotoSource
    from npbgpp.prepare.photos import forecast, own_files

    root = settings.photos.expanduser().absolute()
    _, megapixels, seconds = forecast(_photo_settings(settings, scene), PhotoSource.find(root, own_files(scene, root)))
    most = _ASPECT * _size(settings) ** 2 / 1e6
    poses, cloud = sum(seconds.values()), sum(forecast_seconds([min(most, size) for size in megapixels]).values())
    training = max(settings.minutes * 60 - poses - cloud - _FILM_SECONDS, _LEAST_SHARE * settings.minutes * 60)
    parts = {"poses": poses, "dense cloud": cloud, f"training of {settings.system}": training, "film": _FILM_SECONDS}
    log.info("forecast: %s, less what is done already", in_words(parts))
    if poses + cloud + training + _FILM_SECONDS > settings.minutes * 60:
        log.info("that is more than minutes=%g: the training gets %.0f %% of them all the same", settings.minutes, 100 * _LEAST_SHARE)


def _poses(settings: AutoSettings, scene: Path, command: str) -> None:
    from npbgpp.prepare.photos import prepare_photos
    from npbgpp.prepare.photos_manifest import PhotosManifest

    found = PhotosManifest.read(scene)
    if found is not None and (scene / "sparse").is_dir():
        log.info("poses: %d photos, from the call before", len(found.registered))
        return
    prepare_photos(_photo_settings(settings, scene), command)


def _cloud(settings: AutoSettings, scene: Path, command: str) -> None:
    from npbgpp.data import CloudManifest
    from npbgpp.prepare.photos_report import CLOUD

    found = CloudManifest.read(scene / CLOUD)
    if found is not None and (scene / CLOUD).is_file():
        log.info("dense cloud: %d points, from the call before", found.points)
        return
    _make_cloud(settings, scene, command)


def _make_cloud(settings: AutoSettings, scene: Path, command: str) -> None:
    from npbgpp.prepare.cloud import make_dense_cloud
    from npbgpp.prepare.photos_manifest import PhotosManifest
    from npbgpp.prepare.settings import DenseSettings

    manifest = PhotosManifest.read(scene)
    assert manifest is not None
    min_views = 4 if len(manifest.registered) >= _MANY_PHOTOS else 3
    make_dense_cloud(DenseSettings(scene=str(scene), size=_size(settings), min_views=min_views), command)


def _size(settings: AutoSettings) -> int:
    import torch

    return settings.size or (_SIZE_GPU if torch.cuda.is_available() else _SIZE_CPU)


def _train(settings: AutoSettings, out: Path, run: Path, seconds: float) -> None:
    """Trains as many steps as the time allows, by the speed of a few; a training that was interrupted continues with its number."""
    plan = out / f"{settings.system}.json"
    if plan.is_file():
        steps = int(json.loads(plan.read_text(encoding="utf-8"))["steps"])
    else:
        steps = _affordable_steps(settings, out, seconds)
        from npbgpp.core.files import write_atomically

        write_atomically(plan, lambda file: file.write(json.dumps({"steps": steps}).encode()))
    _call("train", *_training(settings, out, run, steps), "resume=auto")


def _affordable_steps(settings: AutoSettings, out: Path, seconds: float) -> int:
    """Steps for which the time is enough, by the second epoch of a short training: the first one compiles and loads."""
    from npbgpp.prepare.forecast import duration

    probe, start = out / f"{settings.system}_speed", time.monotonic()
    words = _training(settings, out, probe, _PROBE_STEPS, epochs=2)
    _call("train", *words, "test_after_fit=false", "trainer.limit_val_batches=0", "loggers=[csv]")
    with (probe / "csv_logs" / "metrics.csv").open(newline="") as file:
        times = [float(row["time/step_s"]) + float(row["time/data_s"]) for row in csv.DictReader(file) if row.get("time/step_s")]
    per_step = times[-1] / _PROBE_STEPS
    left = seconds - (time.monotonic() - start) - _FILM_SECONDS - 2 * _START_SECONDS
    steps = min(max(int(left / per_step), _FEWEST_STEPS), _MOST_STEPS)
    log.info("training: %.2f s a step; %d steps, about %s", per_step, steps, duration(steps * per_step))
    return steps


def _training(settings: AutoSettings, out: Path, run: Path, steps: int, epochs: int = 1) -> list[str]:
    """Arguments of ``npbgpp train`` for epochs of so many steps."""
    experiment, *further = _TRAININGS[settings.system]
    return [
        f"experiment={experiment}",
        *further,
        "datasets=colmap_one_scene",
        f"datasets.data_root={out}",
        "datasets.scene_name=scene",
        f"datasets.downscale={_downscale(settings, out / 'scene'):g}",
        f"datasets.train_num_samples={steps}",
        f"trainer.max_epochs={epochs}",
        "trainer.check_val_every_n_epoch=1",
        f"hydra.run.dir={run}",
    ]


def _downscale(settings: AutoSettings, scene: Path) -> float:
    from npbgpp.data import image_size
    from npbgpp.prepare.photos_manifest import PhotosManifest

    size = _size(settings)
    manifest = PhotosManifest.read(scene)
    assert manifest is not None
    largest = max(max(image_size(scene / "images" / photo.name)) for photo in manifest.registered if photo.name is not None)
    return max(1.0, round(largest / size, 3))


def _film_path(scene: Path) -> list[str]:
    """A circle where the cameras stand around the scene, else a way through views in their order."""
    from npbgpp.data import CloudFile
    from npbgpp.geometry import surrounds
    from npbgpp.parsers import read_scene

    views = read_scene("colmap", scene, scene, scene.name, CloudFile(scene / "mvs_pc.ply"), {}).views
    if surrounds([view.camera for view in views]):
        return ["path=circle"]
    step = max(1, len(views) // _STOPS)
    return ["path=interpolate", f"views=[{','.join(map(str, range(0, len(views), step)))}]"]


def _report(settings: AutoSettings, out: Path, run: Path, film: Path) -> Path:
    from PIL import Image

    from npbgpp.compare.page import read_image, shared_views
    from npbgpp.compare.runs import read_runs
    from npbgpp.prepare.photos_manifest import PhotosManifest
    from npbgpp.prepare.photos_report import Outcome, write_report

    runs = read_runs([run])
    scores = list(runs[0].scores.values())
    costs = runs[0].costs
    assert scores and costs is not None
    lines = [
        ("PSNR of held-out photos", f"{scores[0].psnr:.2f} dB"),
        ("SSIM", f"{scores[0].ssim:.3f}"),
        ("held-out photos", str(scores[0].views)),
    ]
    lines.append(("training", f"{costs.steps} steps in {costs.train_seconds / 60:.1f} minutes"))
    pictures = []
    for view in shared_views(runs)[:_PICTURES]:
        rendering = view.renderings[0]
        if rendering is not None:
            photo, rendered = read_image(view.photo), read_image(rendering)
            both = Image.new("RGB", (photo.width + rendered.width, photo.height))
            both.paste(photo, (0, 0))
            both.paste(rendered, (photo.width, 0))
            psnr = "" if view.psnr[0] is None else f", {view.psnr[0]:.2f} dB"
            pictures.append((f"{view.view}: photo and rendering{psnr}", both))
    manifest = PhotosManifest.read(out / "scene")
    assert manifest is not None
    write_report(
        out / "scene", manifest, Outcome(f"Training of {settings.system}", tuple(lines), film, tuple(pictures)), out / "report.html"
    )
    log.info("held-out photos: PSNR %.2f dB, SSIM %.3f", scores[0].psnr, scores[0].ssim)
    return out / "report.html"


def _call(*words: str) -> None:
    """Runs another command, which has the same terminal: Ctrl-C ends it, and saves a training before. Raises SystemExit with its exit code if it fails."""
    log.info("npbgpp %s", shlex.join(words))
    sys.stdout.flush()
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        done = subprocess.run([sys.executable, "-m", "npbgpp", *words])
    finally:
        signal.signal(signal.SIGINT, before)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
