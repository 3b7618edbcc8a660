"""A video from settings to loaders, and the weights of hard sampling through a checkpoint of Lightning."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from npbgpp.core.paths import SearchPaths
from npbgpp.data.settings import SceneLists
from npbgpp.engine.datamodule import DataModule, read_scenes
from npbgpp.errors import InputError
from npbgpp.methods.base import RunContext
from npbgpp.methods.nsff.data import VideoBatch
from npbgpp.methods.nsff.model import Nsff, NsffSampling
from npbgpp.methods.nsff.system import NSFF
from npbgpp.metrics import ImageMetrics

from ..helpers.settings import dataset_settings, loaders_of, stage_loader, system_settings

HOP = SceneLists(("hop",), ("hop",), ("hop",))
Build = Callable[..., tuple[NSFF, DataModule]]


def small_field(**sizes: int) -> Nsff:
    return Nsff(NsffSampling(samples=4), depth=2, width=8, skips=(1,), **sizes)


@pytest.fixture
def build(moving_root: Path, tmp_path: Path) -> Build:
    """Builds NSFF and its data."""

    def go(workers: int = 0, evaluate_only: bool = False, **changes) -> tuple[NSFF, DataModule]:
        settings = dataset_settings(**{"layout": "monocular", "data_root": moving_root, "scenes": HOP, "batches_per_epoch": 6, **changes})
        loaders = loaders_of(stage_loader(1, workers), stage_loader(1), stage_loader(1))
        paths = SearchPaths(tmp_path, tmp_path, tmp_path)
        of_system = system_settings("nsff", rays_per_batch=32)
        needs = NSFF.data_needs(of_system)
        found = read_scenes(settings, paths, needs, evaluate_only)
        system = NSFF(of_system, RunContext(found.scenes, paths, ImageMetrics(), seed=7), small_field)
        return system, DataModule(found, settings, loaders, needs, evaluate_only, system.training_batches)

    return go


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_of_single_frames(build, workers):
    system, data = build(workers)
    assert data.train_views == 8 and system.hard is None
    batches = list(data.train_dataloader())
    assert len(batches) == 6 and all(isinstance(batch, VideoBatch) and len(batch) == 32 for batch in batches)
    assert all(len(batch.time_step.unique()) == 1 for batch in batches)


def test_settings_reach_the_batches(build, tmp_path):
    system, data = build(
        start_end=(1, 7), img_wh=(24, 16), exclusion_window=1, hard_sampling=True, motion_cache="kept", batches_per_epoch=None
    )
    assert len(system.normalisation) == 6 and len(data.batch_set) == 24 * 16 * 6 // 1000 and data.batch_set.order.window == 1
    data.train_dataloader()
    assert len(list((tmp_path / "kept" / "hop").iterdir())) == 6
    assert system.hard is not None and system.hard.weights.image_size == (16, 24)


def test_evaluation_sees_other_cameras_at_their_time_steps(build):
    system, data = build(evaluate_only=True)
    assert data.batch_set is None and system.hard is None
    (loader,) = data.test_dataloader()
    names = [batch.target.names[0] for batch in loader]
    assert names == [f"novel_{k:05d}" for k in range(8)]
    time_steps = {view.name: view.time_step for view in data.scenes["hop"].views}
    assert [time_steps[name] for name in names] == list(range(8))
    (loader,) = data.val_dataloader()
    assert [batch.target.names[0] for batch in loader] == ["00004"]


class Marks(LightningModule):
    """Marks pixel 5 of every frame as wrong after the first epoch, and records its batches."""

    def __init__(self, system: NSFF) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))
        self.weights = system.hard.weights
        self.seen: list[tuple[int, tuple[int, ...]]] = []

    def training_step(self, batch: VideoBatch, _: int) -> torch.Tensor:
        self.seen.append((int(batch.time_step[0]), tuple(batch.pixel.tolist())))
        return self.one.sum()

    def on_train_epoch_end(self) -> None:
        wrong = torch.zeros(32, 48)
        wrong[0, 5] = 1
        if self.current_epoch == 0:
            for time_step in range(8):
                self.weights.update(time_step, wrong)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["pixel_weights"] = self.weights.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.weights.load_state_dict(checkpoint["pixel_weights"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(built: tuple[NSFF, DataModule], epochs: int, folder: Path, resume: Path | None = None) -> Marks:
    system, data = built
    model = Marks(system)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    saving = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[saving], default_root_dir=folder, **quiet)
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    return model


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_draws_the_same_pixels(build, tmp_path, workers):
    whole = fit(build(workers, hard_sampling=True), 3, tmp_path / "whole")
    resumed = fit(build(workers, hard_sampling=True), 3, tmp_path / "resumed", tmp_path / "whole" / "epoch=0.ckpt")
    assert len(whole.seen) == 18 and resumed.seen == whole.seen[6:]
    share = [sum(pixels.count(5) for _, pixels in part) / (32 * len(part)) for part in (whole.seen[:6], whole.seen[6:])]
    assert share[0] < 0.05 and share[1] > 0.3  # 0.39 is expected: the others keep a thousandth each
    with pytest.raises(InputError, match="weights of hard sampling"):
        fit(build(workers, hard_sampling=True, start_end=(0, 7)), 3, tmp_path, tmp_path / "whole" / "epoch=0.ckpt")


def test_still_scenes_are_refused(build):
    with pytest.raises(InputError, match="expected the frames of a video"):
        build(layout="colmap")
