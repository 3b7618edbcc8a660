"""The processes of a run, one per device. With a single process every function here is trivial."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from npbgpp.errors import InputError

T = TypeVar("T")


def process_count() -> int:
    """World size."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Global rank of this process."""
    return dist.get_rank() if process_count() > 1 else 0


def gather(value: T) -> list[T]:
    """Values of all processes by rank. Collective: every process must call it. Values are pickled: ``gather_tensors`` is the one for tensors."""
    if process_count() == 1:
        return [value]
    found: list[T | None] = [None] * process_count()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def gather_tensors(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors of all processes by rank; their number, shapes and types may differ. Collective: every process must call it.

    Returns:
        New tensors where the processes communicate: on the GPU with NCCL, else on the CPU. A single process gets its own.
    """
    if process_count() == 1:
        return [list(tensors)]
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    found = []
    for rank, kinds in enumerate(gather([(tuple(tensor.shape), tensor.dtype) for tensor in tensors])):
        if rank == process_rank():
            received = [tensor.detach().to(device, copy=True, memory_format=torch.contiguous_format) for tensor in tensors]
        else:
            received = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in kinds]
        for tensor in received:
            if tensor.numel():
                dist.broadcast(tensor, src=rank)
        found.append(received)
    return found


def broadcast_buffers(module: nn.Module) -> None:
    """Copies the buffers of rank 0, which checkpoints hold, to all processes. Collective: every process must call it.

    During training DDP does so before every forward pass, so that after the last batch the running means and variances differ between processes.
    """
    for buffer in module.buffers() if process_count() > 1 else ():
        dist.broadcast(buffer, src=0)


@contextmanager
def report_lost_process() -> Iterator[None]:
    """Raises InputError in place of the communication error that follows when another process of the run ends."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, whose messages begin with a source location
        lost = isinstance(error, dist.DistError) or re.search(r"gloo|NCCL|Connection (closed|reset) by peer", str(error))
        if process_count() == 1 or not lost:
            raise
        raise InputError(
            f"process {process_rank()}: another process of this run has ended or cannot be reached ({str(error).splitlines()[0]}); see its own message. Correct "
            "the cause, then continue with resume=auto"
        ) from error
