"""What to keep of a text that is longer than the context: whole lines, nearest the cursor first. Pure.

Not here: the prompt's form (infill.py). The rule, in tokens: the budget is split between prefix and suffix, two
thirds to one third; what one side does not need goes to the other. A side keeps whole lines from the cursor outwards;
a prefix then begins at the next top-level line if that costs at most an eighth of it, so that the model is not
shown the tail of a function without its head. Only a single line that is itself too long is cut inside.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import accumulate

from .tokenizer import Tokenizer

_PREFIX_SHARE = 2 / 3
_ALIGN_SHARE = 1 / 8
# A token that are looked at; a token of code has about three, so that only blank text loses by it.
_MOST_CHARS = 16


@dataclass(frozen=True)
class Dropped:
    """Say how much of the input the model did not see, characters."""

    prefix_chars: int = 0
    suffix_chars: int = 0

    def __bool__(self) -> bool:
        return bool(self.prefix_chars or self.suffix_chars)


@dataclass(frozen=True)
class Side:
    """One side of the cursor as kept: its text and ids."""

    text: str
    ids: tuple[int, ...]


def keep(tokenizer: Tokenizer, text: str, budget: int, *, from_end: bool) -> Side:
    """Keep whole lines at one end of text, at most `budget` ids; at its end from a definition on where one is near."""
    reach = _MOST_CHARS * max(budget, 1)  # so that the cost does not grow with the file
    near = text[-reach:] if from_end else text[:reach]
    return _keep_near(tokenizer, near, budget, from_end, stump=len(near) < len(text))


@functools.lru_cache(maxsize=32)  # while somebody types in a line, all around it stays the same
def _keep_near(tokenizer: Tokenizer, near: str, budget: int, from_end: bool, stump: bool) -> Side:
    """Keep what fits of the text near the cursor; stump: its furthest line has only an end here."""
    if not stump and len(ids := tokenizer.encode(near)) <= budget:
        return Side(near, tuple(ids))
    lines = near.splitlines(keepends=True)[:: -1 if from_end else 1]  # from the cursor outwards
    if stump:
        lines = lines[:-1] or lines
    counts = _count(tokenizer, lines, budget)
    kept = sum(total <= budget for total in accumulate(counts))
    if not kept:
        return _fit_line(tokenizer, lines[0] if lines else near, budget, from_end=from_end)
    if from_end:
        kept = _from_definition(lines[:kept], counts)
    # Merges across line ends nearly always make a text shorter than its lines; if not, drop one more.
    while True:
        part = "".join(lines[:kept][:: -1 if from_end else 1])
        ids = tokenizer.encode(part)
        if len(ids) <= budget:
            return Side(part, tuple(ids))
        kept -= 1


def _count(tokenizer: Tokenizer, lines: list[str], budget: int) -> list[int]:
    """Count the ids of each line, as far as the first ones fill the budget: the others cannot be kept."""
    counts: list[int] = []
    while len(counts) < len(lines) and sum(counts) <= budget:
        some = max(8, budget // 8)
        counts += [len(ids) for ids in tokenizer.encode_batch(lines[len(counts) : len(counts) + some])]
    return counts


def _from_definition(lines: list[str], counts: list[int]) -> int:
    """Count the lines, from the cursor upwards, to keep: to a top-level line, if that is near the last one."""
    cost, most = 0, sum(counts[: len(lines)]) * _ALIGN_SHARE
    for kept in range(len(lines), 0, -1):
        first = lines[kept - 1][:1]
        if cost > most:
            break
        if first.strip() and first not in ")]}":
            return kept
        cost += counts[kept - 1]
    return len(lines)


def _fit_line(tokenizer: Tokenizer, line: str, budget: int, *, from_end: bool) -> Side:
    """Cut inside one line: the characters next to the cursor whose ids fit, never half a character."""
    ids = tokenizer.encode(line)
    raw = tokenizer.decode_bytes(ids[-budget:] if from_end else ids[:budget])
    part = raw.decode("utf-8", errors="ignore")  # line is valid UTF-8: only a cut character is ignored
    while (excess := len(ids := tokenizer.encode(part)) - budget) > 0:
        # Cut text may merge less well than it did inside the line.
        part = part[excess:] if from_end else part[:-excess]
    return Side(part, tuple(ids))


def fit(tokenizer: Tokenizer, prefix: str, suffix: str, budget: int) -> tuple[Side, Side]:
    """Cut prefix and suffix so that their ids together are at most `budget`.

    Raises ValueError when the budget is below 2 tokens.
    """
    if budget < 2:
        raise ValueError(f"context: {budget} tokens are left for the prompt; ask for fewer new tokens")
    before = keep(tokenizer, prefix, budget, from_end=True)
    after = keep(tokenizer, suffix, budget, from_end=False)
    if len(before.ids) + len(after.ids) > budget:
        share = int(budget * _PREFIX_SHARE)
        if len(after.ids) < budget - share:
            return keep(tokenizer, prefix, budget - len(after.ids), from_end=True), after
        if len(before.ids) >= share:
            before = keep(tokenizer, prefix, share, from_end=True)
        after = keep(tokenizer, suffix, budget - len(before.ids), from_end=False)
    return before, after
