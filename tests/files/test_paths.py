"""Where our files live, and that a reader sees the old file or the new one."""

from __future__ import annotations

import gzip
import os
import stat
from pathlib import Path

import pytest

from codegen2.files.paths import cache_dir, read_unpacked, write_atomic


@pytest.mark.parametrize("packed", [gzip.compress(b"a\n"), b"a\n"])
def test_gzip_is_known_by_its_beginning(tmp_path: Path, packed: bytes) -> None:
    for name in ("x", "x.gz"):
        (tmp_path / name).write_bytes(packed)
        assert read_unpacked(tmp_path / name) == b"a\n"


def test_what_is_no_file_or_no_whole_gzip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"a" * 100)[:-9])
    os.mkfifo(tmp_path / "fifo")  # to open it would wait for ever
    for name, message in (
        ("x.gz", "no whole gzip file"),
        ("fifo", "no regular file"),
        (".", "no regular file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_unpacked(tmp_path / name)


def test_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("CODEGEN2_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "codegen2"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "codegen2"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "codegen2"
    monkeypatch.setenv("CODEGEN2_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    assert not any(tmp_path.iterdir())


def test_write_and_replace(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
def test_mode(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "open", b"")
        write_atomic(tmp_path / "secret", b"", 0o600)
        write_atomic(tmp_path / "wide", b"", 0o666)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("open", "secret", "wide")]
    assert modes == [0o644, 0o600, 0o666]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*args: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
