"""Choice of the implementation, installations without numba, and the cache of compiled kernels."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.kernels import backend as backends
from npbgpp.kernels.aggregation import observation_products, observation_products_reference
from npbgpp.kernels.backend import CHOICES, backend

CPU, CUDA, OTHER = (torch.device(name) for name in ("cpu", "cuda", "meta"))
# compiles one kernel, prints a number of its result, the log goes to stderr
PROGRAM = """
import logging, torch
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
from npbgpp.kernels.aggregation import observation_products
print(observation_products(torch.full((3, 2), 2.0), torch.full((3, 1), 3.0)).sum().item())
"""
EXPECTED = "96.0"  # 3 (1 + 2 + 2 + 3 + 4 + 4 + 6 + 4 + 6)


@pytest.fixture
def asked_again():
    """Forgets whether numba can be imported, before and after."""
    backends.numba_is_available.cache_clear()
    yield
    backends.numba_is_available.cache_clear()


@pytest.mark.parametrize("choice", [None, *CHOICES])
def test_devices_and_the_variable_decide(choice, monkeypatch):
    monkeypatch.delenv("NPBGPP_KERNELS", raising=False)
    if choice is not None:
        monkeypatch.setenv("NPBGPP_KERNELS", choice)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert backend(CPU) == ("numba" if choice in (None, "auto", "numba") else "torch")
    assert backend(CUDA) == ("cuda" if choice in (None, "auto", "cuda") else "torch")
    assert backend(OTHER) == "torch"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert backend(CUDA) == "torch", "AMD GPUs are called cuda as well"


def test_unknown_implementations_are_refused(monkeypatch):
    monkeypatch.setenv("NPBGPP_KERNELS", "opencl")
    with pytest.raises(InputError, match="NPBGPP_KERNELS: expected one of auto, torch, numba, cuda, got opencl"):
        backend(CPU)


class BrokenNumba:
    """An import hook: a numba whose shared library cannot be loaded."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "numba":
            raise OSError("libllvmlite.so: cannot open shared object file")


@pytest.mark.parametrize("broken", [False, True])
def test_without_numba_the_reference_is_used_with_one_warning(broken, monkeypatch, caplog, asked_again):
    if broken:
        monkeypatch.delitem(sys.modules, "numba", raising=False)
        monkeypatch.setattr(sys, "meta_path", [BrokenNumba, *sys.meta_path])
    else:
        monkeypatch.setitem(sys.modules, "numba", None)
    basis, features = torch.randn(5, 3), torch.randn(5, 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(observation_products(basis, features), observation_products_reference(basis, features))
            assert backend(CPU) == "torch"
    (record,) = caplog.records
    assert record.getMessage().startswith("numba cannot be used") and "reinstall numba" in record.getMessage()
    assert ("cannot open shared object file" in record.getMessage()) == broken


def start(cache: str) -> subprocess.Popen:
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "NPBGPP_KERNELS": "numba"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    """The log of a process that must succeed."""
    out, log = process.communicate(timeout=240)
    assert process.returncode == 0, log
    assert out.strip() == EXPECTED
    return log


@pytest.mark.slow
def test_processes_that_start_together_share_an_empty_cache(tmp_path):
    together = [start(str(tmp_path)) for _ in range(3)]
    logs = [finish(process) for process in together]
    assert any("INFO CPU kernels are compiled when" in log for log in logs) and not any("WARNING" in log for log in logs)
    assert list(tmp_path.rglob("*.nbi"))
    assert "are compiled when" not in finish(start(str(tmp_path))), "found in the cache"


def test_kernels_are_compiled_in_memory_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    log = finish(start(str(tmp_path / "file")))
    assert log.count("WARNING") == 1 and "compiled kernels cannot be kept" in log and "set NUMBA_CACHE_DIR" in log


def test_a_full_disk_counts_as_a_folder_without_access(tmp_path, monkeypatch, caplog):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(backends.tempfile, "TemporaryFile", full)
    with caplog.at_level(logging.WARNING):
        assert backends._prepare_cache.__wrapped__() is False
    assert "No space left on device" in caplog.text
