"""One process at a time works in a folder. The lock goes with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def only_one(folder: Path, remedy: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made. Raises ValueError with the holder's number where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, holder = folder / ".lock", "another process"
    with contextlib.suppress(OSError, ValueError):  # Windows lets nobody else read it
        holder = f"process {int(path.read_text('ascii'))}"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: {holder} is working here; wait for it, or {remedy}") from None
    try:
        with contextlib.suppress(OSError):
            path.write_text(str(os.getpid()), "ascii")
        yield
    finally:
        # While still held: the next holder then sees that its file is no longer the one of this name.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
