"""Paired differences of two runs: how much better b is than a, problem by problem.

How hard a problem is cancels, so two runs can be told apart though their intervals overlap. Not here: files, tables and
pages (compare.py, report/page.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..problems.statistics import Interval, paired_difference
from .measures import by_task, group_of_problem, split_name, unit_of, value_of, weight_of
from .report.tables import coverage, write_interval, write_number
from .results import Results, Sample

_NAMED = 5  # missing problems named in a notice


@dataclass(frozen=True)
class Run:
    """A result file with the name it has in a comparison."""

    label: str
    file: str
    results: Results


@dataclass(frozen=True)
class Difference:
    """One score of two runs: difference is b - a; on `higher` problems b's is higher, on `lower` lower."""

    name: str
    a: float
    b: float
    difference: Interval
    higher: int
    lower: int

    @property
    def sure(self) -> bool:
        """Return whether the interval leaves out zero."""
        low, high = self.difference.low, self.difference.high
        return low is not None and high is not None and (low > 0 or high < 0)


@dataclass(frozen=True)
class Comparison:
    """What b has over a, on the problems that both have; the others are named."""

    a: Run
    b: Run
    problems: int
    only_a: list[str]
    only_b: list[str]
    settings: dict[str, tuple[Any, Any]]  # those that differ
    differences: list[Difference]


def compare(a: Run, b: Run) -> Comparison:
    """Compare two runs on the problems that both have.

    Raises ValueError when they are of different problem sets or kinds, or have no problem in common.
    """
    for key, x, y in (
        ("kinds", a.results.kind, b.results.kind),
        ("problem sets", a.results.problem_set.name, b.results.problem_set.name),
    ):
        if x != y:
            raise ValueError(
                f"{a.file} and {b.file} are of different {key}, {x!r} and {y!r}; compare like with like"
            )
    if a.results.kind != "bpb" and a.results.problem_set.sha256 != b.results.problem_set.sha256:
        raise ValueError(
            f"{a.file} and {b.file} are of problem sets that differ though both are called"
            f" {a.results.problem_set.name!r} (sha256 {a.results.problem_set.sha256[:12]}... and"
            f" {b.results.problem_set.sha256[:12]}...); run both on the same problems"
        )
    of_a, of_b = by_task(a.results.samples), by_task(b.results.samples)
    both = [task for task in of_a if task in of_b]
    if a.results.kind == "bpb":
        changed = [t for t in both if of_a[t][0].extra.get("bytes") != of_b[t][0].extra.get("bytes")]
        if changed:
            raise ValueError(
                f"{changed[0]} has another length in {b.file} than in {a.file}; score the same files"
            )
    if not both:
        raise ValueError(f"{a.file} and {b.file} have no problem in common")
    pairs = [(of_a[t], of_b[t]) for t in both]
    differences = [made for name in _names(a.results, b.results) if (made := _difference(name, pairs))]
    told = {
        f"{part}.{key}": (x.get(key), y.get(key))
        for part in ("settings", "sandbox")
        for x, y in [(getattr(a.results, part) or {}, getattr(b.results, part) or {})]
        for key in [*x, *(k for k in y if k not in x)]
        if x.get(key) != y.get(key)
    }
    only_a, only_b = [t for t in of_a if t not in of_b], [t for t in of_b if t not in of_a]
    return Comparison(a, b, len(both), only_a, only_b, told, differences)


def _names(a: Results, b: Results) -> list[str]:
    """Return the scores that both runs have."""
    both = [name for name in a.scores if name in b.scores]
    if a.kind == "bpb":
        return both
    return [name for name in both if split_name(name)[1]] + ["latency_s mean", "tokens mean"]


def _difference(name: str, pairs: list[tuple[list[Sample], list[Sample]]]) -> Difference | None:
    value = value_of(name)
    values = [(value(x), value(y), weight_of(name, x), group_of_problem(x)) for x, y in pairs]
    rows = [(x, y, weight, group) for x, y, weight, group in values if x is not None and y is not None]
    if not rows:
        return None
    xs, ys, weights, groups = map(list, zip(*rows, strict=True))
    total = math.fsum(weights)
    return Difference(
        name,
        math.fsum(xs) / total,
        math.fsum(ys) / total,
        paired_difference(xs, ys, groups, weights=weights),
        sum(y > x for x, y in zip(xs, ys, strict=True)),
        sum(y < x for x, y in zip(xs, ys, strict=True)),
    )


def notices(c: Comparison) -> list[str]:
    """Return what the two runs do not share."""
    found = []
    for missing, here, there in ((c.only_a, c.a, c.b), (c.only_b, c.b, c.a)):
        if missing:
            named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
            found.append(
                f"{len(missing)} problems of {here.file} are missing in {there.file} ({named}); left out on both sides"
            )
    for run in (c.a, c.b):
        if run.results.problem_set.partial:
            found.append(f"{run.file}: {coverage(run.results)}")
    if c.settings:
        told = ", ".join(f"{k} {x!r} / {y!r}" for k, (x, y) in list(c.settings.items())[:8])
        found.append(f"settings that differ: {told}")
    return found


def write_difference(value: float, unit: str) -> str:
    """Write a difference with its sign; shares in points of a hundred.

    >>> write_difference(0.0312, "share"), write_difference(-0.02, "s"), write_difference(0.0, "bits")
    ('+3.1', '-20 ms', '0.000')
    """
    text = f"{100 * value:.1f}" if unit == "share" else write_number(value, unit)
    if not any(c in "123456789" for c in text):
        return text.removeprefix("-")
    return text if text.startswith("-") else f"+{text}"


def between(difference: Difference) -> str:
    """Write the interval of a difference."""
    return write_interval(difference.difference, unit_of(difference.name), write_difference)
