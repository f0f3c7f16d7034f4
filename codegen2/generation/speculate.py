"""Draft the next tokens from text that is there already, and decide how many are worth checking. Pure.

Not here: checking them (scheduler.py), which makes a wrong draft cost time and nothing else. Source: prompt lookup
decoding; code repeats itself, and a file's own names and lines are the best guess at what is written next.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..text.infill import is_control

_LONGEST = 6  # tokens that must match for the firmest draft
_SHORTEST = 2
MOST_DRAFT = 6  # drafted tokens at once: up to seven rows cost a memory-bound engine little more than one
_MOST_LOSS = 0.025
# How often a first drafted token was right on held-out Python, by matching length, as so many trials; runs learn on.
_PRIOR = {2: (3.0, 8.0), 3: (5.0, 8.0), 4: (5.5, 8.0), 5: (6.0, 8.0), 6: (6.5, 8.0)}


class PromptLookup:
    """Remember where every run of 2 to 6 tokens last stood, and draft what followed it then."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in range(_LONGEST + 1)]
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in a sequence that begins with what was taken in before, and goes on."""
        for end in range(len(self._tokens), len(tokens)):
            for n in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._after[n][tuple(tokens[end - n : end])] = end
            self._tokens.append(tokens[end])

    def draft(self, most: int) -> tuple[list[int], int]:
        """Return up to `most` tokens and the length of the match they rest on; ([], 0) where nothing matches.

        >>> PromptLookup([1, 2, 3, 4, 1, 2]).draft(3)
        ([3, 4, 1], 2)
        """
        end = len(self._tokens)
        for n in range(min(_LONGEST, end), _SHORTEST - 1, -1):
            at = self._after[n].get(tuple(self._tokens[end - n :]))
            if at is not None:
                found = self._tokens[at : at + most]
                stop = next((i for i, t in enumerate(found) if is_control(t)), len(found))
                return found[:stop], n
        return [], 0


class DraftPolicy:
    """Choose how many drafted tokens to check at once, from how often they were right and what checking cost so far."""

    def __init__(self) -> None:
        self._right = {n: r for n, (r, _) in _PRIOR.items()}
        self._tried = {n: t for n, (_, t) in _PRIOR.items()}
        self._seconds: dict[int, float] = {}  # by rows in a pass, a moving average

    def most(self, match: int, spare: float) -> int:
        """Return how many drafted tokens, 0..6, promise the most tokens a second after a match of this length.

        No more than `spare` passes can pay for, should all of them be wrong.
        """
        if not match:
            return 0
        chance = self._right[match] / self._tried[match]
        best, best_rate, tokens, power = 0, 1.0, 1.0, 1.0
        for k in range(1, MOST_DRAFT + 1):
            power *= chance
            tokens += power
            cost = self.cost(k + 1)
            if cost - 1 > spare:
                break
            rate = tokens / cost
            if rate > best_rate * 1.02:  # a draw is not worth the trouble
                best, best_rate = k, rate
        return best

    def cost(self, rows: int) -> float:
        """Return what a pass of so many rows costs, in passes of one row; by what is known of its neighbours."""
        one = self._seconds.get(1)
        if one is None:
            return 1.0 + 0.04 * (rows - 1)
        known = {r: s / one for r, s in self._seconds.items()}
        if rows in known:
            return max(known[rows], 1.0)
        nearest = min(known, key=lambda r: abs(r - rows))
        slope = (known[nearest] - 1) / (nearest - 1) if nearest > 1 else 0.04
        return max(1.0, known[nearest] + max(slope, 0.01) * (rows - nearest))

    def note_cost(self, rows: int, seconds: float) -> None:
        """Learn what a pass took; a first one is warmer or colder than the next, so it counts like any other."""
        before = self._seconds.get(rows)
        # The lower of two is nearer the truth on a machine that others use, too.
        self._seconds[rows] = seconds if before is None else 0.8 * before + 0.2 * min(seconds, 2 * before)

    def note_draft(self, match: int, right: int, checked: int) -> None:
        """Learn that the first `right` of `checked` tokens were right; those behind a wrong one do not count."""
        tried = min(right + 1, checked)
        self._right[match] += right
        self._tried[match] += tried
        if self._tried[match] > 64:  # forget slowly, files differ from place to place
            self._right[match] *= 0.5
            self._tried[match] *= 0.5


class Drafter:
    """Draft for one sequence at a time, and learn from what comes of it.

    An account of the sequence, in passes of one row, sees to it that drafting never makes an answer more than 2.5 %
    dearer: a short line has no time to win back what the first wrong drafts cost.
    """

    def __init__(self) -> None:
        self.policy = DraftPolicy()
        self._sequence: object = None
        self._lookup, self._spare = PromptLookup(), 0.0
        self._match = self._checked = 0

    def draft(self, sequence: object, tokens: Sequence[int], room: int) -> list[int]:
        """Return what may follow tokens, which are a sequence's so far, at most `room` tokens."""
        if self._sequence is not sequence:
            self._sequence, self._lookup, self._spare = sequence, PromptLookup(), 0.0
        self._lookup.extend(tokens)
        found, self._match = self._lookup.draft(MOST_DRAFT)
        found = found[: max(0, min(self.policy.most(self._match, self._spare), room))]
        self._checked = len(found)
        return found

    def note(self, sequence: object, right: int) -> None:
        """Take in that a sequence had a pass, in which so many drafted tokens were right; 0 where none were drafted."""
        if self._sequence is not sequence:
            return
        if self._checked:
            self.policy.note_draft(self._match, right, self._checked)
        self._spare += saved(
            1 + right, self.policy.cost(1 + self._checked)
        )  # passes without a draft, too, save up
        self._checked = 0


def saved(tokens: int, passes: float) -> float:
    """Return what may be lost on later drafts for what a pass brought, at what it cost in passes of one row.

    >>> round(saved(tokens=3, passes=1.2), 3)
    1.875
    """
    return tokens - passes + _MOST_LOSS * tokens
