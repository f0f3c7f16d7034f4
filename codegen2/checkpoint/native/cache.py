"""native_directory: where a checkpoint lies packed for the compiled engine; converted at the first use, found later.

Not here: the form (form.py) and the conversion (pack.py). One directory an entry, in cache_dir()/native:
NAME-DTYPE[-head4]-HASH, where HASH stands for the source's contents and the form: two installations share an entry.
Its source.json names what it was made from, and was last touched when the entry was last used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from ... import native
from ...engine.system import allowed_cores
from ...files.paths import cache_dir, write_atomic
from ...files.progress import progress_bar
from ..digests import DIGESTS, damaged_file
from ..formats.safetensors import total_bytes
from ..formats.tensors import damaged
from ..hub import hub_name
from ..reader import fingerprint, read_json
from ..room import human
from ..selfcheck import check_grouping
from ..weights import Weights, open_weights
from ..write import Form, Progress, json_bytes, write_directory
from .form import AGAIN, FORMAT, Kinds, is_native, open_native
from .pack import native_form

_SAID_ABOVE = 100_000_000  # bytes; what is smaller is packed in a second or two
_WEIGHTS_A_MINUTE = 4e8  # of a core: 16B to int4 took 21 minutes on two
_SOURCE_FILE = "source.json"
# Raised when the same source is packed to other values of the same form, so that entries are made anew.
_ROUNDING = 2
_LOG = logging.getLogger("codegen2.cache")


def native_cache_dir() -> Path:
    """Return the folder of all entries, which may not exist yet."""
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

    dtype, head_dtype, check: as convert takes them. progress is called with bytes written and their total, and not at
    all where the entry is there already. Two processes that ask at once convert once. Raises ValueError, for a cache
    that cannot be written too.
    """
    directory = Path(directory)
    kinds = Kinds.choose(dtype, head_dtype)
    if is_native(directory):
        own = open_native(directory).kinds
        if dtype is not None and own != kinds:
            what = (
                f"is packed as {own.dtype} with a head of {own.head_dtype}, asked for was {kinds.dtype} with"
            )
            remedy = "leave dtype out, or give the checkpoint that it was made from"
            raise damaged(directory, f"{what} {kinds.head_dtype}", remedy)
        if not (directory / DIGESTS).is_file():
            _LOG.warning(
                "%s: an older version packed it, without %s to verify it by; %s", directory, DIGESTS, AGAIN
            )
        elif file := damaged_file(directory):
            raise damaged(file, "is not as it was written", AGAIN)
        return directory
    head = "-head4" if kinds.dtype == "int4" and kinds.head_dtype == "int4" else ""
    form = f"{kinds.dtype}{head}-{source_hash(directory, kinds)}"
    # For people: the directory's name, or the model's where that is a snapshot in the hub's cache.
    name = (hub_name(path := directory.resolve()) or path.name).rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:64].strip(".-_") or "model"
    # The same weights under another name are the same entry.
    entry = min(native_cache_dir().glob(f"*-{form}"), default=native_cache_dir() / f"{name}-{form}")

    def make() -> None:
        native.library()  # without it nothing can be packed, and that is the sentence to say
        weights = open_weights(directory)
        if check:
            check_grouping(weights)
        write_entry(weights, native_form(weights, kinds), entry, progress)

    return used(kept(entry, make), directory)


def write_entry(
    weights: Weights,
    form: Form,
    entry: Path,
    progress: Progress = lambda done, total: None,
    doing: str = "packing",
) -> None:
    """Write an entry; one that takes a while is announced on standard error first, and shown on a terminal."""
    remedy = "set CODEGEN2_CACHE to a folder on another disk, or free some with codegen2 cache prune or rm"
    if (size := total_bytes(form.entries)) <= _SAID_ABOVE:
        write_directory(form, entry, remedy, progress)
        return
    minutes = max(1, round(weights.config.n_params / _WEIGHTS_A_MINUTE / allowed_cores()))
    what = f"{doing} {weights.directory} once, into {entry} ({human(size)}, about {minutes} min)"
    _LOG.warning("codegen2: %s", what)
    with progress_bar(f"{doing} {weights.directory.name}, once", unit="bytes") as bar:

        def report(done: int, total: int) -> None:
            bar.update(done, total)
            progress(done, total)

        write_directory(form, entry, remedy, report)


def kept(entry: Path, make: Callable[[], object]) -> Path:
    """Return an entry of the cache, made where it is not there yet; of those who ask at once one makes it.

    One that is damaged, or of a version that wrote no digests, is made anew with a warning. Raises ValueError for a
    cache that cannot be written.
    """
    if damaged_file(entry) is None:
        return entry
    lock = entry.with_name(f".{entry.name}.lock")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            try:
                if file := damaged_file(entry):
                    if entry.exists():
                        _LOG.warning("%s: is not as it was written; it is computed anew", file)
                    for remains in entry.parent.glob(f".{entry.name}.*"):  # of a conversion that was killed
                        if remains.suffix in (".part", ".old"):
                            shutil.rmtree(remains, ignore_errors=True)
                    make()
            finally:
                # While still held: the next holder then sees that its file is no longer the one of this name.
                with contextlib.suppress(OSError):
                    lock.unlink()
    except OSError as e:
        what = f"cannot be written ({e.strerror or e})"
        raise damaged(entry.parent, what, "set CODEGEN2_CACHE to a folder that can") from e
    return entry


def used(entry: Path, *source: Path) -> Path:
    """Note that an entry was used now, and made from these directories together; a cache for reading only stays so."""
    mine, note = [str(path.resolve()) for path in source], entry / _SOURCE_FILE
    with contextlib.suppress(OSError):
        if mine in (found := sources(entry)):
            os.utime(note)
        else:
            write_atomic(note, json_bytes({"sources": [*found, mine]}))
    return entry


def sources(entry: Path) -> list[list[str]]:
    """Return what an entry was made from, each time the directories together; none where that was not noted."""
    try:
        found = read_json(entry / _SOURCE_FILE)["sources"]
        return [[str(path) for path in source] for source in found]
    except (ValueError, KeyError, TypeError):
        return []


def last_used(entry: Path) -> float:
    """Return when an entry was last used, seconds as time.time counts; of one without a note when it was made."""
    note = entry / _SOURCE_FILE
    return (note if note.exists() else entry).stat().st_mtime


def source_hash(directory: Path, kinds: Kinds) -> str:
    """Return 16 hex digits that change with the source's contents, the form and its kinds, as fingerprint does."""
    return fingerprint(directory, f"{FORMAT} {_ROUNDING} {kinds.dtype} {kinds.head_dtype}\n")
