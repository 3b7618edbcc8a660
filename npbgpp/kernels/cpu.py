"""CPU kernels: numba functions that are compiled at first use and kept in a cache, and the threads that run them.

Kernels release the GIL and run in plain Python threads, each on its own part of the work with its own buffers. numba's own threads are not used: its OpenMP
layer kills forked processes, and its other layers do not allow two callers at a time.
"""

import functools
import hashlib
import inspect
import logging
import os
import tempfile
import threading
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

_ROOM = 1 << 20  # bytes that the cache must be able to take
_compiler_lock = threading.RLock()


@functools.cache
def is_available() -> bool:
    """Whether numba can be imported; says why not in one warning otherwise."""
    try:
        import numba  # noqa: F401
    except Exception as error:  # a broken installation raises whatever its parts raise
        log.warning(
            "numba cannot be used (%s: %s): CPU kernels run as plain PyTorch, many times slower; reinstall numba",
            type(error).__name__,
            error,
        )
        return False
    return True


def cache_folder() -> Path:
    """Folder of compiled kernels: ``NUMBA_CACHE_DIR``, or ``npbgpp`` in the user's cache folder (``XDG_CACHE_HOME``, ``~/.cache``).

    It has a part per state of the kernels' source, since numba does not see changes in functions that a kernel calls.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "npbgpp"
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return base / f"kernels-{digest.hexdigest()[:12]}"


@functools.cache
def _prepare_cache() -> bool:
    """Points numba to the cache folder; False, with one warning, if nothing can be stored there."""
    import numba

    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        log.warning(
            "compiled kernels cannot be kept (%s): they are compiled again by every process; set NUMBA_CACHE_DIR to a folder that can be written to",
            error,
        )
        return False
    if not any(folder.rglob("*.nbi")):
        log.info("CPU kernels are compiled when they are first used, some seconds each, and kept in %s", folder)
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    return True


class _Fma:
    """``fma(a, b, c)`` in kernels: a * b + c in float32, rounded once."""

    @functools.cached_property
    def dispatcher(self) -> Any:
        """The numba intrinsic."""
        from numba import types
        from numba.extending import intrinsic

        @intrinsic
        def fma(context, a, b, c):
            signature = types.float32(types.float32, types.float32, types.float32)
            return signature, lambda context, builder, signature, arguments: builder.fma(*arguments)

        return fma


fma: Any = _Fma()


class Kernel:
    """A Python function that numba compiles when it is first called; other kernels it calls are compiled with it.

    Attributes:
        function: the Python function, for tests.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.function, self._options = function, options
        self._dispatcher: Any = None

    @property
    def dispatcher(self) -> Any:
        """The numba function; imports numba on first access."""
        if self._dispatcher is None:
            with _compiler_lock:
                self._dispatcher = self._dispatcher or self._make()
        return self._dispatcher

    def _make(self) -> Any:
        import numba

        names = {name: value for name, value in self.function.__globals__.items() if isinstance(value, Kernel | _Fma)}
        called = {name: value.dispatcher for name, value in names.items() if name in self.function.__code__.co_names and value is not self}
        function = types.FunctionType(
            self.function.__code__,
            {**self.function.__globals__, **called},
            self.function.__name__,
            self.function.__defaults__,
            self.function.__closure__,
        )
        function.__qualname__, function.__module__ = self.function.__qualname__, self.function.__module__
        options = {
            "error_model": "numpy"
        } | self._options  # division by zero gives infinity instead of an exception, whose test prevents vector code
        return numba.njit(nogil=True, cache=_prepare_cache(), **options)(function)

    def __call__(self, *arguments: Any) -> Any:
        dispatcher = self.dispatcher
        if not dispatcher.signatures:
            with _compiler_lock:
                return dispatcher(*arguments)
        return dispatcher(*arguments)


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator for kernels and the functions they call; options as those of ``numba.njit`` (``fastmath``, ``inline``, ...).

    Arguments are NumPy arrays and numbers. Constants are read when the kernel is compiled. Write float32 constants as such: ``x < n`` with an integer n
    calculates in float64.
    """
    return lambda function: Kernel(inspect.unwrap(function), options)


# ----------------------------------------------------------------------
# Threads


def thread_count(items: int | None = None, least: int = 1) -> int:
    """Threads to divide ``items`` among, at least ``least`` each: at most ``torch.get_num_threads()``, at least 1."""
    threads = torch.get_num_threads()
    return threads if items is None else max(1, min(threads, items // max(1, least)))


def run_threads(work: Callable[[int], None], count: int) -> None:
    """Calls ``work(0)`` to ``work(count - 1)`` at the same time; the calling thread takes the first. Raises the first error."""
    if count == 1:
        work(0)
        return
    pool = _pool(count - 1, os.getpid(), threading.get_ident())
    pending = [pool.submit(work, k) for k in range(1, count)]
    try:
        work(0)
    finally:
        for future in pending:
            future.exception()  # waits
    for future in pending:
        future.result()


# per process, since threads do not survive a fork, and per calling thread, since callers would wait for one another
@functools.lru_cache(maxsize=4)
def _pool(threads: int, process: int, thread: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "npbgpp")


def spans(count: int, parts: int) -> Sequence[tuple[int, int]]:
    """``count`` items in ``parts`` (begin, end) of nearly equal length, in order."""
    return [(count * k // parts, count * (k + 1) // parts) for k in range(parts)]
