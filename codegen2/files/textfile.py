"""User files: read as text, written back atomically with the same encoding, byte-order mark, line ends and mode.

A leaf. Not here: what is written.
"""

from __future__ import annotations

import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from .paths import write_atomic

# The longer mark first: UTF-32's begins with UTF-16's.
_ENCODINGS = ("utf-32-le", "utf-32-be", "utf-8", "utf-16-le", "utf-16-be")
_MARKS = [("\ufeff".encode(encoding), encoding) for encoding in _ENCODINGS]


@dataclass(frozen=True)
class TextFile:
    """A file's text, line ends as they are, and what is needed to write it back; path None is standard input."""

    path: Path | None
    text: str
    mark: bytes = b""
    encoding: str = "utf-8"

    @property
    def name(self) -> str:
        """Return the name for messages."""
        return "standard input" if self.path is None else str(self.path)

    def encode(self, text: str) -> bytes:
        """Return the bytes that text has in this file."""
        return self.mark + text.encode(self.encoding)

    def write(self, text: str) -> None:
        """Replace the file's content, all or nothing; a symbolic link stays one. Raises OSError."""
        assert self.path is not None
        target = self.path.resolve()
        write_atomic(target, self.encode(text), mode=stat.S_IMODE(target.stat().st_mode))


def read_text(name: str) -> TextFile:
    """Read a file, or standard input for "-".

    UTF-8 unless a byte-order mark says UTF-16 or UTF-32. Raises ValueError naming the first bad byte, OSError.
    """
    path = None if name == "-" else Path(name)
    data = sys.stdin.buffer.read() if path is None else path.read_bytes()
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        return TextFile(path, data[len(mark) :].decode(encoding), mark, encoding)
    except UnicodeDecodeError as e:
        line = data[: len(mark) + e.start].count(b"\n") + 1
        where = "standard input" if path is None else str(path)
        what = (
            f"byte {len(mark) + e.start} (line {line}) is no {encoding.upper()} (0x{e.object[e.start]:02x})"
        )
        raise ValueError(f"{where}: {what}; convert the file to UTF-8 first") from None


def offset_of(text: str, line: int, column: int) -> int:
    """Return the offset of a 1-based line and column, columns in characters; line ends "\\n" and "\\r\\n".

    The column after a line's last character is its end. Raises ValueError naming the limit.

    >>> offset_of("ab\\r\\ncd", 1, 3), offset_of("ab\\r\\ncd", 2, 1)
    (2, 4)
    """
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        raise ValueError(f"line {line} does not exist; the text has lines 1 to {len(lines)}")
    here = lines[line - 1] if line == len(lines) else lines[line - 1].removesuffix("\r")
    if not 1 <= column <= len(here) + 1:
        raise ValueError(f"column {column} does not exist; line {line} has columns 1 to {len(here) + 1}")
    return sum(len(before) + 1 for before in lines[: line - 1]) + column - 1
