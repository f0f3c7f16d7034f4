"""Holes cut in the text, as an editor cuts them: chosen among characters, and every piece between two edges encoded by
itself, so that a hole's edges have the tokens that a prompt has there.

Not here: spans of tokens, which is the paper's way (corruption.py), and the format (text/infill.py). The kinds of holes
and how often each comes are ours. No torch.

    line     a whole line with its end              bracket  what stands between two brackets of a line
    rest     a line behind its indent               lines    2 to 8 lines, half of them behind the first one's indent
    tail     the end of a line, mostly from a word  chars    up to 200 characters from anywhere
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

from ..text.infill import build_document
from .corruption import CorruptionConfig, Span, corrupt_to_fit, log_uniform
from .tables import Tables

KINDS = {"line": 0.34, "rest": 0.22, "tail": 0.12, "bracket": 0.10, "lines": 0.14, "chars": 0.03}  # weights
_HOLES = (0.7, 0.2, 0.1)  # one hole, two, three; those that touch one drawn before are dropped
_LONGEST_CHARS = 200
_LEAST_LINE = 3  # characters that are no blanks; nobody asks for less
_TRIES = 6
_BRACKETS = re.compile(r"[\(\[\{]([^\(\)\[\]\{\}\n]{1,120})[\)\]\}]")
_WORDS = re.compile(r"(?<=\W)\w|(?<=\w)\W")  # where a word begins or has just ended
_COMMENTS = ("#", "//", "*", "/*", "--")


def corrupt_text_to_fit(
    tokens: np.ndarray, room: int, config: CorruptionConfig, rng: np.random.Generator, seed: Sequence[int],
    tables: Tables,
) -> tuple[list[int], int]:  # fmt: skip
    """Cut holes in the text of a beginning of `tokens` so that the document fits `room`, and say how many it used.

    Half of the pieces are as long as fits, the others of config.line_span_piece tokens; each ends a line where one is
    near. 1 - config.text_hole_probability of them are the paper's, as is a piece without a place for a hole, both drawn
    from `seed`. Return ([], 0) where nothing fits.
    """
    n = min(len(tokens), room - 16)
    if rng.random() >= 0.5:
        n = min(n, log_uniform(*config.line_span_piece, rng))
    if rng.random() < 1 - config.text_hole_probability:
        return corrupt_to_fit(tokens, room, config, [*seed, 2], tables)
    for _ in range(_TRIES):
        if n <= 8:
            break
        if n < len(tokens):
            ends = np.flatnonzero(tables.ends_line[tokens[:n]]) + 1
            if len(ends) and ends[-1] > n // 2:
                n = int(ends[-1])
        text = tables.decode(tokens[:n])
        document = cut_holes(text, choose_holes(text, rng), tables)
        if document and len(document) <= room:
            return document, n
        if document:
            n -= len(document) - room + 4
    return corrupt_to_fit(tokens, room, config, [*seed, 3], tables)


def cut_holes(text: str, holes: Sequence[Span], tables: Tables) -> list[int]:
    """Return the document of a text with holes [start, end), in characters and apart; [] without holes."""
    if not holes:
        return []
    edges = [0, *(edge for hole in holes for edge in hole), len(text)]
    visible = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    ids = tables.encode([*visible, *(text[a:b] for a, b in holes)])
    return build_document(ids[: len(visible)], ids[len(visible) :])


def choose_holes(text: str, rng: np.random.Generator) -> list[Span]:
    """Choose up to three holes with a visible character between any two, in order; [] where none has a place."""
    names, weights = list(KINDS), np.array(list(KINDS.values()))
    weights = weights / weights.sum()
    holes: list[Span] = []
    for _ in range(1 + int(rng.choice(len(_HOLES), p=_HOLES))):
        hole = choose_hole(text, names[int(rng.choice(len(names), p=weights))], rng)
        if hole is not None and all(hole[1] < a or b < hole[0] for a, b in holes):
            holes.append(hole)
    return sorted(holes)


def choose_hole(text: str, kind: str, rng: np.random.Generator) -> Span | None:
    """Choose one hole of a kind (see KINDS), at least a character; None where the text has no place for it."""
    if kind == "chars":
        a, b = sorted(rng.integers(0, len(text) + 1, 2).tolist())
        return (a, min(b, a + _LONGEST_CHARS)) if b > a else None
    if kind == "bracket":
        inside = [match.span(1) for match in _BRACKETS.finditer(text)]
        return inside[int(rng.integers(len(inside)))] if inside else None
    edges = [0, *(match.end() for match in re.finditer("\n", text))]
    if edges[-1] != len(text):
        edges.append(len(text))
    first = _choose_line(text, edges, rng)
    if first is None:
        return None
    start, end = edges[first], edges[first + 1]
    indent = start + len(text[start:end]) - len(text[start:end].lstrip(" \t"))
    if kind == "line":
        return start, end
    if kind == "tail":
        return _choose_tail(text, indent, _without_newline(text, end), rng)
    if kind == "lines":
        end = edges[min(first + log_uniform(2, 8, rng), len(edges) - 1)]
        if rng.random() < 0.5:
            return start, end
    end = _without_newline(text, end)
    return (indent, end) if indent < end else None


def _choose_line(text: str, edges: Sequence[int], rng: np.random.Generator) -> int | None:
    """Choose a line that is not nearly empty, and in four of five cases no prose, which nobody can know."""
    lines = list(itertools.pairwise(edges))
    full = [i for i, (a, b) in enumerate(lines) if len(text[a:b].strip()) >= _LEAST_LINE]
    if not full:
        return None
    chosen = 0
    for _ in range(4):
        chosen = full[int(rng.integers(len(full)))]
        a, b = lines[chosen]
        in_string = text.count('"""', 0, a) % 2 or text.count("'''", 0, a) % 2
        prose = in_string or text[a:b].lstrip().startswith(_COMMENTS)
        if not prose or rng.random() < 0.2:
            break
    return chosen


def _choose_tail(text: str, start: int, end: int, rng: np.random.Generator) -> Span | None:
    """Choose the end of a line of which at least one character stays, mostly from where a word begins."""
    if end - start < 4:
        return None
    cut = int(rng.integers(start + 1, end))
    if rng.random() < 0.7:
        words = [start + match.start() for match in _WORDS.finditer(text[start:end])]
        if words:
            cut = words[int(rng.integers(len(words)))]
    return (cut, end) if start < cut < end else None


def _without_newline(text: str, end: int) -> int:
    return end - 1 if text[end - 1] == "\n" else end
