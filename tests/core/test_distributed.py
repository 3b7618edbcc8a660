"""Two processes on the CPU train as one does on the same data; each reads its own scenes; every view is evaluated once."""

import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from npbgpp.core.files import load_tensors
from npbgpp.data.sampling import SceneSampler, Shard

from ..conftest import REPOSITORY, TINY_GAUSSIANS, TINY_NERF, TINY_NPBGPP, TINY_NPCR, TINY_NSFF, TINY_OVERRIDES
from ..helpers.programs import Program

LAST = "checkpoints/last.ckpt"
TWO = ("trainer.accelerator=cpu", "trainer.devices=2")
SCENES = "datasets.scenes={train:[ball,globe],val:[ball,globe],test:[ball,globe]}"

# the first process of a run, which starts the others; sends SIGTERM at the start of a batch, to itself or to its whole process group
SIGNALLED = """
import os, runpy, subprocess, sys
sys.path.insert(0, {root!r})
from npbgpp.callbacks.checkpoints import StepCheckpoint
target, epoch, number = sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))
def send(self, trainer, module, batch, batch_idx):
    if (trainer.current_epoch, batch_idx) == (epoch, number):
        subprocess.run(["sh", "-c", "kill -TERM %d" % dict(itself=os.getpid(), all=0)[target]])
StepCheckpoint.on_train_batch_start = send
runpy.run_path({root!r} + "/train_net.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def start(tiny_root):
    """Runs a configuration in two processes with the environment of torchrun; returns their outputs and exit codes.

    With ``runs``: these configurations, one after another, in folders of their names.
    """

    def go(
        launch: Path,
        *overrides: str,
        timeout: float = 400,
        root: Path = tiny_root,
        runs: dict[str, tuple[str, ...]] | None = None,
        ranks: Sequence[int] = (0, 1),
    ):
        count = 2
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "test"}
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        runs = {"run": (f"datasets.data_root={root}", *overrides)} if runs is None else runs
        lines = [[*TWO, *overrides, f"hydra.run.dir={launch / name}"] for name, overrides in runs.items()]
        words = [launch, json.dumps(lines)]
        processes = [
            Program(
                "tests.helpers.worker_process",
                words,
                REPOSITORY,
                together=True,
                **environment,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
            )
            for rank in ranks
        ]
        try:
            return [(process.communicate(timeout=timeout)[0], process.returncode) for process in processes]
        finally:
            for process in processes:
                process.kill()

    return go


def succeed(finished: list[tuple[str, int]]) -> None:
    assert [code for _, code in finished] == [0, 0], "\n".join(output[-3000:] for output, _ in finished)


def trained_state(run: Path) -> dict[str, torch.Tensor]:
    """Networks and descriptors of a run."""
    found = {name: value.float() for name, value in load_tensors(run / LAST, "checkpoint")["state_dict"].items()}
    return found | {path.stem: load_tensors(path, "descriptors") for path in (run / "descriptors").glob("*.pth")}


def assert_close(one: Path, two: Path, tolerance: float = 1e-5) -> None:
    first, second = trained_state(one), trained_state(two)
    assert first.keys() == second.keys() and len(first) > 3
    filled = [name for name in first if first[name].numel()]
    # a step of RMSprop moves a descriptor by up to 1
    worst = {name: ((first[name] - second[name]).abs().max() / second[name].abs().max().clamp(min=1)).item() for name in filled}
    assert max(worst.values()) <= tolerance, sorted(worst.items(), key=lambda entry: -entry[1])[:5]


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())["datasets"]


def assert_same_scores(run: Path, alone: Path) -> None:
    """Of every view, in the same order."""
    ours, theirs = metrics(run), metrics(alone)
    assert ours.keys() == theirs.keys() and ours
    for name, found in ours.items():
        assert len(found["per_view"]) == found["views"] > 0 and list(found["per_view"]) == list(theirs[name]["per_view"])
        for view, scores in found["per_view"].items():
            assert scores["psnr"] == pytest.approx(theirs[name]["per_view"][view]["psnr"], abs=1e-3), (name, view)
        assert found["psnr"] == pytest.approx(theirs[name]["psnr"], abs=1e-3)


def read_by(tmp_path: Path, rank: int) -> set[str]:
    """Scenes whose data a process read."""
    return {
        Path(path).relative_to(Path(path).parents[2 if path.endswith(".png") else 1]).parts[0]
        for path in json.loads((tmp_path / f"read_{rank}.json").read_text())
    }


class Merged(SceneSampler):
    """The samples of two processes for a single one: their batches side by side."""

    def __iter__(self):
        parts = []
        for rank in range(2):
            one = SceneSampler(self.lengths, self.scenes_per_epoch, self.shuffle, mode="each")
            one.seed, one.epoch, one.shard = self.seed, self.epoch, Shard(rank, 2)
            parts.append(list(one))
        half = self.per_batch // 2
        for k in range(0, len(parts[0]), half):
            for part in parts:
                yield from part[k : k + half]


NPBG = (
    *TINY_OVERRIDES,
    SCENES,
    "system.max_scenes_per_train_epoch=2",
    "system.loss_factors.dimred_loss=0.0",  # its mean is over the points that a process sees
    "system.loss_factors.ssim_loss=0.0",
    "dataloader.train_total_batch_size=4",
    "dataloader.train_data_mode=each",
    "trainer.max_epochs=2",
    "test_after_fit=true",
)


@pytest.fixture(scope="module")
def one_process(run_in, tmp_path_factory):
    """A run of one process on the data of two."""
    launch = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npbgpp.engine.datamodule.SceneSampler", Merged)
        return run_in(launch, name="one", tiny=NPBG)


@pytest.fixture(scope="module")
def two_processes(start, tmp_path_factory):
    """Launch folder of a run of two processes."""
    launch = tmp_path_factory.mktemp("two")
    succeed(start(launch, *NPBG))
    return launch


def test_two_processes_learn_what_one_learns(two_processes, one_process):
    run = two_processes / "run"
    assert_close(one_process, run)
    assert {path.stem for path in (run / "descriptors").glob("*.pth")} == {"ball", "globe"}, "descriptors of both processes are kept"


def test_every_view_is_evaluated_once(two_processes, one_process):
    run = two_processes / "run"
    assert {name: found["views"] for name, found in metrics(run).items()} == {"ball_holdout": 2, "globe_holdout": 2}
    assert_same_scores(run, one_process)
    assert (run / "report.png").is_file() and len(list(run.rglob("film.mp4"))) == 2


def test_each_process_reads_its_own_scenes(two_processes):
    assert [read_by(two_processes, rank) for rank in range(2)] == [{"ball"}, {"globe"}]


def test_two_processes_resume_bit_for_bit(two_processes, start, tmp_path):
    """From a run that ended between saving the descriptors of the second epoch and its checkpoint."""
    shutil.copytree(two_processes / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "rendered")
    for name in ("last", "epoch1"):
        (tmp_path / "run" / "checkpoints" / f"{name}.ckpt").unlink()
    succeed(start(tmp_path, *NPBG, "resume=auto"))
    assert_close(two_processes / "run", tmp_path / "run", 0.0)


def test_sigterm_stops_all_processes_at_the_same_step(two_processes, tiny_root, tmp_path):
    """First only the process that started the other receives it, in the first batch; then all do in the last one, also those of the loaders."""
    (tmp_path / "first.py").write_text(SIGNALLED.format(root=str(REPOSITORY)))
    places = (f"datasets.data_root={tiny_root}", f"hydra.run.dir={tmp_path / 'run'}")
    overrides = (
        *NPBG,
        *TWO,
        *places,
        "test_after_fit=false",
        "trainer.limit_val_batches=0",
        "resume=auto",
        "dataloader.train.num_workers=1",
    )
    for target, epoch, batch, steps in (("itself", "0", "0", 1), ("all", "1", "1", 4)):
        words = [target, epoch, batch, *overrides]
        first = Program(
            tmp_path / "first.py", words, tmp_path, together=True, before=os.setsid, GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1"
        )
        try:
            output, _ = first.communicate(timeout=150)  # of all processes: it ends with the last one
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(first.pid, signal.SIGKILL)
        assert first.returncode == 75 and "Traceback" not in output, output
        assert load_tensors(tmp_path / "run" / LAST, "checkpoint")["global_step"] == steps
    assert_close(two_processes / "run", tmp_path / "run", 0.0)


BOTH = (SCENES, "system.max_scenes_per_train_epoch=2", "dataloader.train_data_mode=each", "dataloader.train_total_batch_size=2")
TESTED = ("trainer.limit_val_batches=0", "test_after_fit=true")
PLAIN = ("system.field.sampling.perturb=0.0", "system.field.sampling.noise_std=0.0", "system.optimizer=sgd")
OTHERS = {
    "gaussians": (*TINY_GAUSSIANS, *TESTED, "dataloader.train_total_batch_size=2", "datasets.train_num_samples=12"),
    "nerf": (*TINY_NERF, *PLAIN, *TESTED, "system.occupancy_grid=false", "system.lr=0.5"),
    "nsff": (*TINY_NSFF, *PLAIN, *TESTED, "datasets.batches_per_epoch=8", "datasets.test_indices=[2,5]"),
    "npbgpp": (*TINY_NPBGPP, *TESTED, *BOTH),
    "npcr": (*TINY_NPCR, "test_after_fit=true", *BOTH),
}
# batches of any process may hold any scene
SHARED = (
    *NPBG,
    "dataloader.train_data_mode=common",
    "test_after_fit=false",
    "trainer.limit_val_batches=0",
    "dataloader.train.shuffle=false",
)


@pytest.fixture(scope="module")
def others(start, tiny_root, moving_root, tmp_path_factory):
    """Launch folder of two processes that trained and evaluated the other systems, one with scenes that both share; and the data root of each."""
    launch = tmp_path_factory.mktemp("others")
    runs = OTHERS | {"shared": SHARED}
    roots = {name: moving_root if name == "nsff" else tiny_root for name in runs}
    succeed(start(launch, runs={name: (*overrides, f"datasets.data_root={roots[name]}") for name, overrides in runs.items()}))
    return launch, roots


def test_processes_that_share_a_scene_keep_equal_descriptors(others, run_in, tmp_path):
    with pytest.MonkeyPatch.context() as patch:

        class Dealt(SceneSampler):
            def __iter__(self):
                items = list(super().__iter__())
                for k in range(0, len(items), 4):  # a process has every second item
                    yield from (items[k], items[k + 2], items[k + 1], items[k + 3])

        patch.setattr("npbgpp.engine.datamodule.SceneSampler", Dealt)
        alone = run_in(tmp_path, tiny=SHARED)
    assert_close(alone, others[0] / "shared")


def test_processes_move_the_same_gaussians(others, run_in, tmp_path):
    """Relocated, sorted, and stepped where any process sees them."""
    alone = run_in(tmp_path, tiny=OTHERS["gaussians"])
    assert_close(alone, others[0] / "gaussians", 1e-3)  # Adam enlarges the rounding of gradients that are nearly zero, those of quaternions
    assert_same_scores(others[0] / "gaussians", alone)


@pytest.mark.parametrize("name", ["nerf", "nsff"])
def test_rays_are_split_over_processes(others, run_in, tmp_path, name):
    """Batch sizes count all processes together: as many steps, and the same weights up to means over unequal parts (NSFF: rays without flow)."""
    launch, roots = others
    alone = run_in(tmp_path, root=roots[name], tiny=OTHERS[name])
    steps = [load_tensors(run / LAST, "checkpoint")["global_step"] for run in (alone, launch / name)]
    assert steps[0] == steps[1] > 0
    assert_close(alone, launch / name, 1e-5 if name == "nerf" else 1e-2)
    assert_same_scores(launch / name, alone)


def test_two_processes_validate_with_the_same_statistics(others):
    """Those of the first process, which are saved. NPCR has batch statistics, and is the only system here that validates."""
    seen = [json.loads((others[0] / f"buffers_{rank}.json").read_text()) for rank in range(2)]
    assert len(seen[0]) == 1 and len(seen[0][0]) > 10 and seen[0] == seen[1]


@pytest.mark.parametrize("name", OTHERS)
def test_two_processes_score_what_they_have_saved(others, run_in, tmp_path, name):
    """Both evaluate the same networks, also those with batch statistics, which differ between processes."""
    launch, roots = others
    saved = [f"weights_path={launch / name / LAST}", "eval_only=true"]
    saved += [f"system.descriptors_pretrained_dir={launch / name / 'descriptors'}"] if name == "npcr" else []
    assert_same_scores(launch / name, run_in(tmp_path, *saved, root=roots[name], tiny=OTHERS[name]))
    if name in ("npcr", "npbgpp"):
        assert {path.stem for path in (launch / name / "descriptors").glob("*.pth")} == {"ball", "globe"}


# one view for two processes, and none at all
ONE_VIEW = ("datasets.test_indices=[3]", "datasets.val_indices=[5]", "test_after_fit=true")
NO_VIEW = ("datasets.scenes.test=[]", "datasets.scenes.val=[]", "test_after_fit=true")
FEW = {
    "npbg": (*TINY_OVERRIDES, *ONE_VIEW),
    "npbgpp": (*TINY_NPBGPP, *ONE_VIEW),
    "nerf": (*TINY_NERF, *ONE_VIEW, "trainer.max_epochs=2"),
    "npcr": (*TINY_NPCR, *ONE_VIEW, "trainer.num_sanity_val_steps=1"),
    "nsff": (*TINY_NSFF, "trainer.check_val_every_n_epoch=1", "datasets.test_indices=[5]", "test_after_fit=true"),
    "none": (*TINY_NERF, *NO_VIEW),
}


def test_processes_without_views_take_part_in_every_evaluation(start, tiny_root, moving_root, run_in, tmp_path):
    """One view to validate and one to test, by two processes."""
    roots = {name: moving_root if name == "nsff" else tiny_root for name in FEW}
    batches = ("dataloader.train_total_batch_size=2",)
    succeed(start(tmp_path, runs={name: (*words, *batches, f"datasets.data_root={roots[name]}") for name, words in FEW.items()}))
    for name in FEW:
        if name == "none":
            assert (tmp_path / name / LAST).is_file() and not (tmp_path / name / "metrics.json").exists()
        else:
            (scores,) = metrics(tmp_path / name).values()
            assert scores["views"] == 1
            debug, shown = (
                sorted(path.name for path in (tmp_path / name / "rendered").rglob(f"*_{kind}.png")) for kind in ("debug", "rendered")
            )
            assert debug and len(shown) == 1, name


def test_a_process_that_never_comes_is_not_awaited_for_ever(start, tiny_root, tmp_path):
    """Each rank alone: the other one ended before they met."""
    for rank in range(2):
        (output, code), *_ = start(tmp_path, *NPBG, "trainer.rendezvous_seconds=3", ranks=(rank,), timeout=120)
        assert code == 1, output
        assert f"process {rank}: expected all 2 processes of the run at 127.0.0.1:" in output and "trainer.rendezvous_seconds=3" in output


def test_another_number_of_processes_is_said(two_processes, run_in, tmp_path, caplog):
    shutil.copytree(two_processes / "run", tmp_path / "run")
    words = ("resume=auto", "trainer.max_epochs=3", "trainer.limit_val_batches=0", "test_after_fit=false")
    with caplog.at_level("WARNING"):
        run_in(tmp_path, *words, tiny=NPBG)
    assert "saved by 2 processes, training goes on in 1" in caplog.text


def test_a_process_that_fails_ends_the_others(start, tiny_root, tmp_path):
    """A damaged photo of the second process; each prints its own message."""
    shutil.copytree(tiny_root, tmp_path / "damaged")
    photo = tmp_path / "damaged" / "globe" / "train" / "r_2.png"
    photo.write_bytes(photo.read_bytes()[:150])
    finished = start(tmp_path, *NPBG, "trainer.limit_val_batches=0", root=tmp_path / "damaged")
    assert all(code != 0 for _, code in finished)
    assert "r_2.png" in finished[1][0] and "process 0: another process of this run has ended" in finished[0][0]
