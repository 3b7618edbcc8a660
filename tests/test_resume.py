"""A run that was stopped goes on as if nothing had happened: bit for bit, wherever it was stopped; and what is refused."""

import csv
import functools
import json
import logging
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from npbgpp.callbacks.checkpoints import StepCheckpoint
from npbgpp.core.files import load_tensors
from npbgpp.engine.checkpoint import check_same_training
from npbgpp.errors import InputError
from npbgpp.methods.points import PerSceneParameters
from npbgpp.points.descriptor_tables import digest

from .conftest import TINY_GAUSSIANS, TINY_NERF, TINY_NPBGPP, TINY_NPCR, TINY_OVERRIDES
from .helpers.programs import TRAIN_NET, Program, run_program

LAST = "checkpoints/last.ckpt"
# what draws at random: crops, zooms, scenes, input photos, colours, depths, densities
SYSTEMS = {
    "npbg": (
        *TINY_OVERRIDES,
        "datasets.scenes.train=[ball,globe,moon]",
        "system.max_scenes_per_train_epoch=2",
        "datasets.train_random_zoom=[0.7,1.4]",
        "system.lr_schedule=cosine",
    ),
    "npbg_history": (*TINY_OVERRIDES, "system.reset_descriptor_optimizer=false", "datasets.train_random_zoom=[0.7,1.4]"),
    "npbgpp": (*TINY_NPBGPP, "system.color_aug_p=0.9", "datasets.train_random_zoom=[0.7,1.4]"),
    "npcr": (*TINY_NPCR, "datasets.train_random_zoom=[0.7,1.4]"),
    "coefficients": (*(word for word in TINY_OVERRIDES if word != "system=npbg"), "system=coefficients_ft"),
    "nerf": (*TINY_NERF, "system.field.sampling.noise_std=1.0", "system.lr_schedule=cosine"),
    # gaussians of low opacity are moved by noise, and to others
    "gaussians": (*TINY_GAUSSIANS, "system.initial_opacity=0.01", "system.exposure=true", "datasets.train_random_zoom=[0.7,1.4]"),
}
COMMON = ("trainer.max_epochs=3", "trainer.limit_val_batches=0", "trainer.limit_train_batches=4")


def state(run: Path) -> dict[str, torch.Tensor]:
    """Everything that a run has learnt: networks, optimisers, descriptors."""
    content = load_tensors(run / LAST, "checkpoint")
    found = {f"weights.{name}": value for name, value in content["state_dict"].items()}
    for k, optimizer in enumerate(content["optimizer_states"]):
        found |= {
            f"optimizer{k}.{p}.{name}": torch.as_tensor(value) for p, kept in optimizer["state"].items() for name, value in kept.items()
        }
    found |= {f"descriptors.{path.stem}": load_tensors(path, "descriptors") for path in (run / "descriptors").glob("*.pth")}
    return found | {"step": torch.tensor(content["global_step"]), "epoch": torch.tensor(content["epoch"])}


def assert_equal(one: Path, two: Path) -> None:
    first, second = state(one), state(two)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class StoppedError(Exception):
    """The process is gone."""


@pytest.fixture
def stop_after(monkeypatch):
    """Ends a run after some batches of it, leaving the files as they are."""

    def go(batches: int) -> None:
        seen = []

        def ended(self, trainer, module, outputs, batch, batch_idx):
            done(self, trainer, module, outputs, batch, batch_idx)
            seen.append(batch_idx)
            if len(seen) == batches:
                raise StoppedError

        monkeypatch.setattr(StepCheckpoint, "on_train_batch_end", ended)

    done = StepCheckpoint.on_train_batch_end
    yield go


STOPS = {"in an epoch": (7, 1), "steps after a checkpoint": (10, 3), "with checkpoints of epochs alone": (9, None)}


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        *(("npbg", stop) for stop in STOPS),
        ("npbg_history", "steps after a checkpoint"),
        ("npbgpp", "in an epoch"),
        ("nerf", "steps after a checkpoint"),
        ("gaussians", "steps after a checkpoint"),
        ("nerf", "with checkpoints of epochs alone"),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(run_in, tmp_path, monkeypatch, stop_after, name, stop):
    batches, every = STOPS[stop]
    tiny = (*SYSTEMS[name], *COMMON, f"callbacks.fit.during_epoch.every_n_steps={every or 'null'}")
    whole = run_in(tmp_path, name="whole", tiny=tiny)
    with monkeypatch.context():
        stop_after(batches)
        with pytest.raises(StoppedError):
            run_in(tmp_path, name="stopped", tiny=tiny)
    monkeypatch.undo()
    torch.manual_seed(99)
    torch.rand(7)
    resumed = run_in(tmp_path, "resume=auto", name="stopped", tiny=tiny)
    assert_equal(whole, resumed)


def test_the_csv_log_goes_on(run_in, tmp_path, monkeypatch, stop_after):
    """Rows after the checkpoint that the run goes on from are written anew."""
    logged = ("loggers=[csv]", "trainer.log_every_n_steps=1", "+loggers.csv.flush_logs_every_n_steps=1")
    tiny = (*SYSTEMS["npbg"], *COMMON, "callbacks.fit.during_epoch.every_n_steps=3", *logged)
    logs = {}
    for name in ("whole", "stopped"):
        if name == "stopped":
            stop_after(10)
            with pytest.raises(StoppedError):
                run_in(tmp_path, name=name, tiny=tiny)
            monkeypatch.undo()
        folder = run_in(tmp_path, *(["resume=auto"] if name == "stopped" else []), name=name, tiny=tiny)
        with (folder / "csv_logs" / "metrics.csv").open(newline="") as file:
            logs[name] = [(row["step"], row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(logs["whole"]) == 12 and logs["stopped"] == logs["whole"]


@pytest.mark.parametrize("name", ["npbg_history", "npcr", "coefficients"])
def test_a_run_stopped_between_descriptors_and_checkpoint(run_in, tmp_path, monkeypatch, name):
    """Three times in a row: descriptors of the second epoch are there, its checkpoint is not. Those of the first are kept until there is one."""
    tiny = (*SYSTEMS[name], *COMMON)
    if name == "coefficients":
        made = run_in(
            tmp_path, "test_after_fit=true", "trainer.limit_val_batches=0", "trainer.limit_train_batches=1", name="made", tiny=TINY_NPBGPP
        )
        tiny = (*tiny, f"system.descriptors_pretrained_dir={made / 'descriptors'}", f"weights_path={made / LAST}")
    whole = run_in(tmp_path, name="whole", tiny=tiny)
    saved, count = PerSceneParameters.on_train_epoch_end, []

    def stops(self):
        saved(self)
        count.append(0)
        if len(count) >= 2:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(PerSceneParameters, "on_train_epoch_end", stops)
        for _ in range(3):
            with pytest.raises(StoppedError):
                run_in(tmp_path, "resume=auto", name="stopped", tiny=tiny)
    run_in(tmp_path, "resume=auto", name="stopped", tiny=tiny)
    assert_equal(whole, tmp_path / "stopped")


@pytest.mark.parametrize("name", ["npbg", "npcr", "nerf"])
def test_a_run_that_max_steps_stops_within_an_epoch_goes_on(run_in, tmp_path, name):
    """The remaining batches of the epoch are not skipped, in last.ckpt and in the checkpoint of the epoch."""
    tiny = tuple(word for word in (*SYSTEMS[name], *COMMON) if "lr_schedule" not in word)
    # what depends on the number of steps of the run is left out
    tiny = (*tiny, "datasets.train_random_zoom=[0.7,1.4]", *(("system.norms_learn_for=1.0",) if name == "npcr" else ()))
    whole = run_in(tmp_path, name="whole", tiny=tiny)
    run_in(tmp_path, "trainer.max_steps=6", name="stopped", tiny=tiny)
    shutil.copytree(tmp_path / "stopped", tmp_path / "copied")
    (tmp_path / "copied" / LAST).unlink()
    for folder in ("stopped", "copied"):
        run_in(tmp_path, "resume=auto", name=folder, tiny=tiny)
        assert state(tmp_path / folder)["step"] == 3 * 4
        assert_equal(whole, tmp_path / folder)


@pytest.mark.slow
def test_a_run_on_a_full_disk_is_not_lost(tiny_root, tmp_path):
    """Processes whose checkpoints do not fit, twice; then there is space."""
    tiny = (*SYSTEMS["npbg_history"], "trainer.limit_val_batches=0", f"datasets.data_root={tiny_root}", "hydra.run.dir=run")
    size = 100 << 10  # descriptors fit
    full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    assert run_program(TRAIN_NET, [*tiny, "trainer.max_epochs=1"], tmp_path).returncode == 0
    assert (tmp_path / "run" / LAST).stat().st_size > 2 * size > 4 * (tmp_path / "run" / "descriptors" / "ball.pth").stat().st_size
    for _ in range(2):
        done = run_program(TRAIN_NET, [*tiny, "trainer.max_epochs=3", "resume=auto"], tmp_path, before=full)
        assert done.returncode == 1 and "cannot be written" in done.stdout + done.stderr, done.stderr
    done = run_program(TRAIN_NET, [*tiny, "trainer.max_epochs=3", "resume=auto"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_tensors(tmp_path / "run" / LAST, "checkpoint")["epoch"] == 2


@pytest.mark.parametrize("name", ["npbg_history", "nerf"])
def test_a_run_that_is_told_to_stop_finishes_its_step(run_in, tmp_path, monkeypatch, name):
    """Between the two batches of a step, and in the last one of an epoch, whose step has one batch and whose validation is not waited for."""
    tiny = (*SYSTEMS[name], *COMMON, "trainer.limit_train_batches=5", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=2")
    tiny = (*tiny, "trainer.limit_val_batches=1", "datasets.train_num_samples=5")[: -1 if name == "nerf" else None]
    whole = run_in(tmp_path, name="whole", tiny=tiny)
    for epoch, told_in, completed in ((0, 2, 4), (0, 4, 5)):

        def told(self, trainer, module, batch, batch_idx, when=(epoch, told_in)):
            if (trainer.current_epoch, batch_idx) == when:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(StepCheckpoint, "on_train_batch_start", told)
            run_in(tmp_path, "resume=auto", name="run", tiny=tiny)
        assert ended.value.code == 75
        content = load_tensors(tmp_path / "run" / LAST, "checkpoint")
        progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        assert progress["ready"] == progress["processed"] == completed
    run_in(tmp_path, "resume=auto", name="run", tiny=tiny)
    assert_equal(whole, tmp_path / "run")


def test_another_folder_goes_on_with_a_run(run_in, tmp_path):
    """Named as a folder, and as a checkpoint; the run that is continued stays as it is."""
    tiny = (*SYSTEMS["npbg"], "system.lr_schedule=constant", *COMMON)
    whole = run_in(tmp_path, name="whole", tiny=tiny)
    run_in(tmp_path, "trainer.max_epochs=2", name="first", tiny=tiny)
    before = {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()}
    for k, word in enumerate(("first", f"first/{LAST}")):
        again = run_in(tmp_path, f"resume={word}", name=f"again{k}", tiny=tiny)
        names = {f"descriptors.{path.stem}" for path in (again / "descriptors").glob("*.pth")}
        ours, theirs = state(again), state(whole)
        assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == [] and {n for n in theirs if n not in ours} <= {
            n for n in theirs if n.startswith("descriptors.")
        } - names
    assert {path: path.read_bytes() for path in before} == before


def test_nothing_to_resume_begins_anew(run_in, tmp_path):
    run = run_in(tmp_path, "resume=auto", "trainer.limit_val_batches=0")
    assert (run / LAST).is_file()


def test_a_damaged_checkpoint_is_passed_over(run_in, tmp_path, caplog):
    tiny = (*SYSTEMS["npbg_history"], *COMMON)
    whole = run_in(tmp_path, name="whole", tiny=tiny)
    run = run_in(tmp_path, "trainer.max_epochs=1", name="run", tiny=tiny)
    content = (run / LAST).read_bytes()
    (run / LAST).write_bytes(content[: len(content) // 2])
    run_in(tmp_path, "resume=auto", name="run", tiny=tiny)
    assert any("last.ckpt" in message and "earlier checkpoint" in message for message in caplog.messages)
    assert_equal(whole, run)


# ------------------------------------------------------------------ mistakes
def test_other_settings_are_named(run_in, tmp_path, caplog):
    tiny = (*SYSTEMS["npbg_history"], *COMMON)
    run_in(tmp_path, "trainer.max_epochs=1", name="run", tiny=tiny)
    words = ("resume=auto", "system.near=0.5", "datasets.train_random_zoom=null")
    with pytest.raises(InputError) as caught:
        run_in(tmp_path, *words, name="run", tiny=tiny)
    message = str(caught.value)
    assert "system.near: 0.01 then, 0.5 now" in message or "system.near" in message and "0.5 now" in message
    assert "datasets.train_random_zoom: [0.7, 1.4] then, None now" in message and "resume_strict=false" in message
    run_in(tmp_path, *words, "resume_strict=false", name="run", tiny=tiny)
    assert any("going on with other settings" in m for m in caplog.messages)


def test_keys_that_came_after_a_checkpoint_may_have_any_value(tmp_path, caplog):
    """Not where a value became a group, such as a network in place of none."""
    before = {"npbgpp": {"training": json.dumps({"system.near": 0.01, "system.refiner": None})}}
    now = {"system.near": 0.01, "system.refiner": None, "system.later": 3}
    with caplog.at_level(logging.INFO):
        check_same_training(tmp_path / "last.ckpt", before, "NPBG", now, strict=True)
    assert any("system.later" in message for message in caplog.messages)
    with pytest.raises(InputError, match="system.refiner.width: None then, 8 now"):
        check_same_training(tmp_path / "last.ckpt", before, "NPBG", {"system.near": 0.01, "system.refiner.width": 8}, strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_checkpoints_of_another_method_are_named_as_such(tmp_path, strict):
    before = {"npbgpp": {"system": "Gaussians", "training": json.dumps({"system.near": 0.01})}}
    with pytest.raises(InputError, match=r"last\.ckpt: of Gaussians, not of NPBG"):
        check_same_training(tmp_path / "last.ckpt", before, "NPBG", {"system.near": 1.0}, strict)


def test_where_things_lie_may_change(run_in, tiny_root, tmp_path, monkeypatch):
    """And what is there is read once, and not hashed again."""
    tiny = (*SYSTEMS["npbg_history"], *COMMON)
    run_in(tmp_path, "trainer.max_epochs=1", name="run", tiny=tiny)
    shutil.copytree(tiny_root, tmp_path / "moved")
    changed = ("loggers=[csv]", "dataloader.val.total_batch_size=1", "datasets.cache_images=false")
    read = []
    for module in ("engine.checkpoint", "points.descriptor_tables"):
        monkeypatch.setattr(f"npbgpp.{module}.load_tensors", lambda path, *rest: (read.append(path.name), load_tensors(path, *rest))[1])
    hashed = []
    monkeypatch.setattr("npbgpp.points.descriptor_tables.digest", lambda values: hashed.append(0) or digest(values))
    run = run_in(tmp_path, "resume=auto", *changed, name="run", root=tmp_path / "moved", tiny=tiny)
    assert read == ["last.ckpt", "ball.pth"] and len(hashed) == 2, "descriptors are hashed when the other two epochs are saved"
    assert state(run)["epoch"] == 2 and state(run)["step"] == 3 * 4, "it went on from the first of three epochs"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("resume=nowhere",), ["nowhere", "expected a checkpoint"]),
        (("resume=empty",), ["resume=empty", "got none"]),
        (("resume=auto", "trainer.resume_from_checkpoint=a.ckpt"), ["two spellings"]),
        (("resume=auto", "eval_only=true"), ["resume", "weights_path"]),
        (("callbacks.fit.during_epoch.every_n_steps=0",), ["every_n_steps", "at least 1"]),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_one_message(run_in, tmp_path, words, expected):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception) as caught:
        run_in(tmp_path, *words)
    message = str(caught.value)
    assert all(word in message for word in expected), message


def test_descriptors_of_another_time_are_refused(run_in, tmp_path):
    tiny = (*SYSTEMS["npbg_history"], *COMMON)
    run = run_in(tmp_path, name="run", tiny=tiny)
    with pytest.raises(InputError, match="expected those that the checkpoint was saved with, got others"):
        run_in(tmp_path, f"resume={run / 'checkpoints/epoch0.ckpt'}", name="run", tiny=tiny)


@pytest.mark.slow
def test_a_killed_process_goes_on(run_in, tiny_root, tmp_path):
    """A process of its own, killed without warning in the middle of an epoch."""
    tiny = (*SYSTEMS["npbg_history"], *COMMON, "trainer.limit_train_batches=1.0", "datasets.train_num_samples=40")
    tiny = (*tiny, "callbacks.fit.during_epoch.every_n_steps=5", f"datasets.data_root={tiny_root}")
    process = Program(TRAIN_NET, [*tiny, "hydra.run.dir=run"], tmp_path)
    checkpoint, deadline = tmp_path / "run" / LAST, time.monotonic() + 200
    while not checkpoint.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed while it trained"
    done = run_program(TRAIN_NET, [*tiny, "hydra.run.dir=run", "resume=auto"], tmp_path)
    assert done.returncode == 0, done.stderr
    whole = run_in(tmp_path, name="whole", tiny=tiny)
    assert_equal(whole, tmp_path / "run")
