"""Holes in a user's own repository: which files count, and what is cut out of them. Pure but for reading files.

Not here: grammars (syntax.py), the run (repo_program.py). A file counts when it is tracked by git (where the folder is
a checkout), has an ending of one of our languages, and looks written by hand; what does not count is counted aloud.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from ..files import sources as listing
from ..text.languages import language_of
from . import syntax

Kind = Literal["line", "block", "argument"]
MOST_BYTES = 1 << 20
_LONGEST_LINE, _LONGEST_MEAN = 1000, 100  # longer is minified, or data
_VENDORED = frozenset((
    "vendor", "vendored", "third_party", "thirdparty", "third-party", "extern", "external", "externals", "node_modules",
    "bower_components", "dist", "site-packages", "testdata", "fixtures", "snapshots", "__snapshots__",
))  # fmt: skip
_PASSED_OVER = frozenset(
    (".git", ".hg", ".svn", ".tox", ".nox", ".venv", "venv", "__pycache__", "build", "target")
)
_GENERATED_NAME = re.compile(
    r"_pb2(_grpc)?\.py$|\.pb\.(go|cc|h)$|\.min\.js$|\.g\.dart$|\.d\.ts$|\.designer\.cs$", re.I
)
_GENERATED_TEXT = re.compile(
    r"@generated|do not (edit|modify)|(automatically|auto-?) ?generated|generated (by|from|code)", re.I
)
_BLOCK_LINES = (2, 20)


@dataclass(frozen=True)
class SourceFile:
    """A file that counts: its path from the folder on, with slashes, and its text with LF line ends."""

    path: str
    language: str
    text: str
    crlf: bool = False

    @property
    def dialect(self) -> str:
        """Return what its grammar goes by."""
        return "tsx" if self.path.lower().endswith(".tsx") else self.language


@dataclass(frozen=True)
class Hole:
    """A hole: text[start:end] of a file is what is wanted."""

    file: SourceFile
    kind: Kind
    start: int
    end: int

    @property
    def task_id(self) -> str:
        """Return path:line:column, 1-based, and the kind."""
        before = self.file.text[: self.start]
        column = self.start - (before.rfind("\n") + 1) + 1
        return f"{self.file.path}:{before.count(chr(10)) + 1}:{column} {self.kind}"

    @property
    def middle(self) -> str:
        """Return what is wanted."""
        return self.file.text[self.start : self.end]

    def filled(self, text: str, unindent: int = 0) -> str:
        """Return the file's text with the hole filled; unindent: columns before it that go."""
        return self.file.text[: self.start - unindent] + text + self.file.text[self.end :]


def list_files(folder: Path) -> tuple[list[str], bool]:
    """Return the paths of the files below a folder, sorted, and whether they are git's tracked ones.

    Raises ValueError where there is no such folder, or git lists nothing.
    """
    names, tracked = listing.list_files(folder, _PASSED_OVER)
    if tracked and not names:
        raise ValueError(f"{folder}: git tracks no file here; add some, or give another folder")
    return names, tracked


def read_files(folder: Path, names: Iterable[str]) -> tuple[list[SourceFile], Counter[str]]:
    """Read the files that count, and count the others by why they do not."""
    kept: list[SourceFile] = []
    left_out: Counter[str] = Counter()
    for name in names:
        found = _read(folder / name, name)
        if isinstance(found, str):
            left_out[found] += 1
        else:
            kept.append(found)
    return kept, left_out


def _read(path: Path, name: str) -> SourceFile | str:
    """Return a file, or why it does not count."""
    if PurePath(name).suffix and language_of(name) is None:
        return "of no known language"
    if _VENDORED & {part.lower() for part in PurePath(name).parts[:-1]}:
        return "vendored or test data"
    if _GENERATED_NAME.search(name):
        return "generated"
    try:
        if path.is_symlink() or not path.is_file():
            return "a link or no file"
        if path.stat().st_size > MOST_BYTES:
            return f"larger than {MOST_BYTES >> 20} MiB"
        data = path.read_bytes()
    except OSError:
        return "unreadable"
    if b"\0" in data:
        return "binary"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "no UTF-8"
    crlf = "\r\n" in text
    text = text.replace("\r\n", "\n")
    if "\r" in text or text.startswith("\ufeff"):
        return "with lone carriage returns or a byte-order mark"
    lines = text.split("\n")
    if max(map(len, lines)) > _LONGEST_LINE or len(text) > _LONGEST_MEAN * len(lines):
        return "with very long lines"
    if _GENERATED_TEXT.search(text[:1500]):
        return "generated"
    language = language_of(name, text)
    if language is None:
        return "of no known language"
    return SourceFile(name, language, text, crlf)


def line_spans(file: SourceFile) -> list[tuple[int, int]]:
    """Return the lines of 8 or more characters that are not blank, from their first one to their end.

    The indentation stands before the cursor, as an editor puts it there.

    >>> line_spans(SourceFile("a.py", "python", "if x:\\n    return x + 1\\n"))
    [(10, 22)]
    """
    found, at = [], 0
    for line in file.text.split("\n"):
        if len("".join(line.split())) >= 8:
            found.append((at + len(line) - len(line.lstrip()), at + len(line.rstrip())))
        at += len(line) + 1
    return found


def block_spans(file: SourceFile) -> list[tuple[int, int]]:
    """Return the runs of 2 to 20 lines that stand deeper than the line before, from the first one's indentation on.

    >>> block_spans(SourceFile("a.py", "python", "if x:\\n    y = 1\\n    z = 2\\n\\nw = 3\\n"))
    [(10, 25)]
    """
    lines = file.text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    depths = [len(line) - len(line.lstrip()) if line.strip() else None for line in lines]
    found, above = [], None
    for first, depth in enumerate(depths):
        if depth is None:
            continue
        if above is not None and depth > above:
            last = first
            for at in range(first, min(first + _BLOCK_LINES[1] + 1, len(lines))):
                deep = depths[at]
                if deep is not None and deep < depth:
                    break
                if deep is not None:
                    last = at
            if _BLOCK_LINES[0] <= last - first + 1 <= _BLOCK_LINES[1]:
                found.append((starts[first] + depth, starts[last] + len(lines[last].rstrip())))
        above = depth
    return found


def argument_spans(file: SourceFile) -> list[tuple[int, int]]:
    """Return the arguments of calls that have 3 or more characters and stand in one line."""
    spans = syntax.arguments(file.dialect, file.text)
    return [(a, b) for a, b in spans if b - a >= 3 and "\n" not in file.text[a:b]]


_SPANS: dict[Kind, Callable[[SourceFile], list[tuple[int, int]]]] = {
    "line": line_spans,
    "block": block_spans,
    "argument": argument_spans,
}


def choose_holes(files: Sequence[SourceFile], kind: Kind, n: int, per_file: int, seed: int) -> list[Hole]:
    """Choose up to n holes at random, per_file of a file at most, in the order of files; raises ValueError for none.

    The order in which files come does not matter.
    """
    if n < 1 or per_file < 1:
        raise ValueError(f"--holes and --per-file must be at least 1, got {n} and {per_file}")
    ordered = sorted(files, key=lambda f: f.path)
    eligible = [(i, span) for i, file in enumerate(ordered) for span in _SPANS[kind](file)]
    random.Random(f"{seed} {kind}").shuffle(eligible)
    taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
    chosen: list[tuple[int, tuple[int, int]]] = []
    for i, span in eligible:
        if len(chosen) == n:
            break
        if len(taken[i]) < per_file:
            taken[i].append(span)
            chosen.append((i, span))
    if not chosen:
        raise ValueError(
            f"no {kind} to cut out in the {len(files)} files that count; give another --kind or folder"
        )
    return [Hole(ordered[i], kind, *span) for i, span in sorted(set(chosen))]
