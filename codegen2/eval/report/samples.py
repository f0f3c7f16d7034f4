"""What a run's page shows of its samples: figures, breakdowns, the data of the sample browser, the list of files.

Not here: the page (page.py), the drawings (plots.py), the browser's script (templates/report.js).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ...problems.sets import Problem
from ...problems.statistics import Interval
from ..measures import pass_curve, score
from ..results import Results, Sample
from .plots import curve, histogram, nice_top
from .tables import label_of, verdict_kinds, write_end

MOST_SAMPLES = 6_000  # of a page; the result file has all
_MOST_CHARS = 20_000  # of one text
_MOST_FILES = 500
_FIELDS = (
    "task_id", "sample", "raw", "shown", "finish_reason", "tokens", "latency_s", "passed_raw", "result_raw",
    "passed_shown", "result_shown", "exact_raw", "exact_shown", "edit_raw", "edit_shown", "category",
)  # fmt: skip
MarkRow = tuple[str, str, Interval]  # text, class in report.css, what is drawn


def top_of(rows: Sequence[MarkRow]) -> float:
    """Return the end of an axis on which all intervals lie."""
    return nice_top(max(i.high or i.value for *_, i in rows))


def figures(results: Results) -> list[tuple[str, list[str], Markup]]:
    """Return (heading, forms of the answer that are drawn, drawing) of each figure."""
    samples, found = results.samples, []
    curves = [(v, points) for v in ("raw", "shown") if len(points := pass_curve(samples, v)) > 1]
    if curves:
        words = "; ".join(
            f"{v}: {100 * p[0][1].value:.1f} % to {100 * p[-1][1].value:.1f} %" for v, p in curves
        )
        drawn = curve(curves, f"pass@k; {words}")
        found.append((f"pass@k, k from 1 to {curves[0][1][-1][0]}", [v for v, _ in curves], drawn))
    edits = [
        (v, v, [x for s in samples if (x := getattr(s, f"edit_{v}")) is not None]) for v in ("raw", "shown")
    ]
    if edits := [e for e in edits if e[2]]:
        edges = [i / 10 for i in range(10)] + [1.0, 1.0001]
        drawn = histogram(edits, edges, ["0", "0.5", "1, equal"], "Samples by edit similarity")
        found.append(("Edit similarity to the expected text, samples", [e[0] for e in edits], drawn))
    times = [s.latency_s for s in samples if s.latency_s is not None]
    if len(times) > 1 and results.kind != "bpb":
        top = nice_top(sorted(times)[int(0.99 * (len(times) - 1))])
        ends = [write_end(top * i / 2, "s") for i in range(3)]
        edges = [top * i / 16 for i in range(17)]
        drawn = histogram([("samples", "model", times)], edges, ends, "Samples by latency")
        found.append(("Latency, samples (the last bar holds all above)", [], drawn))
    return found


def breakdowns(
    samples: Sequence[Sample], texts: Mapping[str, Problem]
) -> list[tuple[str, list[MarkRow], float]]:
    """Return (heading, rows, end of the axis): a score by category, and by the length of the hole."""
    found = []
    for heading, name_of in (("By category", _category), ("By lines of the hole", _size)):
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if (name := name_of(sample, texts)) is not None:
                groups[name].append(sample)
        if len(groups) > 1 and (made := _breakdown(heading, groups)):
            found.append(made)
    return found


def _category(sample: Sample, texts: Mapping[str, Problem]) -> str | None:
    return sample.category


def _size(sample: Sample, texts: Mapping[str, Problem]) -> str | None:
    problem = texts.get(sample.task_id)
    hole = sample.expected if problem is None or problem.suffix is None else problem.canonical_solution
    if hole is None:
        return None
    n = len(hole.rstrip("\n").split("\n"))
    return next(
        (f"{a}" if a == b else f"{a} to {b}" for a, b in ((1, 1), (2, 2), (3, 4), (5, 8)) if a <= n <= b),
        "9 or more",
    )


def _breakdown(heading: str, groups: Mapping[str, list[Sample]]) -> tuple[str, list[MarkRow], float] | None:
    for name in ("pass@1 shown", "pass@1 raw", "exact_match shown", "exact_match raw"):
        scored = {group: i for group, of in sorted(groups.items()) if (i := score(of, name))}
        if scored:
            style = name.rpartition(" ")[2]
            rows = [(f"{group} (n = {i.n:,})", style, i) for group, i in scored.items()]
            return f"{heading}: {label_of(name)}", rows, min(1.0, top_of(rows))
    return None


def verdicts(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Count what came of the programs, of the shown answers where these were judged; None where all came the same."""
    for form in ("shown", "raw"):
        kinds = verdict_kinds(samples, form)
        if len(kinds) > 1:
            total, counts = sum(kinds.values()), list(kinds.items())[:9]
            if rest := total - sum(n for _, n in counts):
                counts.append(("others", rest))
            return {"form": form, "counts": counts, "total": total, "most": max(n for _, n in counts)}
    return None


def cut(text: str | None, most: int = _MOST_CHARS) -> str | None:
    """Return a text of which a page shows so many characters at most."""
    if text is None or len(text) <= most:
        return text
    return f"{text[:most]}\n[{len(text) - most:,} more characters are in the result file]"


def _sample_data(results: Results, texts: Mapping[str, Problem]) -> dict[str, Any]:
    """Return the browser's data: whole programs once, and of each sample where in its program the hole is."""
    place: dict[str, int] = {}
    rows = []
    for sample in results.samples[:MOST_SAMPLES]:
        problem = texts.get(sample.task_id)
        prompt = sample.prompt if problem is None else problem.prompt
        middle = sample.expected if problem is None else problem.canonical_solution
        suffix = sample.suffix if problem is None else problem.suffix
        where: list[int | None] = [None, None, None]
        if prompt is not None and middle is not None:
            at = place.setdefault(prompt + middle + (suffix or ""), len(place))
            # In UTF-16 units, as the browser's script counts.
            start = len(prompt.encode("utf-16-le", "surrogatepass")) // 2
            where = [at, start, start + len(middle.encode("utf-16-le", "surrogatepass")) // 2]
        values = [getattr(sample, name) for name in _FIELDS]
        values[2], values[3] = cut(values[2]), cut(values[3])
        for i, value in enumerate(values):
            if isinstance(value, float):
                values[i] = round(value, 4)
        rows.append([*values, *where])
    return {
        "fields": [*_FIELDS, "program", "start", "end"],
        "rows": rows,
        "programs": list(place),
        "several": len({row[0] for row in rows}) < len(rows),
    }


def browser(results: Results, texts: Mapping[str, Problem]) -> dict[str, Any] | None:
    """Return what the sample browser shows: its selects (id, label, options), its data; None without samples."""
    if not results.samples or results.kind == "bpb":
        return None
    judged = any(s.passed_raw is not None or s.passed_shown is not None for s in results.samples)
    good, bad = ("passed", "failed") if judged else ("exact match", "no exact match")
    verdicts = [("all", "all"), ("good", good), ("bad", bad), ("near", f"{bad}, but similar")]
    verdicts += [("differ", "raw and shown differ")] if judged else []
    selects = [("verdict", "Show", [*verdicts, ("length", "stopped by length")])]
    categories = sorted({s.category for s in results.samples if s.category is not None})
    if len(categories) > 1:
        selects.append(("category", "Category", [("", "all"), *((c, c) for c in categories)]))
    orders = [("", "as asked"), ("edit", "least similar first"), ("latency", "slowest first")]
    selects.append(("order", "Order", orders))
    cut = len(results.samples) - MOST_SAMPLES
    return {"selects": selects, "data": _sample_data(results, texts), "cut": cut, "most": MOST_SAMPLES}


def files(results: Results) -> dict[str, Any] | None:
    """Return the files of bits per byte, the hardest first, and how many there are."""
    if results.kind != "bpb":
        return None
    found = [(s.extra["nats"] / math.log(2) / s.extra["bytes"], s) for s in results.samples]
    return {"hardest": sorted(found, key=lambda x: -x[0])[:_MOST_FILES], "n": len(found)}
