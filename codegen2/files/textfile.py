"""User files: read as text, and changed in place, so that inode, owner, mode, attributes and hard links stay.

One rule for changing one: it is as it was when it was read, or nothing is written. While it is written its old bytes
stand beside it, and a run that is killed leaves them there. Not here: what is written.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .paths import check_regular, write_atomic

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where a file that an editor has open for writing cannot be opened
    fcntl = None  # type: ignore[assignment]

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

    def check_writable(self) -> None:
        """Raise ValueError where the file cannot be changed; cheap, so that it is known before any work."""
        if self.path is None:
            raise ValueError("--write needs a file; standard input cannot be changed")
        # By its mode too, as root may write anything; it comes first, as a file that is gone has none.
        if not self.path.stat().st_mode & 0o222 or not os.access(self.path, os.W_OK):
            raise ValueError(
                f"{self.path}: it is read-only; allow writing (chmod u+w), or print and redirect"
            )
        old = _backup_of(self.path)
        if old.exists():
            if old.read_bytes() != self.encode(self.text):
                raise ValueError(
                    f"{self.path}: an earlier run was killed while it wrote; its old text is in {old}, choose one of"
                    " the two and remove that file"
                )
            old.unlink()  # killed before it wrote anything

    def write(self, text: str) -> None:
        """Replace the content in place, so that all links to it see it.

        Raises ValueError where the file is no longer what was read, OSError.
        """
        self.check_writable()
        assert self.path is not None
        old, new = self.encode(self.text), self.encode(text)
        backup = _backup_of(self.path)
        with self.path.open("r+b", buffering=0) as f:
            if fcntl is not None:
                fcntl.flock(f, fcntl.LOCK_EX)  # of two runs the second finds the file changed
            write_atomic(backup, old, mode=0o600)
            # An editor may have written to it, or put another file in its place.
            if f.read() != old or not os.path.samestat(os.fstat(f.fileno()), self.path.stat()):
                backup.unlink()
                raise ValueError(
                    f"{self.path}: it was changed while the model wrote; nothing was written, run again"
                )
            try:
                _overwrite(f.fileno(), new)
            except OSError:  # the disk is full: what was there has room
                _overwrite(f.fileno(), old)
                backup.unlink()
                raise
        backup.unlink()


def _backup_of(path: Path) -> Path:
    target = path.resolve()
    return target.with_name(f".{target.name}.codegen2-old")


def _overwrite(handle: int, data: bytes) -> None:
    os.lseek(handle, 0, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    os.ftruncate(handle, len(data))
    os.fsync(handle)


def read_text(name: str) -> TextFile:
    """Read a file, or standard input for "-".

    UTF-8 unless a byte-order mark says UTF-16 or UTF-32. Raises ValueError naming the first bad byte or for what is no
    file (a device would never end), OSError.
    """
    path = None if name == "-" else Path(name)
    where = "standard input" if path is None else str(path)
    data = sys.stdin.buffer.read() if path is None else check_regular(path).read_bytes()
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as e:
        line = data[: len(mark) + e.start].count(b"\n") + 1
        what = (
            f"byte {len(mark) + e.start} (line {line}) is no {encoding.upper()} (0x{e.object[e.start]:02x})"
        )
        raise ValueError(f"{where}: {what}; convert the file to UTF-8 first") from None
    if (at := text.find("\0")) >= 0:  # UTF-16 without a mark, or no text at all
        raise ValueError(
            f"{where}: character {at} is NUL, so it is no UTF-8 text; convert the file to UTF-8 first"
        )
    return TextFile(path, text, mark, encoding)


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
