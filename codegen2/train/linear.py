"""Linear maps that learn in another way, by another class for the same weights: low-rank additions, int4 in view.

LoRA (Hu et al., 2021): small additions B A to the layers' matrices, trained while those rest. Rounded: in the forward
pass the layers' matrices lie on the grid of int4, and the gradient passes the rounding as if it were not there (Bengio
et al., 2013). Groups of 32 columns share a scale s (a float16), and a weight is s times a whole number of -8..7. What
native/src/pack.cpp makes of weights that lie on such a grid is the same weights: the widest of a group is -8 s, so that
of its candidates max / -8 is s itself, and errs by nothing. For that reason no scale above max / -8 is tried here,
though pack.cpp tries some.

Not here: the files that hold adapters and how they are merged for an engine (checkpoint/adapter.py).
Letters: N out, K in, R rank.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import CodeGen2

GROUP = 32
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)  # a narrower scale clips the widest weights and suits the others better


def round_int4(w: Tensor) -> Tensor:
    """Return w (N, K) with each group of 32 columns on the int4 grid of least squared error; float32, no gradient."""
    with torch.no_grad():
        groups = w.float().reshape(*w.shape[:-1], -1, GROUP)  # (N, K / 32, 32)
        widest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        best = torch.zeros_like(groups)
        least = torch.full_like(widest, torch.inf)
        for shrink in _SHRINK:
            scale = (widest / -8 * shrink).half().float()
            inverse = torch.where(scale == 0, 0.0, 1 / scale)
            on_grid = (groups * inverse).round().clamp(-8, 7) * scale
            error = (on_grid - groups).square().sum(-1, keepdim=True)
            best = torch.where(error < least, on_grid, best)
            least = torch.minimum(error, least)
        return best.flatten(-2)


class Int4Linear(nn.Linear):
    """A linear map whose weight is rounded where it is used."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., K) times the rounded weight, plus bias."""
        rounded = self.weight + (round_int4(self.weight) - self.weight).detach()
        return F.linear(x, rounded, self.bias)


def quantise_layers(model: CodeGen2) -> None:
    """Turn the layers' linear maps into rounding ones; weights and names stay."""
    for module in model.transformer.h.modules():
        if type(module) is nn.Linear:
            # The class alone changes: no new module, so optimizers and shards go on with the same parameters.
            module.__class__ = Int4Linear


class LoraLinear(nn.Linear):
    """A linear map with an addition: x W' + (x A') B' * scale."""

    lora_A: nn.Parameter  # (R, K)
    lora_B: nn.Parameter  # (N, R)
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., K) times weight and addition, plus bias."""
        addition = F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale
        return F.linear(x, self.weight, self.bias) + addition


def add_lora(model: CodeGen2, rank: int, alpha: float, seed: int) -> None:
    """Add to every linear map of the layers an addition that is 0 at first, and let nothing else learn."""
    for p in model.parameters():
        p.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in model.transformer.h.modules():
        if type(module) is nn.Linear:
            module.__class__ = LoraLinear
            assert isinstance(module, LoraLinear)
            n, k = module.weight.shape
            a = torch.empty(rank, k).uniform_(-1, 1, generator=generator) / math.sqrt(k)
            module.lora_A = nn.Parameter(a)
            module.lora_B = nn.Parameter(torch.zeros(n, rank))
            module.scale = alpha / rank


def additions(model: CodeGen2) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return A (R, K) and B (N, R) of every matrix that has an addition, by the matrix's name."""
    return {
        f"{name}.weight": (m.lora_A.detach().cpu().numpy(), m.lora_B.detach().cpu().numpy())
        for name, m in model.named_modules()
        if isinstance(m, LoraLinear)
    }


def merge_lora(model: CodeGen2) -> None:
    """Add the additions to the matrices and make the maps plain again."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            with torch.no_grad():
                module.weight += module.lora_B @ module.lora_A * module.scale
            del module.lora_A, module.lora_B
            module.__class__ = nn.Linear  # type: ignore[assignment]
