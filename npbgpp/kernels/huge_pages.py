"""Large CPU tensors in transparent huge pages.

The first write to new memory costs one page fault per 4 KiB, for tables of hundreds of megabytes more than the arithmetic on them; huge pages have 2 MiB
(Linux, "Transparent Hugepage Support" in the kernel's admin guide). PyTorch can only enable them for a whole process. Without huge pages in the system the
tensor is an ordinary one.
"""

import mmap

import torch
from torch import Tensor

_SMALLEST = 1 << 23  # bytes; below, rounding up to full pages would waste too much


def empty_table(rows: int, columns: int, device: torch.device | str) -> Tensor:
    """Like ``torch.empty(rows, columns, device=device)`` in float32, in huge pages where possible; memory is committed on the first write."""
    size = 4 * rows * columns
    if torch.device(device).type != "cpu" or size < _SMALLEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(rows, columns, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return torch.empty(rows, columns)  # a kernel without huge pages
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, columns)  # the tensor keeps a reference to the memory
