"""Windows over a long text's tokens, and bits per byte: one definition for scoring, training and evaluation. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Feed tokens [start, end) of a sequence; score those from `first` on."""

    start: int
    end: int
    first: int


def windows(n_tokens: int, size: int = 2048, stride: int = 1024) -> Iterator[Window]:
    """Cut a sequence into overlapping windows so that each token but the first is scored once.

    A token is scored in the window that returns it the longest context. The first token has no context.

    >>> [(w.start, w.end, w.first) for w in windows(10, size=6, stride=3)]
    [(0, 6, 1), (3, 9, 6), (6, 10, 9)]
    """
    if not 0 < stride <= size:
        raise ValueError(f"stride must be in 1..{size}, got {stride}")
    start, done = 0, 1
    while done < n_tokens:
        end = min(start + size, n_tokens)
        yield Window(start, end, done)
        done = end
        start += stride


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Turn a sum of -log p (nats) over a text's tokens into bits per UTF-8 byte; over files, sum both first.

    >>> bits_per_byte(math.log(2) * 24, 8)
    3.0
    """
    if n_bytes < 1:
        raise ValueError(f"bits per byte needs at least one byte of text, got {n_bytes}")
    return nats / math.log(2) / n_bytes
