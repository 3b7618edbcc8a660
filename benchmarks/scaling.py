"""What a run costs against the number of points, views, scenes and processes: real runs on scenes written for it, read from their metrics.json.

Run: ``python benchmarks/scaling.py [points=100000,300000,1000000,3000000] [views=8,16,32] [scenes=1,2,4] [processes=1,2] [size=256] [steps=20]``. What is
not named is not measured; without any argument points, views and scenes are. The tables are Markdown.
"""

import csv
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image

from measure import in_child, machine, surface_cloud
from npbgpp.costs import Costs
from npbgpp.geometry.pointcloud import PointCloud, write_ply
from npbgpp.paths import Bases
from npbgpp.run import run as train

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = {"points": "100000,300000,1000000,3000000", "views": "8,16,32", "scenes": "1,2,4"}
TEST_VIEWS = 2
COMMON = (
    *("datasets=nerf_blender_one_scene", "datasets.scene_name=s0", "datasets.train_image_size=null", "datasets.train_random_shift=false"),
    *("trainer.limit_val_batches=0", "loggers=csv", "trainer.enable_progress_bar=false", "system.save_rendered_eval_images=false"),
)


def write_scene(folder: Path, points: int, views: int, size: int) -> None:
    """A sphere on a square ground in NeRF-Synthetic layout, with smooth noise for photos: what they show does not change what a step costs."""
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


def run(root: Path, folder: Path, *overrides: str) -> tuple[Costs, list[float]]:
    """Trains and evaluates in a process of its own; returns the costs, and the seconds in steps of every epoch."""
    in_child(lambda: _train([*COMMON, f"datasets.data_root={root}", *overrides], folder))
    return _read(folder)


def run_several(root: Path, folder: Path, *overrides: str) -> tuple[Costs, list[float]]:
    """The same through the command line, which processes that train together are started with."""
    command = [sys.executable, str(ROOT / "train_net.py"), *COMMON, f"datasets.data_root={root}", f"hydra.run.dir={folder}", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return _read(folder)


def _train(overrides: list[str], folder: Path) -> dict[str, float]:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # tables of scores would stand between those of this benchmark
    folder.mkdir()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=overrides, return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir, config.hydra.runtime.cwd = str(folder), str(ROOT)
    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    train(config, Bases(ROOT, folder, ROOT))
    return {}


def _read(folder: Path) -> tuple[Costs, list[float]]:
    costs = Costs.from_json(json.loads((folder / "metrics.json").read_text())["costs"])
    with (folder / "csv_logs" / "metrics.csv").open() as file:
        steps = [float(row["time/step_s"]) for row in csv.DictReader(file) if row.get("time/step_s")]
    return costs, steps


def npbg(steps: int) -> tuple[str, ...]:
    """Two epochs of NPBG: the first one opens the scene, the second one shows what a step costs."""
    return (
        "system=npbg",
        "system/loss_factors=l1_ssim",
        f"datasets.train_num_samples={steps}",
        "trainer.max_epochs=2",
        "test_after_fit=true",
        "dataloader=small",
    )


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Prints Markdown."""
    for cells in (titles, ("---:",) * len(titles), *rows):
        print("| " + " | ".join(cells) + " |", flush=True)
    print(flush=True)


def _mib(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.1f}"


def main() -> None:
    """Prints a table per quantity."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    size, steps = int(words.pop("size", "256")), int(words.pop("steps", "20"))
    unknown = set(words) - {*DEFAULTS, "processes"}
    if unknown:
        sys.exit(f"{', '.join(sorted(unknown))}: expected points, views, scenes, processes, size or steps")
    chosen = {name: [int(n) for n in text.split(",")] for name, text in (words or DEFAULTS).items()}
    print(f"{machine()}; photos {size}x{size}, {steps} steps\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        rows = []
        for count in chosen.get("points", ()):
            root, folder = base / f"points{count}", base / f"run_points{count}"
            write_scene(root / "s0", count, 8, size)
            costs, seconds = run(root, folder, *npbg(steps))
            memory, opened = f"{costs.peak_host_mib:.0f}", f"{max(0.0, seconds[0] - seconds[1]):.2f}"
            sizes = (_mib(folder / "descriptors" / "s0.pth"), _mib(folder / "checkpoints" / "last.ckpt"))
            rows.append((f"{count:,}", opened, f"{1000 * seconds[1] / steps:.0f}", memory, *sizes))
        if rows:
            print("NPBG against points (one scene, 8 views)\n")
            table(("points", "opening the scene [s]", "step [ms]", "peak memory [MiB]", "descriptors [MiB]", "checkpoint [MiB]"), rows)
        rows = []
        for count in chosen.get("views", ()):
            root, folder = base / f"views{count}", base / f"run_views{count}"
            write_scene(root / "s0", 100_000, count, size)
            small = ("system.feature_extractor.pretrained_encoder=false", "system.feature_extractor.encoder=test_efficientnet")
            few = (f"datasets.train_num_samples={steps}", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "test_after_fit=true")
            costs, _ = run(root, folder, "system=npbgpp_sphere", "system/loss_factors=l1_ssim_npbgpp", *small, *few, "dataloader=small")
            seconds_each = costs.test_seconds / count
            rows.append((str(count), f"{costs.test_seconds:.2f}", f"{seconds_each:.3f}", f"{costs.peak_host_mib:.0f}"))
        if rows:
            print(f"NPBG++: describing a scene of 100,000 points from its photos, and rendering {TEST_VIEWS} views\n")
            table(("photos", "evaluation [s]", "per photo [s]", "peak memory [MiB]"), rows)
        rows = []
        for count in chosen.get("scenes", ()):
            root, folder = base / f"scenes{count}", base / f"run_scenes{count}"
            for k in range(count):
                write_scene(root / f"s{k}", 300_000, 8, size)
            names = ",".join(f"s{k}" for k in range(count))
            several = (f"datasets.scenes.train=[{names}]", "datasets.scenes.val=[]", "datasets.scenes.test=[s0]")
            epochs = (f"trainer.max_epochs={2 * count}", "system.max_scenes_per_train_epoch=1")
            costs, seconds = run(root, folder, *npbg(steps), *several, *epochs)
            each = f"{1000 * sum(seconds) / costs.batches:.0f}"
            total = sum(path.stat().st_size for path in (folder / "descriptors").glob("*.pth")) / 2**20
            rows.append(
                (
                    str(count),
                    str(costs.epochs),
                    each,
                    f"{costs.peak_host_mib:.0f}",
                    f"{total:.1f}",
                    _mib(folder / "checkpoints" / "last.ckpt"),
                )
            )
        if rows:
            print("NPBG against scenes (300,000 points each, one of them at a time)\n")
            table(("scenes", "epochs", "step with opening [ms]", "peak memory [MiB]", "descriptors [MiB]", "checkpoint [MiB]"), rows)
        rows = []
        for count in chosen.get("processes", ()):
            root, folder = base / f"processes{count}", base / f"run_processes{count}"
            write_scene(root / "s0", 300_000, 8, size)
            costs, seconds = run_several(root, folder, *npbg(steps), f"trainer.devices={count}", "trainer.accelerator=cpu")
            busy = costs.step_seconds + costs.data_seconds
            rows.append(
                (
                    str(count),
                    str(costs.batches),
                    f"{1000 * seconds[1] / max(1, costs.batches // 2):.0f}",
                    f"{count * costs.batches / busy:.2f}",
                )
            )
        if rows:
            print("NPBG against processes (300,000 points)\n")
            table(("processes", "batches of each", "step [ms]", "photos per second of all"), rows)


if __name__ == "__main__":
    main()
