"""Weights stored as int8 rows: a matrix NAME as int8 (N, K) beside NAME.scale, float32 (N,). How the box is kept.

Readers see float32 tensors and no scales, so the rest of the package does not know. Not here: arithmetic on int8
values (that is an engine's). Letters: N out, K in.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .safetensors import Entry, SafetensorsFile
from .tensors import Array, TensorInfo, damaged

SCALE = ".scale"
_SHRINKS = np.linspace(1.0, 0.8, 21, dtype=np.float32)


def quantize_rows(w: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values (N, K) and scales (N,) with w ~ values * scale, the scale of least squared error a row.

    The largest weight of a row sets the widest scale; a narrower one clips it and rounds all others more finely.

    >>> values, scale = quantize_rows(np.array([[1.27, -0.64, 0.0]], np.float32))
    >>> values.tolist(), round(float(scale[0]), 4)
    ([[127, -64, 0]], 0.01)
    """
    widest = np.abs(w).max(axis=1) / 127
    widest[widest == 0] = 1.0
    best, error = widest.copy(), np.full(len(w), np.inf, dtype=np.float32)
    for shrink in _SHRINKS:
        scale = widest * shrink
        off = _rounded(w, scale) * scale[:, None] - w
        squared = np.einsum("nk,nk->n", off, off)
        better = squared < error
        best[better], error[better] = scale[better], squared[better]
    return _rounded(w, best).astype(np.int8), best


def _rounded(w: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    out: NDArray[np.float32] = np.clip(np.rint(w / scale[:, None]), -127, 127)
    return out


def int8_entries(name: str, w: NDArray[np.float32]) -> list[Entry]:
    """Return the tensors that a weight becomes: matrices as int8 rows and scales, vectors as they are."""
    if w.ndim == 1:
        return [Entry(name, TensorInfo("float32", w.shape), lambda: [w])]
    values, scale = quantize_rows(w)
    return [
        Entry(name, TensorInfo("int8", values.shape), lambda: [values]),
        Entry(name + SCALE, TensorInfo("float32", scale.shape), lambda: [scale]),
    ]


class Int8Rows(SafetensorsFile):
    """A file of tensors in which int8 matrices with a scale read as float32."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        stored = dict.fromkeys(super().names())  # in their order, and found at once
        self._names = [n for n in stored if not (n.endswith(SCALE) and n.removesuffix(SCALE) in stored)]
        self._scaled = {n for n in self._names if n + SCALE in stored}
        for name in self._scaled:
            (dtype, shape), scale = super().info(name), super().info(name + SCALE)
            if dtype != "int8" or len(shape) != 2 or scale != TensorInfo("float32", shape[:1]):
                what = f"{name} is {dtype} {shape} with scales {scale.dtype} {scale.shape}"
                raise damaged(path, f"{what}, expected int8 (N, K) with float32 (N,)")

    def names(self) -> list[str]:
        """List the tensors without their scales."""
        return list(self._names)

    def info(self, name: str) -> TensorInfo:
        """Return (dtype, shape) as read."""
        info = super().info(name)
        return TensorInfo("float32", info.shape) if name in self._scaled else info

    def read(self, name: str) -> Array:
        """Return a tensor, a scaled one as a new float32 array."""
        values = super().read(name)
        if name in self._scaled:
            return values.astype(np.float32) * super().read(name + SCALE)[:, None]
        return values
