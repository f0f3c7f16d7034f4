"""The sha256 of each file of a directory that was computed once and is mapped from then on, kept in it as digests.json.

Not here: which directories have one (native entries, merged adapters, `convert --to native`). Reading all of a model
takes thirty times as long as loading it (1 GB: 2.5 s and 0.08 s), so a file is read only where its size or time is not
that of its writing; what changes a file in another way, a failing disk, is found by `codegen2 cache verify`.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ..files.paths import file_hash, write_atomic

DIGESTS = "digests.json"


def write_digests(directory: Path) -> None:
    """Write the digest, the size and the time of each file of a directory into it. Raises OSError."""
    _write(directory, {p.name: [file_hash(p), *_stamp(p)] for p in directory.iterdir() if p.name != DIGESTS})


def damaged_file(directory: Path, thorough: bool = False) -> Path | None:
    """Return the first file that is not as it was written, None where all are; thorough: read every one of them.

    Files that were only touched, as by a copy of the directory, get their new time written down where that can be.
    """
    path: Path = directory / DIGESTS
    now: dict[str, list[Any]] = {}
    try:
        said: dict[str, list[Any]] = json.loads(path.read_text("utf-8"))
        for name, (digest, *stamp) in said.items():
            path = directory / name
            now[name] = [digest, *_stamp(path)]
            if (thorough or now[name] != [digest, *stamp]) and file_hash(path) != digest:
                return path
    except (OSError, ValueError, TypeError, AttributeError):  # lost, or no digests at all
        return path
    if now != said:
        with contextlib.suppress(OSError):
            _write(directory, now)
    return None


def _write(directory: Path, said: dict[str, list[Any]]) -> None:
    write_atomic(directory / DIGESTS, (json.dumps(said, indent=1, sort_keys=True) + "\n").encode())


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
