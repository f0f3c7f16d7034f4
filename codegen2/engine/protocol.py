"""What the scheduler asks of an engine: the forward pass on ragged rows, copies of rows, hidden states, likelihoods.

numpy in and out, so that no engine asks for another's library. Not here: the engines (native.py, reference.py).
Letters: B rows, T tokens of a row in this call, C n_embd, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..config import ModelConfig


class Cancel(Protocol):
    """Whether nobody waits for the answer any more; threading.Event is one."""

    def is_set(self) -> bool: ...


class Cancelled(Exception):
    """Raised out of a forward pass that was cancelled; the cache holds what it held before the call."""


class Piece(NamedTuple):
    """One row's part of a forward pass: tokens behind the row's first `start` ones.

    n_logits: after how many of the last tokens logits are wanted, 0 to len(tokens). n_prompt: how many of the first
    tokens are read as a prompt; the rest are decode steps, draft tokens included. An engine with `one_arithmetic`
    computes both alike.
    """

    row: int
    start: int
    tokens: Sequence[int]
    n_logits: int
    n_prompt: int


def check_pieces(pieces: Sequence[Piece], cache: Cache, config: ModelConfig) -> None:
    """Raise ValueError for a token outside the vocabulary or a row that would outgrow its capacity."""
    assert len({p.row for p in pieces}) == len(pieces), "a row occurs once"
    for row, start, tokens, n_logits, n_prompt in pieces:
        assert 0 <= row < cache.n_rows and start >= 0 and len(tokens) > 0
        assert 0 <= n_logits <= len(tokens) and 0 <= n_prompt <= len(tokens)
        if start + len(tokens) > cache.capacity:
            raise ValueError(
                f"context: {start} tokens cached and {len(tokens)} new do not fit {cache.capacity};"
                " shorten the prompt or ask for fewer new tokens"
            )
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"prompt: token id {low if low < 0 else high} is outside this model's vocabulary"
                f" 0..{config.vocab_size - 1}"
            )


class Cache(Protocol):
    """Keys and values of B rows of at most `capacity` tokens; the caller counts each row's tokens."""

    n_rows: int
    capacity: int


class Engine(Protocol):
    """Run a model's forward pass.

    exact_rows: a token's logits do not depend, bit for bit, on the rows beside it or on the tokens read with it, so
    draft tokens may be checked together without changing an answer. one_arithmetic: decode steps leave bit for bit the
    keys and values that reading the same tokens as a prompt leaves; where they do not, they are read again before they
    serve as a prompt. bytes_per_token: of one token's keys and values.
    """

    config: ModelConfig
    exact_rows: bool
    bytes_per_token: int

    @property
    def one_arithmetic(self) -> bool:
        """Return whether decode steps compute as prompts do."""

    def new_cache(self, n_rows: int, capacity: int) -> Any:
        """Return an empty cache for n_rows rows of at most `capacity` tokens. Raises ValueError if memory lacks."""

    def forward(self, pieces: Sequence[Piece], cache: Any) -> list[np.ndarray]:
        """Read the pieces, each row at most once, and return each one's logits (n_logits, V), float32.

        Raises Cancelled; ValueError for a token outside the vocabulary or a row that would outgrow its capacity.
        """

    def copy_row(self, cache: Any, source: int, target: int, n_tokens: int) -> None:
        """Copy the keys and values of a row's first n_tokens tokens over those of another row."""

    def hidden(self, ids: np.ndarray, cache: Any = None, start: int = 0) -> np.ndarray:
        """Return the last hidden states (B, T, C), float32, of ids (B, T) behind `start` tokens of cache."""

    def token_logprobs(self, ids: np.ndarray, cache: Any = None, start: int = 0) -> np.ndarray:
        """Return log p (nats, float32) of ids[:, 1:] each given all before it, cache too: (B, T - 1)."""

    def cancelled_by(self, cancel: Cancel) -> AbstractContextManager[None]:
        """Watch `cancel` inside the block: a forward pass in progress then raises Cancelled soon."""
