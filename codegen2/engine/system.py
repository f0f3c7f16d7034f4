"""What this process has of its machine: cores, and the most memory it took. A leaf."""

from __future__ import annotations

import math
import os
import sys


def allowed_cores() -> int:
    """Count the cores that this process may use by its affinity, where the system has such a thing."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_rss_gib() -> float:
    """Return the most memory this process held so far, GiB; NaN where the system does not say (Windows)."""
    try:
        import resource
    except ModuleNotFoundError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
