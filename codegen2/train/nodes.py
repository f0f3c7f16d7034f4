"""Syntax nodes of a file as spans of its tokens, read without a grammar: brackets, statements, indented blocks.

Not here: grammars (eval/syntax.py). A token shard does not say which language a file is in, and a parser of each would
be most of the cost of a batch; what stands in brackets, on a line or under a header is a node in nearly all languages.
Brackets in strings and comments are taken for brackets.
"""

from __future__ import annotations

from collections.abc import Sequence

_CLOSES = {41: 40, 93: 91, 125: 123}  # ) ] }
_OPENS = frozenset(_CLOSES.values())

Span = tuple[int, int]


def syntax_nodes(pieces: Sequence[bytes]) -> list[Span]:
    """Return the nodes of a file whose tokens have these bytes, as spans of tokens, each once, sorted.

    >>> syntax_nodes([b"if", b" f", b"(", b"a", b",", b"b", b")", b":", b"\\n", b"    ", b"x", b"\\n"])
    [(0, 8), (2, 7), (3, 6), (9, 12), (10, 11)]
    """
    return sorted({*_brackets(pieces), *_lines_and_blocks(pieces)})


def _brackets(pieces: Sequence[bytes]) -> list[Span]:
    found: list[Span] = []
    opened: list[Span] = []  # (bracket, token)
    for token, piece in enumerate(pieces):
        for char in piece:
            if char in _OPENS:
                opened.append((char, token))
            elif char in _CLOSES and opened and opened[-1][0] == _CLOSES[char]:
                start = opened.pop()[1]
                found.append((start, token + 1))
                if token > start + 1:
                    found.append((start + 1, token))
    return found


def _lines_and_blocks(pieces: Sequence[bytes]) -> list[Span]:
    found: list[Span] = []
    headers: list[Span] = []  # (indentation, first token of what is below) of lines with a block to come
    last = 0  # behind the last line that is not blank
    for start, end in _line_spans(pieces):
        text = b"".join(pieces[start:end])
        content = text.strip()
        if not content:
            continue
        indentation = len(text.expandtabs(8)) - len(text.expandtabs(8).lstrip())
        while headers and headers[-1][0] >= indentation:
            below = headers.pop()[1]
            if last > below:
                found.append((below, last))
        headers.append((indentation, end))
        first = start
        while not pieces[first].strip():
            first += 1
        behind = end
        while not pieces[behind - 1].strip():
            behind -= 1
        found.append((first, behind))
        last = end
    found += [(below, last) for _, below in headers if last > below]
    return found


def _line_spans(pieces: Sequence[bytes]) -> list[Span]:
    """Cut behind every token that has a newline."""
    ends = [i + 1 for i, piece in enumerate(pieces) if b"\n" in piece]
    if not ends or ends[-1] != len(pieces):
        ends.append(len(pieces))
    return [(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True) if b > a]
