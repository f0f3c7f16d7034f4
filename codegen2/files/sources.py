"""The files of a user's folder that a program may read: one walker for evaluation, fine-tuning and corpora. A leaf.

Not here: which of the files count for a purpose (generated, too long lines, duplicates), which every program decides.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Set
from pathlib import Path, PurePath

from ..text.languages import language_of

MOST_BYTES = 1 << 20
# Other people's code and test data, wherever it lies, also where git tracks it.
_VENDORED = frozenset((
    "vendor", "vendored", "third_party", "thirdparty", "third-party", "extern", "external", "externals", "node_modules",
    "bower_components", "site-packages", "dist-packages", "testdata", "fixtures", "snapshots", "__snapshots__",
))  # fmt: skip
# What tools make; only where there is no git to tell.
_MADE = frozenset(("__pycache__", "build", "dist", "target"))


def may_be_source(path: str) -> bool:
    """Return whether a file's name leaves open that it is source of a known language; without suffix its text decides.

    >>> may_be_source("a/b.py"), may_be_source("run"), may_be_source("a.png")
    (True, True, False)
    """
    return not PurePath(path).suffix or language_of(path) is not None


def list_files(folder: Path, passed_over: Set[str] = _MADE) -> tuple[list[str], bool]:
    """Return the paths of the files below a folder, sorted, and whether they are git's tracked ones.

    Elsewhere hidden folders, environments and those named in passed_over are not entered; so it is, too, where the
    folder lies inside a checkout that tracks nothing of it. Raises ValueError where there is no such folder, or a
    checkout that git does not list.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such directory")
    is_checkout, tracked = (folder / ".git").exists(), _tracked(folder)
    if tracked or (is_checkout and tracked is not None):
        return tracked, True
    if is_checkout:
        what = "is a git checkout that git does not list"
        raise ValueError(f"{folder}: {what} (is git installed, and the folder yours?)")
    found = []
    for at, folders, files in os.walk(folder):
        found += [Path(at, name).relative_to(folder).as_posix() for name in files]
        folders[:] = [
            name for name in folders
            if name not in passed_over and not name.startswith(".") and not Path(at, name, "pyvenv.cfg").exists()
        ]  # fmt: skip
    return sorted(found), False


def _tracked(folder: Path) -> list[str] | None:
    """Return what git tracks below a folder, sorted; None where git lists nothing or is not there."""
    # git's own settings of the repository must not make it run anything.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), "ls-files", "-z", "--cached"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return None
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    return sorted(names) if done.returncode == 0 else None


def walk(
    folder: Path,
    left_out: Counter[str],
    wanted: Callable[[str], bool] = may_be_source,
    most_bytes: int = MOST_BYTES,
) -> Iterator[tuple[str, bytes]]:
    """Yield (path from the folder on, content) of the files that may be read, in the order of their paths.

    wanted: whether a path is of interest at all. What is wanted and left out all the same is counted in left_out by the
    reason: hidden, vendored, a link or no file, too large (than most_bytes), unreadable, binary. A link is never
    followed, so nothing outside the folder is read. Raises ValueError as list_files does.
    """
    root = folder.resolve()
    for name in list_files(folder)[0]:
        if wanted(name):
            found = _read(root, name, most_bytes)
            if isinstance(found, bytes):
                yield name, found
            else:
                left_out[found] += 1


def _read(root: Path, name: str, most_bytes: int) -> bytes | str:
    """Return a file's content, or the reason why it is left out."""
    parts = PurePath(name).parts
    if any(part.startswith(".") for part in parts):
        return "hidden"
    if not _VENDORED.isdisjoint(part.lower() for part in parts[:-1]):
        return "vendored"
    path = root / name
    try:
        # A folder on the way may be a link, too: git lists what it tracked before.
        if path.resolve() != path or not path.is_file():
            return "a link or no file"
        if path.stat().st_size > most_bytes:
            return "too large"
        content = path.read_bytes()
    except OSError:
        return "unreadable"
    return "binary" if b"\0" in content else content


def decode(content: bytes) -> str | None:
    """Return a source file's text without byte-order mark, None where it is binary or no UTF-8.

    >>> decode(b"\\xef\\xbb\\xbfx = 1\\r\\n"), decode(b"\\xff")
    ('x = 1\\r\\n', None)
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
