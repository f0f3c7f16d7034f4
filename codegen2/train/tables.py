"""What training must know of each token: its bytes, and whether it ends a line. Made once, of a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..text.infill import is_control
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Tables:
    """Token_bytes (V,): each token's bytes, b"" for a control token."""

    token_bytes: list[bytes]

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> Tables:
        """Make the tables of a model's vocabulary."""
        ids = range(min(vocab_size, tokenizer.vocab_size))
        return cls([b"" if is_control(i) else tokenizer.decode_bytes([i]) for i in ids])

    @cached_property
    def ends_line(self) -> np.ndarray:
        """Return bool (V,): whether a token's text ends in a newline."""
        return np.array([piece.endswith(b"\n") for piece in self.token_bytes], dtype=bool)

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """Return int64 (V,): the length of each token's bytes."""
        return np.array([len(piece) for piece in self.token_bytes], dtype=np.int64)
