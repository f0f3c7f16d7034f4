"""A user's repository as training text: which files, and which of them are kept apart to judge by. Free of torch.

Not here: training (finetune.py). Where the folder is a git checkout only what git tracks is read, so that neither
secrets in ignored files nor vendored trees come in by accident.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...files.sources import list_files
from ...text.languages import language_of
from ...text.tokenizer import Tokenizer

_MOST_BYTES = 1 << 20
_LONGEST_LINE = 2000  # longer is minified, or data
_PASSED_OVER = frozenset(
    (".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "build", "dist")
)


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
    files: list[RepositoryFile] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for name in list_files(folder, _PASSED_OVER)[0]:
        text = _read(folder / name)
        if text.startswith("\0"):
            dropped[text[1:]] += 1
        elif text in seen:
            dropped["duplicate"] += 1
        elif language_of(name, text) is None:
            dropped["language"] += 1
        else:
            seen.add(text)
            files.append(RepositoryFile(name, text))
    if not files:
        raise ValueError(
            f"{folder}: no source file to train on ({dict(dropped)}); give a folder of source code"
        )
    return files, dropped


def _read(path: Path) -> str:
    """Return a file's text, or a NUL and why it does not count."""
    if path.is_symlink() or not path.is_file():
        return "\0no file"
    if path.stat().st_size > _MOST_BYTES:
        return "\0too large"
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return "\0not UTF-8"
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if "\0" in text or not text.strip():
        return "\0empty or binary"
    return text if max(map(len, text.split("\n"))) <= _LONGEST_LINE else "\0long lines"


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


class TokenisedFiles:
    """Files as documents for the loop."""

    def __init__(self, files: Sequence[RepositoryFile], tokenizer: Tokenizer) -> None:
        self._docs = [np.asarray(tokenizer.encode(f.text), dtype=np.int64) for f in files]
        self.n_tokens = sum(len(d) + 1 for d in self._docs)
        self.n_bytes = sum(len(f.text.encode()) for f in files)

    def __len__(self) -> int:
        return len(self._docs)

    def doc(self, i: int) -> np.ndarray:
        """Return the ids of file i."""
        return self._docs[i]
