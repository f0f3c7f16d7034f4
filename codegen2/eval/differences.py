"""Paired differences of two runs: how much better b is than a, problem by problem.

How hard a problem is cancels, so two runs can be told apart though their intervals overlap. Not here: files, tables and
pages (compare.py, report/page.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..problems.statistics import Interval, paired_difference
from .passk import pass_at_k
from .report.tables import by_task, coverage, split_name, unit_of, write_number
from .results import Results, Sample

_NAMED = 5  # missing problems named in a notice
Value = Callable[[list[Sample]], float | None]  # of one problem's samples


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
    differences = [
        made
        for name, value, weight in _measures(a, b)
        if (made := _difference(name, value, weight, [(of_a[t], of_b[t]) for t in both])) is not None
    ]
    told = {
        f"{part}.{key}": (x.get(key), y.get(key))
        for part in ("settings", "sandbox")
        for x, y in [(getattr(a.results, part) or {}, getattr(b.results, part) or {})]
        for key in [*x, *(k for k in y if k not in x)]
        if x.get(key) != y.get(key)
    }
    only_a, only_b = [t for t in of_a if t not in of_b], [t for t in of_b if t not in of_a]
    return Comparison(a, b, len(both), only_a, only_b, told, differences)


def _difference(
    name: str, value: Value, weight: Value | None, pairs: list[tuple[list[Sample], list[Sample]]]
) -> Difference | None:
    rows = []
    for x, y in pairs:
        first, second = value(x), value(y)
        if first is not None and second is not None:
            w = 1.0 if weight is None else (weight(x) or 1.0)
            rows.append((first, second, w, x[0].group or x[0].task_id))
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


def _mean(field: Callable[[Sample], float | bool | None]) -> Value:
    def value(samples: list[Sample]) -> float | None:
        found = [x for s in samples if (x := field(s)) is not None]
        return sum(map(float, found)) / len(found) if len(found) == len(samples) else None

    return value


def _passing(variant: str, k: int) -> Value:
    def value(samples: list[Sample]) -> float | None:
        flags = [getattr(s, f"passed_{variant}") for s in samples]
        if None in flags or len(flags) < k:
            return None
        return pass_at_k(len(flags), sum(flags), k)

    return value


def _measures(a: Run, b: Run) -> list[tuple[str, Value, Value | None]]:
    """Return (name, value of a problem's samples, its weight) of each score that both runs have."""
    if a.results.kind == "bpb":
        return _bits(a, b)
    found: list[tuple[str, Value, Value | None]] = []
    for name in a.results.scores:
        base, variant = split_name(name)
        if name not in b.results.scores or not variant:
            continue
        if base.startswith("pass@"):
            found.append((name, _passing(variant, int(base.removeprefix("pass@"))), None))
        elif base in ("exact_match", "edit_similarity"):
            field = f"{base.partition('_')[0]}_{variant}"
            found.append((name, _mean(lambda s, field=field: getattr(s, field)), None))  # type: ignore[misc]
        else:
            key = f"{base}_{variant}"
            found.append((name, _mean(lambda s, key=key: s.extra.get(key)), None))  # type: ignore[misc]
    found.append(("latency_s mean", _mean(lambda s: s.latency_s), None))
    found.append(("tokens mean", _mean(lambda s: s.tokens), None))
    return found


def _bits(a: Run, b: Run) -> list[tuple[str, Value, Value | None]]:
    def bits(language: str | None) -> Value:
        return lambda of: of[0].extra["nats"] / math.log(2) if language in (None, of[0].category) else None

    def weight(of: list[Sample]) -> float | None:
        return float(of[0].extra["bytes"])

    names = [n.removeprefix("bits_per_byte ") for n in a.results.scores if n in b.results.scores]
    return [(f"bits_per_byte {n}", bits(None if n == "all" else n), weight) for n in names]


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
    low, high = difference.difference.low, difference.difference.high
    if low is None or high is None:
        return "no interval"
    unit = unit_of(difference.name)
    return f"{write_difference(low, unit)} to {write_difference(high, unit)}"
