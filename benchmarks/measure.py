"""Timing, peak memory and test data shared by the benchmarks."""

import ast
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from npbgpp.geometry.cameras import Cameras


def best_and_median_ms(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Best and median milliseconds after one warm-up."""
    work()
    return _best_and_median([_milliseconds(work) for _ in range(repeats)])


def interleaved_ms(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Best and median milliseconds of several functions, called alternately, since the load of the machine varies.

    Each is called twice and timed once, so that no function pays for freeing the memory of another.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            work()
            times[name].append(_milliseconds(work))
    return {name: _best_and_median(taken) for name, taken in times.items()}


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one function; CPU time counts all threads of the process."""

    wall_best: float
    wall_median: float
    cpu_best: float
    cpu_median: float


def in_turn(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Wall and CPU time of several functions, called alternately after one warm-up each, since the load of the machine varies."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            taken[name].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    found = {}
    for name, times in taken.items():
        walls, cpus = zip(*times, strict=True)
        found[name] = Timing(*_best_and_median(list(walls)), *_best_and_median(list(cpus)))
    return found


def print_timings(timings: Mapping[str, Timing]) -> None:
    """A table; the ratios are those to the first function."""
    first = next(iter(timings.values()))
    print(f"{'ms, best / median':28s} {'wall':>19s} {'CPU':>19s}   first / this: wall, CPU")
    for name, t in timings.items():
        ratios = f"{first.wall_best / t.wall_best:5.1f} /{first.wall_median / t.wall_median:5.1f}, "
        ratios += f"{first.cpu_best / t.cpu_best:5.1f} /{first.cpu_median / t.cpu_median:5.1f}"
        print(f"{name:28s} {t.wall_best:8.1f} /{t.wall_median:9.1f} {t.cpu_best:8.1f} /{t.cpu_median:9.1f}   {ratios}")


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def _best_and_median(taken: list[float]) -> tuple[float, float]:
    return min(taken), statistics.median(taken)


def in_process(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Runs ``work`` in a forked process and adds ``peak_mib``, the peak growth of its resident memory."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        before = _resident_mib()
        result = work()
        result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
        os.write(writer, repr(result).encode())
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read().decode()
    os.wait()
    if not text:
        sys.exit("the measured process ended without a result")
    return ast.literal_eval(text)


def _resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def machine() -> str:
    """Description of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def surface_cloud(count: int, seed: int = 0) -> Tensor:
    """Points (n, 3) on a unit sphere and on a square below it, half each, in random order."""
    generator = torch.Generator().manual_seed(seed)
    sphere = torch.nn.functional.normalize(torch.randn(count // 2, 3, generator=generator), dim=1)
    ground = torch.rand(count - count // 2, 3, generator=generator) * 6 - 3
    ground[:, 1] = -1.0
    return torch.cat([sphere, ground])[torch.randperm(count, generator=generator)].contiguous()


def camera(size: int, azimuth: float = 0.0, distance: float = 4.3) -> Cameras:
    """A camera that looks down at the origin, with 90 % of the square in the image."""
    direction = torch.tensor([math.sin(azimuth), 0.35, -math.cos(azimuth)])
    eye = distance * direction / direction.norm()
    forward = -eye / eye.norm()
    left = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward)
    left = left / left.norm()
    R = torch.stack([left, torch.linalg.cross(forward, left), forward], 1)
    focal = torch.tensor([[2.2, 2.2]])
    return Cameras.from_authors_ndc(R[None], -(eye @ R)[None], focal, torch.zeros(1, 2), (size, size))
