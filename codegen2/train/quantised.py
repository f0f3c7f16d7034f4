"""Training that knows it will be packed: the layers' matrices are rounded to int4 in the forward pass.

Groups of 32 columns share a scale s (a float16), and a weight is s times a whole number of -8..7. The gradient passes
the rounding as if it were not there (Bengio et al., 2013). What native/src/pack.cpp makes of weights that lie on such
a grid is the same weights: the widest of a group is -8 s, so that of its candidates max / -8 is s itself, and errs by
nothing. For that reason no scale above max / -8 is tried here, though pack.cpp tries some.
"""

from __future__ import annotations

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
