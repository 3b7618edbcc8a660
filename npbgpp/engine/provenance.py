"""Provenance of a run: ``environment.json`` and ``config.yaml`` in its folder."""

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

# Variables that change what a run computes, or where. No others are written: they may hold secrets.
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
    """Writes both files, from the first process of a run.

    ``config.yaml`` is the config with all interpolations resolved; ``.hydra/config.yaml`` is the config as composed.

    Raises:
        InputError: the run folder cannot be written.
    """
    found = json.dumps(environment(search_paths.project), indent=2) + "\n"
    write_atomically(search_paths.run / "environment.json", lambda file: file.write(found.encode()))
    write_atomically(search_paths.run / "config.yaml", lambda file: file.write(OmegaConf.to_yaml(config, resolve=True).encode()))


def environment(project: Path) -> dict[str, Any]:
    """Time, command line, machine, devices, Python, versions of all installed packages, and the git commit of a checkout."""
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "devices": [
            {"name": d.name, "memory_gib": round(d.total_memory / 2**30, 1), "capability": f"{d.major}.{d.minor}"} for d in devices
        ],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": _packages(),
        "git": _commit(project),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


@functools.cache
def _packages() -> dict[str, str]:
    """Versions by name; cached, since it reads several hundred files."""
    found = (distribution.metadata for distribution in distributions())
    return dict(sorted((metadata["Name"].lower(), metadata["Version"]) for metadata in found if metadata["Name"]))


def _processor() -> str:
    """Model of the CPU; ``platform.processor()`` is empty or the architecture on most Linux systems."""
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


def _commit(project: Path) -> dict[str, Any] | None:
    """Commit of the checkout, and whether tracked files differ from it; None for an installed package."""
    if not (project / ".git").exists():
        return None
    git = ("git", "--no-optional-locks", "-C", str(project))
    commands = ((*git, "rev-parse", "HEAD"), (*git, "status", "--porcelain", "--untracked-files=no"))
    try:
        commit, changes = (subprocess.run(c, capture_output=True, text=True, timeout=20, check=True).stdout.strip() for c in commands)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}
