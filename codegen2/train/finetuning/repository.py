"""A user's repository as training text: which files, and which of them are kept apart to judge by. Free of torch.

Not here: training (finetune.py), the walk (files/sources.py): in a git checkout only what git tracks is read, so that
secrets in ignored files do not come in by accident.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...files.sources import decode, walk
from ...text.languages import language_of
from ...text.tokenizer import Tokenizer

_LONGEST_LINE = 2000  # longer is minified, or data


@dataclass(frozen=True)
class RepositoryFile:
    """One file: its path from the folder on, and its text with bare newlines. package is the same for all."""

    path: str
    text: str
    package: str = ""


def read_repository(folder: Path) -> tuple[list[RepositoryFile], Counter[str]]:
    """Return the source files below a folder by path, each text once, and how many were passed over for what reason.

    Raises ValueError where there is no such folder or no file of our languages in it.
    """
    files: dict[str, RepositoryFile] = {}  # by text
    dropped: Counter[str] = Counter()
    for path, content in walk(folder, dropped):
        text = decode(content)
        if text is None:
            dropped["not UTF-8"] += 1
            continue
        text = text.replace("\r\n", "\n")
        if why := _why_not(path, text, text in files):
            dropped[why] += 1
        else:
            files[text] = RepositoryFile(path, text)
    if not files:
        raise ValueError(
            f"{folder}: no source file to train on ({dict(dropped)}); give a folder of source code"
        )
    return list(files.values()), dropped


def _why_not(path: str, text: str, is_known: bool) -> str:
    """Return why a file is not trained on, "" where it is."""
    if not text.strip():
        return "empty"
    if max(map(len, text.split("\n"))) > _LONGEST_LINE:
        return "long lines"
    if is_known:
        return "duplicate"
    return "" if language_of(path, text) else "language"


def split_files(
    files: Sequence[RepositoryFile], share: float, seed: int
) -> tuple[list[RepositoryFile], list[RepositoryFile]]:
    """Return (files to train on, files held out): by each path's hash, so that files that come or go move no other.

    Both have at least one. Raises ValueError for fewer than two files or a share outside 0..1.
    """
    if not 0 < share < 1:
        raise ValueError(f"--held-out must be between 0 and 1, got {share}")
    if len(files) < 2:
        raise ValueError(
            f"there are {len(files)} source files; at least 2 are needed, one to train on and one to judge by"
        )
    rank = {
        f.path: int(hashlib.sha256(f"{seed} {f.path}".encode()).hexdigest()[:13], 16) / 16**13 for f in files
    }
    held = {path for path, at in rank.items() if at < share}
    ordered = sorted(rank, key=lambda path: rank[path])
    held = held or {ordered[0]}
    if len(held) == len(files):
        held.remove(ordered[-1])
    return [f for f in files if f.path not in held], [f for f in files if f.path in held]


def encode_files(files: Sequence[RepositoryFile], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Return each file's ids: documents for the loop."""
    return [np.asarray(tokenizer.encode(f.text), dtype=np.int64) for f in files]
