"""A run's checkpoint: one file with all that resuming needs, written whole or not at all.

Not here: checkpoint directories that engines load (export.py). The file does not depend on how many processes wrote
it: tensors are whole. There is no random state in it, because every draw depends on (seed, number) alone.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any, cast

import torch

from ..files.paths import replacing

FILE = "checkpoint.pt"


class _Tolerant:
    """A file to write to that keeps the first error for later: torch's writer aborts the process on some of them."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as e:
                self.error = e
        return len(data)

    def flush(self) -> None:
        """Do nothing: close flushes."""

    def close(self) -> None:
        """Close the file. Raises OSError, the first one there was."""
        try:
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
            torch.save(state, cast(IO[bytes], out))  # it asks for no more than there is
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
    """Read a state; tensors stay in the mapped file until used. Raises ValueError for a damaged file."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as e:
        raise ValueError(
            f"{path}: is no whole checkpoint of a run ({' '.join(str(e).split())[:120]}); remove it to begin again"
        ) from e
    return state
