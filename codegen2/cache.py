"""KVCache: the keys and values of the tokens already seen, owned by the caller and handed to the model.

Letters: B rows, T tokens in this call, S tokens visible, H heads, D head size.
"""

from __future__ import annotations

import torch

from .config import ModelConfig


class KVCache:
    """Room for `capacity` tokens of B rows; the model appends, the caller may cut back.

    A worked example, capacity 6: prefill of 4 tokens writes slots 0..3 and length becomes 4; a decode step writes
    slot 4; truncate(3) forgets slots 3 and 4 without touching memory, and the next token is written to slot 3.
    Left padding: row b ignores its first pad[b] slots, and its positions count from there.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        capacity = config.n_ctx if capacity is None else capacity
        if not 1 <= capacity <= config.n_ctx:
            raise ValueError(f"cache: capacity {capacity} is outside 1..{config.n_ctx}, the model's context")
        shape = (config.n_layer, batch_size, config.n_head, capacity, config.head_dim)  # (L, B, H, S, D)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.pad = torch.zeros(batch_size, device=device, dtype=torch.int64)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Return the number of tokens a row can hold."""
        return self.k.shape[3]

    def check_room(self, n_tokens: int) -> None:
        """Raise ValueError when n_tokens more would not fit."""
        if self.length + n_tokens > self.capacity:
            raise ValueError(
                f"context: {self.length} tokens cached and {n_tokens} new do not fit {self.capacity};"
                " shorten the prompt or ask for fewer new tokens"
            )

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write k, v (B, H, T, D) of one layer behind `length` and return all visible ones (B, H, S, D).

        The model moves `length` on once all layers have written.
        """
        end = self.length + k.shape[2]
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens of each row. Raises ValueError when n is not in 0..length."""
        if not 0 <= n <= self.length:
            raise ValueError(f"cache: cannot truncate to {n}, length is {self.length}")
        self.length = n

    def select_rows(self, rows: list[int]) -> KVCache:
        """Return a cache whose row i is a copy of this one's rows[i] (a prompt prefilled once, then n candidates)."""
        new = object.__new__(KVCache)
        index = torch.tensor(rows, device=self.k.device)
        new.k, new.v = self.k[:, index], self.v[:, index]
        new.pad, new.length = self.pad[index], self.length
        return new
