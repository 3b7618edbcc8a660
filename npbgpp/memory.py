"""Peak memory of this process as the kernel counts it: nothing is sampled, so no peak is missed."""

import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def restart_peak() -> bool:
    """Lets the peak begin at what is resident now. False where the system does not allow it; the peak is then that since the process began."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_mib() -> float:
    """Largest resident memory of this process (threads, not child processes) since it began or since ``restart_peak``, in MiB."""
    try:
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, ValueError):  # no Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 1024
