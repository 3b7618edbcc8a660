"""What a run was started with, for those who look at it later: ``environment.json`` and ``config.yaml`` in its folder."""

import functools
import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from npbgpp.core.files import write_atomically
from npbgpp.core.paths import SearchPaths

# the variables that change what a run computes or where; all others stay private
_VARIABLES = (
    *(
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "CUBLAS_WORKSPACE_CONFIG",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
    ),
    *("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_RESTART_COUNT"),
)


@rank_zero_only
def write_provenance(config: DictConfig, search_paths: SearchPaths) -> None:
    """Writes both files; in a run of several processes the first one does.

    ``config.yaml`` is the config with every interpolation resolved (``.hydra/config.yaml`` has it as it was composed).

    Raises:
        InputError: the run folder cannot be written.
    """
    environment = json.dumps(environment_of(search_paths.project), indent=2) + "\n"
    write_atomically(search_paths.run / "environment.json", lambda file: file.write(environment.encode()))
    write_atomically(search_paths.run / "config.yaml", lambda file: file.write(OmegaConf.to_yaml(config, resolve=True).encode()))


def environment_of(project: Path) -> dict[str, Any]:
    """Where a run runs: time, command line, machine, devices, Python, every installed package, and the commit of the checkout."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "devices": [_device(k) for k in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": _packages(),
        "git": _git(project),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


@functools.cache
def _packages() -> dict[str, str]:
    """Versions by name. Asked for once in a process, and with one look into the metadata of each: they are some hundred files of text."""
    described = [distribution.metadata for distribution in distributions()]
    return dict(sorted((metadata["Name"].lower(), metadata["Version"]) for metadata in described if metadata["Name"]))


def _device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _git(project: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the program was started from, and whether tracked files differ from it; None for an installed copy."""
    if not (project / ".git").exists():
        return None
    try:
        commit = _answer(project, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_answer(project, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _answer(project: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(project), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
