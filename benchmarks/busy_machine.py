"""Training speed on a quiet machine, and beside other busy processes.

Run: ``python benchmarks/busy_machine.py [--others 2] [--seconds 30] [--methods gaussians npbg npbgpp nerf]``. Each method trains on the example scene, alone and
then beside the others, for about as many seconds; speeds are batches per second of training, without start-up.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from budgets import METHODS, SCENES, clock_words, run_train
from measure import machine


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that use one core each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def batches_per_second(method: str, seconds: float, folder: Path) -> float:
    """Speed of a training that ends after some time."""
    words = [*METHODS[method].words, *SCENES["still_life"], "trainer.limit_val_batches=0", "test_after_fit=false", "loggers=none"]
    time = f"trainer.max_time='00:00:00:{seconds:02.0f}'"
    words += ["trainer.max_epochs=1000", time, f"hydra.run.dir={folder}", *clock_words(folder / "clock.json")]
    done = run_train(words)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    clock = json.loads((folder / "clock.json").read_text())
    return clock["batches"] / clock["wall_seconds"]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--others", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    print(f"{machine()}; {torch.get_num_threads()} threads at the start; {options.others} other processes")
    with tempfile.TemporaryDirectory() as folder:
        for method in options.methods:
            batches_per_second(method, 3, Path(folder) / f"{method}_compiled")  # compiles kernels
            alone = batches_per_second(method, options.seconds, Path(folder) / f"{method}_alone")
            with busy(options.others):
                beside = batches_per_second(method, options.seconds, Path(folder) / f"{method}_beside")
            print(f"{method:10s} alone {alone:7.2f} batches/s, beside the others {beside:7.2f}, {100 * beside / alone:3.0f} %", flush=True)


if __name__ == "__main__":
    main()
