"""KVCache: the keys and values of the tokens already seen, owned by the caller and handed to the model by Slots.

Letters: B rows of this call, T tokens of a row in this call, S slots visible, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import ModelConfig


class KVCache:
    """Room for `capacity` tokens of n_rows rows; the token at position p of a row lies in the row's slot p.

    The caller counts; what lies behind a row's last token is overwritten before it is seen. Prefill writes positions
    0..3, a decode step position 4; to forget the last two tokens is to write position 3 next.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_rows: int,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not 1 <= capacity <= config.n_ctx:
            raise ValueError(f"cache: capacity {capacity} is outside 1..{config.n_ctx}, the model's context")
        self.n_rows, self.capacity = n_rows, capacity
        shape = (config.n_layer, n_rows, config.n_head, capacity, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    def slots(self, rows: Sequence[int], positions: Tensor) -> Slots:
        """Return where a call's tokens go: positions (B, T) of cache rows (B,). Raises ValueError if full."""
        S = int(positions.max()) + 1
        if self.capacity < S:
            raise ValueError(f"context: {S} tokens do not fit {self.capacity}; shorten the prompt")
        near = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        span = slice(rows[0], rows[0] + len(rows)) if near else None
        return Slots(self, torch.tensor(rows, device=self.k.device), span, positions.to(self.k.device), S)


@dataclass(frozen=True)
class Slots:
    """Rows (B,) of a cache, the positions (B, T) that a call writes, and how many slots its last token sees.

    span: the rows where they are neighbours: those are seen in place, others copied.
    """

    cache: KVCache
    rows: Tensor
    span: slice | None
    positions: Tensor
    n_visible: int

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, H, T, D) of one layer and return all that is visible, (B, H, S, D) each."""
        found = []
        for kept, new in ((self.cache.k[layer], k), (self.cache.v[layer], v)):
            kept[self.rows[:, None], :, self.positions] = new.transpose(1, 2).to(kept.dtype)  # (B, T, H, D)
            seen = kept[:, :, : self.n_visible]
            found.append(seen[self.span] if self.span else seen.index_select(0, self.rows))
        return found[0], found[1]
