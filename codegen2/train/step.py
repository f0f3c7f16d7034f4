"""One forward pass to the loss, how the blocks are run (checkpointed, compiled), and the loss of held-out files.

Not here: the loop. The model itself (model.py) knows none of this: what is special about training is put around it, by
another class for the same weights, so that their names never change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import EOT
from ..model import Attention, Block, CodeGen2
from ..text.windows import windows
from .attention import BlockwiseAttention
from .config import Machine, TrainConfig
from .data import IGNORE, Documents
from .loader import MicroBatch
from .optim import Candidates, emulates_bfloat16, head_losses

_ROWS = 4  # windows of a document that are scored at once


class CheckpointedBlock(Block):
    """A block that keeps only its input for the backward pass, and runs again there."""

    def forward(self, *args: Any) -> Tensor:
        """Return what the block gives."""
        out: Tensor = checkpoint(super().forward, *args, use_reentrant=False, preserve_rng_state=False)
        return out


class Step(nn.Module):
    """The model with its loss: one call, so that shards are gathered once for all of it."""

    def __init__(self, model: CodeGen2, config: TrainConfig, machine: Machine) -> None:
        super().__init__()
        self.model = model
        self._config, self._compiled = config, machine.compile
        # A processor that only emulates bfloat16 takes 10 times as long in it as in float32, the head's products 100.
        self.in_bfloat16 = config.bfloat16 and not emulates_bfloat16(torch.device(machine.device))
        if config.activation_checkpointing:
            for block in model.transformer.h:
                block.__class__ = CheckpointedBlock
        if self.in_bfloat16 and machine.device == "cpu":
            for module in model.modules():
                if type(module) is Attention:
                    module.__class__ = BlockwiseAttention
        if machine.compile:
            for block in model.transformer.h:
                block.compile()

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor,
        documents: Tensor | None = None,
        candidates: Candidates | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the sum of -log p of inputs and targets (B, T); weights (B, T) of the targets."""
        config = self._config
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            h = self.model.hidden(inputs, documents=documents)
        if self.in_bfloat16:
            h = h.to(torch.bfloat16)
        return head_losses(
            h.flatten(0, 1), self.model.lm_head, targets.flatten(), candidates, config.z_loss, weights.flatten(),
            self._compiled,
        )  # fmt: skip


def run_batch(
    step: Step, batch: MicroBatch, device: torch.device, candidates: Candidates | None
) -> tuple[Tensor, Tensor]:
    """Return Step's answer to a micro-batch."""
    arrays = (batch.inputs, batch.targets, batch.weights, batch.documents)
    on_device = [None if array is None else to_device(array, device) for array in arrays]
    out: tuple[Tensor, Tensor] = step(*on_device, candidates and candidates.to(device))
    return out


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on a device."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def document_nats(step: Step, device: torch.device, docs: Documents, numbers: list[int]) -> float:
    """Return the sum of -log p (nats) of documents' tokens, each with the longest context that a window gives."""
    n_ctx = step.model.config.n_ctx
    nats = []
    for number in numbers:
        ids = np.concatenate(([EOT], docs[number].astype(np.int64)))
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
