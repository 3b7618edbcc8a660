"""Writes what a run shows: results of evaluations (images, video, ``metrics.json``, contact sheet, table), and images of training batches."""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import torch
from jaxtyping import Float
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate

from npbgpp.callbacks.resources import RunCosts
from npbgpp.core.distributed import gather, process_rank
from npbgpp.core.files import write_atomically
from npbgpp.io import EvaluationRow, evaluation_sheet, open_video, write_png
from npbgpp.methods.base import System, ViewResult
from npbgpp.metrics import ImageMetrics, ImageScores

log = logging.getLogger(__name__)

_FILM_FPS = 10.0
_SHEET_ROWS = 6  # views per dataset on the contact sheet


class EvaluationWriter(Callback):
    """Writes the results of an evaluation into the run folder.

    * ``rendered/<dataset>/<stage>_epoch<E>/<view>_{rendered,gt,raster}.png`` (one ``<view>_debug.png`` strip during training), and
      ``<view>_parts.png`` for methods that render components,
    * ``film.mp4`` or ``film.gif`` of the test views if they have one size,
    * ``metrics.json`` of the last evaluation, ``report.png`` with up to six views per dataset,
    * scores to the loggers and a table to the terminal.

    Args:
        run_dir: run folder.
        metrics: supplies the protocol.
        conditions: further entries of the protocol, such as background and resize filter.
        save_images: write the PNG files.
        transform: None, or rotate_90_ccw for portrait data: rotates every image that is written.
        film: mp4 or gif; None writes no video.
        costs: measures time and memory of the run.
    """

    def __init__(
        self,
        run_dir: Path,
        metrics: ImageMetrics,
        conditions: dict[str, str],
        save_images: bool,
        transform: str | None,
        film: str | None,
        costs: RunCosts,
    ) -> None:
        self.costs = costs
        self.run_dir, self.metrics, self.conditions = run_dir, metrics, conditions
        self.save_images, self.transform, self.film = save_images, transform, film
        self._scores: dict[str, dict[str, _Scored]] = {}
        self._rows: dict[str, list[EvaluationRow]] = {}
        self._lpips_noted = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins an evaluation."""
        self._begin()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins an evaluation."""
        self._begin()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Takes the results of a batch."""
        self._collect(trainer, outputs, "val")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Takes the results of a batch."""
        self._collect(trainer, outputs, "test")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the evaluation."""
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the evaluation."""
        self._finish(trainer, pl_module, "test")

    def _begin(self) -> None:
        self._scores, self._rows = {}, {}

    def _collect(self, trainer: Trainer, results: list[ViewResult] | None, stage: str) -> None:
        for result in results or []:
            self._scores.setdefault(result.dataset, {})[result.view] = _Scored(result.scores, result.seconds, result.extra_scores)
            rows = self._rows.setdefault(result.dataset, [])
            rendered, target = self._turned(result.rendered), self._turned(result.target)
            raster = None if result.raster is None else self._turned(result.raster)
            rows.append(EvaluationRow(f"{result.view}: {format_scores(result.scores)}", target, rendered, raster))
            if len(rows) > 8 * _SHEET_ROWS:  # thin out, so that a long evaluation does not keep every image
                self._rows[result.dataset] = rows[::2]
            if self.save_images:
                self._save(result, rendered, target, raster, stage, _epoch(trainer, stage))

    def _save(self, result: ViewResult, rendered: Tensor, target: Tensor, raster: Tensor | None, stage: str, epoch: int) -> None:
        folder = self.run_dir / "rendered" / result.dataset / f"{stage}_epoch{epoch}"
        if stage == "test":
            pictures = {"rendered": rendered, "gt": target} | ({} if raster is None else {"raster": raster})
        else:
            pictures = {"debug": torch.cat([p for p in (raster, rendered, target) if p is not None], dim=2)}
        if result.parts is not None:
            pictures["parts"] = self._turned(result.parts)
        for kind, picture in pictures.items():
            write_png(folder / f"{result.view}_{kind}.png", picture)

    def _gather(self) -> None:
        """Gathers the results of all processes and restores the order of the interleaved views."""
        parts = gather((self._scores, self._rows))
        self._begin()
        for name in dict.fromkeys(name for scores, _ in parts for name in scores):
            views = [list(scores.get(name, {}).items()) for scores, _ in parts]
            self._scores[name] = dict(entry for turn in zip_longest(*views) for entry in turn if entry is not None)
            rows = [rows.get(name, []) for _, rows in parts]
            self._rows[name] = [row for turn in zip_longest(*rows) for row in turn if row is not None]

    def _film(self, dataset: str, views: list[str], epoch: int) -> None:
        folder = self.run_dir / "rendered" / dataset / f"test_epoch{epoch}"
        pictures = [imageio.imread(folder / f"{view}_rendered.png") for view in views]
        if len({picture.shape for picture in pictures}) > 1:
            log.info("%s: no film, because its views have several sizes", dataset)
            return
        with open_video(folder / f"film.{self.film}", _FILM_FPS) as film:
            for picture in pictures:
                film.append(torch.from_numpy(picture).permute(2, 0, 1) / 255)

    def _turned(self, picture: Float[Tensor, "3 _ _"]) -> Float[Tensor, "3 _ _"]:
        return torch.rot90(picture, 1, (1, 2)) if self.transform == "rotate_90_ccw" else picture

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._gather()
        if not self._scores:
            return
        summary = {name: _summarise(views) for name, views in self._scores.items()}
        for name, row in summary.items():
            for key, score in row.items():
                if isinstance(score, float) and key != "seconds_per_view":
                    pl_module.log(f"{key.upper()}/{name}", score)
        if process_rank() != 0:  # all know the same now, one writes
            return
        if self.film is not None and self.save_images and stage == "test":
            for name, views in self._scores.items():
                self._film(name, list(views), _epoch(trainer, stage))
        protocol = asdict(self.metrics.protocol()) | self.conditions
        content = {"stage": stage, "epoch": _epoch(trainer, stage), "protocol": protocol, "datasets": summary}
        content["costs"] = asdict(self.costs.so_far(trainer))
        write_atomically(self.run_dir / "metrics.json", lambda file: file.write(json.dumps(content, indent=2).encode()))
        self._write_sheet(summary)
        self._print_table(summary, stage)

    def _write_sheet(self, summary: dict[str, dict[str, Any]]) -> None:
        rows: list[EvaluationRow] = []
        for found in self._rows.values():
            step = max(1, -(-len(found) // _SHEET_ROWS))
            rows += found[::step]
        title = "   ".join(
            f"{name}: PSNR {row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}, {row['views']} view{'s' * (row['views'] != 1)}"
            for name, row in summary.items()
        )
        write_png(self.run_dir / "report.png", evaluation_sheet(title, rows))

    def _print_table(self, summary: dict[str, dict[str, Any]], stage: str) -> None:
        table = Table("dataset", "PSNR [dB]", "SSIM", "LPIPS", "views", "s/view", title=f"{stage} views")
        for name, row in summary.items():
            lpips = f"{row['lpips']:.4f}" if isinstance(row["lpips"], float) else "not available"
            table.add_row(name, f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", lpips, str(row["views"]), f"{row['seconds_per_view']:.3f}")
        Console().print(table)
        for name, views in self._scores.items():
            extra = {key: summary[name][key] for view in views.values() for key in view.extra}
            if extra:
                log.info("%s, further scores: %s", name, ", ".join(_described(extra)))
        if any(row["lpips"] is None for row in summary.values()) and not self._lpips_noted:
            self._lpips_noted = True
            log.info("LPIPS needs the weights of VGG-16, which are not here; metrics.json says where they were looked for")
        log.info(
            "pictures: %s; contact sheet: %s; numbers: %s",
            self.run_dir / "rendered",
            self.run_dir / "report.png",
            self.run_dir / "metrics.json",
        )


def _epoch(trainer: Trainer, stage: str) -> int:
    """0-based epoch that is evaluated; after training Lightning already counts the next one."""
    return max(trainer.current_epoch - 1, 0) if stage == "test" else trainer.current_epoch


@dataclass(frozen=True)
class _Scored:
    """Scores of one view."""

    scores: ImageScores
    seconds: float
    extra: dict[str, Any]

    def entry(self) -> dict[str, Any]:
        """The entry of the view in ``metrics.json``."""
        return asdict(self.scores) | self.extra | {"seconds": self.seconds}


def _summarise(views: dict[str, _Scored]) -> dict[str, Any]:
    """Means over the views of a dataset, and the scores of each. LPIPS is null where it is not available; the protocol says why."""
    scored = list(views.values())
    return {
        **_means([asdict(view.scores) for view in scored]),
        # LPIPS is not available for some views only if its backbone is missing
        **({"lpips": None} if any(view.scores.lpips is None for view in scored) else {}),
        **_means([view.extra for view in scored]),
        "views": len(views),
        "seconds_per_view": _mean([view.seconds for view in scored]),
        "per_view": {name: view.entry() for name, view in views.items()},
    }


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of scores with equal names, nested ones too; None values do not count, and without any other value the mean is None."""
    means: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if row.get(key) is not None]
        if values and isinstance(values[0], Mapping):
            means[key] = _means(values)
        else:
            means[key] = _mean(values) if values else None
    return means


def _described(scores: Mapping[str, Any]) -> Iterator[str]:
    """Nested scores as text."""
    for key, value in scores.items():
        if isinstance(value, Mapping):
            yield from (f"{key} {text}" for text in _described(value))
        elif value is not None:
            yield f"{key} {value:.4g}"


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def format_scores(scores: ImageScores) -> str:
    """Scores on one line."""
    lpips = "" if scores.lpips is None else f", LPIPS {scores.lpips:.3f}"
    return f"PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.3f}{lpips}"


# ----------------------------------------------------------------------
# Training batches


class TrainingStrip(Callback):
    """Writes ``train_images/step<batch>_rank<r>.png``: images of the first item of a batch, side by side.

    From left to right: input photos and their features (systems that read photos), the rasterized points of every level, the rendering, the target photo.
    Features and points are coloured by the RGB converter of the system.

    Args:
        every_n_batches: batches between two images, the first batch included.
    """

    def __init__(self, every_n_batches: int = 500) -> None:
        self.every_n_batches = every_n_batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Requests images from the system."""
        assert isinstance(pl_module, System)
        pl_module.wants_pictures = trainer.fit_loop.total_batch_idx % self.every_n_batches == 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, System)
        if not pl_module.pictures:
            return
        height = max(image.shape[1] for image in pl_module.pictures)
        tiles = []
        for image in pl_module.pictures:
            width = max(1, round(image.shape[2] * height / image.shape[1]))
            tiles.append(interpolate(image[None], (height, width), mode="nearest")[0].float().cpu())
        name = f"step{trainer.fit_loop.total_batch_idx}_rank{trainer.global_rank}.png"
        write_png(Path(trainer.default_root_dir) / "train_images" / name, torch.cat(tiles, 2))
        pl_module.pictures = ()
