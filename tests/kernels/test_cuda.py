"""CUDA kernels: all compile without a GPU, and pass their own checks on one."""

import importlib
import logging
import pkgutil

import pytest
import torch

from npbgpp import kernels
from npbgpp.kernels import backend as backends
from npbgpp.kernels.backend import CudaModule, SelfCheck, compile_for

for module in pkgutil.walk_packages(kernels.__path__, "npbgpp.kernels."):
    importlib.import_module(module.name)
FAMILIES = dict(backends.MODULES)


@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch without NVRTC")
@pytest.mark.parametrize("capability", ["75", "100"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_compiles(family, capability):
    for name in FAMILIES[family].kernels:
        assert len(compile_for(FAMILIES[family].source, name, capability)) > 100


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_passes_its_check(family, caplog):
    with caplog.at_level(logging.WARNING):
        assert FAMILIES[family].usable(torch.device("cuda", 0))
    assert not caplog.records


def test_kernels_that_fail_are_not_used_and_say_so_once(monkeypatch, caplog):
    monkeypatch.setattr(backends, "MODULES", {})
    monkeypatch.setattr(SelfCheck, "_problem", lambda self, device: "the values differ")
    family = CudaModule("example", "", (), lambda device: None)
    assert list(backends.MODULES) == ["example"]
    with caplog.at_level(logging.WARNING):
        assert not any(family.usable(torch.device("cuda", 0)) for _ in range(3))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["CUDA kernel example cannot be used on cuda"]


def test_problems_are_one_line_each(monkeypatch):
    def check(device):
        raise RuntimeError("error: expected a semicolon\nin line 3")

    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    assert SelfCheck("example", "", check)._problem(torch.device("cuda", 0)) == "RuntimeError: error: expected a semicolon"


@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch without NVRTC")
def test_sources_with_errors_are_refused():
    with pytest.raises(RuntimeError, match="expected"):
        compile_for('extern "C" __global__ void broken(float* x) { x[0] = }', "broken", "80")
