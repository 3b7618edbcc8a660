"""Work on the CPU in lanes: threads whose tensor operations do not start threads of their own.

Many small operations on chunks that stay in the cache run best this way: every operation that starts threads waits for all of them, and on a machine that
others use, too, one late thread holds up each of them.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

MOST_LANES = 8  # each costs buffers of its own

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count(device: torch.device) -> int:
    """How many items are worked on at a time: one on an accelerator."""
    return min(torch.get_num_threads(), MOST_LANES) if device.type == "cpu" else 1


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> Iterator[Result]:
    """Results of ``work`` on tensors of a device, in order. Gradient mode is that of the caller."""
    lanes = thread_count(device)
    if lanes == 1 or len(items) < 2:
        yield from map(work, items)
        return
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def work_as_the_caller(item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work(item)

    # no further ahead than the lanes reach: results can be large
    for first in range(0, len(items), lanes):
        yield from _pool(lanes, os.getpid(), threading.get_ident()).map(work_as_the_caller, items[first : first + lanes])


# per process, because a fork does not copy threads; per calling thread, so that nobody waits for the work of others
@functools.lru_cache(maxsize=2)
def _pool(lanes: int, process: int, thread: int) -> ThreadPoolExecutor:
    threads = torch.get_num_threads()
    started = threading.Barrier(lanes + 1)

    def start() -> None:
        torch.get_num_threads()  # the first call in a thread takes over the setting of the process; it must not come after ours
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(lanes, "lane", start)
    for _ in range(lanes):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # the call sets this thread and the default of new ones
    return pool
