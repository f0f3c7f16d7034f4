"""File-level span corruption as pure functions: choose spans, then apply them. No torch, no files.

Not here: the ids of the sentinels (infill.py). Source: CodeGen2 (arXiv 2305.02309), section on the mixture; where the
paper is silent (ranges, the exact draw) the definitions are ours and are parameters. A file of n tokens with k spans
becomes n + 3k + 3 tokens:

    file   11 12 13 14 15 16 17 18 19 20        spans (2, 4) and (7, 8)
    gives  11 12 <m1> 15 16 17 <m2> 19 20 <|endoftext|> <sep> <m1> 13 14 <eom> <m2> 18 <eom> <|endoftext|>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..text.infill import MAX_HOLES, build_document
from .tables import Tables

_FULL_LINE = 4  # tokens; nobody asks for a blank line or a lone bracket

Span = tuple[int, int]  # [start, end) in tokens of one file


@dataclass(frozen=True)
class CorruptionConfig:
    """How often and how spans are hidden.

    mask_ratio: the share of a file's tokens that is hidden, drawn uniformly per file from this range.
    span_length: shortest and longest span in tokens; `log_uniform` draws its logarithm uniformly, else the length.
    causal_probability: the share of sequences left as plain files.
    line_span_probability: the share of corrupted pieces that hide a run of lines instead (ours, 0 = the paper's);
    such a piece is cut to a length drawn log-uniformly from line_span_piece, tokens, since a long piece would spend
    hundreds of tokens of reading on a dozen of filling.
    text_hole_probability: the share of pieces, of those in corrupted sequences, whose holes are cut in the text
    (text_holes.py; ours, 0 = the paper's); half of these pieces have a length of line_span_piece.
    """

    mask_ratio: tuple[float, float] = (0.05, 0.5)
    span_length: tuple[int, int] = (1, 256)
    log_uniform: bool = True
    causal_probability: float = 0.5
    line_span_probability: float = 0.0
    line_span_piece: tuple[int, int] = (48, 480)
    text_hole_probability: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.mask_ratio
        if not 0 < low <= high < 1:
            raise ValueError(f"mask_ratio must be 0 < low <= high < 1, got {self.mask_ratio}")
        for name in ("span_length", "line_span_piece"):
            shortest, longest = getattr(self, name)
            if not 1 <= shortest <= longest:
                raise ValueError(f"{name} must be 1 <= shortest <= longest, got {getattr(self, name)}")
        for name in ("causal_probability", "line_span_probability", "text_hole_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}")


def log_uniform(low: int, high: int, rng: np.random.Generator) -> int:
    """Draw a whole number from low to high whose logarithm is uniform."""
    return min(max(int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))), low), high)


def draw_lengths(n_hidden: int, config: CorruptionConfig, rng: np.random.Generator) -> list[int]:
    """Draw span lengths until they add up to n_hidden tokens; the last one is cut to fit, then all are shuffled.

    More than 899 spans would be needed only with very short spans in a very long file: the rest stays visible.
    """
    shortest, longest = config.span_length
    lengths: list[int] = []
    while n_hidden > 0 and len(lengths) < MAX_HOLES:
        length = (
            log_uniform(shortest, longest, rng)
            if config.log_uniform
            else int(rng.integers(shortest, longest + 1))
        )
        lengths.append(min(length, n_hidden))
        n_hidden -= lengths[-1]
    rng.shuffle(lengths)
    return lengths


def place_spans(n: int, lengths: Sequence[int], rng: np.random.Generator) -> list[Span]:
    """Put spans of these lengths, in this order, uniformly into n tokens, at least one visible token between two.

    The free tokens are dealt to the k + 1 gaps so that every arrangement is equally likely (stars and bars).
    Raises ValueError when they do not fit.
    """
    k = len(lengths)
    free = n - sum(lengths) - max(k - 1, 0)
    if free < 0:
        raise ValueError(f"{k} spans of {sum(lengths)} tokens in all do not fit into {n} tokens")
    bars = np.sort(rng.choice(free + k, size=k, replace=False)) - np.arange(k)  # free tokens before each span
    spans, before = [], 0
    for i, length in enumerate(lengths):
        start = before + int(bars[i]) + i
        spans.append((start, start + length))
        before += length
    return spans


def choose_spans(n: int, config: CorruptionConfig, rng: np.random.Generator) -> list[Span]:
    """Choose the spans to hide in a file of n tokens: a ratio, then lengths, then places."""
    if n < 1:
        raise ValueError("a file of no tokens cannot be corrupted")
    n_hidden = max(1, round(rng.uniform(*config.mask_ratio) * n))
    lengths = draw_lengths(n_hidden, config, rng)
    while sum(lengths) + len(lengths) - 1 > n:  # many short spans in a tiny file: join two
        lengths[-2:] = [lengths[-1] + lengths[-2]]
    return place_spans(n, lengths, rng)


def choose_line_span(ends_line: np.ndarray, rng: np.random.Generator) -> list[Span]:
    """Choose one run of lines, as an editor's user asks for: mostly a single one, and none that is nearly empty.

    ends_line (n,) says which tokens end in a newline. Half of the spans begin at the line's start, a quarter behind
    its first token (indentation, mostly), a quarter anywhere in the first line; half keep the last newline visible.
    Return [] where no line has 4 tokens or the file is one line.
    """
    n = len(ends_line)
    ends = np.flatnonzero(ends_line) + 1  # first token after each line
    if not len(ends) or ends[-1] != n:
        ends = np.append(ends, n)
    starts = np.concatenate(([0], ends[:-1]))
    full = np.flatnonzero(ends - starts >= _FULL_LINE)
    if len(starts) < 2 or not len(full):
        return []
    first = int(rng.choice(full))
    n_lines = 1 if rng.random() < 0.75 else log_uniform(2, 15, rng)
    start, end = int(starts[first]), int(ends[min(first + n_lines, len(ends)) - 1])
    where = rng.random()
    if where >= 0.75:
        start = int(rng.integers(start, ends[first]))
    elif where >= 0.5:
        start += 1
    if rng.random() < 0.5 and end - start > 1 and ends_line[end - 1]:
        end -= 1
    return [(start, end)]


def apply_spans(tokens: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """Return the corrupted document of one file (see infill.build_document).

    >>> apply_spans(list(range(11, 21)), [(2, 4), (7, 8)])
    [11, 12, 51199, 15, 16, 17, 51198, 19, 20, 50256, 50299, 51199, 13, 14, 50300, 51198, 18, 50300, 50256]
    """
    tokens = list(tokens)
    edges = [0, *(edge for span in spans for edge in span), len(tokens)]
    pieces = [tokens[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return build_document(pieces, [tokens[a:b] for a, b in spans])


def corrupt(
    tokens: Sequence[int], config: CorruptionConfig, rng: np.random.Generator, tables: Tables
) -> list[int]:
    """Corrupt one file of at least one token; one without a line to hide has the spans of the paper."""
    spans: list[Span] = []
    if config.line_span_probability and rng.random() < config.line_span_probability:
        spans = choose_line_span(tables.ends_line[tokens], rng)
    return apply_spans(tokens, spans or choose_spans(len(tokens), config, rng))


def corrupt_to_fit(
    tokens: np.ndarray, room: int, config: CorruptionConfig, seed: Sequence[int], tables: Tables
) -> tuple[list[int], int]:
    """Corrupt as long a beginning of `tokens` as fits `room` and say how many tokens it used.

    The piece is shortened, not the result, so no span loses its end; the same seed is drawn anew for each length.
    Return ([], 0) where nothing fits.
    """
    n = min(len(tokens), room - 6)
    if np.random.default_rng(list(seed)).random() < config.line_span_probability:  # corrupt's own first draw
        n = min(n, log_uniform(*config.line_span_piece, np.random.default_rng([*seed, 1])))
    while n > 0:
        document = corrupt(tokens[:n].tolist(), config, np.random.default_rng(list(seed)), tables)
        if len(document) <= room:
            return document, n
        n -= len(document) - room
    return [], 0
