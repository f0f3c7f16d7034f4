"""What training must know of each token: its bytes, and whether it ends a line. Made once, of a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..text.infill import is_control
from ..text.tokenizer import Tokenizer

_RAW_BYTES = re.compile("([\udc80-\udcff]+)")  # what surrogateescape makes of bytes that are no UTF-8


@dataclass(frozen=True)
class Tables:
    """Token_bytes (V,): each token's bytes, b"" for a control token. tokenizer: for what encodes text anew."""

    token_bytes: list[bytes]
    tokenizer: Tokenizer | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> Tables:
        """Make the tables of a model's vocabulary. Raises ValueError where an id of it stands for nothing."""
        ids, bytes_of = range(min(vocab_size, tokenizer.vocab_size)), tokenizer.bytes_of
        tokenizer.decode_bytes(i for i in ids if not is_control(i))  # refuses an id that stands for nothing
        return cls([b"" if is_control(i) else bytes_of[i] for i in ids], tokenizer)

    @cached_property
    def ends_line(self) -> np.ndarray:
        """Return bool (V,): whether a token's text ends in a newline."""
        return np.array([piece.endswith(b"\n") for piece in self.token_bytes], dtype=bool)

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """Return int64 (V,): the length of each token's bytes."""
        return np.array([len(piece) for piece in self.token_bytes], dtype=np.int64)

    @cached_property
    def _token_of_byte(self) -> dict[int, int]:
        return {piece[0]: i for i, piece in enumerate(self.token_bytes) if len(piece) == 1}

    def decode(self, tokens: np.ndarray) -> str:
        """Return the text of tokens; a byte that is no UTF-8 (of a character cut in half) becomes a lone surrogate."""
        assert self.tokenizer is not None, "these tables were made without a tokenizer"
        return self.tokenizer.decode_bytes(tokens.tolist()).decode("utf-8", "surrogateescape")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text that decode gave, or of parts of it; a lone surrogate is its byte's token.

        >>> tables = Tables.of(Tokenizer(), 51200)
        >>> tables.encode(["x = 1", "\\udcc3 = 1"])
        [[87, 796, 352], [127, 796, 352]]
        """
        assert self.tokenizer is not None, "these tables were made without a tokenizer"
        parts = [_RAW_BYTES.split(text) for text in texts]  # plain, raw, plain, raw, ..., plain
        plain = iter(self.tokenizer.encode_batch([part for text in parts for part in text[::2]]))
        found = []
        for text in parts:
            ids = next(plain)
            for raw in text[1::2]:
                ids = [*ids, *(self._token_of_byte[ord(c) - 0xDC00] for c in raw), *next(plain)]
            found.append(ids)
        return found
