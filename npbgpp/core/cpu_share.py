"""Threads of PyTorch on a machine that others use, too: as many as there are free cores."""

import multiprocessing
import os
import time
from pathlib import Path
from types import TracebackType

import torch

_PROC = Path("/proc")
_FIRST_READING_S = 0.2  # a first step with too many threads can take half a minute


class CpuShare:
    """Sets the number of PyTorch threads to the number of cores that other processes leave free, at most the number at the start.

    PyTorch divides every operation among its threads and waits for the slowest one. Where another process takes a core, a thread waits for it at every
    operation, and a run gets a tenth of its speed or less; with one thread less it gets its fair share. At the start and every ``seconds`` the load of the
    machine is read from ``/proc/stat`` (Linux; elsewhere nothing changes), without the share of this process and its data loader workers.

    The last bits of sums depend on the number of threads. The number stays as it is with deterministic algorithms, and where the user has set it
    (``OMP_NUM_THREADS``).

    A context: within it, ``adapt_threads`` follows the load; at its end the number is that of before.

    Args:
        seconds: time between two readings of the load.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self._most = 0  # 0: leave as it is
        self._threads = 0
        self._last = (0.0, 0.0, 0.0)  # time, busy seconds of all cores, of this process
        self._outer: CpuShare | None = None

    def __enter__(self) -> "CpuShare":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Begins the context: reads the load."""
        global _active
        self._outer, _active = _active, self
        fixed = "OMP_NUM_THREADS" in os.environ or torch.are_deterministic_algorithms_enabled()
        threads = torch.get_num_threads()
        if not fixed and threads > 1 and (_PROC / "stat").is_file():
            self._most = self._threads = threads
            self._last = _now()
            time.sleep(_FIRST_READING_S)
            self._read()
            self.adapt()

    def stop(self) -> None:
        """Ends the context."""
        global _active
        _active = self._outer
        if self._most:
            torch.set_num_threads(self._most)
            self._most = 0

    def adapt(self) -> None:
        """Reads the load, if it is time to, and sets the threads that operations of the calling thread use."""
        if not self._most:
            return
        if time.monotonic() - self._last[0] >= self.seconds:
            self._read()
        if self._threads != torch.get_num_threads():
            torch.set_num_threads(self._threads)

    def _read(self) -> None:
        now = _now()
        passed, busy, own = (after - before for after, before in zip(now, self._last, strict=True))
        self._last = now
        self._threads = threads_for(len(os.sched_getaffinity(0)) - max(0.0, busy - own) / passed, self._most)


_active: CpuShare | None = None


def adapt_threads() -> None:
    """``CpuShare.adapt`` of the command that is being run; nothing outside of one. To be called between frames, batches or photos."""
    if _active is not None:
        _active.adapt()


def threads_for(free_cores: float, most: int) -> int:
    """Threads for a number of cores that are free on average: rounded, between 1 and ``most``."""
    return max(1, min(most, int(free_cores + 0.5)))


def _now() -> tuple[float, float, float]:
    """Time, and CPU seconds of the machine and of this process with its workers, since their start."""
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq = map(int, (_PROC / "stat").read_text().split(maxsplit=8)[1:8])
    own = time.process_time()
    for child in multiprocessing.active_children():
        try:
            fields = (_PROC / str(child.pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        own += (int(fields[11]) + int(fields[12])) / ticks
    return time.monotonic(), (user + nice + system + irq + softirq) / ticks, own
