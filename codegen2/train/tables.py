"""What training must know of each token: its bytes, and whether it ends a line. Made once, of a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..text.tokenizer import Tokenizer
from .data import byte_table


@dataclass(frozen=True)
class Tables:
    """Token_bytes (V,): each token's bytes, b"" for a control token."""

    token_bytes: list[bytes]

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> Tables:
        """Make the tables of a model's vocabulary."""
        return cls(byte_table(tokenizer)[:vocab_size])

    @cached_property
    def ends_line(self) -> np.ndarray:
        """Return bool (V,): data.line_end_table."""
        return np.array([piece.endswith(b"\n") for piece in self.token_bytes], dtype=bool)

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """Return int64 (V,): the length of each token's bytes."""
        return np.array([len(piece) for piece in self.token_bytes], dtype=np.int64)
