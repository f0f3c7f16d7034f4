"""Muon: momentum whose update of a matrix is orthogonalised (Jordan et al. 2024; arXiv 2502.16982), Q, K and V apart.

Not here: which weights it gets (optim.py). torch.optim.Muon takes a matrix at a time and qkv_proj as one; a model in
memory has its rows as Q, then K, then V, however a checkpoint groups them (checkpoint/layout.py), so three equal parts
of them are the three. Letters: N matrices of one shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that lets singular values rise to about 1 fastest
_STEPS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return the nearly orthogonal matrices next to matrices (N, rows, columns), by Newton's and Schulz's iteration.

    In bfloat16, which it bears well (1 % of the update), or where a CPU would only emulate that, 20 times slower, in
    float32.
    """
    a, b, c = _COEFFICIENTS
    emulated = matrices.device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith(
        "AVX512"
    )
    x = matrices.to(torch.float32 if emulated else torch.bfloat16)
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
