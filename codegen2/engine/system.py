"""What this process has of its machine: cores, threads, and the most memory it took. A leaf."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path
from typing import Any


def allowed_cores() -> int:
    """Count the cores that this process may use by its affinity, where the system has such a thing."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Count the cores this process may use: its affinity and, in a container, its share of processor time.

    CODEGEN2_THREADS in the environment decides, where it is set. Raises ValueError for one that is no number.
    """
    if given := os.environ.get("CODEGEN2_THREADS"):
        return check_threads(int(given) if given.isdecimal() else given)
    cores, quota = allowed_cores(), _cgroup_cores()
    return max(1, min(cores, 256, math.ceil(quota) if quota else cores))


def check_threads(n: Any) -> int:
    """Return n. Raises ValueError unless it is a whole number from 1 to 256."""
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 256:
        raise ValueError(f"threads must be a whole number from 1 to 256, got {n!r}")
    return n


def _cgroup_cores() -> float | None:
    with contextlib.suppress(OSError, ValueError):
        most, each = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        return int(most) / int(each)  # "max" is no number: no limit
    with contextlib.suppress(OSError, ValueError):
        quota = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text("ascii"))
        period = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text("ascii"))
        return quota / period if quota > 0 else None
    return None


def peak_rss_gib() -> float:
    """Return the most memory this process held so far, GiB; NaN where the system does not say (Windows)."""
    try:
        import resource
    except ModuleNotFoundError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
