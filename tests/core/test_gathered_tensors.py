"""Tensors of several processes."""

import torch

from npbgpp.core.distributed import gather_tensors

from ..helpers.programs import Program

PROGRAM = """
import sys, torch
import torch.distributed as dist
from npbgpp.core.distributed import gather_tensors
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=3)
own = [[], [torch.arange(6).view(2, 3)], [torch.full((3, 2), 0.5).t(), torch.zeros(0, 4, dtype=torch.int32)]][rank]
found = gather_tensors(own)
assert [len(part) for part in found] == [0, 1, 2]
assert torch.equal(found[1][0], torch.arange(6).view(2, 3))
assert torch.equal(found[2][0], torch.full((2, 3), 0.5)) and found[2][1].shape == (0, 4) and found[2][1].dtype == torch.int32
for tensor in own:
    tensor.add_(1)
assert torch.equal(found[1][0], torch.arange(6).view(2, 3)), "copies"
print("done")
"""


def test_tensors_of_several_processes(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    processes = [Program(tmp_path / "program.py", [rank, tmp_path / "store"], tmp_path) for rank in range(3)]
    for out, error in [process.communicate(timeout=200) for process in processes]:
        assert out.strip() == "done", error


def test_a_single_process_has_its_own():
    tensor = torch.ones(2)
    assert gather_tensors([tensor])[0][0] is tensor
