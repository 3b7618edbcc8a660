"""The processes of a run, one per device, and what they tell each other. With one process everything here is trivial."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch import nn

from npbgpp.errors import InputError

T = TypeVar("T")


def process_count() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def gather(value: T) -> list[T]:
    """What every process passed, in the order of their numbers; every process must call it. Values travel pickled: keep tensors on the CPU."""
    if process_count() == 1:
        return [value]
    found: list[T | None] = [None] * process_count()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def share_buffers(module: nn.Module) -> None:
    """Gives all processes the buffers of the first one, which are those that checkpoints hold; every process must call it.

    Means and variances of batches are of what one process saw. While training, torch shares them before every batch, so that those of the last one are apart.
    """
    for buffer in module.buffers() if process_count() > 1 else ():
        dist.broadcast(buffer, src=0)


@contextmanager
def together() -> Iterator[None]:
    """Work that processes do together. Raises InputError when another one has ended in the middle of it."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors; what they say begins with the place in its source
        lost = isinstance(error, dist.DistError) or re.search(r"gloo|NCCL|Connection (closed|reset) by peer", str(error))
        if process_count() == 1 or not lost:
            raise
        raise InputError(
            f"process {process_rank()}: another process of this run has ended, or cannot be reached ({str(error).splitlines()[0]}); its own message says why. "
            "Mend that, then go on with resume=auto"
        ) from error
