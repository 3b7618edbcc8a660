"""CUDA kernels compiled at run time by NVRTC, which PyTorch ships: no compiler and no package is needed.

The only module that uses PyTorch's private interface for it. Integers are passed to kernels as 32-bit ints, floats must be passed as tensors or are double;
tensors must be contiguous. Indices of kernels that may exceed 2^31 are 64 bits inside.

On its first use on a device, a kernel is run on a small fixed case and compared with the reference; if it does not compile, fails or differs, the reference
is used with one warning.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)

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
