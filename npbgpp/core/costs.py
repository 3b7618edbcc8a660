"""Costs of a run: time per stage, speed, peak memory. Runs write them to ``metrics.json``, comparisons read them."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Costs:
    """Figures of one run so far; a resumed run continues those of its checkpoint.

    Attributes:
        device: name of the device.
        processes: number of training processes; the other figures are those of the first one.
        epochs: finished training epochs.
        steps: optimizer steps.
        batches: training batches.
        train_seconds: training, with validation and saving.
        data_seconds: part of ``train_seconds`` between the batches of an epoch: loading photos, saving within the epoch.
        step_seconds: part of ``train_seconds`` in training steps. Work queued on a GPU counts where it is waited for.
        validation_seconds: part of ``train_seconds``.
        test_seconds: evaluation of the held-out views, with writing their images.
        unit: unit of ``units_per_s``: points (of the clouds of a batch, once per view) or rays.
        units_per_s: over ``data_seconds + step_seconds``; None without training.
        images_per_s: target photos over the same time; None without training, and for systems that train on rays.
        peak_host_mib: peak resident memory of the process since the run began, without data loader processes.
        peak_device_mib: peak memory of tensors on a CUDA device; None without one.
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


def reset_peak_memory() -> bool:
    """Restarts the count of ``peak_memory_mib``. False where the system does not allow it: the peak is then that since the process began."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except OSError:
        return False
    return True


def peak_memory_mib() -> float:
    """Peak resident memory of this process (threads, not child processes), as the kernel counts it, in MiB."""
    try:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, ValueError):  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 1024
