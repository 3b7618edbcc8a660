"""Methods at equal budgets of CPU time: table and plot of the PSNR of held-out views.

Every method is trained anew for every budget, with the number of steps that fits into it, so that its learning rates follow their whole schedule. The number
is found by a short run, or by that of a smaller budget. CPU seconds are those of all threads, from the first to the last training step.

Run: ``python benchmarks/budgets.py out=experiments/budgets [minutes=1,5,20] [methods=gaussians,npbg] [scenes=still_life,lego] [data=<folder>]``. Results that are
in ``results.jsonl`` of ``out`` are not measured again; ``benchmarks/results/budgets`` has those of docs/results.md. Scenes other than still_life are read from
``data`` (or NPBGPP_SHARED/data), in the sub-folders of ``SCENES``. The plot needs matplotlib, which is not installed with the project: ``pip install matplotlib``.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PILOT_STEPS = 30


@dataclass(frozen=True)
class Method:
    """Words of ``npbgpp train``, and how to set the number of steps."""

    words: tuple[str, ...]
    steps: str = "datasets.train_num_samples={}"


METHODS = {
    "gaussians": Method(("experiment=gaussians_quick",)),
    "npbg": Method(("experiment=npbg_quick",)),
    "npbgpp": Method(("experiment=npbgpp_quick",)),
    "nerf": Method(("experiment=nerf_quick",), "trainer.limit_train_batches={}"),
}
SCENES = {
    "still_life": ("datasets=nerf_blender_one_scene", "datasets.data_root=" + str(ROOT / "example"), "datasets.scene_name=still_life"),
    "lego": ("datasets=nerf_blender_one_scene", "datasets.data_root={data}/nerf_synthetic", "datasets.scene_name=lego"),
    "fern": ("datasets=llff_one_scene", "datasets.data_root={data}/llff", "datasets.scene_name=fern"),
    "dtu65": ("datasets=dtu_one_scene", "datasets.data_root={data}/dtu", "datasets.scene_name=scan65"),
    "bust": ("datasets=colmap_one_scene", "datasets.data_root={data}/colmap", "datasets.scene_name=alexander"),
    "kitchen": ("datasets=scannet_one_scene", "datasets.data_root={data}/scannet_like/npbgpp", "datasets.scene_name=kitchen0000_00"),
}


def clock_words(file: Path) -> list[str]:
    """Words of ``npbgpp train`` that measure the seconds of training."""
    return ["+callbacks.fit.cpu_clock._target_=cpu_clock.CpuClock", f"+callbacks.fit.cpu_clock.file={file}"]


def train_command(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """``npbgpp train``, and an environment in which it finds the modules of the benchmarks."""
    path = os.pathsep.join(filter(None, (str(HERE), str(ROOT), os.environ.get("PYTHONPATH"))))
    return [sys.executable, "-m", "npbgpp", "train", *words], os.environ | {"PYTHONPATH": path}


def run_train(words: list[str]) -> subprocess.CompletedProcess:
    """``npbgpp train`` in a process of its own."""
    command, environment = train_command(words)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def train(method: Method, scene: tuple[str, ...], steps: int, folder: Path, *words: str) -> dict[str, float]:
    """Trains in a process of its own, in an empty folder; CPU seconds and steps."""
    shutil.rmtree(folder, ignore_errors=True)
    clock = folder / "cpu_clock.json"
    words = (
        *method.words,
        *scene,
        method.steps.format(steps),
        "trainer.max_epochs=1",
        "trainer.limit_val_batches=0",
        "test_video=null",
        "loggers=none",
        f"hydra.run.dir={folder}",
        *clock_words(clock),
        *words,
    )
    done = run_train(list(words))
    if done.returncode:
        sys.exit(f"npbgpp train {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    measured = json.loads(clock.read_text())
    return {"cpu_seconds": measured["cpu_seconds"], "steps": measured["batches"]}


def results(out: Path) -> list[dict[str, Any]]:
    """What has been measured: method, scene, minutes, scores and machine."""
    file = out / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def add_result(out: Path, **result: Any) -> None:
    """Adds a line to the results and prints it."""
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(result | {"machine": machine()}) + "\n")
    print(result, flush=True)


def measure(name: str, method: Method, scene: str, minutes: float, out: Path, words: tuple[str, ...]) -> None:
    """Adds the result of one method on one scene for one budget, if it is missing."""
    known = {r["minutes"]: r for r in results(out) if (r["scene"], r["method"]) == (scene, name)}
    if minutes in known:
        return
    work = out / "runs" / f"{scene}_{name}"
    if known:
        last = known[max(known)]
    else:
        for steps in (PILOT_STEPS, 4 * PILOT_STEPS):  # the first one also compiles kernels
            last = train(method, words, steps, work, "test_after_fit=false")
    measured = train(method, words, max(1, round(60 * minutes * last["steps"] / last["cpu_seconds"])), work)
    (scores,) = json.loads((work / "metrics.json").read_text())["datasets"].values()
    add_result(out, scene=scene, method=name, minutes=minutes, **measured, psnr=scores["psnr"], ssim=scores["ssim"])


def report(out: Path) -> None:
    """Writes table.md and plot.png of all results in the folder."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    measured = results(out)
    scenes = [scene for scene in SCENES if any(r["scene"] == scene for r in measured)]
    minutes = sorted({r["minutes"] for r in measured})
    lines = [
        "| scene | method | " + " | ".join(f"{m:g} min: PSNR, SSIM (CPU s, steps)" for m in minutes) + " |",
        "|---|---|" + "---|" * len(minutes),
    ]
    figure, axes = pyplot.subplots(1, len(scenes), figsize=(4 * len(scenes), 3.5), squeeze=False, sharey=False)
    for axis, scene in zip(axes[0], scenes, strict=True):
        for method in METHODS:
            found = {r["minutes"]: r for r in measured if r["scene"] == scene and r["method"] == method}
            if not found:
                continue
            cells = [
                f"{r['psnr']:.2f}, {r['ssim']:.3f} ({r['cpu_seconds']:.0f}, {r['steps']})" if (r := found.get(m)) else "" for m in minutes
            ]
            lines.append(f"| {scene} | {method} | " + " | ".join(cells) + " |")
            points = sorted((r["cpu_seconds"], r["psnr"]) for r in found.values())
            axis.plot(*zip(*points, strict=True), marker="o", label=method)
        axis.set(title=scene, xlabel="CPU seconds of training", xscale="log")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("PSNR of held-out views, dB")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(out / "plot.png", dpi=100)
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def read_words(name: str, minutes: str, scenes: tuple[str, ...]) -> tuple[dict[str, str], Path, list[float], dict[str, tuple[str, ...]]]:
    """The words of a command line, the folder for results, the budgets, and the words of ``npbgpp train`` of each scene.

    Args:
        name: of the default folder.
        minutes: default budgets.
        scenes: default scenes.
    """
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    out = Path(words.get("out", f"experiments/{name}")).absolute()
    out.mkdir(parents=True, exist_ok=True)
    data = words.get("data") or f"{os.environ.get('NPBGPP_SHARED', '')}/data"
    chosen = words.get("scenes", ",".join(scenes)).split(",")
    budgets = [float(m) for m in words.get("minutes", minutes).split(",")]
    return words, out, budgets, {scene: tuple(word.format(data=data) for word in SCENES[scene]) for scene in chosen}


def main() -> None:
    """Measures what is asked for, then writes table and plot."""
    if find_spec("matplotlib") is None:
        sys.exit("error: matplotlib: expected the package for the plot, got none; pip install matplotlib")
    words, out, minutes, scenes = read_words("budgets", "1,5,20", tuple(SCENES))
    for budget in sorted(minutes):
        for scene, chosen in scenes.items():
            for method in words.get("methods", ",".join(METHODS)).split(","):
                measure(method, METHODS[method], scene, budget, out, chosen)
    report(out)


if __name__ == "__main__":
    main()
