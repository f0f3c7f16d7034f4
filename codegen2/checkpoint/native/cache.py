"""native_directory: where a checkpoint lies packed for the compiled engine; converted at the first use, found later.

Not here: the form (native_form.py) and the conversion (convert.py). One directory an entry, in cache_dir()/native:
NAME-DTYPE[-head4]-HASH, where HASH stands for the source's contents and the form.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ... import native
from ...files.paths import cache_dir
from ..convert import SMALL_FILES_BYTES, convert
from ..formats.safetensors import MAX_HEADER_BYTES, total_bytes
from ..hf_tokenizer import TOKENIZER_FILE
from ..reader import shard_names, weight_file
from ..room import check_disk
from ..weights import open_weights
from .form import FORMAT, Kinds, is_native, native_entries, open_native

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Raised when the same source is packed to other values of the same form, so that entries are made anew.
_ROUNDING = 2
_SAMPLE_BYTES = 64 * 2**10
_SAMPLES = 18  # the start, the end, and 16 places between


def native_cache_dir() -> Path:
    """Return the folder of all entries. It may not exist yet."""
    return cache_dir() / "native"


def native_directory(
    directory: str | Path,
    dtype: str | None = None,
    head_dtype: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    check: bool = True,
) -> Path:
    """Return a native directory of a checkpoint: the one in the cache, else a new one; a native one is its own.

    dtype, head_dtype, check: as convert takes them. progress hears of bytes written and their total, and nothing where
    the entry is there already. Two processes that ask at once convert once. Raises ValueError, for a cache that cannot
    be written too.
    """
    directory = Path(directory)
    kinds = Kinds.choose(dtype, head_dtype)
    if is_native(directory):
        own = open_native(directory).kinds
        if dtype is not None and own != kinds:
            raise ValueError(
                f"{directory}: is packed as {own.dtype} with a head of {own.head_dtype}, asked for was"
                f" {kinds.dtype} with {kinds.head_dtype}; leave dtype out, or give the checkpoint that it was made from"
            )
        return directory
    head = "-head4" if kinds.dtype == "int4" and kinds.head_dtype == "int4" else ""
    folder = native_cache_dir()
    entry = folder / f"{_name(directory)}-{kinds.dtype}{head}-{source_hash(directory, kinds)}"
    if _opens(entry):
        return entry
    native.library()  # without it nothing can be packed, and that is the sentence to say
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{entry.name}.lock") as held:
            if not _opens(entry):  # another process may have made it while this one waited
                if held:
                    _remove_remains(entry)
                _make(directory, entry, kinds, progress, check)
    except OSError as e:
        if not _opens(
            entry
        ):  # without locks another process may have come first, and then ours finds its place taken
            raise ValueError(
                f"{folder}: cannot be written ({e.strerror or e}); set CODEGEN2_CACHE to a folder that can"
            ) from e
    return entry


def _make(
    directory: Path, entry: Path, kinds: Kinds, progress: Callable[[int, int], None], check: bool
) -> None:
    need = total_bytes(native_entries(open_weights(directory), kinds)) + SMALL_FILES_BYTES
    remedy = "set CODEGEN2_CACHE to a folder on another disk, or free some with codegen2 cache rm"
    check_disk(entry, need, f"packing {directory} as {kinds.dtype}", remedy)
    # What is there does not open: a damaged entry, replaced as a whole.
    convert(
        directory, entry, "native", dtype=kinds.dtype, head_dtype=kinds.head_dtype, overwrite=True, check=check,
        progress=progress,
    )  # fmt: skip


def _opens(entry: Path) -> bool:
    try:
        open_native(entry)
    except ValueError:
        return False
    return True


def _remove_remains(entry: Path) -> None:
    """Remove what a killed conversion left; under the lock nobody else is writing there."""
    for path in entry.parent.glob(f".{entry.name}.*"):
        if path.suffix in (".part", ".old"):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, waiting for another holder; it is gone again afterwards. Returns whether it is held.

    Where the system or the file system has no such locks, it is not: two processes then may both convert, which costs
    time and nothing else, because convert moves whole directories into place.
    """
    handle = _acquired(path) if fcntl else None
    try:
        yield handle is not None
    finally:
        if handle is not None:
            # While still held, so that the next holder sees that its file is no longer the one of this name.
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)


def _acquired(path: Path) -> int | None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass  # removed by the holder before; take a new one
        except OSError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _name(directory: Path) -> str:
    """Return a name for people: the directory's, or the model's where that is a snapshot in the hub's cache.

    >>> _name(Path("/x/hub/models--Salesforce--codegen2-1B_P/snapshots/0123abcd"))
    'codegen2-1B_P'
    """
    path = directory.resolve()
    name = path.name
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        name = path.parents[1].name.rpartition("--")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:64].strip(".-_") or "model"


def source_hash(directory: Path, kinds: Kinds) -> str:
    """Return 16 hex digits that change with the source's contents, the form and its kinds; 64 GB take milliseconds.

    Of the weights only names, sizes, times, headers and samples are read. Whoever trains, merges or quantises a model
    changes all of its values, which every sample sees; a download that ends early or has holes changes sizes or whole
    stretches; a torch archive's directory has a checksum of each tensor. What is left is a file edited in a few values
    by hand, its size kept and its time put back, and nobody does that by accident.

    Raises ValueError when there are no weights.
    """
    h = hashlib.sha256(f"{FORMAT} {_ROUNDING} {kinds.dtype} {kinds.head_dtype}\n".encode())
    first = weight_file(directory)
    files = [directory / "config.json", directory / TOKENIZER_FILE]
    weights = [first]
    if first.suffix == ".json":
        files.append(first)
        weights = [directory / shard for shard in sorted(set(shard_names(first).values()))]
    try:
        for path in files:
            data = path.read_bytes() if path.is_file() else b""
            h.update(f"{path.name} {len(data)}\n".encode() + data)
        for path in weights:
            _add_weights(h, path)
    except OSError as e:
        raise ValueError(f"{e.filename or directory}: cannot be read ({e.strerror or e})") from e
    return h.hexdigest()[:16]


def _add_weights(h: hashlib._Hash, path: Path) -> None:
    found = path.stat()
    h.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    with open(path, "rb") as f:
        if path.suffix == ".safetensors":
            length = int.from_bytes(f.read(8), "little")
            h.update(f.read(min(length, MAX_HEADER_BYTES)))
        else:
            # Not an archive: the conversion will say so.
            with (
                contextlib.suppress(zipfile.BadZipFile, NotImplementedError, ValueError),
                zipfile.ZipFile(f) as z,
            ):
                for e in z.infolist():
                    h.update(f"{e.filename} {e.header_offset} {e.file_size} {e.CRC}\n".encode())
        last = max(0, found.st_size - _SAMPLE_BYTES)
        for i in range(_SAMPLES):
            f.seek(last * i // (_SAMPLES - 1))
            h.update(f.read(_SAMPLE_BYTES))
