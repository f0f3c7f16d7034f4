"""Session: what a model has read, kept between requests, so that only what changed is read again.

Not here: the token loop that uses it (generate.py), texts (api.py). A session serves one request at a time. Letters: S
cached tokens.

    cached   a b c d e f g            the last prompt and what was generated
    prompt   a b c x y                shares 3 tokens: the cache is cut back to a b c, and x y are read
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..config import ModelConfig
from ..text.context import Dropped

MOST_TYPED = 256  # tokens behind an anchor; then the session looks for a new one

Fit = Callable[[str, str], tuple[str, str, Dropped]]


class Engine(Protocol):
    """Name what a session needs of an engine (generate.Engine)."""

    config: ModelConfig

    def new_cache(self, n_rows: int, capacity: int) -> Any: ...


@dataclass(frozen=True)
class Anchor:
    """Where a hole begins while somebody types in it: whole texts, and what of them fits the context."""

    prefix: str
    suffix: str
    before: str
    after: str
    dropped: Dropped


class Session:
    """Keep one row's cache and the tokens in it; Model.session gives one.

    reused, evaluated: tokens of the last request's prompt that were cached, and that had to be read.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cache: Any = None
        self._tokens: list[int] = []
        self._anchor: Anchor | None = None
        self._busy = False
        self.reused = 0
        self.evaluated = 0

    def open(self, prompt: Sequence[int]) -> tuple[Any, int]:
        """Return the cache, cut back to what it shares with the prompt, and how many tokens that is.

        At least one token of the prompt is left to be read, as its logits are not kept. Raises ValueError when a
        request of this session is still going on.
        """
        if self._busy:
            raise ValueError(
                "session: another request is still going on; end it first, or open a second session"
            )
        if self._cache is None:
            self._cache = self._engine.new_cache(1, self._engine.config.n_ctx)
        shared = 0
        for ours, theirs in zip(self._tokens, prompt[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        self._cache.truncate(shared)
        self._tokens = list(prompt[:shared])
        self._busy = True
        self.reused, self.evaluated = shared, len(prompt) - shared
        return self._cache, shared

    def close(self, tokens: Sequence[int]) -> None:
        """End a request: `tokens` are what the cache now holds, the first of them at least."""
        self._cache.truncate(min(self._cache.length, len(tokens)))
        self._tokens = list(tokens[: self._cache.length])
        self._busy = False

    def continues(self, prefix: str, suffix: str) -> bool:
        """Return whether a hole here is the last request's, typed on: its anchor may stay."""
        old = self._anchor
        return old is not None and suffix == old.suffix and prefix.startswith(old.prefix)

    def anchored(
        self,
        prefix: str,
        suffix: str,
        count: Callable[[str], int],
        fit: Fit,
        lines_above: int = 0,
        most: int = MOST_TYPED,
    ) -> tuple[Anchor, str]:
        """Return the anchor of a hole and the text typed behind it: prefix is the anchor's prefix and that text.

        The last request's anchor stays while it can: the same suffix, and a prefix that only grew behind it, or shrank
        to it. Else the hole begins so many lines above the cursor's, 0 where that line begins. most: tokens between the
        anchor and the cursor.
        """
        old = self._anchor
        if old is not None and self.continues(prefix, suffix):
            typed = prefix[len(old.prefix) :]
            if count(typed) <= most:
                return old, typed
        cut = _line_start(prefix, lines_above)
        while lines_above and count(prefix[cut:]) > most:
            lines_above -= 1
            cut = _line_start(prefix, lines_above)
        while count(prefix[cut:]) > most:  # one endless line: its nearer half
            cut += (len(prefix) - cut + 1) // 2
        before, after, dropped = fit(prefix[:cut], suffix)
        self._anchor = Anchor(prefix[:cut], suffix, before, after, dropped)
        return self._anchor, prefix[cut:]


def _line_start(text: str, lines_above: int) -> int:
    """Return where the line begins that is so many lines above the last one.

    >>> _line_start("a\\nbb\\nccc", 0), _line_start("a\\nbb\\nccc", 1), _line_start("a\\nbb", 9)
    (5, 2, 0)
    """
    at = text.rfind("\n") + 1
    for _ in range(lines_above):
        if not at:
            break
        at = text.rfind("\n", 0, at - 1) + 1
    return at
