"""A small run's results, for the tests of files, reports and comparisons."""

from __future__ import annotations

from codegen2.eval.measures import score
from codegen2.eval.results import Results, Sample, SetInfo
from codegen2.problems.sets import Problem
from codegen2.problems.statistics import Interval, bootstrap, median

HOSTILE = "</script><script>alert(1)</script><!-- ]]> & \" ' \u2028 \ud800 <b>é\U0001f600"
PROBLEMS = [
    Problem(
        f"SingleLineInfilling/t/{i // 2}/L{i}", "f", "def f(x):\n", f"    return x + {i}\n", "", "\nf(1)\n"
    )
    for i in range(8)
]


def make_samples(n: int = 1) -> list[Sample]:
    """Return n samples a problem, of which every third is right and one holds hostile text."""
    found = []
    for i, p in enumerate(PROBLEMS):
        for k in range(n):
            good = (i + k) % 3 == 0
            raw = p.canonical_solution if good else f"    return {HOSTILE}\n" if i == 1 else "    pass\n"
            found.append(
                Sample(
                    p.task_id, k, raw, raw.rstrip("\n"), "stop" if good else "length", 5 + i, 0.1 * (i + 1),
                    good, "passed" if good else "failed: NameError: x", good, "passed" if good else "timed out",
                    good, good, 1.0 if good else 0.4, 1.0 if good else 0.5, group=f"t/{i // 2}",
                )
            )  # fmt: skip
    return found


def make_results(n: int = 1, name: str = "box", problems: int = 8) -> Results:
    """Return a run of the first so many of the eight problems."""
    samples = [s for s in make_samples(n) if s.task_id in {p.task_id for p in PROBLEMS[:problems]}]
    scores: dict[str, Interval | None] = {
        "pass@1 raw": score(samples, "pass@1 raw"),
        "pass@1 shown": score(samples, "pass@1 shown"),
        "exact_match raw": score(samples, "exact_match raw"),
        "edit_similarity shown": score(samples, "edit_similarity shown"),
        "latency_s median": median([s.latency_s or 0 for s in samples]),
        "tokens mean": bootstrap([float(s.tokens or 0) for s in samples]),
    }
    return Results(
        "problems",
        {"name": name, "parameters": 20},
        {"temperature": 0.2, "stop": ["<&>"], "nested": {"a": None}},
        {"codegen2": "0"},
        {"cores": 2},
        "2026-11-24T12:00:00+00:00",
        12.5,
        SetInfo("single-line", "ab" * 32, 8, problems, problems < 8),
        {"mode": "strong", "holds": ["no network"]},
        {k: v for k, v in scores.items() if v is not None},
        {"empty middle": {"pass@1 raw": bootstrap([0.0] * 8, share=True)}},
        samples,
    )
