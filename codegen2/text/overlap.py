"""Text of an answer that stands around the cursor already: before it, or after it. Pure.

Not here: the chain of which these are two steps (postprocess.py). Repetition is judged by evidence, because lines do
stand twice in code: two lines, or a long one, at the same depth; brackets and quotes by their balance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .cursor import CLOSERS, Place, code_starts, columns, indent_of, unmatched

_MIN_REPEAT = 4  # text with fewer non-blank characters may well stand there twice
_MAX_OVERLAP = 256  # characters of the cursor's line that are compared
_MOST_LINES = 64  # above the cursor that are compared
_LONG_LINE = 8  # characters of one line above that are evidence enough
_OFTEN_TWICE = re.compile(r"#endif|\W*$")  # one #endif may follow another, and so may rulers and quotes


def trim_prefix_overlap(middle: str, place: Place) -> str:
    """Drop what stands before the cursor already: the cursor's line so far, or on a blank line the lines above.

    >>> trim_prefix_overlap("x = foo(1)", Place("x = foo(", ""))
    '1)'
    >>> trim_prefix_overlap("total = []\\n    for x in y:", Place("def f(y):\\n    total = []\\n    ", ""))
    '    for x in y:'
    """
    return _drop_repeated_lines(middle, place) if place.on_blank else _drop_repeated_head(middle, place)


def _drop_repeated_head(middle: str, place: Place) -> str:
    head, at = place.head.strip(" \t"), len(indent_of(middle))
    if len(_squeeze(head)) < _MIN_REPEAT or _OFTEN_TWICE.match(head):
        return middle
    end = at
    while middle.startswith(head, end):
        end += len(head)
    if head.isidentifier() and _is_word(middle[end - 1 : end + 1]):
        return middle  # `except` may stand before `exceptions.Error`
    return middle[end:] if end > at else middle


def _drop_repeated_lines(middle: str, place: Place) -> str:
    """Drop the first lines that equal, blanks aside, as many lines above the cursor: two of them, or a long one."""
    lines = middle.split("\n")
    written = [(i, _squeeze(line)) for i, line in enumerate(lines) if line.strip()]
    texts = [text for _, text in written]
    if not texts or not place.above:
        return middle
    first = written[0][0]
    depth = columns(indent_of(lines[first])) + (0 if first else columns(place.head))
    above = [_squeeze(line) for line in place.above[-_MOST_LINES:]]
    for n in range(min(len(above), len(texts)), 0, -1):
        goal = above[-n:]
        if texts[:n] != goal or columns(indent_of(place.above[-n])) != depth:
            continue
        if all(_OFTEN_TWICE.match(text) for text in goal) or (n == 1 and len(goal[0]) < _LONG_LINE):
            break
        end = n
        while texts[end : end + n] == goal:
            end += n
        return "\n".join(lines[written[end][0] :]) if end < len(texts) else ""
    return middle


def may_repeat_above(middle: str, place: Place) -> bool:
    """Whether a processed middle, while its raw one grows, may yet turn out to repeat the text before the cursor.

    >>> place = Place("a = 1\\nb = 2\\n", "")
    >>> [may_repeat_above(middle, place) for middle in ("a =", "a = 1\\n", "a = 1\\nc")]
    [True, True, False]
    """
    if not place.on_blank:
        return place.head.strip(" \t").startswith(middle.lstrip(" \t"))
    texts = [text for line in middle.split("\n") if (text := _squeeze(line))]
    above = [_squeeze(line) for line in place.above[-_MOST_LINES:]]
    runs = (above[i : i + len(texts)] for i in range(len(above) - len(texts) + 1))
    return not texts or any(run[:-1] == texts[:-1] and run[-1].startswith(texts[-1]) for run in runs)


def trim_suffix_overlap(middle: str, place: Place) -> str:
    """Cut where middle begins to repeat the suffix: its next lines, or the rest of the cursor's line.

    A closing bracket is a repetition only where the middle did not open it. Blanks and line ends are none.

    >>> trim_suffix_overlap("bar())", Place("foo(", ")")), trim_suffix_overlap("bar()", Place("foo(", ")"))
    ('bar()', 'bar()')
    """
    return _cut_repeated_rest(middle if place.within_line else _cut_repeated_lines(middle, place), place)


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _cut_repeated_lines(middle: str, place: Place) -> str:
    """Cut at the line that equals, blanks aside, the first line below the cursor that is not blank.

    It must be as deep and either long enough or outside the hole's block; or the line after it must agree
    too. So an early `return x` further right is no repetition. A bracket must lack a partner. Where nothing
    would be left, all of the middle must be repetition.
    """
    below = place.suffix if place.on_blank else place.suffix.partition("\n")[2]
    wanted = [line for line in below.split("\n") if line.strip()]
    goal = [_squeeze(line) for line in wanted]
    if not goal:
        return middle
    depths = [columns(indent_of(wanted[0]))]
    if place.on_blank and place.rest:
        # A suffix may or may not repeat the blanks before the cursor.
        depths.append(depths[0] + columns(place.head))
    outside = columns(indent_of(place.head))  # a line left of this is none of the hole's block
    long = len(goal[0]) >= _MIN_REPEAT and not _OFTEN_TWICE.match(goal[0])
    surplus = frozenset(place.surplus_closers(middle)) if goal[0][0] in CLOSERS else None
    lines = middle.split("\n")
    starts = code_starts(lines)
    written = [(i, _squeeze(line)) for i, line in enumerate(lines) if line.strip()]
    texts = [text for _, text in written]
    for n, (i, text) in enumerate(written):
        if text != goal[0] or (i == 0 and not place.on_blank):
            continue
        if surplus is not None:  # brackets are judged by their balance
            enough = starts[i] in surplus
        else:
            depth = columns(indent_of(lines[i])) + (columns(place.head) if i == 0 else 0)
            two = texts[n : n + 2] == goal[:2] and len(goal) > 1
            enough = two or (depth in depths and (long or depth < outside))
        if enough and (n or not place.on_blank or _all_repeats(texts, goal)):
            return place.until(lines[:i])
    return middle


def _all_repeats(texts: list[str], goal: list[str]) -> bool:
    """Return whether all lines of a middle are the lines below; its last one may be cut short."""
    same = agree(texts, goal)
    cut_short = same == len(texts) - 1 and same < len(goal) and goal[same].startswith(texts[same])
    return cut_short or same == min(len(texts), len(goal))


def _cut_repeated_rest(middle: str, place: Place) -> str:
    """Cut where middle supplies the rest of the cursor's line, which stands after the cursor."""
    rest = place.rest[:_MAX_OVERLAP]
    if not rest:
        return middle
    surplus = place.surplus_closers(middle)
    if rest[0] in CLOSERS:
        at = next((p for p in surplus if middle[p] == rest[0]), None)
        if at is not None:
            return middle[:at]
    quote = re.match(r"\"{3}|'{3}|[\"'`]", rest)
    if quote and (at := _surplus_quote(middle, quote[0], place)) is not None:
        return middle[:at]
    body = middle.rstrip()
    shortest = len(rest) if "\n" in middle[len(body) :] else 1
    surplus_at = frozenset(surplus)
    for k in range(min(len(body), len(rest)), shortest - 1, -1):
        end = cut = len(body)
        while body.endswith(rest[:k], 0, end) and _is_repetition(body, end - k, k, rest, surplus_at, place):
            end = cut = end - k  # all of a run at once, with blanks between
            while end and body[end - 1] in " \t":
                end -= 1
        if cut < len(body):
            return body[:cut]
    return middle


def _surplus_quote(middle: str, quote: str, place: Place) -> int | None:
    """Return the position of the quote in middle that ends the string which the suffix ends, if there is one.

    A line holds quotes in pairs: where head and rest do so by themselves, the middle must too.
    """
    mark = re.compile(rf"\\.|({re.escape(quote)})")

    def odd(text: str) -> bool:
        return sum(1 for m in mark.finditer(text) if m[1]) % 2 == 1

    if not odd(middle) or odd(place.head) != odd(place.rest) or ("\n" in middle and len(quote) == 1):
        return None
    at = [m.start() for m in mark.finditer(middle) if m[1]][-1]
    return at if odd(place.head) or at + len(quote) == len(middle.rstrip()) else None


def _is_repetition(body: str, start: int, k: int, rest: str, surplus: frozenset[int], place: Place) -> bool:
    """Return whether k characters of body, equal to the first of rest, stand there twice by mistake."""
    same, before, after = rest[:k], body[start - 1 : start] or place.head[-1:], rest[k : k + 1]
    if _is_word(before + same[:1]) or (_is_word(same[-1:] + after) and after):
        return False  # half a name
    closers = unmatched(rest, place.comments)[1]
    if closers and closers[0] < k:
        return start + closers[0] in surplus
    if same in (";", ",", ":"):
        return True
    if (before == same[0] or after == same[-1]) and not same[0].isalnum():
        return False  # a line of ###### or ------
    if any(c.isalnum() for c in same):
        return same == rest or len(_squeeze(same)) >= _MIN_REPEAT
    return len(_squeeze(same)) >= 2


def _is_word(pair: str) -> bool:
    return len(pair) == 2 and all(c.isalnum() or c == "_" for c in pair)


def agree(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Count the items that a and b share at their start; by halves, since slices compare far faster than items."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
