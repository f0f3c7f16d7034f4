"""KVSlots: what has been read, one row of keys and values a slot, kept between requests within a memory budget.

Not here: whose turn it is (scheduler.py). A slot belongs to nobody while it is idle: a new prompt takes the one that
shares the most tokens with it, or else an empty one, or else the one least recently used. So an editor that types on
finds what was read for it, and n answers to one prompt read it once. Sharing saves reading and changes nothing else;
but how much was saved tells what others have asked, so users share nothing.

    slot 0   a b c d e f      idle
    slot 1   a b x y          busy
    prompt   a b c g          takes slot 0, cut back to a b c; were it busy, an empty slot would get a copy of a b c
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..engine.protocol import Engine
from ..text.overlap import agree

_MOST_SLOTS = 64
_WORTH_COPYING = 16  # tokens; fewer are read again sooner than they are copied


@dataclass
class Slot:
    """One row of the cache: the tokens in it, for which user, and how many of the first were read as a prompt."""

    number: int
    tokens: list[int] = field(default_factory=list)
    n_prompt: int = 0
    user: str = ""
    busy: bool = False
    used: int = 0


class KVSlots:
    """All slots of one engine, as many as the budget holds, one at least."""

    def __init__(self, engine: Engine, budget_bytes: int) -> None:
        n_ctx = engine.config.n_ctx
        n = max(1, min(_MOST_SLOTS, budget_bytes // (engine.bytes_per_token * n_ctx)))
        self._engine, self._one_arithmetic = engine, engine.one_arithmetic
        self.cache = engine.new_cache(n, n_ctx)
        self.slots = [Slot(i) for i in range(n)]
        self._clock = 0

    def idle(self) -> list[Slot]:
        """Return the slots that nobody uses."""
        return [s for s in self.slots if not s.busy]

    def take(self, prompt: Sequence[int], user: str = "") -> Slot | None:
        """Return a slot with the longest beginning of a prompt that this user had read, None while all are busy.

        At least one token of the prompt is left to read, as no logits are kept.
        """
        idle = self.idle()
        if not idle:
            return None
        known = list(prompt[:-1])
        shares = {s.number: self._shared(s, known) if s.user == user else 0 for s in self.slots}
        slot = max(idle, key=lambda s: (shares[s.number], s.used))
        if 2 * shares[slot.number] < len(slot.tokens) or not shares[slot.number]:
            # Most of what it holds is another text, which may come back.
            slot = min(idle, key=lambda s: (len(s.tokens) > 0, s.used))
        source = max(self.slots, key=lambda s: shares[s.number])
        n_kept = shares[slot.number]
        if shares[source.number] - n_kept >= _WORTH_COPYING:
            n_kept = shares[source.number]
            self._engine.copy_row(self.cache, source.number, slot.number, n_kept)
        slot.tokens, slot.n_prompt = list(prompt[:n_kept]), n_kept
        slot.user, slot.busy, slot.used = user, True, self._tick()
        return slot

    def release(self, slot: Slot) -> None:
        """End a request's use of a slot; what it holds stays."""
        slot.busy, slot.used = False, self._tick()

    def forget(self) -> None:
        """Drop what all slots hold: after a fault nobody knows what is in them."""
        for slot in self.slots:
            slot.tokens, slot.n_prompt, slot.busy = [], 0, False

    def _shared(self, slot: Slot, prompt: list[int]) -> int:
        """Count the first tokens of a prompt that a slot has as reading the prompt would have made them."""
        ours = slot.tokens if self._one_arithmetic else slot.tokens[: slot.n_prompt]
        return agree(ours, prompt)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock
