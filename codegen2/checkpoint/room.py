"""Is there room? Free memory and free disk, asked before the work, so that it does not die half-way."""

from __future__ import annotations

import contextlib
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


# A container's limit, what is used of it, and the file pages in that, which leave when asked.
_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _cgroup_free() -> int | None:
    """Return what the container's own limit leaves, bytes; None without a limit."""
    for folder, limit, used, key in _CGROUPS:
        try:
            most, now = (int(Path(folder, file).read_text("ascii")) for file in (limit, used))
        except (OSError, ValueError):  # absent, or the word "max": no limit
            continue
        return max(0, most - now + (_field(Path(folder, "memory.stat"), key) or 0))
    return None


def _field(path: Path, key: str) -> int | None:
    """Return the number behind a key in a file of lines of both, None where there is none."""
    try:
        lines = path.read_text("ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(key + " ")), None)
    except (OSError, ValueError):
        return None


def available_memory() -> int | None:
    """Return the memory that can be taken without swapping, bytes; None where the system does not tell."""
    found = [_cgroup_free()]
    if (kib := _field(Path("/proc/meminfo"), "MemAvailable:")) is not None:
        found.append(1024 * kib)
    else:
        # No "available" on this system: all of the memory is the best bound there is.
        with contextlib.suppress(AttributeError, ValueError, OSError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((n for n in found if n is not None), default=None)


def check_memory(what: str, n_params: int, itemsize: int, have: int | None) -> None:
    """Raise ValueError when weights need more than `have` bytes, naming a smaller choice; None passes."""
    need, half = n_params * itemsize, 2 * n_params
    if have is None or need <= have:
        return
    fitting = [(c.n_params, name) for name, c in PRESETS.items() if 2 * c.n_params <= have]
    if itemsize > 2 and half <= have:
        remedy = f"load it in bfloat16, which takes {human(half)}"
    else:
        remedy = (
            f"take the smaller model {max(fitting)[1]}" if fitting else "free some, or use a larger machine"
        )
    raise ValueError(f"memory: {what} takes {human(need)}, {human(have)} are free; {remedy}")


def check_disk(folder: Path, need: int, what: str, remedy: str) -> None:
    """Raise ValueError when the disk of `folder` (existing or not) has fewer than `need` bytes free."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    have = shutil.disk_usage(place).free
    if need > have:
        raise ValueError(f"disk: {what} takes {human(need)}, {place} has {human(have)} free; {remedy}")
