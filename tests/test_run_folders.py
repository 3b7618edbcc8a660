"""What a folder of a run is protected from: other runs, files of other runs, damaged and missing parts, full disks, signals."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from npbgpp.core.files import load_tensors
from npbgpp.core.paths import SearchPaths
from npbgpp.core.run_folder import lock_run_folder, remove_parts, remove_run, require_no_run
from npbgpp.engine.checkpoint import AtomicCheckpointIO, find_checkpoint
from npbgpp.engine.hydra_hooks import WritableRunFolder
from npbgpp.errors import InputError
from npbgpp.export.__main__ import main as export
from npbgpp.io import open_video
from npbgpp.render import main as render

from .conftest import REPOSITORY, TINY_NERF, TINY_NPCR, TINY_OVERRIDES
from .helpers.commands import Command
from .helpers.programs import TRAIN_NET, Program
from .run_folders import remember

LAST = "checkpoints/last.ckpt"
QUIET = ("trainer.limit_val_batches=0",)
USUAL = resource.getrlimit(resource.RLIMIT_FSIZE)


@pytest.fixture
def small_files():
    """Lets files grow to a number of bytes only, as on a full disk; child processes too."""
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, USUAL[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, USUAL)


@pytest.fixture(scope="module")
def trained(run_in, tiny_root, tmp_path_factory) -> dict[str, Path]:
    """Two runs of NPBG with other seeds, and one of NPCR."""
    launch = tmp_path_factory.mktemp("runs")
    for name, tiny, seed in (("one", TINY_OVERRIDES, 1), ("two", TINY_OVERRIDES, 2), ("npcr", TINY_NPCR, 1)):
        words = (*tiny, *QUIET, f"seed={seed}")
        remember(run_in(launch, name=name, tiny=words), launch, *words, f"datasets.data_root={tiny_root}")
    return {name: launch / name for name in ("one", "two", "npcr")}


@pytest.fixture
def run(trained, tmp_path) -> Path:
    shutil.copytree(trained["one"], tmp_path / "run")
    return tmp_path / "run"


# ------------------------------------------------------------------ descriptors
@pytest.mark.parametrize("name", ["one", "npcr"])
def test_descriptors_of_another_run_are_refused(trained, tmp_path, request, name):
    """Beside a checkpoint, by every command that reads both; the right ones may lie in earlier/, where a killed run keeps them."""
    shutil.copytree(trained[name], tmp_path / "run")
    own, foreign = tmp_path / "run" / "descriptors" / "ball.pth", trained["two"] / "descriptors" / "ball.pth"
    kept = own.read_bytes()
    values = load_tensors(own, "descriptors")
    torch.save(values + 1, own) if name == "npcr" else shutil.copy(foreign, own)
    commands = {"render": Command(render, request, tmp_path)} | ({"export": Command(export, request, tmp_path)} if name == "one" else {})
    for command, words in (("render", ()), ("export", ("cloud",))):
        if command in commands:
            message = commands[command].refused(*words, tmp_path / "run")
            assert "descriptors of scene ball: expected those that the checkpoint was saved with, got others" in message
    (own.parent / "earlier").mkdir()
    (own.parent / "earlier" / "ball.pth").write_bytes(kept)
    commands["render"](tmp_path / "run", "images=false", "video=none")


# ------------------------------------------------------------------ checkpoints
def test_the_checkpoint_with_the_most_steps_is_the_newest(run):
    """Whatever the clock said; equal steps: last.ckpt."""
    content = load_tensors(run / LAST, "checkpoint")
    for name, steps, age in (("epoch3", 30, 500), ("epoch4", 40, 900), ("last", 40, 1000), ("epoch5", 9, 0)):
        path = run / "checkpoints" / f"{name}.ckpt"
        torch.save(content | {"global_step": steps}, path)
        os.utime(path, (1e9 - age, 1e9 - age))
    paths = SearchPaths(run.parent, run, REPOSITORY)
    assert find_checkpoint("auto", paths, AtomicCheckpointIO()).name == "last.ckpt"
    (run / LAST).unlink()
    assert find_checkpoint("auto", paths, AtomicCheckpointIO()).name == "epoch4.ckpt"
    (run / "checkpoints" / "epoch4.ckpt").write_bytes(b"PK")
    assert find_checkpoint(str(run), paths, AtomicCheckpointIO()).name == "epoch3.ckpt"


PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "global_step")


def test_a_checkpoint_without_a_part_is_one_line(run, run_in, tmp_path, monkeypatch):
    """Parts of the first level are named; parts of these are found when Lightning restores them."""
    content = load_tensors(run / LAST, "checkpoint")
    path = run / "checkpoints" / "lacking.ckpt"
    for part in PARTS:
        torch.save({key: value for key, value in content.items() if key != part}, path)
        with pytest.raises(InputError, match=f"lacks {part}"):
            AtomicCheckpointIO().read_ahead(path)
    weights = dict(content["state_dict"])
    name = next(iter(weights))
    damaged = {
        "a weight": {"state_dict": {key: value for key, value in weights.items() if key != name}},
        "another shape": {"state_dict": weights | {name: torch.zeros(3)}},
        "an optimizer": {"optimizer_states": content["optimizer_states"][:1]},
        "a loop": {"loops": {"fit_loop": {}}},
        "descriptors": {"npbgpp": content["npbgpp"] | {"descriptors": {"steps": 3}}},
        "settings": {"npbgpp": content["npbgpp"] | {"training": "[1, 2"}},
    }
    for part, changed in damaged.items():
        torch.save(content | changed, path)
        with pytest.raises(InputError, match="checkpoint .*lacking.ckpt"):
            run_in(tmp_path, *QUIET, f"resume={path}", "trainer.max_epochs=2", "seed=1", name=part.replace(" ", "_"))


def test_flipped_bits_are_noticed(run, tmp_path, request):
    """In the middle of tensors, of checkpoints and descriptors."""
    for name in (LAST, "descriptors/ball.pth"):
        path = run / name
        before = path.read_bytes()
        for where in (0.3, 0.5, 0.7):
            content = bytearray(before)
            content[int(where * len(content))] ^= 8
            path.write_bytes(content)
            message = Command(render, request, tmp_path).refused(run)
            assert "checksum" in message or "damaged" in message, message
        path.write_bytes(before)


# ------------------------------------------------------------------ full disks
def test_a_film_that_is_not_whole_does_not_get_its_name(tmp_path, small_files):
    """The encoder is another process, whose failure imageio ignores."""
    frames = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for suffix in ("mp4", "gif"):
        path = tmp_path / f"film.{suffix}"
        path.write_bytes(b"an earlier film")
        small_files(20_000)
        with pytest.raises(InputError, match="cannot be written"), open_video(path, 10.0) as film:
            for frame in frames:
                film.append(frame)
        small_files(USUAL[0])
        assert path.read_bytes() == b"an earlier film" and [file.name for file in tmp_path.iterdir() if ".part" in file.name] == []
        path.unlink()
        with open_video(path, 10.0) as film:
            for frame in frames:
                film.append(frame)
        assert path.stat().st_size > 20_000
        path.unlink()


def test_an_exported_cloud_replaces_an_earlier_one_when_it_is_whole(run, tmp_path, request, small_files):
    command = Command(export, request, tmp_path)
    command("cloud", run, "out=cloud.ply")
    before = (tmp_path / "cloud.ply").read_bytes()
    small_files(1000)
    message = command.refused("cloud", run, "out=cloud.ply", "overwrite=true")
    small_files(USUAL[0])
    assert "cloud.ply: cannot be written" in message and "unchanged" in message
    assert (tmp_path / "cloud.ply").read_bytes() == before and not list(tmp_path.glob(".cloud*"))


# ------------------------------------------------------------------ names and scenes
def test_a_name_that_is_too_long_for_files_is_refused_at_start(run_in, tiny_root, tmp_path):
    for length, refused in ((240, True), (225, False)):
        name = "scene" * (length // 5)
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.copytree(tiny_root / "ball", tmp_path / "data" / name)
        words = (f"datasets.scene_name={name}", *QUIET)
        if refused:
            with pytest.raises(InputError, match="at most 230 bytes"):
                run_in(tmp_path, *words, name="long", root=tmp_path / "data")
        else:
            run_in(tmp_path, *words, name="short", root=tmp_path / "data")


def test_a_scene_without_test_views_is_trained(run_in, tiny_root, tmp_path):
    words = ("datasets.test_indices=[]", *QUIET)
    assert (run_in(tmp_path, *words) / LAST).is_file()
    with pytest.raises(InputError, match="expected at least one view"):
        run_in(tmp_path, *words, "test_after_fit=true", name="tested")


# ------------------------------------------------------------------ two runs, one folder
HELD = """
import sys, time
from pathlib import Path
from npbgpp.core.run_folder import lock_run_folder
lock_run_folder(Path(sys.argv[1]), "hydra.run.dir")
print("held", flush=True)
time.sleep(100)
"""


def test_a_dead_process_holds_no_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HELD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"hydra.run.dir={tmp_path}: another run is writing there \(process {process.pid} on "):
        lock_run_folder(tmp_path, "hydra.run.dir")
    process.kill()
    process.wait()
    lock_run_folder(tmp_path, "hydra.run.dir")
    assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_a_folder_that_holds_a_training(run, tmp_path):
    (run / "checkpoints" / ".last.ckpt.abc.part").write_bytes(b"")
    (run / "films").mkdir()
    remove_parts(run)
    assert not list(run.rglob("*.part"))
    with pytest.raises(InputError, match="holds a training already, with 2 checkpoints .*resume=auto.*overwrite=true"):
        require_no_run(run, "hydra.run.dir")
    with pytest.raises(SystemExit, match="holds a training, whose .* this evaluation would overwrite"):
        WritableRunFolder().on_run_start(OmegaConf.create({"hydra": {"run": {"dir": str(run)}}, "eval_only": True}))
    with pytest.raises(InputError, match="would be removed"):
        remove_run(run, "hydra.run.dir", [run / LAST])
    with pytest.raises(InputError, match="would be removed"):
        remove_run(run, "hydra.run.dir", [run])
    remove_run(run, "hydra.run.dir", [tmp_path / "elsewhere.ckpt"])
    require_no_run(run, "hydra.run.dir")
    assert not (run / "descriptors").exists() and (run / "films").is_dir()


ENDLESS = (
    *(word for word in TINY_NERF if not word.startswith(("trainer.max_epochs", "trainer.limit_train_batches"))),
    *("trainer.max_epochs=100000", "trainer.limit_val_batches=0", "trainer.limit_train_batches=20", "dataloader.train.num_workers=1"),
)


@pytest.mark.slow
def test_interrupted_processes(tiny_root, tmp_path):
    """Real ones, with the workers of their loaders: a run, another one in its folder, Ctrl-C, runs that begin anew or go on, and a second Ctrl-C."""
    fixed = [*ENDLESS, f"datasets.data_root={tiny_root}", "hydra.run.dir=run"]

    def start(*words: str) -> Program:
        return Program(TRAIN_NET, [*fixed, *words], tmp_path, together=True, before=os.setsid)

    def wait_for_steps(more_than: float, process: Program) -> None:
        end = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < end:
            found = [path.stat().st_mtime for path in (tmp_path / "run" / "checkpoints").glob("epoch*.ckpt")]
            if found and max(found) > more_than:
                return
            time.sleep(0.05)

    first = start()
    wait_for_steps(0, first)
    config = (tmp_path / "run" / ".hydra" / "config.yaml").read_bytes()
    second = start("seed=5", "resume=auto")
    output = second.communicate(timeout=240)[0]
    assert second.returncode == 1 and f"another run is writing there (process {first.pid} on" in output
    assert (tmp_path / "run" / ".hydra" / "config.yaml").read_bytes() == config
    os.killpg(first.pid, signal.SIGINT)
    output = first.communicate(timeout=240)[0]
    assert first.returncode == 130 and "Traceback" not in output and "resume=auto" in output, output
    steps = load_tensors(tmp_path / "run" / LAST, "checkpoint")["global_step"]
    assert steps > 0
    anew = start()
    output = anew.communicate(timeout=240)[0]
    assert anew.returncode == 1 and "holds a training already" in output and "resume=auto" in output
    resumed = start("resume=auto")
    wait_for_steps(time.time(), resumed)
    os.kill(resumed.pid, signal.SIGSTOP)
    for _ in range(2):  # of two equal signals that arrive together one is lost
        os.kill(resumed.pid, signal.SIGINT)
        os.kill(resumed.pid, signal.SIGCONT)
        time.sleep(0.01)
        if resumed.poll() is None:
            os.kill(resumed.pid, signal.SIGINT)
    output = resumed.communicate(timeout=240)[0]
    assert resumed.returncode == 130 and "Traceback" not in output
    impatient = start("resume=auto")
    wait_for_steps(time.time(), impatient)
    while impatient.poll() is None:  # also while it saves, leaves Lightning and ends
        os.kill(impatient.pid, signal.SIGINT)
        time.sleep(0.3)
    output = impatient.communicate(timeout=240)[0]
    assert impatient.returncode == 130 and "Traceback" not in output, output
