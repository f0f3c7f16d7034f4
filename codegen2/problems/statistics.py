"""Numbers that judge a model: matches, proportions, intervals.

Not here: running the model; bits per byte (text/windows.py).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

RESAMPLES = 10_000
_Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of Wilson's score of a share, which stays right near 0 and 1.

    >>> [round(x, 4) for x in wilson(10, 1000)]
    [0.0054, 0.0183]
    """
    z, p = _Z, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def exact_match(text: str, expected: str) -> bool:
    """Return whether two texts are equal, white space at their ends aside; indentation counts.

    The ends do not count because an answer cut for an editor has no newline there.

    >>> exact_match("    return 1", "    return 1\\n"), exact_match("return 1", "    return 1")
    (True, False)
    """
    return text.rstrip() == expected.rstrip()


def edit_similarity(text: str, expected: str) -> float:
    """Return 1 - Levenshtein distance / length of the longer text, in characters, white space at their ends aside.

    1.0 exactly where exact_match holds.

    >>> edit_similarity("return a\\n", "return ab"), edit_similarity("", "\\n")
    (0.8888888888888888, 1.0)
    """
    a, b = text.rstrip(), expected.rstrip()
    return 1 - levenshtein(a, b) / max(len(a), len(b), 1)


def levenshtein(a: str, b: str) -> int:
    """Count the fewest insertions, deletions and replacements of a character that turn a into b.

    >>> levenshtein("kitten", "sitting")
    3
    """
    # A column of the table as two integers of len(a) bits: where the next cell is one more, where one less (Myers,
    # J. ACM 46, 1999, in Hyyro's form). Python's integers have any width, so this takes len(b) steps of a few
    # word-wise operations: 0.1 ms for a usual middle, which leaves no reason for a compiled dependency.
    if not a or not b:
        return len(a) + len(b)
    where: dict[str, int] = {}
    for i, char in enumerate(a):
        where[char] = where.get(char, 0) | 1 << i
    full, top = (1 << len(a)) - 1, 1 << len(a) - 1
    more, less, distance = full, 0, len(a)
    for char in b:
        same = where.get(char, 0)
        diagonal = (((same & more) + more) ^ more) | same | less
        right_more = less | ~(diagonal | more) & full
        right_less = more & diagonal
        distance += bool(right_more & top) - bool(right_less & top)
        right_more = right_more << 1 | 1
        more = (right_less << 1 | ~(diagonal | right_more)) & full
        less = right_more & diagonal & full
    return distance


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; low and high are None where nothing is known about its spread.

    n: what was averaged (problems, files).
    """

    value: float
    low: float | None
    high: float | None
    n: int


def bootstrap(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    weights: Sequence[float] | None = None,
    share: bool = False,
    seed: int = 0,
) -> Interval:
    """Return the mean of one value a problem with the 95 % interval of 10,000 resamplings of the problems.

    groups: what each value belongs to; then whole groups are drawn, since holes of one function stand and fall
    together. weights: give sum(values) / sum(weights) instead, as nats by bytes. share: values lie within 0 and 1;
    where all are 0, or all 1, resampling would claim certainty, and Wilson's interval over the groups is given.
    The same values give the same interval everywhere. Of one group there is no interval. Raises ValueError for none,
    for lengths that differ, and for what is not finite.

    >>> bootstrap([0.0, 1.0, 1.0, 1.0])
    Interval(value=0.75, low=0.25, high=1.0, n=4)
    >>> round(bootstrap([1.0] * 20, share=True).low, 4)
    0.8389
    """
    import numpy as np

    top = np.asarray(values, np.float64)
    below = np.ones(len(top)) if weights is None else np.asarray(weights, np.float64)
    if len(top) == 0:
        raise ValueError("an interval needs at least one value, got none")
    if top.shape != below.shape or (groups is not None and len(groups) != len(top)):
        raise ValueError(f"values, weights and groups must be equally many; there are {len(top)} values")
    if not (np.isfinite(top).all() and np.isfinite(below).all() and below.min() > 0):
        raise ValueError("values must be finite and weights positive")
    value = float(top.sum() / below.sum())
    if groups is not None:
        place = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        at = [place[group] for group in groups]
        top = np.bincount(at, top).astype(np.float64)
        below = np.bincount(at, below).astype(np.float64)
    n = len(top)
    if share and value in (0.0, 1.0):
        return Interval(value, *wilson(round(value) * n, n), len(values))
    if n == 1:
        return Interval(value, None, None, len(values))
    rng = np.random.RandomState(seed)  # its stream is frozen, unlike that of numpy's newer generators
    means = np.empty(RESAMPLES)
    even = bool((below == below[0]).all())
    step = max(1, 2_000_000 // n)  # 16 MB of indices at a time
    for start in range(0, RESAMPLES, step):
        drawn = rng.randint(0, n, (min(step, RESAMPLES - start), n))
        sums = n * below[0] if even else below[drawn].sum(1)
        means[start : start + step] = top[drawn].sum(1) / sums
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(value, float(low), float(high), len(values))


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> Interval:
    """Return the mean of b - a with its interval; the i-th of both are of one problem, so its difficulty cancels.

    >>> paired_difference([0, 1, 0, 1], [1, 1, 1, 1]).value
    0.5
    """
    if len(a) != len(b):
        raise ValueError(f"a and b must be of the same problems; there are {len(a)} and {len(b)} values")
    return bootstrap([y - x for x, y in zip(a, b, strict=True)], groups, weights=weights)


def median(values: Sequence[float]) -> Interval:
    """Return the median with its 95 % interval, whose ends are values: those of ranks n/2 -+ 0.98 sqrt(n).

    >>> median([5.0, 1.0, 2.0, 4.0, 3.0])
    Interval(value=3.0, low=1.0, high=5.0, n=5)

    Raises ValueError for no values. Of fewer than three there is no interval.
    """
    if not values:
        raise ValueError("a median needs at least one value, got none")
    ordered = sorted(values)
    n = len(ordered)
    value = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    if n < 3:
        return Interval(value, None, None, n)
    half = _Z * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return Interval(value, ordered[low], ordered[high], n)
