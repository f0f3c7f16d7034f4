"""Element types of stored tensors, as numpy sees them; and the two conversions, to and from float32.

numpy has no bfloat16, so such tensors travel as their raw uint16 patterns beside the tag "bfloat16".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...files.paths import check_regular

Array = NDArray[Any]

BLOCK_BYTES = 16 * 2**20  # how much of a tensor is converted or written at a time

# Little-endian on every machine, as both file formats are.
_CODES = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int64": "<i8", "int32": "<i4",
    "int16": "<i2", "int8": "i1", "uint8": "u1", "bool": "?",
}  # fmt: skip
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(code) for name, code in _CODES.items()}
FLOATS = ("float32", "bfloat16", "float16", "float64")


class TensorInfo(NamedTuple):
    """What a file says about a tensor before it is read."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return the size of the values, bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class TensorFile(Protocol):
    """One file of named tensors. `read` gives a read-only view into the mapped file."""

    path: Path

    def names(self) -> list[str]: ...
    def info(self, name: str) -> TensorInfo: ...
    def read(self, name: str) -> Array: ...


def is_size(value: Any) -> bool:
    """Return whether a value that a file holds can be a size or an offset."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def check_shape(here: object, shape: Sequence[int]) -> None:
    """Raise ValueError for a shape that no array can have, also an empty one: its other axes are told apart.

    >>> check_shape("x", (0, 2**61))
    Traceback (most recent call last):
    ValueError: x: shape (0, 2305843009213693952) is beyond 2 ** 56 values; download it again
    """
    if len(shape) > 8:
        raise damaged(here, f"has {len(shape)} dimensions, at most 8 are read")
    if math.prod(n or 1 for n in shape) > 2**56:
        raise damaged(here, f"shape {tuple(shape)} is beyond 2 ** 56 values")


def damaged(where: object, what: str, remedy: str = "download it again") -> ValueError:
    """Return the error for a file or tensor that is not as it should be.

    >>> damaged("model.safetensors", "the header is no JSON object")
    ValueError('model.safetensors: the header is no JSON object; download it again')
    """
    # A name in a file may have a megabyte.
    return ValueError(f"{where!s:.1000}: {what:.1000}; {remedy}")


def map_file(path: Path) -> NDArray[np.uint8]:
    """Map a file's bytes into memory, read-only. Raises ValueError when it is empty or cannot be read."""
    try:
        check_regular(path)
        # Mapped, not read: pages come on demand and leave under pressure, so it costs nothing until copied.
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except (OSError, ValueError) as e:
        raise ValueError(f"{path}: cannot be read ({e}); download it again") from e


def row_blocks(array: Array, itemsize: int | None = None) -> Iterator[Array]:
    """Cut an array along its first axis into views of about BLOCK_BYTES each."""
    row = math.prod(array.shape[1:]) * (itemsize or array.itemsize)
    step = max(1, BLOCK_BYTES // max(1, row))
    for start in range(0, array.shape[0], step):
        yield array[start : start + step]


def to_float32(array: Array, dtype: str) -> NDArray[np.float32]:
    """Return float32 values of an array read with this dtype tag; float32 itself comes back uncopied.

    >>> to_float32(np.array([0x3F80, 0xC000], np.uint16), "bfloat16")
    array([ 1., -2.], dtype=float32)

    Raises ValueError for a dtype that is no floating-point type.
    """
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype not in FLOATS:
        raise damaged(
            f"dtype {dtype}", f"expected one of {', '.join(FLOATS)}", "weights are floating-point numbers"
        )
    return array.astype(np.float32, copy=False)


def from_float32(array: NDArray[np.float32], dtype: str) -> Array:
    """Return float32 values in another dtype, rounded to nearest, ties to even; bfloat16 as uint16 patterns.

    >>> [hex(i) for i in from_float32(np.array([1.0, 1.00390625, 1.01171875], np.float32), "bfloat16")]
    ['0x3f80', '0x3f80', '0x3f82']

    Raises ValueError for an unknown dtype and for a finite value that float16 cannot hold.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(array).view(np.uint32)
        top = bits >> np.uint32(16)
        rounded = (bits + np.uint32(0x7FFF) + (top & np.uint32(1))) >> np.uint32(16)
        # Rounding would carry a NaN's bits into the sign; keep it a (quiet) NaN instead.
        return np.where(np.isnan(array), top | np.uint32(0x40), rounded).astype(np.uint16)
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype is {dtype!r}, expected float32, bfloat16 or float16")
    with np.errstate(over="ignore"):
        out = array.astype(DTYPES[dtype], copy=False)
    if dtype == "float16" and np.isinf(out).any() and not np.array_equal(np.isinf(out), np.isinf(array)):
        worst = float(np.abs(array[np.isfinite(array)]).max())
        raise ValueError(f"value {worst:g} does not fit float16 (at most 65504); choose bfloat16")
    return out
