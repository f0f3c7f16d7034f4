"""The files of a user's repository: git's tracked ones where the folder is a checkout, else all below it. A leaf.

Not here: which of them count, which every program decides for its own purpose.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Set
from pathlib import Path


def list_files(folder: Path, passed_over: Set[str]) -> tuple[list[str], bool]:
    """Return the paths of the files below a folder, sorted, and whether they are git's tracked ones.

    passed_over: names of folders that are not entered where there is no git. Raises ValueError where there is no such
    folder, or a checkout that git does not list.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such directory")
    try:
        # git's own settings of the repository must not make it run anything.
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), "ls-files", "-z", "--cached"],
            capture_output=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode == 0:
            return sorted(os.fsdecode(name) for name in done.stdout.split(b"\0") if name), True
    except FileNotFoundError:
        pass
    if (folder / ".git").exists():
        raise ValueError(
            f"{folder}: is a git checkout that git does not list (is git installed, and the folder yours?)"
        )
    found = []
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in passed_over]
        found += [Path(at, name).relative_to(folder).as_posix() for name in files]
    return sorted(found), False
