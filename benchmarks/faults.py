"""Kills trainings, fills their disk and flips bits of their files, and counts after how many faults a run still ends as if nothing had happened.

Run: ``python benchmarks/faults.py [--seed 0] [--tries 3] [--methods npbg nerf ...] [--faults kill disk bits]``; prints the table of
docs/reliability.md. For each method a run of three epochs is trained without faults. Then, per try:

* kill: the same run is killed at one to three random times, and started again each time with ``resume=auto``.
* disk: its files cannot grow beyond a random size, as on a full disk; it is started again without the limit.
* bits: after two epochs one to four bits of its checkpoints or descriptors are flipped, and it goes on.

A fault is held if the run ends with the weights and descriptors of the undisturbed run, bit for bit, or, for flipped bits, refuses the files in one line with
exit code 1. Tracebacks, other exit codes, other weights and unfinished files are not.
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "example"))

_EPOCHS = 3
_FAULTS = ("kill", "disk", "bits")
_DATA = (
    *(
        "datasets=nerf_blender_one_scene",
        f"datasets.data_root={ROOT / 'example'}",
        "datasets.scene_name=still_life",
        "datasets.downscale=4",
    ),
    *("datasets.train_image_size=null", "datasets.train_random_shift=false", "datasets.train_num_samples=4"),
)
_RUN = (
    *("dataloader=small", "loggers=none", "trainer.accelerator=cpu", "trainer.limit_val_batches=0", "trainer.limit_train_batches=3"),
    *("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false", "callbacks.fit.during_epoch.every_n_steps=2"),
)
_FILTERS = "system.refiner.filters=[10,11,12,13,14]"
METHODS = {
    "npbg": (*_DATA, "system=npbg", "system/loss_factors=l1_ssim", _FILTERS),
    "npbgpp": (
        *_DATA,
        *("system=npbgpp_sphere", "system/loss_factors=l1_ssim_npbgpp", _FILTERS, "system.feature_extractor.encoder=test_efficientnet"),
        *("system.feature_extractor.pretrained_encoder=false", "system.feature_extractor.decoder_channels=[8,8,8,8,8]"),
    ),
    "npcr": (
        *_DATA,
        *("system=npcr", "system.descriptor_dim=6", "system.network.in_channels=9", "system.network.filters=[8,9,10,11,12]"),
        *("system.network.alpha_filters=[6,7,8]", "system.losses={rgba_mse: 1.0, ssim: 0.1, perceptual: 0.0}", "system.layers=2"),
    ),
    "gaussians": (*_DATA, "system=gaussians", "system.gaussians=300", "system.sh_degree=1"),
    "nerf": (
        *(word for word in _DATA if "train_" not in word),
        *("system=nerf", "system.field.depth=3", "system.field.width=32", "system.field.skips=[1]", "system.rays.rays_per_batch=256"),
        *("system.field.sampling.samples=24", "system.field.sampling.importance=16", "system.grid_resolution=16"),
    ),
    "nsff": (
        *("datasets=monocular", "datasets.scene_name=hop", "datasets.img_wh=[24,16]", "datasets.batches_per_epoch=4", "system=nsff"),
        *("system.field.depth=3", "system.field.width=24", "system.field.skips=[1]", "system.field.time_channels=5"),
        *("system.field.sampling.samples=12", "system.rays_per_batch=128", "test_video=null"),
    ),
}


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code, negative for a signal, what it printed, and its time in seconds."""

    code: int
    output: str
    seconds: float


def in_child(words: tuple[str, ...], kill_after: float | None = None, file_size: int | None = None) -> Ended:
    """Trains in a forked process, which has imported everything.

    Args:
        words: of the command line.
        kill_after: seconds until SIGKILL.
        file_size: bytes that no file may exceed.
    """
    with tempfile.TemporaryFile() as printed:
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            if file_size is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
            os._exit(_train(words))
        if kill_after is not None:
            deadline = started + kill_after
            while time.perf_counter() < deadline and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(0.005)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        seconds = time.perf_counter() - started
        printed.seek(0)
        return Ended(os.waitstatus_to_exitcode(status), printed.read().decode(errors="replace"), seconds)


def _train(words: tuple[str, ...]) -> int:
    from npbgpp.train import main

    sys.argv = ["npbgpp", *words]
    code = 0
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code)
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def state(run: Path) -> dict[str, object]:
    """Weights, optimizers and descriptors."""
    from npbgpp.core.files import load_tensors

    content = load_tensors(run / "checkpoints" / "last.ckpt", "checkpoint")
    found = {f"weights {name}": value for name, value in content["state_dict"].items()}
    found |= {f"descriptors {path.name}": load_tensors(path, "descriptors") for path in sorted((run / "descriptors").glob("*.pth"))}
    return found | {"steps": content["global_step"]}


def differs(run: Path, right: dict[str, object]) -> str:
    """What of a finished run is not that of the undisturbed one; empty if all is equal."""
    import torch

    parts = [path.name for path in run.rglob("*.part*")]
    if parts:
        return f"unfinished files {', '.join(parts[:3])}"
    found = state(run)
    if found.keys() != right.keys():
        return f"other parts {sorted(found.keys() ^ right.keys())[:3]}"
    other = [
        name
        for name, value in found.items()
        if not (torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name])
    ]
    return f"other values of {', '.join(other[:3])}" if other else ""


def one_line(ended: Ended) -> bool:
    """Whether a process was refused as a user error."""
    return ended.code == 1 and "Traceback" not in ended.output


class Trial:
    """Faults of one method.

    Args:
        name: of the method.
        words: its command line without folder and epochs.
        folder: for its runs.
    """

    def __init__(self, name: str, words: tuple[str, ...], folder: Path) -> None:
        self.name, self.words, self.folder = name, (*words, *_RUN), folder
        clean = self._run("clean")
        if clean.code != 0:
            raise SystemExit(f"{name}: the undisturbed run failed: {clean.output[-2000:]}")
        self.right, self.seconds = state(folder / "clean"), clean.seconds
        self._run("two", epochs=_EPOCHS - 1)
        shutil.copytree(folder / "two", folder / "continued")
        self._run("continued", "resume=auto")
        self.continued = state(folder / "continued")  # rates may depend on the number of epochs that a run is to have
        self.largest = max(path.stat().st_size for path in (folder / "clean").rglob("*") if path.is_file())

    def _run(self, run: str, *words: str, epochs: int = _EPOCHS, **faults: float | int | None) -> Ended:
        common = (
            f"hydra.run.dir={self.folder / run}",
            f"trainer.max_epochs={epochs}",
            "hydra.job_logging.handlers.file.filename=/dev/null",
        )
        return in_child((*self.words, *common, *words), **faults)  # type: ignore[arg-type]

    def kill(self, run: str, dice: random.Random) -> str:
        """One to three kills in a row."""
        for _ in range(dice.randint(1, 3)):
            ended = self._run(run, "resume=auto", kill_after=dice.uniform(0.1, 1.0) * self.seconds)
            if ended.code not in (0, -signal.SIGKILL):
                return f"killed: {ended.output[-400:]}"
        return self._finish(run)

    def disk(self, run: str, dice: random.Random) -> str:
        """A limit of the size of files, then none."""
        ended = self._run(run, file_size=int(dice.uniform(0.01, 1.0) * self.largest))
        if ended.code != 0 and not one_line(ended):
            return f"full disk: {ended.output[-400:]}"
        return self._finish(run)

    def bits(self, run: str, dice: random.Random) -> str:
        """Flipped bits of a file of a run of two epochs, which goes on to three."""
        shutil.copytree(self.folder / "two", self.folder / run)
        files = sorted(path for path in (self.folder / run).rglob("*") if path.suffix in (".ckpt", ".pth"))
        path = dice.choice(files)
        content = bytearray(path.read_bytes())
        for _ in range(dice.randint(1, 4)):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
        ended = self._run(run, "resume=auto")
        if ended.code == 0:
            return differs(self.folder / run, self.continued)
        return "" if one_line(ended) else f"bits of {path.name}: {ended.output[-400:]}"

    def _finish(self, run: str) -> str:
        ended = self._run(run, "resume=auto")
        return f"resumed: {ended.output[-400:]}" if ended.code != 0 else differs(self.folder / run, self.right)


def main() -> None:
    """Prints one row per method: held of tried, by fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--faults", nargs="*", choices=_FAULTS, default=list(_FAULTS))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    import make_moving_scene
    import npbgpp.engine.hydra_hooks
    import npbgpp.engine.run  # noqa: F401  # children find it imported

    torch.set_num_threads(1)
    started = time.perf_counter()
    total: Counter[str] = Counter()
    print(f"| method | {' | '.join(options.faults)} |\n|---|{'---|' * len(options.faults)}")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if "nsff" in options.methods:
            make_moving_scene.main(["--out", str(folder / "hop"), "--frames", "8", "--size", "48", "32", "--samples", "2"])
        for name in options.methods:
            words = METHODS[name] if name != "nsff" else (*METHODS[name], f"datasets.data_root={folder}")
            trial = Trial(name, words, folder / name)
            calls: dict[str, Callable[[str, random.Random], str]] = {"kill": trial.kill, "disk": trial.disk, "bits": trial.bits}
            row = []
            for fault in options.faults:
                held = 0
                for k in range(options.tries):
                    wrong = calls[fault](f"{fault}{k}", random.Random(f"{options.seed} {name} {fault} {k}"))
                    held += not wrong
                    if wrong:
                        print(f"{name} {fault} {k} (seed {options.seed}): {wrong}", file=sys.stderr)
                total["held"] += held
                total["tried"] += options.tries
                row.append(f"{held} of {options.tries}")
            print(f"| {name} | {' | '.join(row)} |", flush=True)
    print(f"\n{total['held']} of {total['tried']} faults held, {time.perf_counter() - started:.0f} s")
    sys.exit(total["held"] < total["tried"])


if __name__ == "__main__":
    main()
