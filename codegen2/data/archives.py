"""Read archives as streams of (path, bytes): zip and wheel, tar in its compressions, Debian packages.

Not here: which files are wanted and what they are (items.py). Nothing is ever written to the disk, so a path cannot
lead out of a folder; links, devices and odd paths are skipped all the same, and every size has a limit.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

SUFFIXES = (".whl", ".zip", ".tgz", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".deb")
_HEADER_BYTES = 1 << 20  # of a tar header's extension, which tarfile reads whole
_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What an archive may grow to: bytes of one file, bytes and files in all."""

    file_bytes: int = 1_000_000
    total_bytes: int = 8_000_000_000
    files: int = 2_000_000


class ArchiveError(ValueError):
    """An archive is broken, or larger than the limits allow."""


def is_archive(path: Path) -> bool:
    """Tell by the name."""
    return path.name.lower().endswith(SUFFIXES)


def safe_path(name: str) -> str | None:
    """Return the path inside the archive in plain form, None when it is absolute or climbs out.

    >>> safe_path("./a//b.py"), safe_path("../b.py"), safe_path("/b.py"), safe_path("C:\\\\b.py")
    ('a/b.py', None, None, None)
    """
    if not name or "\\" in name or "\0" in name or name.startswith("/") or len(name) > 4096:
        return None
    path = PurePosixPath(name)
    return None if ".." in path.parts or not path.parts else str(path)


def members(path: Path, wanted: Callable[[str], bool], limits: Limits) -> Iterator[tuple[str, bytes | None]]:
    """Yield (path, content) of the wanted files, in the archive's order; content None: larger than one file may be.

    Raises ArchiveError naming the archive: broken, too many files, or unpacking to more than limits.total_bytes.
    """
    try:
        name = path.name.lower()
        if name.endswith((".whl", ".zip")):
            yield from _zip(path, wanted, limits)
        else:
            with path.open("rb") as source:
                packed: IO[bytes] = _inside_deb(source) if name.endswith(".deb") else source
                yield from _tar(_decompressed(packed), wanted, limits)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None
    except (
        tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError,
        NotImplementedError, OSError, ValueError,
    ) as error:  # fmt: skip
        raise ArchiveError(f"{path}: cannot be read as an archive ({error}); fetch it again") from error


def _too_large(limits: Limits) -> ArchiveError:
    return ArchiveError(
        f"unpacks to more than {limits.total_bytes} bytes or {limits.files} files; leave it out or raise the limit"
    )


def _zip(path: Path, wanted: Callable[[str], bool], limits: Limits) -> Iterator[tuple[str, bytes | None]]:
    total = 0
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > limits.files:
            raise _too_large(limits)
        for entry in entries:
            name = safe_path(entry.filename)
            is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
            if name is None or is_link or entry.is_dir() or not wanted(name):
                continue
            if entry.file_size > limits.file_bytes:
                yield name, None
                continue
            with archive.open(entry) as source:
                content = source.read(limits.file_bytes + 1)  # the size in the entry may be a lie
            total += len(content)
            if total > limits.total_bytes:
                raise _too_large(limits)
            yield name, content if len(content) <= limits.file_bytes else None


class _Counted(io.RawIOBase):
    """A stream that ends in an error after so many bytes: what a bomb would unpack to is never held or awaited."""

    def __init__(self, source: IO[bytes], limits: Limits) -> None:
        self._source, self._limits, self._left = source, limits, limits.total_bytes

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(min(size, 1 << 20) if size >= 0 else 1 << 20)
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._limits)
        return data


class _Member(tarfile.TarInfo):
    def _proc_member(self, tar: Any) -> Any:
        # An extended header is read whole into memory, so its size is looked at first.
        if self.type in _HEADERS and self.size > _HEADER_BYTES:
            raise ArchiveError(f"holds a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def _tar(
    stream: IO[bytes], wanted: Callable[[str], bool], limits: Limits
) -> Iterator[tuple[str, bytes | None]]:
    number = 0
    with tarfile.open(fileobj=_Counted(stream, limits), mode="r|", tarinfo=_Member) as archive:
        for entry in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every entry
            number += 1
            if number > limits.files:
                raise _too_large(limits)
            name = safe_path(entry.name)
            if name is None or not entry.isreg() or not wanted(name):
                continue
            source = None if entry.size > limits.file_bytes else archive.extractfile(entry)
            yield name, None if source is None else source.read()


def _decompressed(source: IO[bytes]) -> Any:
    """Open by the first bytes, whatever the name says."""
    head = source.read(6)
    source.seek(-len(head), io.SEEK_CUR)
    opened: Any = source
    if head[:2] == b"\x1f\x8b":
        opened = gzip.GzipFile(fileobj=source)  # whoever opened the file closes it
    elif head[:6] == b"\xfd7zXZ\0":
        opened = lzma.LZMAFile(source)  # noqa: SIM115
    elif head[:3] == b"BZh":
        opened = bz2.BZ2File(source)
    elif head[:4] == b"\x28\xb5\x2f\xfd":
        import pyarrow

        opened = pyarrow.CompressedInputStream(pyarrow.PythonFile(source, "r"), "zstd")
    return opened


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, source: IO[bytes], start: int, size: int) -> None:
        self._source, self._start, self._size, self._at = source, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._source.seek(self._start + self._at)
        data = self._source.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _inside_deb(source: IO[bytes]) -> IO[bytes]:
    """Return the data.tar.* of a Debian package, which is an `ar` file."""
    if source.read(8) != b"!<arch>\n":
        raise ArchiveError("is no Debian package")
    while len(header := source.read(60)) == 60:
        size, start = int(header[48:58]), source.tell()
        if size < 0 or header[58:60] != b"`\n":
            break
        if header[:16].decode("ascii", "replace").strip().rstrip("/").startswith("data.tar"):
            return io.BufferedReader(_Window(source, start, size))
        source.seek(start + size + size % 2)
    raise ArchiveError("holds no data.tar")
