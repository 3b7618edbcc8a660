"""How long the stages of a command will take, said before they start."""

import os
from collections.abc import Mapping

_MEASURED_ON, _MOST = 2, 8  # cores on which rates were measured, and beyond which stages gain nothing


def threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slower() -> float:
    """Time on this machine relative to that on two cores."""
    return _MEASURED_ON / min(threads(), _MOST)


def duration(seconds: float) -> str:
    """A rough duration: 40 s, 3 min."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def in_words(stages: Mapping[str, float]) -> str:
    """The whole time and its parts: about 60 s (features 20 s, matching 40 s)."""
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in stages.items())
    return f"about {duration(sum(stages.values()))} ({parts})"
