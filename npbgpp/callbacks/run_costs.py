"""Measures what a run costs: time per stage, speed, peak memory; for every logger, and for ``metrics.json``."""

import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from npbgpp.costs import Costs
from npbgpp.memory import peak_mib, restart_peak
from npbgpp.systems.base import System

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
