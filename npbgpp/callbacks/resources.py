"""Time, memory and CPU cores of a run, and the progress of training."""

import logging
import sys
import time
from datetime import timedelta
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

from npbgpp.core.costs import Costs, peak_memory_mib, reset_peak_memory
from npbgpp.core.cpu_share import CpuShare, adapt_threads
from npbgpp.methods.base import System

log = logging.getLogger(__name__)

_STAGES = ("data", "step", "validation", "test", "other")
_LONG_WAIT = 0.1  # share of the time of an epoch from which on the log suggests settings


class RunCosts(Callback):
    """Measures time per stage, speed and peak memory of a run, from its construction on.

    Logged after every training epoch: ``time/data_s`` and ``time/step_s`` of the epoch, ``speed/<points or rays>_per_s``, ``speed/images_per_s``,
    ``memory/host_peak_mib`` and ``memory/device_peak_mib`` (CUDA); after every evaluation ``time/validation_s`` or ``time/test_s`` and the memory. A line
    in the log says how long each epoch waited for photos.

    Must be the last callback: the work of the others at a batch then counts as part of the step. (Lightning moves checkpoints further back.)
    """

    def __init__(self) -> None:
        reset_peak_memory()
        if torch.cuda.is_initialized():  # otherwise CUDA has no peak, and resetting it is an error
            for device in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(device)
        self._seconds = dict.fromkeys(_STAGES, 0.0)
        self._stage: str | None = None
        self._since = 0.0
        self._batches = self._images = 0
        self._units: Any = 0.0  # a tensor after the first batch: adding on the device does not wait for it
        self._earlier_peaks = {"host": 0.0, "device": 0.0}  # MiB, before training was resumed
        self._epoch: tuple[float, ...] = ()  # data seconds, step seconds, images, units at its start
        self._first_wait: float | None = None  # seconds until the first batch of the epoch

    def _enter(self, stage: str | None) -> None:
        """Stops the clock of the current stage and starts that of another one; None for none."""
        self._seconds, self._stage, self._since = self._elapsed(), stage, time.monotonic()

    def _elapsed(self) -> dict[str, float]:
        running = {} if self._stage is None else {self._stage: self._seconds[self._stage] + time.monotonic() - self._since}
        return self._seconds | running

    def _totals(self) -> tuple[float, ...]:
        return self._seconds["data"], self._seconds["step"], self._images, float(self._units)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("other")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also starts an epoch that is resumed: for it, Lightning does not call ``on_train_epoch_start``."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("data")
        self._epoch, self._first_wait = self._totals(), None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._enter("step")
        if self._first_wait is None:
            self._first_wait = self._seconds["data"] - self._epoch[0]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._enter("data")
        self._batches += 1
        self._images += len(batch)
        units = trainer.callback_metrics.get("points")
        self._units = self._units + (0.0 if units is None else units.detach().double())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Within an epoch, which continues, or before training."""
        self._enter("other" if trainer.sanity_checking else "data")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter(None)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter(None)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the figures of the epoch."""
        self._enter("other")
        data, step, images, units = (now - before for now, before in zip(self._totals(), self._epoch, strict=True))
        unit, values = _unit(pl_module), {"time/data_s": data, "time/step_s": step}
        if data + step > 0:
            values[f"speed/{unit}_per_s"] = units / (data + step)
            if unit == "points":
                values["speed/images_per_s"] = images / (data + step)
        pl_module.log_dict(values | self._memory(trainer))
        waited = data - (self._first_wait or 0.0)  # the first batch waits for the start of the loader processes
        if step > 0 and unit == "points":
            advice = "; more dataloader.train.num_workers or datasets.cache_memory_gb would help"
            log.info(
                "epoch %d: %d photos, %.3g per second; waited %.1f of %.1f s for them%s",
                *(trainer.current_epoch, images, images / (waited + step), waited, waited + step),
                advice if waited > _LONG_WAIT * (waited + step) else "",
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the figures of the validation."""
        pl_module.log_dict({"time/validation_s": time.monotonic() - self._since} | self._memory(trainer))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the figures of the evaluation."""
        pl_module.log_dict({"time/test_s": time.monotonic() - self._since} | self._memory(trainer))

    def _memory(self, trainer: Trainer) -> dict[str, float]:
        device = self._device_peak(trainer)
        return {"memory/host_peak_mib": self._host_peak()} | ({} if device is None else {"memory/device_peak_mib": device})

    def _host_peak(self) -> float:
        return max(self._earlier_peaks["host"], peak_memory_mib())

    def _device_peak(self, trainer: Trainer) -> float | None:
        device = trainer.strategy.root_device
        held = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
        return max(self._earlier_peaks["device"], held) or None

    def so_far(self, trainer: Trainer) -> Costs:
        """Costs up to now, with those of the stage that is running."""
        seconds, unit = self._elapsed(), _unit(trainer.lightning_module)
        busy, device = self._seconds["data"] + self._seconds["step"], trainer.strategy.root_device
        return Costs(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads",
            processes=trainer.world_size,
            epochs=trainer.fit_loop.epoch_progress.current.ready,
            steps=trainer.global_step,
            batches=self._batches,
            train_seconds=sum(seconds.values()) - seconds["test"],
            data_seconds=seconds["data"],
            step_seconds=seconds["step"],
            validation_seconds=seconds["validation"],
            test_seconds=seconds["test"],
            unit=unit,
            units_per_s=float(self._units) / busy if busy else None,
            images_per_s=self._images / busy if busy and unit == "points" else None,
            peak_host_mib=self._host_peak(),
            peak_device_mib=self._device_peak(trainer),
        )

    def state_dict(self) -> dict[str, Any]:
        """Clocks, counters and peaks: a resumed run continues them."""
        seconds, devices = self._elapsed(), range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        held = max((torch.cuda.max_memory_allocated(device) / 2**20 for device in devices), default=0.0)
        return {
            "seconds": {stage: seconds[stage] for stage in _STAGES if stage != "other"},
            "train_seconds": sum(seconds.values()) - seconds["test"],
            "peaks_mib": {"host": self._host_peak(), "device": max(self._earlier_peaks["device"], held)},
            "batches": self._batches,
            "images": self._images,
            "units": float(self._units),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        seconds = {stage: float(value) for stage, value in state_dict["seconds"].items()}
        self._seconds = seconds | {"other": float(state_dict["train_seconds"]) + seconds["test"] - sum(seconds.values())}
        self._batches, self._images, self._units = int(state_dict["batches"]), int(state_dict["images"]), float(state_dict["units"])
        self._earlier_peaks = {name: float(value) for name, value in state_dict["peaks_mib"].items()}


def _unit(module: LightningModule) -> str:
    assert isinstance(module, System)
    return module.unit


class ProgressLines(Callback):
    """Logs loss, PSNR, speed and the remaining time at regular intervals, for runs without a terminal.

    Args:
        seconds: time between lines.
    """

    def __init__(self, seconds: float = 20.0) -> None:
        self.seconds = seconds
        self._last = 0.0
        self._batches, self._points = 0, 0.0  # since the last line
        self._begun, self._all_batches = 0.0, 0  # of this process

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = self._begun = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = trainer.callback_metrics
        self._batches += 1
        self._all_batches += 1
        self._points += float(metrics.get("points", 0.0))
        passed = time.monotonic() - self._last
        if passed < self.seconds:
            return
        total, done, rate = total_batches(trainer), trainer.fit_loop.total_batch_idx + 1, self._batches / passed
        log.info(
            "epoch %d, batch %d of %s: loss %.4g, PSNR %.2f dB, %.3g %s/s, %.2f batches/s, time left %s",
            *(trainer.current_epoch, done, total or "unknown"),
            *(float(metrics.get("loss", float("nan"))), float(metrics.get("psnr", float("nan")))),
            *(self._points / passed, _unit(pl_module), rate),
            # by the speed of the whole run, validation included: that of the last batches jumps
            timedelta(seconds=int((total - done) * (time.monotonic() - self._begun) / self._all_batches)) if total else "unknown",
        )
        self._last, self._batches, self._points = time.monotonic(), 0, 0.0


def total_batches(trainer: Trainer) -> int:
    """Training batches of the whole run, 0 when it has no end."""
    infinite = float("inf")
    by_epochs = trainer.max_epochs * trainer.num_training_batches if trainer.max_epochs and trainer.max_epochs > 0 else infinite
    total = min(by_epochs, trainer.max_steps if trainer.max_steps > 0 else infinite)
    return 0 if total == infinite else int(total)


def progress_callback() -> Callback:
    """A progress bar on a terminal, lines otherwise."""
    return RichProgressBar(theme=RichProgressBarTheme(metrics_format=".3g")) if sys.stdout.isatty() else ProgressLines()


# ----------------------------------------------------------------------
# CPU cores


class ThreadsFollowLoad(Callback):
    """``CpuShare`` of trainings and evaluations on CPUs."""

    def __init__(self) -> None:
        self._share: CpuShare | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the load before the first step."""
        if self._share is None and trainer.strategy.root_device.type == "cpu":
            self._share = CpuShare()
            self._share.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the number of threads."""
        if self._share is not None:
            self._share.stop()
            self._share = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        adapt_threads()

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        adapt_threads()

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        adapt_threads()
