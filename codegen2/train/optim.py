"""Optimizers, schedule and the chunked, sampled cross-entropy of the language-model head.

Not here: the loop. Letters: N targets (B x T), C n_embd, V vocab, K candidate rows of the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data import IGNORE

_CHUNK = 1024  # rows of logits alive at once


def learning_rate_scale(step: int, *, warmup_steps: int, cooldown_steps: int, max_steps: int) -> float:
    """Give the factor on the peak rate at a step: linear warm-up, level, linear cool-down to 0 at max_steps.

    The level middle lets a run be made longer before its cool-down begins; a cosine must know its end at its start.

    >>> [learning_rate_scale(s, warmup_steps=10, cooldown_steps=50, max_steps=100) for s in (0, 9, 49, 75, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    return max(0.0, min(1.0, (step + 1) / warmup_steps, (max_steps - step) / cooldown_steps))


def make_optimizers(
    model: nn.Module, *, lr: float, matrix_lr: float | None, weight_decay: float, betas: tuple[float, float]
) -> list[torch.optim.Optimizer]:
    """Give AdamW over everything, or, with matrix_lr, Muon over the blocks' matrices and AdamW over the rest.

    Weight decay touches matrices only. Muon (orthogonalised momentum) learns more from few tokens, which is what two
    cores can give; it needs torch 2.9. Raises ValueError where it is not there.
    """
    matrices: list[nn.Parameter] = []
    embeddings: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.ndim < 2:
            vectors.append(p)
        else:
            (matrices if ".h." in name else embeddings).append(p)
    groups: list[dict[str, Any]] = [
        {"params": embeddings, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if matrix_lr is None:
        groups.insert(0, {"params": matrices, "weight_decay": weight_decay})
    elif not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"matrix_lr needs torch 2.9 or newer for its Muon, this is {torch.__version__}; set it to None"
        )
    else:
        optimizers.append(torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=weight_decay, momentum=0.95))
    optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


@dataclass(frozen=True)
class Candidates:
    """The rows of the head that take part in one batch's softmax.

    rows (K,): ids, or None for all V. log_weight (K,): added to the logits, log(1 / chance of being here), so that
    the sum over the candidates estimates the sum over the vocabulary without bias. position (V,): id to index, or -1.
    """

    rows: Tensor
    log_weight: Tensor
    position: Tensor


def draw_candidates(
    targets: np.ndarray, frequent: np.ndarray, vocab_size: int, k: int, rng: np.random.Generator
) -> Candidates:
    """Choose K rows: the frequent ids, the batch's own targets, and a uniform draw from all others.

    With 51,200 rows the head costs more than a small model's whole body; the rare rows are nearly all near-zero
    probability, and a weighted sample of them is enough. Raises ValueError when k is too small.
    """
    certain = np.union1d(frequent, targets[targets != IGNORE])
    others = np.setdiff1d(np.arange(vocab_size), certain, assume_unique=True)
    n_drawn = min(k - len(certain), len(others))
    if n_drawn < 1:
        raise ValueError(
            f"{k} candidates do not hold {len(certain)} frequent and target ids; raise head_candidates"
        )
    drawn = rng.choice(others, size=n_drawn, replace=False)
    rows = np.concatenate([certain, drawn])
    log_weight = np.zeros(len(rows), dtype=np.float32)
    log_weight[len(certain) :] = math.log(len(others) / n_drawn)
    position = np.full(vocab_size, -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    return Candidates(torch.from_numpy(rows), torch.from_numpy(log_weight), torch.from_numpy(position))


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy and its gradients in one sweep over chunks of rows, so that N x K logits never exist at once."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        log_weight: Tensor | None,
        z_loss: float,
        weights: Tensor,
    ) -> Tensor:
        dtype = torch.bfloat16 if h.dtype == torch.bfloat16 else torch.float32
        w = weight.to(dtype)
        grad_h, grad_w, grad_b = torch.empty_like(h), torch.zeros_like(weight), torch.zeros_like(bias)
        share = weights * (targets != IGNORE)
        share = share / share.sum().clamp_min(1e-9)  # (N,), adds up to 1
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(h), _CHUNK):
            rows, t = h[start : start + _CHUNK], targets[start : start + _CHUNK]
            part = share[start : start + _CHUNK]
            safe = t.clamp_min(0)[:, None]
            logits = (rows.to(dtype) @ w.T).float().add_(bias)  # (n, K)
            if log_weight is not None:
                logits += log_weight
            lse = logits.logsumexp(-1)  # (n,)
            picked = logits.gather(1, safe)[:, 0]
            if log_weight is not None:
                picked = picked - log_weight[safe[:, 0]]
            loss = (lse - picked + z_loss * lse.square()) * part
            total += loss.sum().double()
            grad = logits.sub_(lse[:, None]).exp_()  # softmax
            grad.mul_((1 + 2 * z_loss * lse)[:, None])
            grad.scatter_add_(1, safe, torch.full_like(safe, -1.0, dtype=grad.dtype))
            grad.mul_(part[:, None])
            low = grad.to(dtype)
            grad_h[start : start + _CHUNK] = (low @ w).to(h.dtype)
            grad_w += (low.T @ rows.to(dtype)).to(weight.dtype)
            grad_b += grad.sum(0)
        ctx.save_for_backward(grad_h, grad_w, grad_b)
        return total.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_w, grad_b = ctx.saved_tensors
        return grad_h * g, grad_w * g, grad_b * g, None, None, None, None


def head_loss(
    h: Tensor,
    head: nn.Linear,
    targets: Tensor,
    candidates: Candidates | None = None,
    z_loss: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Give the mean cross-entropy (nats, plus z_loss * logsumexp^2) of hidden states h (N, C) against targets (N,).

    Targets of IGNORE do not count, others by their weights (N,), 1 each unless given. With candidates the softmax runs
    over those rows.
    """
    weights = torch.ones(len(targets), device=targets.device) if weights is None else weights
    rows: tuple[Tensor, Tensor] = (head.weight, head.bias)
    log_weight = None
    if candidates is not None:
        targets = torch.where(targets == IGNORE, targets, candidates.position[targets.clamp_min(0)])
        rows, log_weight = (rows[0][candidates.rows], rows[1][candidates.rows]), candidates.log_weight
    loss: Tensor = _HeadLoss.apply(h, *rows, targets, log_weight, z_loss, weights)  # type: ignore[no-untyped-call]
    return loss
