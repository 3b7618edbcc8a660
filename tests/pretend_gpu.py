"""A device that is not the CPU, for machines without one: what mixes tensors of both fails as it would on a GPU.

``pretend:0`` is PyTorch's spare kind of device, driven from Python. Its tensors hold one of the CPU, on which everything is computed. Whatever combines them
with tensors of the CPU raises, but for what CUDA takes as well: numbers, copies, and places in a tensor that are named by indices of the CPU. It says nothing
of speed, of kernels that CUDA lacks, and of inference mode, which such tensors do not know.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from npbgpp.engine.trainer import TrainerPlan

aten = torch.ops.aten
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
_CROSSING = (aten._to_copy.default, aten.copy_.default)
_JOINING = (aten.cat.default, aten.stack.default)  # these take no number of the CPU


class _Backend(backend_registration._DummyBackendModule):
    """``torch.pretend``. A process cannot give a kind of device back, but afterwards it has none of this kind: loaders would pin memory for it."""

    pretending = False

    def is_available(self) -> bool:
        """Whether there is such a device."""
        return self.pretending

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Precisions of ``torch.autocast``."""
        return [torch.bfloat16]


class PretendTensor(Tensor):
    """A tensor of the device; ``inner`` is where its numbers are."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendTensor":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return Tensor._make_wrapper_subclass(cls, inner.size(), device=torch.device("pretend:0"), **layout)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as what it becomes when it is read: a tensor of the CPU."""
        return self.inner.detach().__reduce_ex__(protocol)

    def tolist(self) -> Any:
        """PyTorch has none for tensors of other classes."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    """While it lasts, tensors can be made on the device and moved there."""

    def __enter__(self) -> "_Pretending":
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes them on the CPU, then moves them
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._before)
        super().__exit__(*error)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {})


def _compute(operation: Any, args: Any, kwargs: Any) -> Any:
    """Computes on the CPU what stays, or comes to be, on the device."""
    flat, form = tree_flatten((args, kwargs))
    mine = any(isinstance(value, PretendTensor) for value in flat)
    if mine and operation not in _CROSSING:
        _refuse_mixture(operation, args, kwargs)
    there = isinstance(args[0], PretendTensor) if operation is aten.copy_.default else mine
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == "pretend"
    on_cpu = [torch.device("cpu") if isinstance(v, torch.device) else v.inner if isinstance(v, PretendTensor) else v for v in flat]
    inner_args, inner_kwargs = tree_unflatten(on_cpu, form)
    result = operation(*inner_args, **inner_kwargs)
    if not there:
        return args[0] if operation is aten.copy_.default else result
    result = tree_map_only(Tensor, PretendTensor, result)
    return return_and_correct_aliasing(operation, args, kwargs, result) if mine else result


def _refuse_mixture(operation: Any, args: Any, kwargs: Any) -> None:
    together = (args, kwargs)
    if operation in _INDEXED and isinstance(args[0], PretendTensor):
        together = (args[:1] + args[2:], kwargs)
    least = 0 if operation in _JOINING else 1
    strangers = [t for t in tree_flatten(together)[0] if isinstance(t, Tensor) and not isinstance(t, PretendTensor) and t.dim() >= least]
    if strangers:
        shapes = ", ".join(str(tuple(t.shape)) for t in strangers)
        raise RuntimeError(
            f"{operation}: expected all tensors to be on the same device, but found pretend:0 and cpu, there of shapes {shapes}"
        )


@functools.cache
def _registered() -> torch.device:
    """The device; a process has it from here on."""
    backend_registration._setup_privateuseone_for_python_backend("pretend", _Backend())
    return torch.device("pretend:0")


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Meanwhile the device can be used, and trainers that were told to use the CPU use it in its place."""
    device, prepare = _registered(), SingleDeviceStrategy.__init__

    def prepare_there(self: SingleDeviceStrategy, **options: Any) -> None:
        prepare(self, **options | {"device": device})

    with pytest.MonkeyPatch.context() as patch, _Pretending():
        patch.setattr(_Backend, "pretending", True)
        patch.setattr(SingleDeviceStrategy, "__init__", prepare_there)
        patch.setattr(CPUAccelerator, "setup_device", lambda self, device: None)
        build = TrainerPlan.build
        patch.setattr(TrainerPlan, "build", lambda plan, **further: build(plan, **further, inference_mode=False))
        yield device
