"""Optimizers, schedule and the chunked, sampled cross-entropy of the language-model head.

Not here: the loop. Letters: N targets (B x T), C n_embd, V vocab, K candidate rows of the head.

Muon is momentum whose update of a matrix is orthogonalised (Jordan et al. 2024; arXiv 2502.16982), Q, K and V apart.
torch.optim.Muon takes a matrix at a time and qkv_proj as one; a model in memory has its rows as Q, then K, then V,
however a checkpoint groups them (checkpoint/layout.py), so three equal parts of them are the three.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .config import TrainConfig
from .data import IGNORE

# Of logits alive at once: 1,024 rows of the whole vocabulary in bfloat16, on an accelerator 4,096; and of those in
# float32 that a CPU sweeps over before the next ones, so that they stay in its cache.
_CHUNK_BYTES, _MOST_CHUNK_BYTES, _CACHE_BYTES = 105_000_000, 420_000_000, 7_000_000

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that lets singular values rise to about 1 fastest
_STEPS = 5


def learning_rate_scale(step: int, config: TrainConfig) -> float:
    """Return the factor on the peak rate at a step: linear warm-up, level, linear cool-down to final_lr at max_steps.

    The level middle lets a run be made longer before its cool-down begins; a cosine must know its end at its start.

    >>> from codegen2.config import ModelConfig
    >>> config = TrainConfig(ModelConfig(), warmup_steps=10, cooldown_steps=50, max_steps=100)
    >>> [learning_rate_scale(s, config) for s in (0, 9, 49, 75, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    >>> config = TrainConfig(ModelConfig(), warmup_steps=10, max_steps=110, schedule="cosine", final_lr=0.1)
    >>> [round(learning_rate_scale(s, config), 3) for s in (0, 9, 10, 60, 110)]
    [0.1, 1.0, 1.0, 0.55, 0.1]
    """
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
        down = 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
    else:
        down = min(1.0, max(0.0, (config.max_steps - step) / config.cooldown_steps))
    return min(1.0, (step + 1) / config.warmup_steps, config.final_lr + (1 - config.final_lr) * down)


def emulates_bfloat16(device: torch.device) -> bool:
    """Return whether a device, a CPU without AVX-512, computes in bfloat16 by way of float32."""
    return device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return the nearly orthogonal matrices next to matrices (M, rows, columns), by Newton's and Schulz's iteration.

    In bfloat16, which it bears well (1 % of the update), or where a CPU would only emulate that, 20 times slower, in
    float32.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.to(torch.float32 if emulates_bfloat16(matrices.device) else torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT.contiguous()
    x = x / (x.float().norm(dim=(1, 2), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum and decoupled weight decay; parts of one shape are orthogonalised together.

    A group's `parts` says of how many matrices, one below the other, each of its weights consists: 1 unless given.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "parts": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step with the gradients that are there; a closure is not called."""
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor, float]]] = {}  # by shape: update, weight, lr
        for group in self.param_groups:
            lr, momentum, parts = group["lr"], group["momentum"], group["parts"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = torch.lerp(p.grad, buffer, momentum)
                p.mul_(1 - lr * group["weight_decay"])
                for part, weight in zip(update.chunk(parts), p.chunk(parts), strict=True):
                    alike.setdefault(tuple(part.shape), []).append((part, weight, lr))
        for (rows, columns), matrices in alike.items():
            updates = orthogonalised(torch.stack([update for update, _, _ in matrices]))
            for update, (_, weight, lr) in zip(updates, matrices, strict=True):
                weight.add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW over everything, or, with matrix_lr, Muon over the blocks' matrices and AdamW over the rest.

    Weight decay touches matrices only. Muon (orthogonalised momentum) learns more from few tokens, which is what two
    cores can give.
    """
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [(name, p) for name, p in learning if p.ndim >= 2 and ".h." in name]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in learning if p.ndim >= 2 and ".h." not in name]},
        {"params": [p for _, p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    decay = config.weight_decay
    if config.matrix_lr is None:
        groups.insert(0, {"params": [p for _, p in matrices]})
    else:
        qkv = [p for name, p in matrices if name.endswith("qkv_proj.weight")]
        others = [p for name, p in matrices if not name.endswith("qkv_proj.weight")]
        by_parts: list[dict[str, Any]] = [{"params": qkv, "parts": 3}, {"params": others}]
        optimizers.append(Muon(by_parts, lr=config.matrix_lr, weight_decay=decay))
    groups = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=decay, fused=True
    )
    optimizers.append(adamw)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


@dataclass(frozen=True)
class Candidates:
    """The rows of the head that take part in one batch's softmax.

    rows (K,): ids, or None for all V. log_weight (K,): added to the logits, log(1 / chance of being here), so that
    the sum over the candidates estimates the sum over the vocabulary without bias; 0 for every target.
    position (V,): id to index, or -1.
    """

    rows: Tensor
    log_weight: Tensor
    position: Tensor

    def to(self, device: torch.device) -> Candidates:
        """Return the same on a device."""
        return Candidates(self.rows.to(device), self.log_weight.to(device), self.position.to(device))


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


def _softmax_sweep(
    low: Tensor, bias: Tensor, targets: Tensor, part: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Return loss and -log p, summed, of logits low + bias (n, K) against targets, and write the gradient over low.

    One function over one array, so that torch.compile makes three passes of it, row by row, in the cache.
    """
    safe = targets.clamp_min(0)[:, None]
    logits = low.float() + bias
    lse = logits.logsumexp(-1)  # (n,)
    nats = lse - logits.gather(1, safe)[:, 0]
    loss = (nats + z_loss * lse.square()) * part
    grad = (logits - lse[:, None]).exp() * (1 + 2 * z_loss * lse)[:, None]
    grad = grad - (torch.arange(low.shape[1], device=low.device) == safe).to(grad.dtype)
    low.copy_(grad * part[:, None])
    return loss.sum(), torch.where(targets == IGNORE, 0.0, nats).sum()


@functools.cache
def _compiled_sweep() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_softmax_sweep, dynamic=False)


def _plain_sweep(
    low: Tensor, bias: Tensor, targets: Tensor, part: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Do what _softmax_sweep does in as few passes as separate operations need, over rows that fit a CPU's cache."""
    loss, nats = torch.zeros((), device=low.device), torch.zeros((), device=low.device)
    n = len(low) if low.device.type != "cpu" else max(1, _CACHE_BYTES // (4 * low.shape[1]))
    wide = low.new_empty((n, low.shape[1]), dtype=torch.float32)
    for rows, t, p in zip(*(torch.split(x, n) for x in (low, targets, part)), strict=True):
        safe = t.clamp_min(0)[:, None]
        # Copied, then added to: one addition of two types would be ten times slower.
        logits = wide[: len(rows)].copy_(rows).add_(bias)
        picked = logits.gather(1, safe)[:, 0]
        top = logits.amax(-1)
        grad = torch.softmax(logits, -1, out=logits)
        # The likeliest token's probability is at least 1 / K, so its logarithm is exact enough and never infinite.
        lse = top - grad.amax(-1).log()  # (n,)
        each = lse - picked
        loss += ((each + z_loss * lse.square()) * p).sum()
        nats += torch.where(t == IGNORE, 0.0, each).sum()
        grad.mul_(((1 + 2 * z_loss * lse) * p)[:, None])
        grad.scatter_add_(1, safe, -p[:, None].to(grad.dtype))
        rows.copy_(grad)
    return loss, nats


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
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.bfloat16 if h.dtype == torch.bfloat16 else torch.float32
        w, b = weight.to(dtype), bias.float()
        b = b if log_weight is None else b + log_weight
        learns = ctx.needs_input_grad[1]  # under LoRA the head stays as it is
        grad_h = torch.empty_like(h)
        grad_w: Tensor | None = None
        grad_b = torch.zeros_like(b)
        share = weights * (targets != IGNORE)
        share = share / share.sum().clamp_min(1e-9)  # (N,), adds up to 1
        total = torch.zeros(2, dtype=torch.float64, device=h.device)
        sweep = _compiled_sweep() if compiled else _plain_sweep
        most = _CHUNK_BYTES if h.device.type == "cpu" else _MOST_CHUNK_BYTES
        n_chunks = -(-len(h) * len(w) * dtype.itemsize // most)
        chunk = -(-len(h) // max(1, n_chunks))
        # Used again by every chunk: fresh memory of this size costs a page fault each 4 KB on a CPU.
        space = h.new_empty((chunk, len(w)), dtype=dtype)
        for start in range(0, len(h), chunk):
            rows, t = h[start : start + chunk].to(dtype), targets[start : start + chunk]
            low = torch.mm(rows, w.T, out=space[: len(rows)])  # (n, K): logits, then their gradient
            loss, nats = sweep(low, b, t, share[start : start + chunk], z_loss)
            total += torch.stack((loss, nats))
            grad_h[start : start + chunk] = (low @ w).to(h.dtype)
            if learns:
                part = low.T @ rows
                grad_w = part.float() if grad_w is None else grad_w.add_(part)
                # A sum of bfloat16 would copy all of it to float32 first.
                grad_b += (low.T @ rows.new_ones((len(rows), 1)))[:, 0]
        ctx.save_for_backward(grad_h, grad_w, grad_b)
        ctx.dtypes = weight.dtype, bias.dtype
        nats_sum = total[1].float()
        ctx.mark_non_differentiable(nats_sum)
        return total[0].float(), nats_sum

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_w, grad_b = ctx.saved_tensors
        if grad_w is None:
            return (grad_h * g, *[None] * 7)
        w_dtype, b_dtype = ctx.dtypes
        return grad_h * g, (grad_w * g).to(w_dtype), (grad_b * g).to(b_dtype), *[None] * 5


def head_losses(
    h: Tensor,
    head: nn.Linear,
    targets: Tensor,
    candidates: Candidates | None = None,
    z_loss: float = 0.0,
    weights: Tensor | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the mean loss (nats, plus z_loss * logsumexp^2) of hidden states h (N, C) and targets (N,), and the sum
    of -log p over the targets, every one counted once, which has no gradient.

    Targets of IGNORE do not count, others by their weights (N,), 1 each unless given. With candidates the softmax runs
    over those rows. compiled: by torch.compile.
    """
    weights = torch.ones(len(targets), device=targets.device) if weights is None else weights
    rows: tuple[Tensor, Tensor] = (head.weight, head.bias)
    log_weight = None
    if candidates is not None:
        targets = torch.where(targets == IGNORE, targets, candidates.position[targets.clamp_min(0)])
        rows, log_weight = (rows[0][candidates.rows], rows[1][candidates.rows]), candidates.log_weight
    losses: tuple[Tensor, Tensor] = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        h, *rows, targets, log_weight, z_loss, weights, compiled
    )
    return losses
