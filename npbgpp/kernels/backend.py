"""How kernels run: plain torch, numba on the CPU, or CUDA compiled at run time.

Every kernel of this package is one file: a public function, its plain torch reference, a numba kernel and a CUDA kernel. The device of the tensors
decides between them; the environment variable ``NPBGPP_KERNELS`` forces one.
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
from typing import Any, Literal

import torch

from npbgpp.errors import InputError

VARIABLE = "NPBGPP_KERNELS"
CHOICES = ("auto", "torch", "numba", "cuda")

Backend = Literal["torch", "numba", "cuda"]


def backend(device: torch.device) -> Backend:
    """The implementation to use for tensors on a device: numba on the CPU, CUDA on NVIDIA GPUs, torch everywhere else.

    ``NPBGPP_KERNELS=torch`` takes the reference everywhere; ``numba`` and ``cuda`` name the device whose kernel is used, the reference serves the others.
    CUDA kernels check themselves against the reference at first use.

    Raises:
        InputError: a value of the variable that is none of ``CHOICES``.
    """
    forced = forced_backend()
    if device.type == "cpu" and forced in ("auto", "numba") and numba_is_available():
        return "numba"
    if device.type == "cuda" and forced in ("auto", "cuda") and torch.version.cuda is not None:
        return "cuda"
    return "torch"


def forced_backend() -> str:
    """The value of ``NPBGPP_KERNELS``, one of ``CHOICES``. Raises InputError for another one."""
    forced = os.environ.get(VARIABLE, "auto") or "auto"
    if forced not in CHOICES:
        raise InputError(f"{VARIABLE}: expected one of {', '.join(CHOICES)}, got {forced}; correct the environment variable")
    return forced


# ----------------------------------------------------------------------
# CPU: numba functions that are compiled at first use and kept in a cache, and the threads that run them.
#
# Kernels release the GIL and run in plain Python threads, each on its own part of the work with its own buffers. numba's own threads are not used: its OpenMP
# layer kills forked processes, and its other layers do not allow two callers at a time.


log = logging.getLogger(__name__)

_ROOM = 1 << 20  # bytes that the cache must be able to take
_compiler_lock = threading.RLock()


@functools.cache
def numba_is_available() -> bool:
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


# ----------------------------------------------------------------------
# CUDA: kernels compiled at run time by NVRTC, which PyTorch ships: no compiler and no package is needed.
#
# The only place that uses PyTorch's private interface for it. Integers are passed to kernels as 32-bit ints, floats must be passed as tensors or are double;
# tensors must be contiguous. Indices of kernels that may exceed 2^31 are 64 bits inside.
#
# On its first use on a device, a kernel is run on a small fixed case and compared with the reference; if it does not compile, fails or differs, the reference
# is used with one warning.


BLOCK = 256  # threads per block of one-dimensional kernels


def compile_for(source: str, name: str, capability: str) -> bytes:
    """Machine code of a kernel for a compute capability such as "90"; needs NVRTC, but no GPU. Raises RuntimeError with the log of the compiler."""
    from torch.cuda._utils import _nvrtc_compile

    binary, _ = _nvrtc_compile(source, name, capability)
    return binary


class SelfCheck:
    """Decides once per process and device whether an implementation can be used there.

    Args:
        name: of the implementation, for the warning.
        instead: what is used otherwise.
        check: runs the implementation on a small case on a device and compares it with the reference: returns a message that says what differs, or None.
    """

    def __init__(self, name: str, instead: str, check: Callable[[torch.device], str | None]) -> None:
        self.name, self._instead, self._check = name, instead, check
        self._usable: dict[int, bool] = {}

    def usable(self, device: torch.device) -> bool:
        """Whether the check passes on a device; warns once if it does not."""
        number = device.index if device.index is not None else torch.cuda.current_device()
        if number not in self._usable:
            self._usable[number] = True  # the check calls the public functions, which ask again
            problem = self._problem(torch.device("cuda", number))
            self._usable[number] = problem is None
            if problem is not None:
                log.warning("%s cannot be used on %s (%s): %s", self.name, device, problem, self._instead)
        return self._usable[number]

    def _problem(self, device: torch.device) -> str | None:
        try:
            with torch.cuda.device(device), torch.no_grad():
                problem = self._check(device)
                torch.cuda.synchronize(device)
            return problem
        except Exception as error:  # whatever compilers, the driver or the private interface raise: the reference still works
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


class CudaModule:
    """CUDA source with one or more ``extern "C"`` kernels.

    Args:
        name: of the family of kernels, for messages.
        source: CUDA C++.
        kernels: names of the functions.
        check: see ``SelfCheck``.
    """

    def __init__(self, name: str, source: str, kernels: tuple[str, ...], check: Callable[[torch.device], str | None]) -> None:
        self.source, self.kernels = source, kernels
        self.usable = SelfCheck(f"CUDA kernel {name}", "plain PyTorch is used, which is slower", check).usable
        self._compiled: dict[tuple[int, str], Any] = {}
        MODULES[name] = self

    def launch(self, kernel: str, count: int, *arguments: torch.Tensor | int | float, block: int = BLOCK) -> None:
        """Runs a kernel with at least ``count`` threads on the device of its first tensor; nothing for a count of 0."""
        if count:
            self.launch_grid(kernel, (-(-count // block), 1, 1), (block, 1, 1), *arguments)

    def launch_grid(
        self, kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int], *arguments: torch.Tensor | int | float, shared: int = 0
    ) -> None:
        """Runs a kernel with a grid of blocks, and ``shared`` bytes of dynamic shared memory (at most 48 kB)."""
        device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
        number = device.index if device.index is not None else torch.cuda.current_device()
        with torch.cuda.device(number):
            key = (number, kernel)
            if key not in self._compiled:
                self._compiled[key] = torch.cuda._compile_kernel(self.source, kernel)
            self._compiled[key](grid=grid, block=block, args=list(arguments), shared_mem=shared)


MODULES: dict[str, CudaModule] = {}  # all families, for tests that compile each of them
