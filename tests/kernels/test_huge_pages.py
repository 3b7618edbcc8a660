"""Tables in huge pages."""

import pytest
import torch

from npbgpp.kernels import huge_pages
from npbgpp.kernels.huge_pages import empty_table


@pytest.mark.parametrize("rows", [0, 10, 100_000])
def test_table_is_an_ordinary_tensor(rows):
    table = empty_table(rows, 84, "cpu")
    assert table.shape == (rows, 84) and table.dtype == torch.float32 and table.is_contiguous()
    table.fill_(2.0)
    part = table[: rows // 2]
    del table  # the memory outlives the tensor that it was made for
    assert part.sum() == 2.0 * 84 * (rows // 2)


def test_memory_is_committed_on_write():
    before = _resident()
    table = empty_table(1 << 20, 84, "cpu")
    assert _resident() - before < 20 * 2**20
    table[: 1 << 14] = 1.0
    assert _resident() - before < 40 * 2**20


def test_systems_without_huge_pages(monkeypatch):
    class Memory:
        def __init__(self, *arguments, **settings):
            pass

        def madvise(self, advice):
            raise OSError("no huge pages")

    monkeypatch.setattr(huge_pages.mmap, "mmap", Memory)
    assert empty_table(100_000, 84, "cpu").shape == (100_000, 84)
    monkeypatch.delattr(huge_pages.mmap, "MADV_HUGEPAGE")
    assert empty_table(100_000, 84, "cpu").shape == (100_000, 84)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
