"""The methods that generate.py, session.py and serve/ still call, by way of forward; this file goes with them.

Letters: B rows, T tokens in this call, V vocab.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .protocol import Piece

_LEAST_PROMPT = 17  # shorter pieces were computed as decode steps


class OldCache:
    """One length for all rows, row b's first pad[b] slots left padding."""

    n_rows: int
    capacity: int
    length: int
    pad: np.ndarray

    def begin(self, engine: Any) -> None:
        """Start with nothing cached."""
        self._engine = engine
        self.length = 0
        self.pad = np.zeros(self.n_rows, dtype=np.int64)

    def check_room(self, n_tokens: int) -> None:
        """Raise ValueError when n_tokens more would not fit."""
        if self.length + n_tokens > self.capacity:
            raise ValueError(
                f"context: {self.length} tokens cached and {n_tokens} new do not fit {self.capacity};"
                " shorten the prompt or ask for fewer new tokens"
            )

    def truncate(self, n: int) -> None:
        """Forget all but the first n slots of each row. Raises ValueError when n is not in 0..length."""
        if not 0 <= n <= self.length:
            raise ValueError(f"cache: cannot truncate to {n}, length is {self.length}")
        self.length = n

    def select_rows(self, rows: list[int]) -> Any:
        """Return a cache whose row i is a copy of this one's rows[i]. Raises ValueError for rows that are not there."""
        if not all(0 <= r < self.n_rows for r in rows):
            raise ValueError(f"cache: rows {rows} are not all in 0..{self.n_rows - 1}")
        new = self._engine.new_cache(len(rows), self.capacity)
        new.pad, new.length = self.pad[rows], self.length
        self._engine.copy_rows(self, new, rows, np.maximum(self.length - new.pad, 0))
        return new


class OldMethods:
    """prefill, decode_step, extend and logits."""

    config: Any
    forward: Any
    new_cache: Any

    def _feed(self, ids: np.ndarray, cache: Any, n_logits: int) -> np.ndarray:
        """Return logits (B, n_logits, V); those of a row of padding alone are zeros."""
        cache.check_room(ids.shape[1])
        out = np.zeros((len(ids), n_logits, self.config.vocab_size), np.float32)
        pieces = []
        for b, row in enumerate(ids.tolist()):
            skip = max(0, int(cache.pad[b]) - cache.length)
            tokens = row[skip:]
            if tokens:
                n_prompt = len(tokens) if len(tokens) >= _LEAST_PROMPT else 0
                start = cache.length + skip - int(cache.pad[b])
                pieces.append(Piece(b, start, tokens, min(n_logits, len(tokens)), n_prompt))
        for piece, logits in zip(pieces, self.forward(pieces, cache), strict=True):
            out[piece.row, n_logits - len(logits) :] = logits
        cache.length += ids.shape[1]
        return out

    def prefill(self, ids: np.ndarray, cache: Any, pad: np.ndarray | None = None) -> np.ndarray:
        """Take in ids (B, T) and return the last position's logits (B, V), float32; pad (B,): left padding a row."""
        if pad is not None:
            cache.pad = np.asarray(pad, dtype=np.int64)
        return self._feed(ids, cache, 1)[:, 0]

    def decode_step(self, ids: np.ndarray, cache: Any) -> np.ndarray:
        """Take in one more token a row, ids (B,), and return logits (B, V), float32."""
        return self.prefill(ids[:, None], cache)

    def extend(self, ids: np.ndarray, cache: Any) -> np.ndarray:
        """Take in ids (B, T) and return the logits after each of them, (B, T, V), float32."""
        return self._feed(ids, cache, ids.shape[1])

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Return logits at all positions (B, T, V), float32, of ids (B, T)."""
        B, T = ids.shape
        pieces = [Piece(b, 0, row, T, T) for b, row in enumerate(ids.tolist())]
        return np.stack(self.forward(pieces, self.new_cache(B, T)))
