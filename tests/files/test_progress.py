"""The progress bar: what it prints with and without a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from codegen2.files.progress import progress_bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("packing", unit="bytes") as bar:
        bar.update(1, 2)
        bar.advance()
    assert capsys.readouterr() == ("", "")


def test_lines_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("codegen2.files.progress.time.monotonic", lambda: now[0])
    with progress_bar("filter", 3, lines_every_s=3600) as bar:
        for _ in range(3):
            now[0] += 50
            bar.advance()
        bar.update(1, 9, title="write", note="c")
        bar.update(9, 9, title="write", note="c")
        now[0] += 3600
        bar.update(2, 9, title="train", left_s=3725.4)
    assert capsys.readouterr().err.splitlines() == [
        "filter: 1/3 0:01:40 left", "filter: 3/3", "write: 9/9 c", "train: 2/9 1:02:05 left",
    ]  # fmt: skip


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", _Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("packing [1B]", 5) as bar:
        bar.update(2, left_s=61)
        bar.update(1000, 2000, title="writing", note="file.py")
    drawn = sys.stderr.getvalue()  # type: ignore[attr-defined]
    for part in ("packing [1B]", "2/5", "0:01:01 left", "writing", "1000/2000", "file.py"):
        assert part in drawn, part
    assert capsys.readouterr().out == ""


def test_bytes_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("packing", unit="bytes") as bar:
        bar.update(2_000_000, 4_000_000)
    assert "2.0/4.0 MB" in sys.stderr.getvalue()  # type: ignore[attr-defined]
