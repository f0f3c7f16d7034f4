"""Problem sets shared by data, train and eval: which holes a model is asked to fill.

Not here: how a hole becomes a prompt (infill.py) or how an answer is scored (metrics.py, eval/).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class SourceText(Protocol):
    """Name what a hole is cut from: a file of a package."""

    @property
    def package(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Hole:
    """Hold one line cut out of a file: prefix + middle + suffix is the file's text; `line` counts from 0."""

    package: str
    path: str
    line: int
    prefix: str
    middle: str
    suffix: str


def single_line_holes(
    files: Iterable[SourceText], n: int = 1000, seed: int = 20261123, max_per_file: int = 5
) -> list[Hole]:
    """Choose n lines at random among those of 8 or more non-blank characters, at most max_per_file of a file.

    The order in which `files` come does not matter. Files with a carriage return are skipped: their
    lines end in two ways, and nothing is normalised.
    Raises ValueError when the files hold fewer than n such lines.
    """
    ordered = sorted((f for f in files if "\r" not in f.text), key=lambda f: (f.package, f.path))
    eligible = [
        (number, at)
        for number, file in enumerate(ordered)
        for at, line in enumerate(file.text.split("\n"))
        if len("".join(line.split())) >= 8
    ]
    random.Random(seed).shuffle(eligible)
    taken: Counter[int] = Counter()
    holes: list[Hole] = []
    for number, at in eligible:
        if len(holes) == n:
            break
        if taken[number] < max_per_file:
            taken[number] += 1
            holes.append(_cut_line(ordered[number], at))
    if len(holes) < n:
        raise ValueError(
            f"only {len(holes)} holes at {max_per_file} a file, {n} wanted; ask for fewer or add files"
        )
    return holes


def _cut_line(file: SourceText, at: int) -> Hole:
    lines = file.text.split("\n")
    prefix = "".join(line + "\n" for line in lines[:at])
    suffix = "".join("\n" + line for line in lines[at + 1 :])
    return Hole(file.package, file.path, at, prefix, lines[at], suffix)


def holes_hash(holes: Iterable[Hole]) -> str:
    """Give the sha256 of the holes' (package, path, line, middle) as JSON lines, in their order."""
    digest = hashlib.sha256()
    for hole in holes:
        record = [hole.package, hole.path, hole.line, hole.middle]
        digest.update((json.dumps(record, ensure_ascii=True, separators=(",", ":")) + "\n").encode())
    return digest.hexdigest()
