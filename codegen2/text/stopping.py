"""Where a text ends: stop strings over streamed text, and truncation patterns for evaluation. Pure.

Not here: stop tokens and token budgets (generate.py), or what an editor should see of the answer
(postprocess.py).

One rule for several stop strings: the one that is complete first wins, and of two that are complete with the
same character the longer. So a stream can stop at that very character. The rejected alternative, the earliest
start, would have to go on generating after "bc" to see whether "abc" becomes a longer stop string "abcd".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# A new top-level statement ends the body that was asked for; the five of the Codex paper (arXiv 2107.03374).
DEFAULT_TRUNCATION = (r"^class\b", r"^def\b", r"^#", r"^if\b", r"^print\b")


def _checked(stops: Iterable[str]) -> tuple[str, ...]:
    # A single string is one stop string, not its letters.
    stops = (stops,) if isinstance(stops, str) else tuple(stops)
    if "" in stops:
        raise ValueError(
            "stop strings must not be empty: one would stop before the first character; leave it out"
        )
    return stops


def _first_complete(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Return the start of the stop string that is complete first in text, and the string."""
    found = ((at + len(stop), at, stop) for stop in stops if (at := text.find(stop)) >= 0)
    first = min(found, default=None)
    return None if first is None else (first[1], first[2])


def truncate_at(text: str, stops: Iterable[str]) -> tuple[str, str | None]:
    """Return text up to the stop string that is complete first, and that string (None without one).

    >>> truncate_at("return x\\n\\ndef g", ["\\ndef", "\\n\\n"])
    ('return x', '\\n\\n')
    >>> truncate_at("return x", ["\\n\\n"])
    ('return x', None)
    """
    first = _first_complete(text, _checked(stops))
    return (text, None) if first is None else (text[: first[0]], first[1])


class StopMatcher:
    """Cut streamed text at stop strings, giving out only what cannot be part of one.

    Fed in any pieces, what it gives out is truncate_at of the whole. Raises ValueError for an empty stop
    string.

    >>> matcher = StopMatcher(["xy"])
    >>> [matcher.feed(piece) for piece in ("ax", "x", "yz")]
    ['a', 'x', '']
    >>> matcher.matched, matcher.finish()
    ('xy', '')
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = _checked(stops)
        self._longest = max(map(len, self._stops), default=1)
        self._held = ""  # the end of the text so far that may be the start of a stop string
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        """Return whether a stop string has been met; all text after it is dropped."""
        return self.matched is not None

    def feed(self, text: str) -> str:
        """Return the text that has become certain not to belong to a stop string, maybe empty."""
        if self.stopped:
            return ""
        text = self._held + text
        first = _first_complete(text, self._stops)
        if first is not None:
            self._held = ""
            self.matched = first[1]
            return text[: first[0]]
        certain = max(0, len(text) - self._longest + 1)
        while certain < len(text) and not any(stop.startswith(text[certain:]) for stop in self._stops):
            certain += 1  # a character once: what was held begins a stop string
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """Return what was held back: the stream is over, so it starts no stop string."""
        held, self._held = self._held, ""
        return held


def truncate_completion(text: str, patterns: Iterable[str] = DEFAULT_TRUNCATION) -> str:
    """Cut a completion where the first of the patterns (regular expressions, ^ at each line) matches.

    The start of text counts as the start of a line: the prompt is taken to end in a newline. Raises
    ValueError for a pattern that is no regular expression.

    >>> truncate_completion("    return x\\n\\ndef g():\\n    pass")
    '    return x\\n\\n'
    """
    cut = len(text)
    for pattern in patterns:
        try:
            found = re.compile(pattern, re.MULTILINE).search(text)
        except re.error as e:
            raise ValueError(f"truncation pattern {pattern!r} is no regular expression: {e}") from e
        if found:
            cut = min(cut, found.start())
    return text[:cut]
