"""What a run cost: time per stage, speed, memory. Written by a run into ``metrics.json``, read by comparisons."""

import resource
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Costs:
    """Figures of one run up to the moment they were taken; those of a resumed run go on from its checkpoint.

    Attributes:
        device: name of what it ran on.
        processes: how many processes trained; the other figures are those of the first one.
        epochs: training epochs that ended.
        steps: optimiser steps.
        batches: training batches.
        train_seconds: from the beginning to the end of training, validation and saving included.
        data_seconds: part of ``train_seconds`` between batches: waiting for photos, callbacks, saving while an epoch lasts.
        step_seconds: part of ``train_seconds`` in training steps. What a GPU has queued counts where it is waited for.
        validation_seconds: part of ``train_seconds``.
        test_seconds: evaluation of the held-out views, pictures included.
        unit: what ``units_per_s`` counts: points (of the clouds of a batch, once per view) or rays.
        units_per_s: over ``data_seconds + step_seconds``; None without training.
        images_per_s: target photos over the same time; None without training, and for systems that train on single pixels.
        peak_host_mib: largest resident memory of the process since the run began, without loader processes.
        peak_device_mib: largest memory held by tensors on a CUDA device; None without one.
    """

    device: str
    processes: int
    epochs: int
    steps: int
    batches: int
    train_seconds: float
    data_seconds: float
    step_seconds: float
    validation_seconds: float
    test_seconds: float
    unit: str
    units_per_s: float | None
    images_per_s: float | None
    peak_host_mib: float
    peak_device_mib: float | None

    @classmethod
    def from_json(cls, content: Any) -> "Costs":
        """Raises ValueError for anything but what ``dataclasses.asdict`` made of costs."""
        if not isinstance(content, dict) or set(content) != {field.name for field in fields(cls)}:
            raise ValueError("costs are not those of a run")
        for field in fields(cls):
            value = content[field.name]
            texts = field.name in ("device", "unit")
            if not isinstance(value, str if texts else int | float | None):
                raise ValueError(f"costs: {field.name} is {value!r}")
        return cls(**content)


# ----------------------------------------------------------------------
# Peak memory of this process as the kernel counts it: nothing is sampled, so no peak is missed.


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def restart_peak() -> bool:
    """Lets the peak begin at what is resident now. False where the system does not allow it; the peak is then that since the process began."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_mib() -> float:
    """Largest resident memory of this process (threads, not child processes) since it began or since ``restart_peak``, in MiB."""
    try:
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, ValueError):  # no Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 1024
