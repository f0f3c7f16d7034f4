"""What the compiled library packs, in numpy: slow, and written from the drawing of the layout alone.

pack is native.pack's twin; unpack undoes both. Letters: N out, K in; Np, Kp rounded up to panels of 16 rows and blocks
of 64 columns; P panels; B blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codegen2.checkpoint.formats.int8 import quantize_rows
from codegen2.checkpoint.formats.tensors import from_float32, to_float32

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def padded(w: NDArray[np.generic], fill: int = 0) -> NDArray[np.generic]:
    """Return w (N, K) as (Np, Kp)."""
    return np.pad(w, ((0, -w.shape[0] % 16), (0, -w.shape[1] % 64)), constant_values=fill)


def pack(kind: str, w: Floats) -> tuple[Bytes, Floats | None]:
    """Return (bytes, scales (Np,) for int8, else None) of rows (N, K)."""
    if not np.isfinite(w).all():
        raise ValueError("holds values that are not finite numbers; the checkpoint is damaged")
    if kind == "int4":
        return pack_int4(w), None
    if kind == "int8":
        values, scale = quantize_rows(w)
        bytes_ = padded((values.astype(np.int16) + 128).astype(np.uint8), fill=128)
        return by_columns(bytes_, 4), np.pad(scale, (0, -len(w) % 16))
    wide = padded(w if kind == "float32" else from_float32(w, "bfloat16"))
    return by_columns(wide, 1 if kind == "float32" else 2).view(np.uint8), None


def by_columns(wide: NDArray[np.generic], together: int) -> NDArray[np.generic]:
    """Lay (Np, Kp) out as [panel, Kp / together, 16 rows, together columns], flat."""
    cut = wide.reshape(len(wide) // 16, 16, -1, together)  # (P, 16, Kp / together, together)
    return np.ascontiguousarray(cut.swapaxes(1, 2)).reshape(-1)


def by_rows(flat: NDArray[np.generic], columns: int, together: int) -> NDArray[np.generic]:
    """Undo by_columns: give (Np, Kp)."""
    cut = flat.reshape(-1, columns // together, 16, together)
    return cut.swapaxes(1, 2).reshape(-1, columns)


def quantize_int4(w: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return values (Np, Kp) from -8 to 7 and scales (Np, Kp / 32) of least squared error among 17 candidates."""
    groups = padded(w).reshape(-1, 32).astype(np.float32)  # a group a row
    at = np.abs(groups).argmax(1)  # the first on ties
    base = groups[np.arange(len(groups)), at] / np.float32(-8)
    values = np.zeros(groups.shape, np.int8)
    scales = np.zeros(len(groups), np.float16)
    least = np.full(len(groups), np.inf, np.float32)
    for i in range(17):
        with np.errstate(over="ignore"):
            half = (base * (np.float32(0.8) + np.float32(0.025) * np.float32(i))).astype(np.float16)
        s = half.astype(np.float32)
        usable = (s != 0) & np.isfinite(s)
        inverse = np.float32(1) / np.where(usable, s, np.float32(1))
        q = np.clip(np.rint(groups * inverse[:, None]), -8, 7)
        off = q * np.where(usable, s, 0)[:, None] - groups
        error = np.zeros(len(groups), np.float32)
        for column in range(32):
            with np.errstate(over="ignore"):
                error += off[:, column] * off[:, column]
        better = usable & (error < least)
        values[better], scales[better], least[better] = q[better], half[better], error[better]
    rows = len(w) + -len(w) % 16
    return values.reshape(rows, -1), scales.reshape(rows, -1)


def pack_int4(w: Floats) -> Bytes:
    """Return blocks of 576 bytes: 2 x 16 scales of 16 rows, then 8 pairs of column quads."""
    values, scales = quantize_int4(w)
    panels, blocks = len(values) // 16, values.shape[1] // 64
    # (P, 16, B, 2) to (P, B, 2, 16): the scales of columns 0..31, then of 32..63
    head = np.ascontiguousarray(scales.reshape(panels, 16, blocks, 2).transpose(0, 2, 3, 1)).view(np.uint8)
    nibbles = (values + 8).astype(np.uint8).reshape(panels, 16, blocks, 8, 2, 4)
    low, high = nibbles.transpose(4, 0, 2, 3, 1, 5)  # (P, B, 8, 16, 4) each
    body = low | high << 4
    whole = (head.reshape(panels, blocks, 64), body.reshape(panels, blocks, 512))
    return np.concatenate(whole, axis=2).reshape(-1)


def unpack(kind: str, data: Bytes, scale: Floats | None, n: int, k: int) -> Floats:
    """Return the rows (N, K) that packed bytes stand for."""
    columns = k + -k % 64
    flat = data.reshape(-1)
    if kind == "float32":
        wide = by_rows(flat.view(np.float32), columns, 1)
    elif kind == "bfloat16":
        wide = to_float32(by_rows(flat.view(np.uint16), columns, 2), "bfloat16")
    elif kind == "int8":
        assert scale is not None
        wide = (by_rows(flat, columns, 4).astype(np.float32) - 128) * scale[:, None]
    else:
        q, s = int4_parts(data, columns)
        wide = q * np.repeat(s, 32, axis=1)
    return np.asarray(wide[:n, :k], np.float32)


def int4_parts(data: Bytes, columns: int) -> tuple[Floats, Floats]:
    """Return the values (Np, Kp), -8 to 7, and scales (Np, Kp / 32) of a packed int4 weight."""
    blocks = data.reshape(-1, columns // 64, 576)
    head = blocks[:, :, :64].copy().view(np.float16).reshape(-1, columns // 64, 2, 16)
    body = blocks[:, :, 64:].reshape(-1, columns // 64, 8, 16, 4)
    nibbles = np.stack((body & 15, body >> 4), axis=3)  # (P, B, 8, 2, 16, 4)
    q = nibbles.transpose(0, 4, 1, 2, 3, 5).reshape(-1, columns).astype(np.float32) - 8
    return q, head.transpose(0, 3, 1, 2).reshape(-1, columns // 32).astype(np.float32)


SPAN = 512  # columns of an activation's scale on tiles


def linear_on_tiles(kind: str, data: Bytes, scale: Floats | None, n: int, x: Floats) -> NDArray[np.float64]:
    """Return x (M, K) times a packed weight (N, K), int8 or int4, as native/src/tiles_linear.h rounds both: (M, N).

    The sums of a span are exact; scales are multiplied and spans added in float64.
    """
    m, k = x.shape
    columns = k + -k % 64
    x = np.pad(x.astype(np.float32), ((0, 0), (0, columns - k)))
    out = np.zeros((m, n + -n % 16))
    for at in range(0, columns, SPAN):
        part = x[:, at : at + SPAN]
        widest = np.abs(part).max(1, keepdims=True)
        with np.errstate(divide="ignore"):
            inverse = np.where(widest > 0, np.float32(127) / widest, np.float32(0))
        q = np.rint(part * inverse).astype(np.int64)
        weights, its = _span_of_int8(kind, data, scale, columns, at)
        out += (q @ weights.T) * (widest / np.float32(127)).astype(np.float64) * its.astype(np.float64)
    return out[:, :n]


def _span_of_int8(
    kind: str, data: Bytes, scale: Floats | None, columns: int, at: int
) -> tuple[NDArray[np.int64], Floats]:
    """Return columns at..at + SPAN of a packed weight as whole numbers (Np, span), and a scale a row (Np,)."""
    if kind == "int8":
        assert scale is not None
        return by_rows(data.reshape(-1), columns, 4)[:, at : at + SPAN].astype(np.int64) - 128, scale
    q, s = int4_parts(data, columns)
    q, s = q[:, at : at + SPAN].astype(np.int64), s[:, at // 32 : (at + SPAN) // 32]
    widest = np.abs(s).max(1, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(widest > 0, np.float32(32512) / widest, np.float32(0))
    factor = np.repeat(np.rint(s * inverse).astype(np.int64), 32, axis=1)
    return (q * 16 * factor + (1 << 14)) >> 15, widest[:, 0] * np.float32(8 / 127)
