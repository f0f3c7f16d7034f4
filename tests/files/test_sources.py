"""The one walker of a folder: what git tracks, else what lies there; never out of the folder."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from codegen2.files.sources import list_files, walk


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    return folder


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def walked(folder: Path, **options: int) -> tuple[list[str], dict[str, int]]:
    left_out: Counter[str] = Counter()
    return [path for path, _ in walk(folder, left_out, **options)], dict(left_out)


def test_without_git(tmp_path: Path) -> None:
    names = (
        "b.py",
        "a/c.py",
        "a.py",
        "run",
        "x.png",
        "vendor/v.py",
        "build/m.py",
        ".cache/h.py",
        "env/lib/e.py",
    )
    make(tmp_path, *names)
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (tmp_path / "data.py").write_bytes(b"x = '\0'")
    (tmp_path / "long.py").write_text("#" * 200)
    (tmp_path / ".h.py").write_text("")
    assert walked(tmp_path, most_bytes=100) == (
        ["a.py", "a/c.py", "b.py", "run"],
        {"vendored": 1, "binary": 1, "too large": 1, "hidden": 1},
    )
    assert dict(walk(tmp_path, Counter()))["a.py"] == b"# a.py\n"


def test_what_git_tracks_is_read_and_nothing_else(tmp_path: Path) -> None:
    folder = make(tmp_path / "r", "é b.py", "build/made.py", "secret.py", "inside/deep/ignored.py")
    with pytest.raises(ValueError, match="no such directory"):
        list_files(tmp_path / "no")
    git(folder, "init", "-q")
    assert list_files(folder) == ([], True)
    git(folder, "add", "é b.py", "build")
    assert walked(folder) == (["build/made.py", "é b.py"], {})
    # An ignored folder that is named itself, such as an environment in a checkout.
    assert list_files(folder / "inside") == (["deep/ignored.py"], False)
    (folder / ".git" / "HEAD").unlink()
    with pytest.raises(ValueError, match="git does not list"):
        list_files(folder)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_no_link_leads_out(tmp_path: Path) -> None:
    make(tmp_path / "outside", "a.py", "sub/b.py")
    folder = make(tmp_path / "r", "real.py", "sub/b.py")
    git(folder, "init", "-q")
    (folder / "link.py").symlink_to(tmp_path / "outside" / "a.py")
    git(folder, "add", ".")
    (folder / "sub" / "b.py").unlink()
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to(tmp_path / "outside" / "sub")  # git still lists sub/b.py
    assert walked(folder) == (["real.py"], {"a link or no file": 2})
    (tmp_path / "other").symlink_to(folder)  # the folder itself may be reached by one
    assert walked(tmp_path / "other")[0] == ["real.py"]
