"""The safetensors format: read one tensor at a time from a mapped file, write one block of rows at a time.

Not the `safetensors` library: its numpy side has no bfloat16, and its writer wants all tensors in memory at
once. The format (https://huggingface.co/docs/safetensors): 8 bytes header length N, little-endian; N bytes of
JSON, name to {dtype, shape, data_offsets}; then the values, offsets from the end of the header, no holes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .tensors import DTYPES, Array, TensorInfo, check_shape, damaged, is_size, map_file

MAX_HEADER_BYTES = 100_000_000  # the format's own limit

_TAGS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_TAG_OF = {dtype: tag for tag, dtype in _TAGS.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    if len(counts) != len(pairs):
        raise ValueError(f"key {counts.most_common(1)[0][0]!r} occurs twice")
    return dict(pairs)


def load_json(text: bytes) -> dict[str, Any]:
    """Read a JSON object from a stranger: UTF-8, no key twice. Raises ValueError, whatever is wrong."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if type(value) is not dict:
        raise ValueError(f"holds a {type(value).__name__}, expected a JSON object")
    return value


class SafetensorsFile:
    """A safetensors file, its header checked in full before any tensor is touched.

    Raises ValueError, naming file and tensor, for anything that does not add up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = map_file(path)
        size = self._raw.size
        n = int.from_bytes(self._raw[:8].tobytes(), "little") if size >= 8 else size
        if n > min(size - 8, MAX_HEADER_BYTES):
            what = f"the header is said to have {n} bytes, the file has {size}"
            raise damaged(path, f"{what}: no safetensors file, or truncated")
        try:
            header = load_json(self._raw[8 : 8 + n].tobytes())
        except ValueError as e:
            raise damaged(path, f"the safetensors header is damaged ({e})") from e
        header.pop("__metadata__", None)
        self._start = 8 + n
        self._entries = {name: self._entry(name, entry) for name, entry in header.items()}
        self._check_cover()

    def _entry(self, name: str, entry: Any) -> tuple[TensorInfo, int]:
        here = f"{self.path}: tensor {name!r}"
        try:
            tag, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            good = (
                isinstance(tag, str) and isinstance(shape, list) and all(map(is_size, [*shape, begin, end]))
            )
        except (TypeError, KeyError, ValueError):
            good = False
        if not good:
            raise damaged(here, "needs dtype, shape and data_offsets [begin, end]")
        if tag not in _TAGS:
            raise damaged(here, f"dtype is {tag!r}, expected one of {', '.join(_TAGS)}", "convert it first")
        check_shape(here, shape)
        info = TensorInfo(_TAGS[tag], tuple(shape))
        if end - begin != info.nbytes:
            what = f"shape {shape} of {tag} takes {info.nbytes} bytes, the offsets span {end - begin}"
            raise damaged(here, what)
        return info, begin

    def _check_cover(self) -> None:
        at = 0
        for begin, n_bytes, name in sorted((b, i.nbytes, name) for name, (i, b) in self._entries.items()):
            if begin != at:
                fault = "overlaps the one before" if begin < at else "leaves a hole before it"
                raise damaged(self.path, f"tensor {name!r} {fault} (byte {begin}, expected {at})")
            at += n_bytes
        have = self._raw.size - self._start
        if at != have:
            fault = "truncated" if at > have else "followed by bytes that belong to no tensor"
            raise damaged(self.path, f"{fault}: tensors take {at} bytes, the file has {have}")

    def names(self) -> list[str]:
        """List the tensors in the order of the header."""
        return list(self._entries)

    def info(self, name: str) -> TensorInfo:
        """Return dtype and shape of a tensor."""
        return self._entries[name][0]

    def read(self, name: str) -> Array:
        """Return a tensor as a read-only view into the mapped file."""
        info, begin = self._entries[name]
        start = self._start + begin
        return self._raw[start : start + info.nbytes].view(DTYPES[info.dtype]).reshape(info.shape)


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: `blocks` gives its values in order, cut along the first axis, in dtype."""

    name: str
    info: TensorInfo
    blocks: Callable[[], Iterable[Array]]


def write_safetensors(
    path: Path,
    entries: Sequence[Entry],
    metadata: Mapping[str, str] | None = None,
    align: int = 8,
    wrote: Callable[[int], object] = lambda n_bytes: None,
) -> None:
    """Write a new safetensors file, header first, then block after block, and sync it to disk.

    align: the values start at a multiple of so many bytes. wrote is called with the size of each block. Memory: one
    block. Raises ValueError when a tensor's blocks are not as long as its info says; OSError.
    """
    with open(path, "xb") as f:
        f.write(_header(entries, metadata or {"format": "pt"}, align))
        for entry in entries:
            written = 0
            for block in entry.blocks():
                block = np.ascontiguousarray(block, dtype=DTYPES[entry.info.dtype])
                f.write(block.data)
                written += block.nbytes
                wrote(block.nbytes)
            if written != entry.info.nbytes:
                raise ValueError(f"{path}: {entry.name} gave {written} bytes, expected {entry.info.nbytes}")
        f.flush()
        os.fsync(f.fileno())


def _header(entries: Sequence[Entry], metadata: Mapping[str, str], align: int = 8) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for entry in entries:
        end = at + entry.info.nbytes
        if entry.name in header:
            raise ValueError(f"tensor {entry.name!r} would be written twice")
        header[entry.name] = {
            "dtype": _TAG_OF[entry.info.dtype], "shape": list(entry.info.shape), "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Values start aligned; 8 bytes of length stand before the header.
    text += b" " * (-(8 + len(text)) % align)
    return len(text).to_bytes(8, "little") + text


def split_shards(entries: Sequence[Entry], max_shard_bytes: int) -> Iterator[list[Entry]]:
    """Cut a list of tensors into runs of at most max_shard_bytes of values; a larger tensor stands alone."""
    run: list[Entry] = []
    size = 0
    for entry in entries:
        if run and size + entry.info.nbytes > max_shard_bytes:
            yield run
            run, size = [], 0
        run.append(entry)
        size += entry.info.nbytes
    if run or not entries:
        yield run


def total_bytes(entries: Iterable[Entry]) -> int:
    """Return the size of all values, bytes."""
    return sum(e.info.nbytes for e in entries)
