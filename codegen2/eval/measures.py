"""What scores are made of: the value that each has of one problem's samples, and the mean of them with its interval.

Pure: neither torch nor an engine. Not here: what samples are made of (scores.py), intervals (problems/statistics.py).
pass@k: Chen et al., "Evaluating Large Language Models Trained on Code", 2021, section 2.1.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from ..problems.statistics import Interval, bootstrap
from .results import Sample

FORMS = ("raw", "shown")
Value = Callable[[list[Sample]], float | None]  # of one problem's samples; None where one of them lacks it
# A score's name without the form, and how its field is called; others are in Sample.extra, "parses" as "parses_raw".
_FIELDS = {"exact_match": "exact", "edit_similarity": "edit"}


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return 1 - C(n - c, k) / C(n, k): the chance that k of n samples, c of them right, hold a right one.

    >>> pass_at_k(4, 1, 2)
    0.5

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c must be from 0 to n = {n} samples, got {c}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, at least 1; there are {n}")
    if c == 0 or n - c < k:
        return float(c > 0)
    # C(n-c, k) / C(n, k) is the product of (1 - c/i), i = n-c+1..n: binomials of thousands overflow floats. In
    # logarithms, because 1 - product loses all digits where the product is near 1. The same quotient with c and k
    # exchanged is a product of k factors; the shorter one is taken.
    few, many = min(c, k), max(c, k)
    return -math.expm1(math.fsum(math.log1p(-many / i) for i in range(n - few + 1, n + 1)))


def by_task(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Return the samples of each problem, in their order."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.task_id].append(sample)
    return found


def count_kinds(results: Iterable[str]) -> dict[str, int]:
    """Count results by their text up to its first detail, the most frequent first.

    >>> count_kinds(["failed: KeyError: 'x'", "passed", "passed", "timed out: 11 s", "failed: KeyError: 'y'", "passed"])
    {'passed': 3, 'failed: KeyError': 2, 'timed out': 1}
    """
    counts: Counter[str] = Counter()
    for result in results:
        head, _, rest = result.partition(": ")
        word = rest.split(":")[0].split(" ")[0].strip()
        counts[f"{head}: {word}" if head == "failed" and word else head] += 1
    return dict(counts.most_common())


def split_name(name: str) -> tuple[str, str]:
    """Return what is scored and which form of the answer: split_name("pass@1 raw") == ("pass@1", "raw").

    The form is "" where there is none.
    """
    base, _, last = name.rpartition(" ")
    return (base, last) if base and last in FORMS else (name, "")


def unit_of(name: str) -> str:
    """Return what a score is measured in: "share", "s", "bits" or "" for a plain number.

    >>> unit_of("pass@1 raw"), unit_of("latency_s median"), unit_of("bits_per_byte rust"), unit_of("tokens mean")
    ('share', 's', 'bits', '')
    """
    word = name.split(" ")[0]
    if word == "bits_per_byte":
        return "bits"
    if word.endswith("_s"):
        return "s"
    return "" if word.startswith("tokens") else "share"


def value_of(name: str) -> Value:
    """Return what gives one problem's value: of "pass@10 raw", "parses shown", "tokens mean", "bits_per_byte c"."""
    base, form = split_name(name)
    if base.startswith("pass@"):
        k = int(base.removeprefix("pass@"))

        def passing(samples: list[Sample]) -> float | None:
            flags = [getattr(s, f"passed_{form}") for s in samples]
            return None if None in flags or len(flags) < k else pass_at_k(len(flags), sum(flags), k)

        return passing
    if unit_of(name) == "bits":
        language = name.partition(" ")[2]
        return lambda of: of[0].extra["nats"] / math.log(2) if language in ("all", of[0].category) else None

    def mean(samples: list[Sample]) -> float | None:
        found = [_field(s, base, form) for s in samples]
        return None if None in found else sum(map(float, found)) / len(found)

    return mean


def _field(sample: Sample, base: str, form: str) -> Any:
    if not form:  # of the answer as it was drawn
        return getattr(sample, base.partition(" ")[0])
    known = _FIELDS.get(base)
    return getattr(sample, f"{known}_{form}") if known else sample.extra.get(f"{base}_{form}")


def weight_of(name: str, samples: list[Sample]) -> float:
    """Return what a problem's value is divided by: bits by bytes, all else counts alike."""
    return float(samples[0].extra["bytes"]) if unit_of(name) == "bits" else 1.0


def group_of_problem(samples: list[Sample]) -> str:
    """Return what a problem stands and falls with."""
    return samples[0].group or samples[0].task_id


def score(samples: Iterable[Sample], name: str) -> Interval | None:
    """Return the mean over the problems that have this value, with its interval; None where none has it."""
    value = value_of(name)
    found = [(x, of) for of in by_task(samples).values() if (x := value(of)) is not None]
    if not found:
        return None
    weights = [weight_of(name, of) for _, of in found]
    groups = [group_of_problem(of) for _, of in found]
    return bootstrap([x for x, _ in found], groups, weights=weights, share=unit_of(name) == "share")


def pass_curve(samples: Iterable[Sample], form: str) -> list[tuple[int, Interval]]:
    """Return (k, pass@k) for up to twelve k, to the fewest samples that a problem has; [] unless all were judged."""
    tasks = by_task(samples)
    if any(getattr(s, f"passed_{form}") is None for of in tasks.values() for s in of):
        return []
    most = min(map(len, tasks.values()), default=0)
    ks = [k for k in range(1, most + 1) if k <= 5 or k in (8, 10, 20, 50, 100, 200) or k == most][-12:]
    every = [s for of in tasks.values() for s in of]
    return [(k, found) for k in ks if (found := score(every, f"pass@{k} {form}"))]
