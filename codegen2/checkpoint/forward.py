"""The forward pass in numpy over stored weights, piece by piece: for checks and calibration, not for speed.

model.py's twin on streamed weights: no second copy of the model, no torch. Letters: T tokens, C n_embd, H heads,
D head_dim, R rotary_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from .formats.tensors import row_blocks, to_float32
from .weights import Weights

Floats = NDArray[np.float32]


def layer_norm(weights: Weights, name: str, x: Floats) -> Floats:
    """Return x (..., C) with mean 0 and variance 1, scaled and moved by the weights `name`."""
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(weights.config.layer_norm_epsilon))
    out: Floats = centred / scale * weights.read(name + ".weight") + weights.read(name + ".bias")
    return out


def gelu(x: Floats) -> Floats:
    """Return gelu_new of x, the form with tanh."""
    out: Floats = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(np.float32) * (x + 0.044715 * x * x * x)))
    return out


def linear(weights: Weights, name: str, x: Floats, bias: bool = False) -> Floats:
    """Multiply x (..., C) by a weight (N, C) whose rows stay in the file's order."""
    stored, dtype = weights.stored(name + ".weight"), weights.info(name + ".weight").dtype
    y = np.concatenate([x @ to_float32(rows, dtype).T for rows in row_blocks(stored)], axis=-1)
    return y + weights.read(name + ".bias") if bias else y


def attend(config: ModelConfig, qkv: Floats) -> Floats:
    """Return the heads' output (T, C) of qkv (T, 3 C) in our order."""
    T, H, D, R = len(qkv), config.n_head, config.head_dim, config.rotary_dim
    q, k, v = qkv.reshape(T, 3, H, D).transpose(1, 2, 0, 3)  # (H, T, D)
    angle = np.arange(T)[:, None] * 10000.0 ** (-np.arange(0, R, 2) / R)  # (T, R/2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    scores = _rotate(q, cos, sin) @ _rotate(k, cos, sin).swapaxes(1, 2) / np.float32(np.sqrt(D))  # (H, T, T)
    scores = np.where(np.tri(T, dtype=bool), scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    out: Floats = scores / scores.sum(-1, keepdims=True) @ v  # (H, T, D)
    return out.swapaxes(0, 1).reshape(T, H * D)


def layer(
    weights: Weights,
    n: int,
    x: Floats,
    orders: Sequence[NDArray[np.intp]],
    see: Callable[[str, Floats], None] = lambda name, inputs: None,
) -> Floats:
    """Return what layer n makes of x (B, T, C), the QKV rows of each of the B read in its own order.

    see hears of the inputs of mlp.fc_in, which are attn.qkv_proj's too, attn.out_proj and mlp.fc_out.
    """
    block = f"transformer.h.{n}."
    h = layer_norm(weights, block + "ln_1", x)
    qkv = linear(weights, block + "attn.qkv_proj", h)  # columns in the file's order
    heads = np.stack([attend(weights.config, one[:, o]) for one, o in zip(qkv, orders, strict=True)])
    inner = gelu(linear(weights, block + "mlp.fc_in", h, bias=True))
    for name, inputs in (("mlp.fc_in", h), ("attn.out_proj", heads), ("mlp.fc_out", inner)):
        see(name, inputs)
    attended = linear(weights, block + "attn.out_proj", heads)
    return x + attended + linear(weights, block + "mlp.fc_out", inner, bias=True)


def _rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    R = 2 * cos.shape[-1]
    out = x.copy()
    a, b = x[..., :R:2], x[..., 1:R:2]
    out[..., :R:2], out[..., 1:R:2] = a * cos - b * sin, b * cos + a * sin
    return out
