"""Large tensors on the CPU whose memory the system hands out in huge pages.

The first touch of fresh memory costs one page fault per 4 KiB, for a table of hundreds of megabytes more than the arithmetic on it; huge pages have 2 MiB
(Linux, "Transparent Hugepage Support" in the kernel's admin guide). PyTorch offers them for all tensors of a process or for none; here they are asked for
where a table is written once and kept. They are a hint: where the system has none, the memory is as usual.
"""

import mmap

import torch
from torch import Tensor

_SMALLEST = 1 << 23  # bytes; below, rounding up to whole pages would waste a share


def empty_table(rows: int, columns: int, device: torch.device | str) -> Tensor:
    """Like ``torch.empty(rows, columns, device=device)``, float32; memory that is never written to is not taken from the system."""
    size = 4 * rows * columns
    if torch.device(device).type != "cpu" or size < _SMALLEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(rows, columns, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return torch.empty(rows, columns)  # a kernel without huge pages
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, columns)  # the tensor keeps the memory
