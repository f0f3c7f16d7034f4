"""How well a model in training predicts files that it does not see: bits per byte, by the one definition (metrics.py).

Not here: infill (finetuning/, and eval/ for finished models).
"""

from __future__ import annotations

import numpy as np
import torch

from ..config import EOT
from ..text.windows import windows
from .data import IGNORE, Documents
from .step import Step, to_device

_ROWS = 4


def document_nats(step: Step, device: torch.device, docs: Documents, numbers: list[int]) -> float:
    """Return the sum of -log p (nats) of documents' tokens, each with the longest context that a window gives."""
    n_ctx = step.model.config.n_ctx
    nats = []
    for number in numbers:
        ids = np.concatenate(([EOT], docs.doc(number).astype(np.int64)))
        rows = []
        for w in windows(len(ids), n_ctx, n_ctx // 2):
            targets = ids[w.start + 1 : w.end].copy()
            targets[: w.first - w.start - 1] = IGNORE
            rows.append((ids[w.start : w.end - 1], targets))
        nats.append(sum(_nats(step, device, rows[i : i + _ROWS]) for i in range(0, len(rows), _ROWS)))
    return sum(nats)


def _nats(step: Step, device: torch.device, rows: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the sum of -log p over rows' targets that are not IGNORE, over the whole vocabulary."""
    length = max(len(inputs) for inputs, _ in rows)
    inputs = np.full((len(rows), length), EOT, dtype=np.int64)
    targets = np.full((len(rows), length), IGNORE, dtype=np.int64)
    for i, (row, following) in enumerate(rows):
        inputs[i, : len(row)], targets[i, : len(row)] = row, following
    weights = (targets != IGNORE).astype(np.float32)
    with torch.no_grad():
        return float(step(*(to_device(array, device) for array in (inputs, targets, weights)))[1])


def choose_documents(docs: Documents, most: int, seed: int = 0) -> list[int]:
    """Choose at most so many documents at random, always the same ones."""
    order = np.random.default_rng(seed).permutation(len(docs))[:most]
    return sorted(int(i) for i in order)
