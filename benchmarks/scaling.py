"""Cost of a run against the number of points, photos, scenes and processes, read from the logs of runs on synthetic scenes.

Run: ``python benchmarks/scaling.py [points=100000,1000000,10000000] [photos=8,16,32,64] [scenes=1,2,4,8] [processes=1,2] [size=128] [steps=8]``. Without
arguments everything is measured, else what is named. Prints Markdown tables, each with linear fits of its rows. CPU time is that of
the training process with its threads, and depends less on the load of the machine than wall time.
"""

import csv
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from measure import in_process, machine, surface_cloud
from npbgpp.core.costs import Costs
from npbgpp.core.paths import SearchPaths
from npbgpp.engine.run import run as train
from npbgpp.geometry.point_cloud import PointCloud, write_ply

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = {"points": "100000,300000,1000000,3000000,10000000", "photos": "8,16,32,64", "scenes": "1,2,4,8", "processes": "1,2"}
TEST_VIEWS = 2
MANY, FEW = 300_000, 100_000  # points where something else is varied
COMMON = (
    *("datasets=nerf_blender_one_scene", "datasets.scene_name=s0", "datasets.train_image_size=null", "datasets.train_random_shift=false"),
    *("trainer.limit_val_batches=0", "trainer.accelerator=cpu", "loggers=csv", "trainer.enable_progress_bar=false"),
    *(
        "system.save_rendered_eval_images=false",
        "dataloader=small",
        "test_after_fit=true",
        "+callbacks.fit.clock._target_=scaling.CpuClock",
    ),
)


class CpuClock(Callback):
    """Logs the CPU time of the steps of every epoch, and of the evaluation."""

    def __init__(self) -> None:
        self._spent = self._began = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resets the sum."""
        self._spent = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts a step."""
        self._began = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ends a step."""
        self._spent += time.process_time() - self._began

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the CPU time of the steps."""
        pl_module.log("cpu/step_s", self._spent)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the evaluation."""
        self._began = time.process_time()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the CPU time of the evaluation."""
        pl_module.log("cpu/test_s", time.process_time() - self._began)


@dataclass(frozen=True)
class Measured:
    """Costs of a run, with wall and CPU seconds.

    Attributes:
        costs: as logged.
        steps: of the steps of each epoch.
        test: of the evaluation.
        folder: of the run.
    """

    costs: Costs
    steps: list[tuple[float, float]]
    test: tuple[float, float]
    folder: Path


def write_scene(folder: Path, points: int, views: int, size: int) -> None:
    """Writes a sphere on a square in NeRF-Synthetic layout, with smooth noise as photos."""
    write_ply(folder / "mvs_pc.ply", PointCloud(surface_cloud(points)))
    random = np.random.default_rng(0)
    for stage, count in (("train", views), ("val", 1), ("test", TEST_VIEWS)):
        (folder / stage).mkdir(parents=True, exist_ok=True)
        frames = []
        for k in range(count):
            noise = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).convert("RGBA")
            noise.resize((size, size), Image.Resampling.BICUBIC).save(folder / stage / f"r_{k}.png")
            frames.append({"file_path": f"./{stage}/r_{k}", "transform_matrix": _pose(2 * math.pi * k / count).tolist()})
        (folder / f"transforms_{stage}.json").write_text(json.dumps({"camera_angle_x": 0.8, "frames": frames}))


def _pose(azimuth: float) -> np.ndarray:
    """Camera-to-world, axes right, up, backward, looking at the origin; +y is up."""
    back = np.array([math.sin(azimuth), 0.35, math.cos(azimuth)])
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(back, right), back, 4.3 * back
    return pose


def run(root: Path, folder: Path, *overrides: str) -> Measured:
    """Trains and evaluates in a forked process."""
    in_process(lambda: _train([*COMMON, f"datasets.data_root={root}", *overrides], folder))
    return _read(folder)


def run_several(root: Path, folder: Path, *overrides: str) -> Measured:
    """The same through the command line, for distributed training."""
    command = [sys.executable, str(ROOT / "train_net.py"), *COMMON, f"datasets.data_root={root}", f"hydra.run.dir={folder}", *overrides]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return _read(folder)


def _train(overrides: list[str], folder: Path) -> dict[str, float]:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # hides the tables of scores
    folder.mkdir()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=overrides, return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir, config.hydra.runtime.cwd = str(folder), str(ROOT)
    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    train(config, SearchPaths(ROOT, folder, ROOT))
    return {}


def _read(folder: Path) -> Measured:
    costs = Costs(**json.loads((folder / "metrics.json").read_text())["costs"])
    with (folder / "csv_logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [(float(row["time/step_s"]), float(row["cpu/step_s"])) for row in rows if row.get("time/step_s")]
    (test,) = (float(row["cpu/test_s"]) for row in rows if row.get("cpu/test_s"))
    return Measured(costs, steps, (costs.test_seconds, test), folder)


def npbg(steps: int) -> tuple[str, ...]:
    """Two epochs of NPBG; the first one includes opening the scene."""
    return ("system=npbg", "system/loss_factors=l1_ssim", f"datasets.train_num_samples={steps}", "trainer.max_epochs=2")


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], *below: str) -> None:
    """Prints Markdown."""
    print(f"{title}\n")
    for cells in (columns, ("---:",) * len(columns), *rows):
        print("| " + " | ".join(cells) + " |")
    print("".join(f"\n* {text}" for text in below) + "\n", flush=True)


def line(what: str, counts: Sequence[int], values: Sequence[float], each: int, unit: str) -> str:
    """Linear fit of measurements, weighted by relative error."""
    weights = [1 / max(value, 1e-9) for value in values]
    slope, start = np.polyfit(counts, values, 1, w=weights) if len(counts) > 1 else (math.nan, values[0])
    return f"{what}: {start:.3g} {unit} and {slope * each:.3g} {unit} per {each:,}"


def _both(wall_and_cpu: tuple[float, float], scale: float = 1.0, digits: int = 2) -> str:
    return " / ".join(f"{scale * value:.{digits}f}" for value in wall_and_cpu)


def _less(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return max(0.0, one[0] - other[0]), max(0.0, one[1] - other[1])


def _mib(*paths: Path) -> str:
    return f"{sum(path.stat().st_size for path in paths) / 2**20:.1f}"


def against_points(base: Path, counts: list[int], size: int, steps: int) -> None:
    """NPBG: one scene of increasing size."""
    rows, found = [], []
    for count in counts:
        write_scene(base / f"points{count}" / "s0", count, 8, size)
        one = run(base / f"points{count}", base / f"run_points{count}", *npbg(steps))
        found.append(one)
        opened, files = _less(*one.steps), (one.folder / "descriptors" / "s0.pth", one.folder / "checkpoints" / "last.ckpt")
        sizes = (f"{one.costs.peak_host_mib:.0f}", *map(_mib, files))
        rows.append((f"{count:,}", _both(opened), _both(one.steps[1], 1000 / steps, 0), *sizes))
    columns = ("points", "opening [s]", "step [ms]", "peak memory [MiB]", "descriptors [MiB]", "checkpoint [MiB]")
    million = 1_000_000
    table(
        "NPBG against points (one scene, 8 photos; clock / CPU time)",
        columns,
        rows,
        line("Opening, CPU time", counts, [_less(*one.steps)[1] for one in found], million, "s"),
        line("Step, CPU time", counts, [1000 * one.steps[1][1] / steps for one in found], million, "ms"),
        line("Memory", counts, [one.costs.peak_host_mib for one in found], million, "MiB"),
    )


def against_photos(base: Path, counts: list[int], size: int) -> None:
    """NPBG++: one scene with increasing numbers of photos."""
    rows, found = [], []
    small = ("system.feature_extractor.pretrained_encoder=false", "system.feature_extractor.encoder=test_efficientnet")
    few = ("datasets.train_num_samples=4", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    for count in counts:
        write_scene(base / f"photos{count}" / "s0", FEW, count, size)
        words = ("system=npbgpp_sphere", "system/loss_factors=l1_ssim_npbgpp", *small, *few)
        one = run(base / f"photos{count}", base / f"run_photos{count}", *words)
        found.append(one)
        rows.append((str(count), _both(one.test), f"{one.costs.peak_host_mib:.0f}"))
    table(
        f"NPBG++ against photos ({FEW:,} points: aggregation, and rendering {TEST_VIEWS} views; clock / CPU time)",
        ("photos", "evaluation [s]", "peak memory [MiB]"),
        rows,
        line("Evaluation, CPU time", counts, [one.test[1] for one in found], 1, "s"),
        line("Memory", counts, [one.costs.peak_host_mib for one in found], 1, "MiB"),
    )


def against_scenes(base: Path, counts: list[int], size: int, steps: int) -> None:
    """NPBG: increasing numbers of scenes, each opened twice."""
    rows, found = [], []
    for count in counts:
        root = base / f"scenes{count}"
        for k in range(count):
            write_scene(root / f"s{k}", MANY, 8, size)
        several = (
            f"datasets.scenes.train=[{','.join(f's{k}' for k in range(count))}]",
            "datasets.scenes.val=[]",
            "datasets.scenes.test=[s0]",
        )
        epochs = (f"trainer.max_epochs={2 * count}", "system.max_scenes_per_train_epoch=1")
        one = run(root, base / f"run_scenes{count}", *npbg(steps), *several, *epochs)
        found.append(one)
        epoch = tuple(sum(part) / len(one.steps) for part in zip(*one.steps, strict=True))
        sizes = (_mib(*(one.folder / "descriptors").glob("*.pth")), _mib(one.folder / "checkpoints" / "last.ckpt"))
        rows.append((str(count), str(len(one.steps)), _both((epoch[0], epoch[1])), f"{one.costs.peak_host_mib:.0f}", *sizes))
    columns = ("scenes", "epochs", f"epoch of {steps} steps [s]", "peak memory [MiB]", "descriptors [MiB]", "checkpoint [MiB]")
    memory = line("Memory", counts, [one.costs.peak_host_mib for one in found], 1, "MiB")
    table(f"NPBG against scenes ({MANY:,} points each, one of them at a time; clock / CPU time)", columns, rows, memory)


def against_processes(base: Path, counts: list[int], size: int, steps: int) -> None:
    """NPBG: one epoch distributed over processes; figures of the first process."""
    rows = []
    write_scene(base / "processes" / "s0", MANY, 8, size)
    for count in counts:
        words = (f"trainer.devices={count}", f"dataloader.train_total_batch_size={max(counts)}")
        one = run_several(base / "processes", base / f"run_processes{count}", *npbg(steps), *words)
        step = one.costs.batches // 2
        views = max(counts) // count
        rows.append((str(count), str(views), _both(one.steps[1], 1000 / step, 0), _both(one.steps[1]), f"{one.costs.peak_host_mib:.0f}"))
    columns = ("processes", "views of each in a step", "step [ms]", "epoch [s]", "peak memory of the first [MiB]")
    table(f"NPBG against processes ({MANY:,} points, {max(counts)} views per step of all; clock / CPU time of the first)", columns, rows)


def main() -> None:
    """Prints a table per quantity."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    size, steps = int(words.pop("size", "128")), int(words.pop("steps", "8"))
    unknown = set(words) - set(DEFAULTS)
    if unknown:
        sys.exit(f"{', '.join(sorted(unknown))}: expected {', '.join(DEFAULTS)}, size or steps")
    chosen = {name: [int(n) for n in text.split(",")] for name, text in (words or DEFAULTS).items()}
    print(f"{machine()}; photos {size}x{size}, {steps} steps; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        if "points" in chosen:
            against_points(base, chosen["points"], size, steps)
        if "photos" in chosen:
            against_photos(base, chosen["photos"], size)
        if "scenes" in chosen:
            against_scenes(base, chosen["scenes"], size, steps)
        if "processes" in chosen:
            against_processes(base, chosen["processes"], size, steps)


if __name__ == "__main__":
    main()
