"""How long training waits for its photos."""

import logging
import sys
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

from npbgpp.core.costs import Costs, peak_mib, restart_peak
from npbgpp.methods.base import System

log = logging.getLogger(__name__)

_MANY = 0.1  # of the time: from here on it is worth an advice


class DataWait(Callback):
    """Says after every training epoch how many photos per second were used and how much of the time was spent waiting for them.

    Attributes:
        waited: seconds between batches in the current epoch, the first batch left out: its time is that of starting the loader's processes.
        seconds: from the first batch on.
        photos: target views of these batches.
    """

    def __init__(self) -> None:
        self.waited = self.seconds = 0.0
        self.photos = 0
        self._first = self._ended = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self.waited = self.seconds = self._first = self._ended = 0.0
        self.photos = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Adds the time since the last batch."""
        now = time.monotonic()
        if self._ended:
            self.waited += now - self._ended
        else:
            self._first = now

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the batch."""
        self._ended = time.monotonic()
        self.seconds = self._ended - self._first
        self.photos += len(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the line."""
        if not self.seconds:
            return
        advice = ""
        if self.waited > _MANY * self.seconds:
            advice = "; more dataloader.train.num_workers or datasets.cache_memory_gb would help"
        log.info(
            "epoch %d: %d photos, %.3g per second; waited %.1f of %.1f s for them%s",
            trainer.current_epoch,
            self.photos,
            self.photos / self.seconds,
            self.waited,
            self.seconds,
            advice,
        )


# ----------------------------------------------------------------------
# Measures what a run costs: time per stage, speed, peak memory; for every logger, and for ``metrics.json``.


_TIMES = ("data", "step", "validation", "test")


class RunCosts(Callback):
    """Clocks and counters of a run, from its construction on.

    After every training epoch the loggers get ``time/data_s`` and ``time/step_s`` of the epoch, ``speed/<points or rays>_per_s``, ``speed/images_per_s``,
    ``memory/host_peak_mib`` and ``memory/device_peak_mib`` (CUDA); after every evaluation ``time/validation_s`` or ``time/test_s`` and the memory.

    It belongs behind the other callbacks: what they do at a batch then counts as part of the step, and what lies between steps is waiting.
    """

    def __init__(self) -> None:
        restart_peak()
        if torch.cuda.is_initialized():  # before that there is no peak, and nothing that could be reset
            for device in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(device)
        self._seconds = dict.fromkeys(_TIMES, 0.0)
        self._train_seconds = 0.0
        self._batches = self._images = 0
        self._units: Any = 0.0  # a tensor once there is one: if it is on a device, adding must not wait for it
        self._epoch = (0.0, 0.0, 0, 0.0)  # data seconds, step seconds, images, units when the epoch began
        self._earlier_host = self._earlier_device = 0.0  # peaks before training was resumed
        self._began: dict[str, float] = {}  # what is running now, and since when

    # ------------------------------------------------------------------ clocks
    def _start(self, what: str) -> None:
        self._began[what] = time.monotonic()

    def _stop(self, what: str) -> None:
        if what in self._began:
            self._seconds[what] += time.monotonic() - self._began.pop(what)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training begins."""
        self._start("fit")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training has ended."""
        self._train_seconds += time.monotonic() - self._began.pop("fit")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch is waited for."""
        self._epoch = (self._seconds["data"], self._seconds["step"], self._images, float(self._units))
        self._start("data")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch is here."""
        self._stop("data")
        self._start("step")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch is done; the next one is waited for."""
        self._stop("step")
        self._batches += 1
        units = trainer.callback_metrics.get("points")
        self._units = self._units + (0.0 if units is None else units.detach().double())
        self._images += len(batch)
        self._start("data")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nobody waits for data now."""
        self._stop("data")
        self._start("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Perhaps in the middle of an epoch, which then goes on."""
        self._stop("validation")
        if "fit" in self._began:
            self._start("data")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluation begins."""
        self._start("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluation has ended."""
        self._stop("test")

    # ------------------------------------------------------------------ results
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Figures of the epoch."""
        self._began.pop("data", None)  # there was no further batch to wait for
        data, step = self._seconds["data"] - self._epoch[0], self._seconds["step"] - self._epoch[1]
        unit = _unit(pl_module)
        values = {"time/data_s": data, "time/step_s": step}
        if data + step > 0:
            values[f"speed/{unit}_per_s"] = (float(self._units) - self._epoch[3]) / (data + step)
            if unit == "points":
                values["speed/images_per_s"] = (self._images - self._epoch[2]) / (data + step)
        pl_module.log_dict(values | self._memory(trainer))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Figures of the validation."""
        pl_module.log_dict({"time/validation_s": time.monotonic() - self._began["validation"]} | self._memory(trainer))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Figures of the evaluation."""
        pl_module.log_dict({"time/test_s": time.monotonic() - self._began["test"]} | self._memory(trainer))

    def _memory(self, trainer: Trainer) -> dict[str, float]:
        device = self._device_peak(trainer)
        host = max(self._earlier_host, peak_mib())
        return {"memory/host_peak_mib": host} | ({} if device is None else {"memory/device_peak_mib": device})

    def _device_peak(self, trainer: Trainer) -> float | None:
        device = trainer.strategy.root_device
        if device.type != "cuda":
            return self._earlier_device or None
        return max(self._earlier_device, torch.cuda.max_memory_allocated(device) / 2**20)

    def so_far(self, trainer: Trainer) -> Costs:
        """The costs up to now; what is running counts with the time it has taken."""
        now = time.monotonic()
        seconds = {name: self._seconds[name] + (now - self._began[name] if name in self._began else 0.0) for name in _TIMES}
        train = self._train_seconds + (now - self._began["fit"] if "fit" in self._began else 0.0)
        busy, unit = self._seconds["data"] + self._seconds["step"], _unit(trainer.lightning_module)
        device = trainer.strategy.root_device
        return Costs(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads",
            processes=trainer.world_size,
            epochs=trainer.fit_loop.epoch_progress.current.ready,
            steps=trainer.global_step,
            batches=self._batches,
            train_seconds=train,
            data_seconds=seconds["data"],
            step_seconds=seconds["step"],
            validation_seconds=seconds["validation"],
            test_seconds=seconds["test"],
            unit=unit,
            units_per_s=float(self._units) / busy if busy else None,
            images_per_s=self._images / busy if busy and unit == "points" else None,
            peak_host_mib=max(self._earlier_host, peak_mib()),
            peak_device_mib=self._device_peak(trainer),
        )

    # --------------------------------------------------------------- resumption
    def state_dict(self) -> dict[str, Any]:
        """Clocks and counters, for checkpoints: a resumed run goes on counting."""
        fit = time.monotonic() - self._began["fit"] if "fit" in self._began else 0.0
        peaks = {"host": max(self._earlier_host, peak_mib()), "device": self._earlier_device}
        if torch.cuda.is_available():
            held = [torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count())]
            peaks["device"] = max(self._earlier_device, *(size / 2**20 for size in held))
        counts = {"batches": self._batches, "images": self._images, "units": float(self._units)}
        return {"seconds": dict(self._seconds), "train_seconds": self._train_seconds + fit, "peaks_mib": peaks} | counts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._seconds = {name: float(state_dict["seconds"][name]) for name in _TIMES}
        self._train_seconds = float(state_dict["train_seconds"])
        self._batches, self._images, self._units = int(state_dict["batches"]), int(state_dict["images"]), float(state_dict["units"])
        self._earlier_host, self._earlier_device = float(state_dict["peaks_mib"]["host"]), float(state_dict["peaks_mib"]["device"])


def _unit(module: LightningModule) -> str:
    assert isinstance(module, System)
    return module.unit


# ----------------------------------------------------------------------
# Progress with the figures that matter: loss, PSNR so far, points per second, time left; a bar on a terminal, lines in a log.


class ProgressLines(Callback):
    """One line in the log every few seconds, for runs without a terminal.

    Args:
        seconds: time between lines.
    """

    def __init__(self, seconds: float = 20.0) -> None:
        self.seconds = seconds
        self._start = self._last = 0.0
        self._batches = 0
        self._points = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start = self._last = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts a batch, and writes a line when it is time."""
        metrics = trainer.callback_metrics
        self._batches += 1
        self._points += float(metrics.get("points", torch.tensor(0.0)))
        now = time.monotonic()
        if now - self._last < self.seconds:
            return
        total = total_batches(trainer)
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        rate = self._batches / (now - self._last)
        left = _clock((total - done) / rate) if total else "unknown"
        log.info(
            "epoch %d, batch %d of %s: loss %.4g, PSNR %.2f dB, %.3g points/s, %.2f batches/s, time left %s",
            trainer.current_epoch,
            done,
            total or "unknown",
            float(metrics.get("loss", torch.tensor(float("nan")))),
            float(metrics.get("psnr", torch.tensor(float("nan")))),
            self._points / (now - self._last),
            rate,
            left,
        )
        self._last, self._batches, self._points = now, 0, 0.0


def total_batches(trainer: Trainer) -> int:
    """Training batches of the whole run, 0 when unknown."""
    batches = trainer.num_training_batches
    by_epochs = trainer.max_epochs * batches if trainer.max_epochs and trainer.max_epochs > 0 else float("inf")
    total = min(by_epochs, trainer.max_steps if trainer.max_steps > 0 else float("inf"))
    return int(total) if total != float("inf") else 0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def progress_callback() -> Callback:
    """A bar on a terminal, lines otherwise."""
    return RichProgressBar(theme=RichProgressBarTheme(metrics_format=".3g")) if sys.stdout.isatty() else ProgressLines()
