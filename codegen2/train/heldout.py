"""How well a model in training predicts files that it does not see: bits per byte, by the one definition (metrics.py).

Not here: infill (finetuning/, and eval/ for finished models).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ..config import EOT
from ..text.windows import windows
from .data import IGNORE, Documents

_ROWS = 4
# Sum of -log p over targets (B, T) that count, given inputs (B, T).
Nats = Callable[[np.ndarray, np.ndarray], float]


def document_nats(docs: Documents, numbers: list[int], n_ctx: int, nats: Nats) -> Iterator[float]:
    """Yield the sum of -log p (nats) of each document's tokens, each with the longest context that a window gives."""
    for number in numbers:
        ids = np.concatenate(([EOT], docs.doc(number).astype(np.int64)))
        rows = []
        for w in windows(len(ids), n_ctx, n_ctx // 2):
            targets = ids[w.start + 1 : w.end].copy()
            targets[: w.first - w.start - 1] = IGNORE
            rows.append((ids[w.start : w.end - 1], targets))
        yield sum(_batch(rows[i : i + _ROWS], nats) for i in range(0, len(rows), _ROWS))


def _batch(rows: list[tuple[np.ndarray, np.ndarray]], nats: Nats) -> float:
    length = max(len(inputs) for inputs, _ in rows)
    inputs = np.full((len(rows), length), EOT, dtype=np.int64)
    targets = np.full((len(rows), length), IGNORE, dtype=np.int64)
    for i, (row, wanted) in enumerate(rows):
        inputs[i, : len(row)], targets[i, : len(row)] = row, wanted
    with torch.no_grad():
        return nats(inputs, targets)


def choose_documents(docs: Documents, most: int, seed: int = 0) -> list[int]:
    """Choose at most so many documents at random, always the same ones."""
    order = np.random.default_rng(seed).permutation(len(docs))[:most]
    return sorted(int(i) for i in order)
