"""Training, validation and evaluation of every system on a device other than the CPU: a simulated device, and a GPU if there is one.

The simulated device refuses operations with CPU tensors, as a GPU does.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ..conftest import TINY_COLOURS, TINY_NERF, TINY_NPCR, TINY_NSFF, TINY_OVERRIDES
from ..helpers.programs import run_program
from ..pretend_gpu import pretended_gpu

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.cuda.is_available()
OWN_PROCESS = "NPBGPP_PRETEND_IN_THIS_PROCESS"
# sums of photos that stay on the CPU; the features are the colours, which is fastest
SPHERE = (*TINY_COLOURS, "system/aggregator=sphere", "system.aggregator.learnable_alpha=true", "system.state_device=cpu")
TEST_ONLY = ("trainer.limit_val_batches=0", "trainer.limit_test_batches=1")
FEW = "datasets.train_num_samples=2"
RUNS = {
    "npbg": (
        *TINY_OVERRIDES,
        FEW,
        "system.align_during_rendering=true",
        "trainer.accumulate_grad_batches=2",
        "trainer.gradient_clip_val=1.0",
    ),
    "npbgpp": (*SPHERE, *TEST_ONLY, "datasets.train_num_samples=1", "system.visibility_scale=0.5", "system.color_aug_p=1"),
    "npcr": (*TINY_NPCR, *TEST_ONLY, FEW),
    "nerf": (*TINY_NERF, *TEST_ONLY, "trainer.limit_train_batches=2"),
    "nsff": (*TINY_NSFF, *TEST_ONLY, "trainer.limit_train_batches=2"),
}


@pytest.fixture(params=RUNS)
def words(request, tiny_root, moving_root) -> tuple[str, ...]:
    root = moving_root if request.param == "nsff" else tiny_root
    return (*RUNS[request.param], "test_after_fit=true", "trainer.enable_progress_bar=false", f"datasets.data_root={root}")


def scores(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "metrics.json").read_text())["datasets"]


@pytest.mark.skipif(CUDA, reason="the pretended device would take the place of the GPU for the rest of the process")
def test_training_on_a_pretended_device_in_a_process_of_its_own():
    """Gradients know the kinds of device that the process had when the first ones were computed."""
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__, "-k", "pretended_device_scores"]
    done = run_program("pytest", words, ROOT, **{OWN_PROCESS: "1"})
    assert done.returncode == 0 and f"{len(RUNS)} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(OWN_PROCESS not in os.environ, reason="run by the test above")
def test_a_pretended_device_scores_as_the_cpu(words, run_line, tmp_path):
    with pretended_gpu():
        found = scores(run_line(tmp_path, *words, f"hydra.run.dir={tmp_path}/there"))
    expected = scores(run_line(tmp_path, *words, f"hydra.run.dir={tmp_path}/here"))
    assert found.keys() == expected.keys() != set()
    for dataset, row in expected.items():
        assert found[dataset]["psnr"] == pytest.approx(row["psnr"], abs=0.05), dataset


@pytest.mark.skipif(CUDA, reason="see above")
def test_a_pretended_device_takes_no_tensor_of_the_cpu():
    with pretended_gpu() as device:
        numbers, index = torch.arange(6.0, device=device), torch.tensor([0, 2])
        assert (numbers * torch.tensor(2.0))[index].tolist() == [0.0, 4.0] and numbers.cpu().device.type == "cpu"
        for mix in (
            lambda: numbers + torch.ones(6),
            lambda: numbers.index_select(0, index),
            lambda: torch.stack([numbers[0], torch.ones(())]),
        ):
            with pytest.raises(RuntimeError, match="on the same device, but found pretend:0 and cpu"):
                mix()
        with pytest.raises(RuntimeError, match="on the same device"):
            torch.ones(6)[index.to(device)]
    assert not torch.accelerator.is_available(), "the rest of the process does without"


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_a_gpu_scores(words, run_line, tmp_path):
    for row in scores(run_line(tmp_path, *words, "trainer.accelerator=gpu", f"hydra.run.dir={tmp_path}/there")).values():
        assert math.isfinite(row["psnr"])
