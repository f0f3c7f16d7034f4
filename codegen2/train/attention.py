"""Causal attention for training on a CPU in bfloat16, in blocks of queries, forward and backward.

PyTorch's kernel for CPUs takes twice the time at the lengths trained on here: it recomputes scores in float32 in its
backward pass. This one keeps the probabilities (bfloat16, half of a T x T matrix a head) and does all products as
batched matrix multiplications. Not here: attention as the model defines it (model.py), accelerators.

Letters: G rows times heads, T tokens, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..model import Attention

_BLOCK = 64  # queries at a time: smaller blocks skip more of what is masked, larger ones have fewer products


class _Causal(torch.autograd.Function):
    """Softmax of causal scores times values, all (G, T, D) bfloat16; scores and softmax in float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale, T = 1 / math.sqrt(q.shape[-1]), q.shape[1]
        y = torch.empty_like(q)
        future = torch.full((min(_BLOCK, T),) * 2, -math.inf).triu_(1)
        probabilities = []
        for start in range(0, T, _BLOCK):
            end = min(start + _BLOCK, T)
            scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2)).float()  # (G, block, end)
            scores[:, :, start:] += future[: end - start, : end - start]
            p = torch.softmax(scores.mul_(scale), -1, out=scores).to(q.dtype)
            y[:, start:end] = torch.bmm(p, v[:, :end])
            probabilities.append(p)
        ctx.save_for_backward(q, k, v, y, *probabilities)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, y, *probabilities = ctx.saved_tensors
        scale = 1 / math.sqrt(q.shape[-1])
        grad = grad.contiguous()
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        # The softmax's gradient is p (g - sum of p g), and that sum is y times y's gradient.
        mean = (grad.float() * y).sum(-1, keepdim=True).mul_(scale)  # (G, T, 1)
        for block, p in enumerate(probabilities):
            start, end = block * _BLOCK, p.shape[2]
            g = grad[:, start:end]
            grad_v[:, :end] += torch.bmm(p.transpose(1, 2), g)
            s = torch.bmm(g, v[:, :end].transpose(1, 2)).float().mul_(scale)
            low = s.sub_(mean[:, start:end]).mul_(p).to(q.dtype)
            grad_q[:, start:end] = torch.bmm(low, k[:, :end])
            grad_k[:, :end] += torch.bmm(low.transpose(1, 2), q[:, start:end])
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


class BlockwiseAttention(Attention):
    """Attention with its own causal kernel where there is no mask."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return what Attention gives, rounded to bfloat16."""
        if mask is not None:
            return super().mix(q, k, v, mask)
        B, H = q.shape[:2]
        q, k, v = (x.to(torch.bfloat16).flatten(0, 1).contiguous() for x in (q, k, v))
        out: Tensor = _Causal.apply(q, k, v).unflatten(0, (B, H))  # type: ignore[no-untyped-call]
        return out
