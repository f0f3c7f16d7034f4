"""Is there room? Free memory and free disk, asked before the work, so that it does not die half-way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..config import PRESETS


def human(n_bytes: int) -> str:
    """Return a size for people, in decimal units as disks and downloads are sold.

    >>> human(4_130_000_000), human(250_000)
    ('4.1 GB', '0.2 MB')
    """
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text("ascii").strip())
    except (OSError, ValueError):  # absent, or the word "max": no limit
        return None


def _cgroup_free() -> int | None:
    """Return what the container's own limit leaves, bytes; None without a limit."""
    for limit, used, stat, key in (
        (
            "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
            "/sys/fs/cgroup/memory.stat", "inactive_file",
        ),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
            "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file",
        ),
    ):  # fmt: skip
        most, now = _number(limit), _number(used)
        if most is None or now is None:
            continue
        cached = 0  # file pages count as used, but leave when asked
        try:
            for line in Path(stat).read_text("ascii").splitlines():
                if line.startswith(key + " "):
                    cached = int(line.split()[1])
        except (OSError, ValueError):
            pass
        return max(0, most - now + cached)
    return None


def available_memory() -> int | None:
    """Return the memory that can be taken without swapping, bytes; None where the system does not tell."""
    free: int | None = None
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError):
        try:
            # No "available" on this system: all of the memory is the best bound there is.
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            free = None
    limit = _cgroup_free()
    return limit if free is None else free if limit is None else min(free, limit)


def smaller_model(budget: int, bytes_per_weight: int) -> str:
    """Name the largest preset whose weights fit a budget of bytes, as advice."""
    fitting = [(c.n_params, name) for name, c in PRESETS.items() if c.n_params * bytes_per_weight <= budget]
    return f"take the smaller model {max(fitting)[1]}" if fitting else "free some, or use a larger machine"


def check_memory(need: int, have: int | None, what: str, *, n_params: int, bytes_per_weight: int) -> None:
    """Raise ValueError when `need` bytes are more than `have`, naming the smaller choice; None passes."""
    if have is None or need <= have:
        return
    half = 2 * n_params
    if bytes_per_weight > 2 and half <= have:
        remedy = f"load it in bfloat16, which takes {human(half)}"
    else:
        remedy = smaller_model(have, 2)
    raise ValueError(f"memory: {what} takes {human(need)}, {human(have)} are free; {remedy}")


def check_disk(folder: Path, need: int, what: str, remedy: str) -> None:
    """Raise ValueError when the disk of `folder` (existing or not) has fewer than `need` bytes free."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    have = shutil.disk_usage(place).free
    if need > have:
        raise ValueError(f"disk: {what} takes {human(need)}, {place} has {human(have)} free; {remedy}")
