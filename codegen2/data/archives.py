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
    """Return whether a file is an archive, by its name."""
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
                packed = _inside_deb(source) if name.endswith(".deb") else source
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


class _Bounded(io.RawIOBase):
    """A stream of at most so many bytes of another; then it ends, or raises `beyond` where there are more."""

    def __init__(self, source: IO[bytes], size: int, beyond: ArchiveError | None = None) -> None:
        self._source, self._left, self._beyond = source, size, beyond

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # A byte beyond the end shows whether there is one: what a bomb unpacks to is never read in whole.
        room = self._left + (1 if self._beyond else 0)
        data = self._source.read(min(len(buffer), room))
        self._left -= len(data)
        if self._left < 0 and self._beyond:
            raise self._beyond
        buffer[: len(data)] = data
        return len(data)


class _Member(tarfile.TarInfo):
    def _proc_member(self, tar: Any) -> Any:
        # An extended header is read whole into memory, so its size is looked at first.
        if self.type in _HEADERS and self.size > _HEADER_BYTES:
            raise ArchiveError(f"holds a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def _tar(
    stream: IO[bytes], wanted: Callable[[str], bool], limits: Limits
) -> Iterator[tuple[str, bytes | None]]:
    number, bounded = 0, _Bounded(stream, limits.total_bytes, _too_large(limits))
    with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Member) as archive:
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


def _decompressed(source: io.BufferedReader) -> Any:
    """Open by the first bytes, whatever the name says."""
    head = source.peek(6)
    if head[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=source)  # whoever opened the file closes it
    if head[:6] == b"\xfd7zXZ\0":
        return lzma.LZMAFile(source)
    if head[:3] == b"BZh":
        return bz2.BZ2File(source)
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(source, "r"), "zstd")
    return source


def _inside_deb(source: IO[bytes]) -> io.BufferedReader:
    """Return the data.tar.* of a Debian package, which is an `ar` file."""
    if source.read(8) != b"!<arch>\n":
        raise ArchiveError("is no Debian package")
    while len(header := source.read(60)) == 60:
        size, start = int(header[48:58]), source.tell()
        if size < 0 or header[58:60] != b"`\n":
            break
        if header[:16].decode("ascii", "replace").strip().rstrip("/").startswith("data.tar"):
            return io.BufferedReader(_Bounded(source, size))
        source.seek(start + size + size % 2)
    raise ArchiveError("holds no data.tar")
