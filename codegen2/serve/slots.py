"""Slots: what has been read, a row of keys and values each, kept between requests within a memory budget.

Not here: whose turn it is (worker.py). A slot belongs to nobody while it is idle: a new prompt takes the one that
shares the most tokens with it, or else one that is empty, or else the one least recently used. So an editor that types
on finds what it read, with or without a session's key, and n answers to one prompt read it once.

    slot 0   a b c d e f      idle
    slot 1   a b x y          busy
    prompt   a b c g          takes slot 0, cut back to a b c; were it busy, an empty slot would get a copy of a b c
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..generation.generate import Engine
from ..generation.session import Session

_MOST_SLOTS = 64
_WORTH_COPYING = 16  # tokens; fewer are read again in less time than it takes to think

Work = tuple[
    int, int, Sequence[int], int
]  # slot's number, where the ids go, ids, how many of the last want logits


class Rows(Protocol):
    """The keys and values of all slots."""

    batches: bool  # one pass for several slots

    def extend(self, work: Sequence[Work]) -> list[np.ndarray]:
        """Read each piece behind its slot's first tokens and return the logits after its last ids, (wanted, V)."""

    def copy(self, source: int, target: int, n_tokens: int) -> bool:
        """Copy a slot's first tokens to another; False when these rows cannot."""


class SharedRows:
    """All slots in one cache of the native engine, so that one pass reads for all of them."""

    batches = True

    def __init__(self, engine: Any, n_slots: int) -> None:
        self._engine = engine
        self._cache = engine.new_cache(n_slots, engine.config.n_ctx)

    def extend(self, work: Sequence[Work]) -> list[np.ndarray]:
        """Do all in one pass."""
        found: list[np.ndarray] = self._engine.extend_rows(work, self._cache)
        return found

    def copy(self, source: int, target: int, n_tokens: int) -> bool:
        """Copy within the cache."""
        self._engine.copy_row(self._cache, source, target, n_tokens)
        return True


class SeparateRows:
    """A cache a slot, for engines without extend_rows; pieces are done one after the other."""

    batches = False

    def __init__(self, engine: Engine, n_slots: int) -> None:
        self._engine = engine
        self._caches: list[Any] = [None] * n_slots

    def extend(self, work: Sequence[Work]) -> list[np.ndarray]:
        """Do one piece after the other."""
        found = []
        for slot, start, ids, wanted in work:
            if self._caches[slot] is None:
                self._caches[slot] = self._engine.new_cache(1, self._engine.config.n_ctx)
            cache = self._caches[slot]
            cache.truncate(start)
            array = np.array([ids], dtype=np.int64)
            if wanted > 1:
                found.append(self._engine.extend(array, cache)[0][len(ids) - wanted :])
            else:
                found.append(self._engine.prefill(array, cache)[:wanted])
        return found

    def copy(self, source: int, target: int, n_tokens: int) -> bool:
        """Engines copy whole caches only."""
        return False


@dataclass
class Slot:
    """One row: the tokens in it, whether a request works on it, when it was last used, and its anchor."""

    number: int
    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    used: int = 0
    session: Session | None = None


def bytes_per_token(engine: Engine) -> int:
    """Return the size of a token's keys and values; 16 bits each, and on the reference engine maybe 32."""
    config = engine.config
    size = (
        2 if hasattr(engine, "extend_rows") else int(getattr(getattr(engine, "dtype", None), "itemsize", 4))
    )
    return 2 * config.n_layer * config.n_embd * size


class Slots:
    """All slots of one loaded model, as many as the budget holds, one at least."""

    def __init__(self, engine: Engine, budget_bytes: int) -> None:
        each = bytes_per_token(engine) * engine.config.n_ctx
        n = max(1, min(_MOST_SLOTS, budget_bytes // each))
        self.rows: Rows = SharedRows(engine, n) if hasattr(engine, "extend_rows") else SeparateRows(engine, n)
        self.slots = [Slot(i) for i in range(n)]
        self._clock = 0

    def idle(self) -> list[Slot]:
        """Return the slots that nobody works on."""
        return [s for s in self.slots if not s.busy]

    def continued(self, prefix: str, suffix: str) -> Slot | None:
        """Return the idle slot, last used first, whose anchor this hole continues."""
        found = [s for s in self.idle() if s.session is not None and s.session.continues(prefix, suffix)]
        return max(found, key=lambda s: s.used, default=None)

    def take(self, prompt: Sequence[int]) -> tuple[Slot, int] | None:
        """Return the slot for a prompt, cut back to what they share, and how many tokens that is; None: all are busy.

        At least one token is left to read, as no logits are kept.
        """
        idle = self.idle()
        if not idle:
            return None
        shares = {s.number: shared(s.tokens, prompt[:-1]) for s in self.slots}
        slot = max(idle, key=lambda s: (shares[s.number], s.used))
        got = shares[slot.number]
        if (
            2 * got < len(slot.tokens) or not got
        ):  # most of what it holds is another file: that file may come back
            source, slot = slot, min(idle, key=lambda s: (len(s.tokens) > 0, s.used))
            got = shares[slot.number]
            best = max(self.slots, key=lambda s: shares[s.number])
            source = best if shares[best.number] > shares[source.number] else source
        else:
            source = max(self.slots, key=lambda s: shares[s.number])
        most = shares[source.number]
        if (
            source is not slot
            and most - got >= _WORTH_COPYING
            and self.rows.copy(source.number, slot.number, most)
        ):
            got = most
        slot.tokens = list(prompt[:got])
        slot.busy, slot.used = True, self._tick()
        return slot, got

    def release(self, slot: Slot) -> None:
        """End a request's work; what the slot holds stays."""
        slot.busy, slot.used = False, self._tick()

    def forget(self) -> None:
        """Drop what all slots hold: after a fault nobody knows what is in them."""
        for slot in self.slots:
            slot.tokens, slot.busy, slot.session = [], False, None

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def shared(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Count the tokens that two lists share at their start.

    >>> shared([1, 2, 3], [1, 2, 4]), shared([1, 2], [1, 2, 3])
    (2, 2)
    """
    most = min(len(ours), len(theirs))
    if ours[:most] == theirs[:most]:
        return most
    return next(i for i in range(most) if ours[i] != theirs[i])
