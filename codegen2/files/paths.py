"""Where files of ours live on a user's machine, and how a file is written so that nobody sees half of it.

A leaf: imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path

_LEAST_UNPACKED = 100_000_000  # bytes that any gzipped file may unpack to


def cache_dir() -> Path:
    """Return the folder for what can be computed again: CODEGEN2_CACHE, else XDG_CACHE_HOME/codegen2, else
    ~/.cache/codegen2. It may not exist yet."""
    if own := os.environ.get("CODEGEN2_CACHE"):
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    # The XDG rule says that a relative path is invalid and must be passed over.
    base = Path(xdg) if xdg and os.path.isabs(xdg) else Path.home() / ".cache"
    return base / "codegen2"


def check_regular(path: Path) -> Path:
    """Return the path. Raises ValueError for what is there and is no regular file: a FIFO or a device may never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: it is no regular file; name one")
    return path


def read_unpacked(path: str | Path) -> bytes:
    """Return a file's content, unpacked where it begins as gzip does, whatever its name.

    Raises ValueError for what is no regular file, gzip that is damaged or unpacks to more than 100 MB and 100 times its
    size; OSError.
    """
    data = check_regular(Path(path)).read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    most = max(100 * len(data), _LEAST_UNPACKED)
    try:
        data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(most + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise ValueError(f"{path}: it is no whole gzip file ({e}); make it again") from None
    if len(data) > most:
        raise ValueError(f"{path}: it unpacks to more than {most} bytes; unpack it first")
    return data


def file_hash(path: Path, kind: str = "sha256") -> str:
    """Return a file's hash in hex, read a piece at a time. Raises ValueError for what is no regular file; OSError."""
    with check_regular(path).open("rb") as source:
        return hashlib.file_digest(source, kind).hexdigest()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a free path beside `path`, folders included; when the block ends well, what it wrote there replaces `path`.

    A reader or a crash sees the old file or the new one. After an exception the old one stays alone. Raises ValueError
    where a directory or a device is in its place.
    """
    path = check_regular(Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        with part.open("rb" if os.name == "posix" else "r+b") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync_folder(path.parent)


def part_of(path: Path) -> Path:
    """Return a free path beside `path` to write to first: a rename is atomic within one file system only."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")


def remove_parts(folder: Path) -> None:
    """Remove what killed writers left in a folder that nobody else is writing to."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes, mode: int | None = None) -> None:
    """Write data to path as replacing does.

    mode gives the exact permission bits (0o600 for secrets); without it the umask decides. Raises OSError.
    """
    with replacing(path) as part:
        # 0o600 from the first moment: a chmod afterwards would leave an instant for others to open it.
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode & 0o600)
        with os.fdopen(handle, "wb") as f:
            f.write(data)
        if mode is not None:
            os.chmod(part, mode)


def sync_folder(folder: Path) -> None:
    """Make renames inside folder survive a power cut, where the system can (Windows cannot open folders)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
