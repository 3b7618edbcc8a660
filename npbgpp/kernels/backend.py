"""Choice of the implementation of a kernel: plain torch, numba on the CPU, or CUDA compiled at run time.

Every kernel of this package is one file with a public function, its plain torch reference, a numba kernel and a CUDA kernel. The device of the tensors
decides between them; the environment variable ``NPBGPP_KERNELS`` forces one.
"""

import os
from typing import Literal

import torch

from npbgpp.errors import InputError
from npbgpp.kernels import cpu

VARIABLE = "NPBGPP_KERNELS"
CHOICES = ("auto", "torch", "numba", "cuda")

Backend = Literal["torch", "numba", "cuda"]


def backend(device: torch.device) -> Backend:
    """The implementation to use for tensors on a device: numba on the CPU, CUDA on NVIDIA GPUs, torch everywhere else.

    ``NPBGPP_KERNELS=torch`` takes the reference everywhere; ``numba`` and ``cuda`` name the device whose kernel is used, the reference serves the others.
    CUDA kernels check themselves against the reference at first use, see ``npbgpp.kernels.cuda``.

    Raises:
        InputError: a value of the variable that is none of ``CHOICES``.
    """
    forced = forced_backend()
    if device.type == "cpu" and forced in ("auto", "numba") and cpu.is_available():
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
