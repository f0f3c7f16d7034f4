"""Rounding to int4 with text in view: each column's error is made good by the columns that are still to be rounded.

Without text a weight is rounded by itself (native/src/pack.cpp). With text one knows which inputs move together, by
their Gram matrix over the text, and a column rounded up can be answered by others rounded down: on the model in the
box the divergence from float32 falls to a third. After Frantar et al., "GPTQ" (2023), in numpy, layer by layer.

Not here: the bytes that the codes become but for one function, and the plain rounding of all other kinds.
Letters: T tokens, C n_embd, N out, K in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...config import EOT
from ...text.tokenizer import Tokenizer
from ..formats.tensors import damaged, to_float32
from ..forward import Floats, layer
from ..layout import qkv_row_order
from ..weights import Weights

GROUP = 32  # columns of one scale
SEQUENCE_TOKENS = 512
MOST_SEQUENCES = 128
SMALL_BODY = 64_000_000  # weights in the layers; up to here it takes seconds, so it is done unasked
_TOGETHER = 8
_MAX_INT4 = 8 * 65504.0  # a scale is float16
# Of the Gram matrix's mean diagonal: inputs that the text never moves keep their plain rounding.
_DAMPING = 0.01
_SCALES = np.linspace(0.8, 1.2, 17)  # the candidates of pack.cpp

Codes = NDArray[np.uint8]
Halves = NDArray[np.float16]


def own_texts() -> list[str]:
    """Return text to calibrate on that is always at hand: this package's own sources."""
    package = Path(__file__).parents[2]
    return [path.read_text("utf-8") for path in sorted(package.rglob("*.py"))]


def sequences(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Cut texts into at most 128 sequences of 512 tokens, evenly over all of them. Raises ValueError for too little."""
    tokens = [token for text in texts for token in (EOT, *tokenizer.encode(text))]
    T, n = SEQUENCE_TOKENS, len(tokens) // SEQUENCE_TOKENS
    if n == 0:
        raise ValueError(
            f"the texts to calibrate on hold {len(tokens)} tokens, at least {T} are wanted; give more"
        )
    step = max(1.0, n / MOST_SEQUENCES)
    starts = [T * int(i * step) for i in range(min(n, MOST_SEQUENCES))]
    return [tokens[at : at + T] for at in starts]


def check_range(weights: Weights, name: str, rows: Floats) -> None:
    """Raise ValueError where a value is too large for int4; one that is no number passes, packing refuses it."""
    worst = max(float(rows.max()), -float(rows.min()))
    if _MAX_INT4 < worst < np.inf:
        what = f"{name}: value {worst:g} does not fit int4 (at most {_MAX_INT4:g})"
        raise damaged(weights.files[name].path, what, "choose int8")


def quantized(weights: Weights, texts: Sequence[list[int]]) -> Iterator[tuple[str, Codes, Halves]]:
    """Yield name, codes (N, K), 0 to 15 for -8 to 7, and scales (N, K / 32) of the layers' matrices, by forward pass.

    texts: sequences of one length T, at most n_ctx. K must be a multiple of 32. The layers before are as stored, not as
    rounded. Memory: the activations (128 x 512 x C float32) and, for one matrix, some four K x K of float64; for 1B
    some 3 GiB, for 16B 20.
    """
    dtype, embedding = weights.info("transformer.wte.weight").dtype, weights.stored("transformer.wte.weight")
    ids = np.array(texts)
    together = [
        ids[at : at + _TOGETHER] for at in range(0, len(ids), _TOGETHER)
    ]  # the weights are read once for 8
    xs = [to_float32(embedding[some], dtype) for some in together]  # (8, T, C) each
    order = qkv_row_order(weights.config.n_embd, weights.groups)
    for n in range(weights.config.n_layer):
        grams: dict[str, Floats] = {}

        def add(kind: str, inputs: Floats, grams: dict[str, Floats] = grams) -> None:
            rows = inputs.reshape(-1, inputs.shape[-1])
            grams[kind] = grams.get(kind, 0) + rows.T @ rows

        xs = [layer(weights, n, x, [order] * len(x), add) for x in xs]
        grams["attn.qkv_proj"] = grams["mlp.fc_in"]  # both read the layer's one LayerNorm
        for kind in ("attn.qkv_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out"):
            name = f"transformer.h.{n}.{kind}.weight"
            w = weights.finite(name)
            check_range(weights, name, w)
            yield name, *round_with_gram(w, grams[kind])


def round_with_gram(w: Floats, gram: Floats) -> tuple[Codes, Halves]:
    """Round a weight (N, K) for inputs whose Gram matrix is (K, K); give codes (N, K) and scales (N, K / 32).

    The inverse Gram matrix's Cholesky factor says by how much each later column has to answer for an error.
    """
    K = w.shape[1]
    damped = gram.astype(np.float64)
    damped[np.diag_indices(K)] += _DAMPING * np.trace(damped) / K + 1e-12
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)  # upper
    w = w.astype(np.float32)  # a copy
    codes = np.empty(w.shape, np.uint8)
    scales = np.empty((len(w), K // GROUP), np.float16)
    for at in range(0, K, GROUP):
        here = slice(at, at + GROUP)
        u = factor[here, here]
        scale = _best_scales(w[:, here], (1 / np.diag(u) ** 2).astype(np.float32))
        scales[:, at // GROUP] = scale
        step, inverse = _step(scale)
        errors = np.empty((len(w), GROUP), np.float32)
        for j in range(GROUP):
            column = w[:, at + j]
            q = np.clip(np.rint(column * inverse), -8, 7)
            codes[:, at + j] = q + 8
            errors[:, j] = (column - q * step) / u[j, j]
            w[:, at + j : at + GROUP] -= errors[:, j : j + 1] * u[j, j:]
        w[:, at + GROUP :] -= errors @ factor[here, at + GROUP :]
    return codes, scales


def _step(scale: Halves) -> tuple[Floats, Floats]:
    """Return scales as float32 and what they are divided by: their inverses, 0 for 0."""
    step = scale.astype(np.float32)
    return step, np.divide(1, step, out=np.zeros_like(step), where=step != 0)


def _best_scales(w: Floats, importance: Floats) -> Halves:
    """Return for each row of a group (N, 32) the scale of least squared error, each column's weighed by importance."""
    widest = np.take_along_axis(w, np.abs(w).argmax(1)[:, None], 1)[:, 0]
    best, least = np.zeros(len(w), np.float16), np.full(len(w), np.inf, np.float32)
    for factor in _SCALES:
        half = (widest / -8 * np.float32(factor)).astype(np.float16)
        step, inverse = _step(half)
        off = np.clip(np.rint(w * inverse[:, None]), -8, 7) * step[:, None] - w
        error = off**2 @ importance
        better = error < least
        best[better], least[better] = half[better], error[better]
    return best


def pack_codes(codes: Codes, scales: Halves) -> NDArray[np.uint8]:
    """Lay codes (N, K) and scales (N, K / 32) out as int4 panels, as native/src/layout.h draws them.

    Rows and columns that fill up a panel or a block are zeros (code 8) of scale 0.
    """
    rows, columns = -len(codes) % 16, -codes.shape[1] % 64
    codes = np.pad(codes, ((0, rows), (0, columns)), constant_values=8)
    scales = np.pad(scales, ((0, rows), (0, columns // GROUP)))
    P, B = len(codes) // 16, codes.shape[1] // 64
    head = scales.reshape(P, 16, B, 2).transpose(0, 2, 3, 1)  # (P, B, 2, 16)
    low, high = codes.reshape(P, 16, B, 8, 2, 4).transpose(4, 0, 2, 3, 1, 5)  # (P, B, 8, 16, 4) each
    out = np.empty((P, B, 576), np.uint8)
    out[:, :, :64] = np.ascontiguousarray(head).view(np.uint8).reshape(P, B, 64)
    out[:, :, 64:] = (low | high << 4).reshape(P, B, 512)
    return out.reshape(P, B * 576)
