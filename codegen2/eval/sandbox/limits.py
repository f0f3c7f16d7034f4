"""How much a candidate may use. Imports nothing of the package."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


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
