"""What ``callbacks=viewer`` costs a training: steps per second while a browser moves its camera, beside those without a browser, in turn in one run.

The process that plays the browser has as much CPU time in both kinds of windows, since it shares the cores with the training; a real browser is elsewhere.

Run: ``python benchmarks/viewer_training.py [--methods gaussians npbg] [--seconds 5] [--windows 6]``. A run without the callback follows for comparison.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback
from websockets.sync.client import connect

import npbgpp
from budgets import METHODS, ROOT, SCENES, train_command
from measure import machine
from npbgpp.viewer.poses import frame_of
from viewer import camera_message, drain

PORT = 18700
RATE = 30.0  # camera messages per second


class StepTimes(Callback):
    """Writes the time of every training step.

    Args:
        file: path to write to.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        with self.file.open("a") as file:
            file.write(f"{time.monotonic()}\n")


def start(method: str, folder: Path, *words: str) -> subprocess.Popen:
    """A training without an end, which has taken its first steps."""
    times = folder / "times.txt"
    clock = ("+callbacks.fit.step_times._target_=viewer_training.StepTimes", f"+callbacks.fit.step_times.file={times}")
    fixed = (
        "trainer.limit_val_batches=0",
        "trainer.max_epochs=1000",
        "test_after_fit=false",
        "loggers=none",
        f"hydra.run.dir={folder / 'run'}",
    )
    command, environment = train_command([*METHODS[method].words, *SCENES["still_life"], *words, *clock, *fixed])
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    while len(steps(folder)) < 20:
        time.sleep(0.2)
        if process.poll() is not None:
            sys.exit((folder / "output.txt").read_text()[-3000:])
    return process


def steps(folder: Path) -> list[float]:
    file = folder / "times.txt"
    return [float(line) for line in file.read_text().splitlines()] if file.is_file() else []


def rate(folder: Path, begin: float, end: float) -> float:
    """Steps per second between two times."""
    found = [at for at in steps(folder) if begin <= at <= end]
    return (len(found) - 1) / (found[-1] - found[0])


def camera_messages() -> list[bytes]:
    """What a browser sends at the training views."""
    scene = npbgpp.load_scene(ROOT / "example" / "still_life")
    frame = frame_of(scene)
    return [camera_message(frame.pose(scene.views[i].camera, 1.0), frame) for i in scene.splits["train"]]


def move(messages: list[bytes], seconds: float) -> None:
    """A browser that moves its camera."""
    with connect(f"ws://127.0.0.1:{PORT}", subprotocols=["viser-v1.1.1"], max_size=None) as socket:  # type: ignore[list-item]
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < seconds:
            socket.send(messages[int(5 * passed) % len(messages)])
            drain(socket, 1 / RATE)


def compute(share: float, seconds: float) -> None:
    """Takes this share of a core."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        until = time.process_time() + share / RATE
        while time.process_time() < until:
            pass
        time.sleep((1 - share) / RATE)


def measure(method: str, seconds: float, windows: int, folder: Path) -> None:
    messages = camera_messages()
    process = start(method, folder, "callbacks=viewer", f"callbacks.fit.viewer.port={PORT}")
    ratios, alone, shares = [], [], []
    try:
        for window in range(windows + 1):
            begin, computed = time.monotonic(), time.process_time()
            move(messages, seconds)
            between = time.monotonic()
            shares.append((time.process_time() - computed) / (between - begin))
            compute(shares[-1], seconds)
            end = time.monotonic()
            if window:  # the first picture of a browser takes longer
                alone.append(rate(folder, between, end))
                ratios.append(rate(folder, begin, between) / alone[-1])
    finally:
        process.kill()
        process.wait()
    (plain := folder / "plain").mkdir()
    process = start(method, plain)
    begin = time.monotonic()
    time.sleep(seconds * windows)
    process.kill()
    process.wait()
    print(
        f"{method}: {rate(plain, begin, time.monotonic()):.2f} steps/s without the callback, {statistics.median(alone):.2f} with it and no browser; "
        f"while a browser moves {100 * statistics.median(ratios):.1f} % of that (windows {', '.join(f'{100 * r:.0f}' for r in ratios)}); "
        f"the browser took {100 * statistics.median(shares):.0f} % of a core",
        flush=True,
    )


def main() -> None:
    """Prints a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["gaussians", "npbg"])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--windows", type=int, default=6)
    options = parser.parse_args()
    print(machine())
    for method in options.methods:
        with tempfile.TemporaryDirectory() as folder:
            measure(method, options.seconds, options.windows, Path(folder))


if __name__ == "__main__":
    main()
