"""Low-rank adapters (LoRA, Hu et al., 2021): small additions B A to the layers' matrices, trained while those rest.

Not here: the files that hold them and how they are merged for an engine (checkpoint/adapter.py).
Letters: N out, K in, R rank.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...model import CodeGen2


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
    """Return every linear map of the layers an addition that is 0 at first, and let nothing else learn."""
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
