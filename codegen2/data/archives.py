"""Read archives as streams of (path, bytes): zip and wheel, tar in its compressions, Debian packages.

Not here: which files are wanted and what they are (items.py). Nothing is ever written to the disk, so a path cannot
lead out of a folder; links, devices and odd paths are skipped all the same, and every size has a limit.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..files.paths import check_regular

SUFFIXES = (".whl", ".zip", ".tgz", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".deb")
# An archive unpacks to so many times its size at most, and a file in it takes so many of its bytes at least: what goes
# beyond is a bomb. Small ones have the room of a floor.
_MOST_RATIO, _LEAST_BYTES = 50, 10_000_000
_LEAST_OF_A_FILE, _LEAST_FILES = 100, 5_000
_ENDS = 16  # reads at a tar's end before it is known that it claims more than there is
_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What an archive may grow to: bytes of one file, bytes and files in all."""

    file_bytes: int = 1_000_000
    total_bytes: int = 8_000_000_000
    files: int = 2_000_000

    def of_file(self, size: int) -> Limits:
        """Return the limits of a packed file of so many bytes."""
        total_bytes = min(self.total_bytes, max(_LEAST_BYTES, _MOST_RATIO * size))
        return replace(
            self, total_bytes=total_bytes, files=min(self.files, _LEAST_FILES + size // _LEAST_OF_A_FILE)
        )


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
    with naming(path, "an archive"):
        name, limits = path.name.lower(), limits.of_file(check_regular(path).stat().st_size)
        if name.endswith((".whl", ".zip")):
            yield from _zip(path, wanted, limits)
        else:
            with path.open("rb") as source:
                packed = _inside_deb(source) if name.endswith(".deb") else source
                yield from _tar(_decompressed(packed), wanted, limits)


@contextlib.contextmanager
def naming(path: Path, kind: str) -> Iterator[None]:
    """Raise an ArchiveError that names the file for whatever is raised while it is read as of a kind."""
    try:
        yield
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None
    except Exception as error:
        # Of damaged bytes the readers raise nearly everything: IndexError, OverflowError, ...
        what = f"{type(error).__name__}: {error!s:.300}"
        raise ArchiveError(f"{path}: cannot be read as {kind} ({what}); fetch it again") from error


def too_large(limits: Limits) -> ArchiveError:
    """Return the error for what grows beyond the limits."""
    return ArchiveError(
        f"unpacks to more than {limits.total_bytes} bytes or {limits.files} files; leave it out or raise the limit"
    )


def _zip(path: Path, wanted: Callable[[str], bool], limits: Limits) -> Iterator[tuple[str, bytes | None]]:
    total = 0
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > limits.files:
            raise too_large(limits)
        for entry in entries:
            name = safe_path(entry.filename)
            is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
            if name is None or is_link or entry.is_dir() or not wanted(name):
                continue
            if entry.file_size > limits.file_bytes:
                yield name, None
                continue
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # zipfile unpacks others without a limit: 1 MB of bzip2 to 22 GB.
                raise ArchiveError(f"holds {name[:200]}, which is neither stored nor deflated; pack it again")
            with archive.open(entry) as source:
                content = source.read(limits.file_bytes + 1)  # the size in the entry may be a lie
            total += len(content)
            if total > limits.total_bytes:
                raise too_large(limits)
            yield name, content if len(content) <= limits.file_bytes else None


class _Bounded(io.RawIOBase):
    """A stream of at most so many bytes of another; then it ends, or raises `beyond` where there are more.

    Whoever reads on at the end is stopped: tarfile looks there for all that a header claims.
    """

    def __init__(self, source: IO[bytes], size: int, beyond: ArchiveError | None = None) -> None:
        self._source, self._left, self._beyond, self._ends = source, size, beyond, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # A byte beyond the end shows whether there is one: what a bomb unpacks to is never read in whole.
        room = self._left + (1 if self._beyond else 0)
        data = self._source.read(min(len(buffer), room))
        self._left -= len(data)
        if self._left < 0 and self._beyond:
            raise self._beyond
        self._ends += not data
        if self._ends > _ENDS:
            raise ArchiveError("is cut off, or claims more than there is; fetch it again")
        buffer[: len(data)] = data
        return len(data)


def _tar(
    stream: IO[bytes], wanted: Callable[[str], bool], limits: Limits
) -> Iterator[tuple[str, bytes | None]]:
    header_bytes = limits.total_bytes // 10  # that all extended headers together may still have

    class Member(tarfile.TarInfo):
        def _proc_member(self, tar: Any) -> Any:
            # An extended header is read whole into memory, so its size is looked at first.
            nonlocal header_bytes
            if self.type in _HEADERS:
                header_bytes -= self.size
                if header_bytes < 0:
                    raise ArchiveError(
                        f"holds a header of {self.size} bytes, more than its size leaves room for"
                    )
            return super()._proc_member(tar)  # type: ignore[misc]

    number, bounded = 0, _Bounded(stream, limits.total_bytes, too_large(limits))
    with tarfile.open(fileobj=bounded, mode="r|", tarinfo=Member) as archive:
        for entry in archive:
            # tarfile would keep every entry, and copy what a global header says to each.
            archive.members, archive.pax_headers = [], {}  # type: ignore[attr-defined]
            number += 1
            if number > limits.files:
                raise too_large(limits)
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
