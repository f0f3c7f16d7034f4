"""The compiled engine's library: found, loaded, its C functions typed. What it computes is in src/ (C++17).

Not here: the engine that uses it (engine/native.py). The library is built when the package is installed, if there is a
C++ compiler; it needs nothing of Python, so calls run without the interpreter's lock.

Letters: N out, K in; Np and Kp are N and K rounded up to whole panels of 16 rows and whole blocks of 64 columns.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KINDS = ("float32", "bfloat16", "int8", "int4")  # the order of enum Kind in src/codegen2.h
PANEL_ROWS = 16
BLOCK_COLUMNS = 64
GROUP = 32  # columns of an int4 scale
ABI = 3  # raised with every change of a C signature, so that a stale build is refused

NOT_BUILT = (
    "the native engine is not built here; install a C++ compiler and install codegen2 again, or install"
    " codegen2[train] and choose the reference engine"
)


def library_path() -> Path:
    """Return where the installer puts the library."""
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    return Path(__file__).with_name(f"libcodegen2{suffix}")


class Shape(ctypes.Structure):
    """Mirror cg2_shape: the numbers of a ModelConfig that the forward pass needs."""

    _fields_ = (
        ("vocab_size", ctypes.c_int32),
        ("n_ctx", ctypes.c_int32),
        ("n_embd", ctypes.c_int32),
        ("n_layer", ctypes.c_int32),
        ("n_head", ctypes.c_int32),
        ("rotary_dim", ctypes.c_int32),
        ("layer_norm_epsilon", ctypes.c_float),
        ("float_activations", ctypes.c_int32),
    )


class Matrix(ctypes.Structure):
    """Mirror cg2_matrix: packed values of one weight, and its scales where the kind has them apart."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Packed:
    """One packed matrix (N, K): data, (Np / 16, bytes of a panel) or flat; scale (Np,) for int8, else None."""

    kind: str
    n: int
    k: int
    data: NDArray[np.uint8]
    scale: NDArray[np.float32] | None


@functools.cache
def library() -> ctypes.CDLL:
    """Load the library once. Raises ValueError that says what to do where it is missing or stale."""
    path = Path(os.environ.get("CODEGEN2_NATIVE_LIBRARY") or library_path())
    if not path.is_file():
        raise ValueError(NOT_BUILT)
    try:
        lib = ctypes.CDLL(str(path))
        lib.cg2_abi.restype = ctypes.c_int32
        found = lib.cg2_abi()
    except (OSError, AttributeError) as e:
        raise ValueError(f"{path}: cannot be loaded ({e}); install codegen2 again") from e
    if found != ABI:
        raise ValueError(f"{path}: was built for another version of codegen2; install codegen2 again")
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    signatures = {
        "cg2_isas": (ctypes.c_char_p, []),
        "cg2_set_isa": (i32, [ctypes.c_char_p]),
        "cg2_set_threads": (i32, [i32]),
        "cg2_packed_bytes": (i64, [i32, i32, i32]),
        "cg2_pack": (i32, [i32, pointer, i32, i32, pointer, pointer]),
        "cg2_model_new": (pointer, [pointer, pointer, pointer, ctypes.c_char_p, i32]),
        "cg2_model_free": (None, [pointer]),
        "cg2_cache_new": (pointer, [pointer, i32, i32]),
        "cg2_cache_free": (None, [pointer]),
        "cg2_cache_copy": (i32, [pointer, pointer, pointer, i32, pointer]),
        "cg2_one_arithmetic": (i32, [pointer]),
        "cg2_forward": (i32, [pointer, pointer, i32, *[pointer] * 3, i32, i32, *[pointer] * 4]),
        "cg2_logprobs": (i32, [pointer, pointer, pointer, i32, pointer, pointer]),
        "cg2_weigh": (None, [pointer, i32, pointer, ctypes.c_float, ctypes.c_float, pointer, pointer]),
        "cg2_linear": (i32, [pointer, pointer, i32, i32, pointer]),
        "cg2_read_bandwidth": (ctypes.c_double, [pointer, i64, i32, i32]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def instruction_sets() -> list[str]:
    """List the instruction sets that can be used here, best first."""
    return str(library().cg2_isas().decode()).split()


def choose_instruction_set(name: str | None) -> None:
    """Compute with this instruction set from now on, in all engines of the process; None is the best.

    Raises ValueError for one that this machine does not have.
    """
    name = name or instruction_sets()[0]
    if library().cg2_set_isa(name.encode()):
        raise ValueError(
            f"instruction set {name!r} is not here; choose one of {', '.join(instruction_sets())}"
        )


def address(array: NDArray[np.generic] | None) -> ctypes.c_void_p:
    """Return the address of an array's first element; the caller keeps the array alive."""
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def padded(n: int, k: int) -> tuple[int, int]:
    """Return (Np, Kp).

    >>> padded(100, 100)
    (112, 128)
    """
    return -(-n // PANEL_ROWS) * PANEL_ROWS, -(-k // BLOCK_COLUMNS) * BLOCK_COLUMNS


def packed_bytes(kind: str, n: int, k: int) -> int:
    """Return the size of a packed matrix, bytes, without separate scales."""
    rows, columns = padded(n, k)
    per_block = {"float32": 64 * 4 * 16, "bfloat16": 64 * 2 * 16, "int8": 64 * 16, "int4": 576}[kind]
    return rows // PANEL_ROWS * (columns // BLOCK_COLUMNS) * per_block


def pack(kind: str, w: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Pack rows of a weight (N, K), float32, and return (bytes, scales (Np,) for int8, else None).

    Any run of whole panels may be packed by itself: the results one after the other are the result of the whole.
    Layouts are drawn in src/layout.h. Raises ValueError for values that are not finite.
    """
    n, k = w.shape
    rows, _ = padded(n, k)
    w = np.ascontiguousarray(w, dtype=np.float32)
    out = np.empty(packed_bytes(kind, n, k), np.uint8)
    scale = np.zeros(rows, np.float32) if kind == "int8" else None
    if library().cg2_pack(KINDS.index(kind), address(w), n, k, address(out), address(scale)):
        raise ValueError("holds values that are not finite numbers; the checkpoint is damaged")
    return out, scale
