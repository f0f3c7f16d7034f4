"""Where a text ends: stop strings over streamed text, and truncation patterns for evaluation. Pure.

Not here: stop tokens and token budgets (generation/sequence.py), what an editor should see (postprocess.py).

One rule for several stop strings: the one that is complete first wins, and of two that are complete with the
same character the longer. So a stream can stop at that very character. The rejected alternative, the earliest
start, would have to go on generating after "bc" to see whether "abc" becomes a longer stop string "abcd".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# A new top-level statement ends the body that was asked for; the five of the Codex paper (arXiv 2107.03374).
DEFAULT_TRUNCATION = (r"^class\b", r"^def\b", r"^#", r"^if\b", r"^print\b")


class StopMatcher:
    """Cut streamed text at stop strings, giving out only what cannot be part of one.

    However the text is cut into pieces, the same comes out. No stop string is empty (params.py).

    >>> matcher = StopMatcher(["xy"])
    >>> [matcher.feed(piece) for piece in ("ax", "x", "yz")]
    ['a', 'x', '']
    >>> matcher.matched, matcher.finish()
    ('xy', '')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=1)
        self._held = ""  # the end of the text so far that may be the start of a stop string
        self.matched: str | None = None  # the stop string that has been met; all text after it is dropped

    def feed(self, text: str) -> str:
        """Return the text that has become certain not to belong to a stop string, maybe empty."""
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, certain, self.matched = min(found)
            self._held = ""
            return text[:certain]
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
