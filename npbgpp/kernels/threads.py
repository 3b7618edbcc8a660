"""A thread pool for tensor work on the CPU; the operations inside a worker thread are single-threaded.

Many small operations on chunks that stay in the cache run fastest this way: an operation that is itself parallel waits for its slowest thread every time.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

MAX_THREADS = 8  # each has buffers of its own

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count(device: torch.device) -> int:
    """Number of worker threads; 1 on an accelerator."""
    return min(torch.get_num_threads(), MAX_THREADS) if device.type == "cpu" else 1


def map_in_threads(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> Iterator[Result]:
    """Results of ``work`` on tensors of a device, in order, in the gradient mode of the caller."""
    threads = thread_count(device)
    if threads == 1 or len(items) < 2:
        yield from map(work, items)
        return
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def work_in_callers_mode(item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work(item)

    # submitted in groups, so that few results are in memory at a time
    for first in range(0, len(items), threads):
        yield from _pool(threads, os.getpid(), threading.get_ident()).map(work_in_callers_mode, items[first : first + threads])


# one pool per process, since threads do not survive a fork, and per calling thread, so that callers do not wait for each other
@functools.lru_cache(maxsize=2)
def _pool(threads: int, process: int, thread: int) -> ThreadPoolExecutor:
    callers_setting = torch.get_num_threads()
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # the first call in a thread applies the setting of the process, so it must precede ours
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, "npbgpp", start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(callers_setting)  # set_num_threads in a worker also changed the default of new threads
    return pool
