"""How much a candidate may use, and how a process is held to it. Imports nothing of the package."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

try:
    import resource  # here: who is shut in finds no modules any more
except ImportError:  # Windows, where nothing is judged and the command line reads this module all the same
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Limits:
    """Bound a candidate. timeout_s counts CPU seconds, also those of the test's own process; wall_s is the backstop
    of a first try (turns.py).

    memory_bytes is the address space; disk_bytes the writable folder, and the largest file in it.
    """

    timeout_s: float = 3.0
    wall_s: float | None = None  # None: three times timeout_s and two seconds
    memory_bytes: int = 1 << 30
    disk_bytes: int = 16 << 20
    open_files: int = 64
    threads: int = 16

    def __post_init__(self) -> None:
        """Check. Raises ValueError."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{field.name} must be above 0 and finite, got {value}")
        if self.memory_bytes < 128 << 20:
            raise ValueError(
                f"memory_bytes must be at least {128 << 20}, which an interpreter needs, got {self.memory_bytes}"
            )

    @property
    def backstop_s(self) -> float:
        """Return the wall-clock seconds after which a first try is ended; turns.py says what follows."""
        return 3 * self.timeout_s + 2 if self.wall_s is None else self.wall_s


def set_rlimits(limits: dict[str, int | None]) -> None:
    """Set rlimits of this process by their names, soft and hard; None and names that the system lacks are passed over.

    Raises OSError and ValueError on Linux; elsewhere some have a name and cannot be set, and nothing promises them.
    """
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is None or value is None:
            continue
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            if sys.platform == "linux":
                raise


def become(
    argv: list[str], env: dict[str, str], files: Sequence[int], kept: int, limits: dict[str, int | None]
) -> NoReturn:
    """Become a program held to rlimits that has nothing open but these files, as 0 and on; exec closes `kept`."""
    for number, fd in enumerate(files):
        os.dup2(fd, number)
    os.closerange(len(files), kept)
    os.closerange(kept + 1, 256)
    set_rlimits(limits)
    os.execve(argv[0], argv, env)
