"""A run's checkpoint: one file with all that resuming needs, written whole or not at all.

Not here: checkpoint directories that engines load (export.py). The file does not depend on how many processes wrote
it: tensors are whole. There is no random state in it, because every draw depends on (seed, number) alone. Its last line
is the sha256 of all before it; zip readers, torch's too, pass over what follows the archive.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch

from ..files.paths import replacing

FILE = "checkpoint.pt"
_MARK = b"\ncodegen2 sha256 "
_TAIL = len(_MARK) + 64 + 1
_LOG = logging.getLogger("codegen2.train")


class _Tolerant:
    """A file to write to that keeps the first error for later: torch's writer aborts the process on some of them."""

    def __init__(self, path: Path) -> None:
        self._file, self._digest = path.open("wb"), hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
                self._digest.update(data)
            except OSError as e:
                self.error = e
        return len(data)

    def flush(self) -> None:
        """Do nothing: close flushes."""

    def close(self) -> None:
        """Write the digest and close the file. Raises OSError, the first one there was."""
        try:
            self.write(_MARK + self._digest.hexdigest().encode() + b"\n")
            self._file.close()
        finally:
            if self.error is not None:
                raise self.error


def write_state(path: Path, state: dict[str, Any], last_step: int | None) -> None:
    """Write a state atomically: the old checkpoint stays until the new one is on disk.

    last_step: of the old one, for the message. Raises OSError that says what is left when the disk is full.
    """
    try:
        with replacing(path) as draft:
            out = _Tolerant(draft)
            torch.save(
                {**state, "digest": "sha256"}, cast(IO[bytes], out)
            )  # it asks for no more than there is
            out.close()
    except OSError as e:
        left = (
            f"that of step {last_step} is whole, go on from it"
            if last_step is not None
            else "there was none before"
        )
        raise OSError(
            f"{path}: the checkpoint of step {state['step']} could not be written ({e.strerror or e}); {left} when"
            " there is room"
        ) from e


def read_state(path: Path) -> dict[str, Any]:
    """Read a state that is as it was written; tensors stay in the mapped file until used.

    A file of an earlier version has no digest, and the checksums of its zip are verified instead. Raises ValueError for
    a damaged file.
    """
    try:
        if not (has_digest := _verify(path)) and (part := zipfile.ZipFile(path).testzip()):
            raise ValueError(f"{part} has another checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not has_digest and "digest" in state:
            raise ValueError("its digest was lost")
    except MemoryError:
        raise
    except Exception as e:  # there is no end to what a damaged archive makes zipfile and torch raise
        raise ValueError(
            f"{path}: is no whole checkpoint of a run ({' '.join(str(e).split())[:120]}); put a copy of it back, or"
            " remove the folder to begin again"
        ) from e
    if not has_digest:
        _LOG.warning("%s: of an earlier version, without a digest; its parts' checksums are right", path)
    return state


def _verify(path: Path) -> bool:
    """Return whether a file ends with a digest. Raises ValueError where that is not the one of the bytes before it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
        if not tail.startswith(_MARK):
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), size - _TAIL
        while left and (piece := file.read(min(left, 1 << 22))):
            digest.update(piece)
            left -= len(piece)
    if tail != _MARK + digest.hexdigest().encode() + b"\n":
        raise ValueError("its sha256 is not that of its writing")
    return True
