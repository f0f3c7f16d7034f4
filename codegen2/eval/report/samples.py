"""The parts of a run's page that are made from its samples: charts, breakdowns, the sample browser, the list of files.

Not here: the page (page.py), the drawings (plots.py), the browser's script (report.js).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ...problems.sets import Problem
from ..results import Results, Sample
from .plots import curve, histogram, legend, mark_rows, nice_top
from .tables import pass_curve, share_of, verdict_kinds, write_end, write_number

MOST_SAMPLES = 6_000  # of a page; the result file has all
_MOST_CHARS = 20_000  # of one text
_MOST_FILES = 500
_FIELDS = (
    "task_id", "sample", "raw", "shown", "finish_reason", "tokens", "latency_s", "passed_raw", "result_raw",
    "passed_shown", "result_shown", "exact_raw", "exact_shown", "edit_raw", "edit_shown", "category",
)  # fmt: skip


def charts(results: Results, texts: Mapping[str, Problem]) -> str:
    samples = results.samples
    parts = []
    curves = [(v, points) for v in ("raw", "shown") if len(points := pass_curve(samples, v)) > 1]
    if curves:
        words = "; ".join(
            f"{v}: {100 * p[0][1].value:.1f} % to {100 * p[-1][1].value:.1f} %" for v, p in curves
        )
        most = curves[0][1][-1][0]
        parts.append(
            _figure(f"pass@k, k from 1 to {most}", [v for v, _ in curves], curve(curves, f"pass@k; {words}"))
        )
    edits = [
        (v, v, [getattr(s, f"edit_{v}") for s in samples if getattr(s, f"edit_{v}") is not None])
        for v in ("raw", "shown")
    ]
    if edits := [e for e in edits if e[2]]:
        drawn = histogram(
            edits,
            [i / 10 for i in range(10)] + [1.0, 1.0001],
            ["0", "0.5", "1, equal"],
            "Samples by edit similarity",
        )
        parts.append(_figure("Edit similarity to the expected text, samples", [e[0] for e in edits], drawn))
    times = [s.latency_s for s in samples if s.latency_s is not None]
    if len(times) > 1 and results.kind != "bpb":
        top = nice_top(sorted(times)[int(0.99 * (len(times) - 1))])
        ends = [write_end(top * i / 2, "s") for i in range(3)]
        drawn = histogram(
            [("samples", "model", times)], [top * i / 16 for i in range(17)], ends, "Samples by latency"
        )
        parts.append(_figure("Latency, samples (the last bar holds all above)", [], drawn))
    parts += _breakdowns(samples, texts)
    return f'<div class="charts">{"".join(parts)}</div>' if parts else ""


def _figure(heading: str, forms: Sequence[str], drawn: str) -> str:
    return f"<div><h3>{escape(heading)}</h3>{legend([(f, f) for f in forms]) if len(forms) > 1 else ''}{drawn}</div>"


def _breakdowns(samples: list[Sample], texts: Mapping[str, Problem]) -> list[str]:
    """Return tables of a score by category, by the length of the hole, and of what came of the programs."""
    found = []
    sizes: Callable[[Sample], str | None] = lambda s: _size(s, texts)  # noqa: E731
    for heading, key in (("By category", lambda s: s.category), ("By lines of the hole", sizes)):
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if (name := key(sample)) is not None:
                groups[name].append(sample)
        if len(groups) > 1:
            found.append(_breakdown(heading, groups))
    for variant in ("shown", "raw"):
        kinds = verdict_kinds(samples, variant)
        if len(kinds) > 1:
            found.append(_counts(f"Verdicts, {variant}", kinds, variant))
            break
    return [f for f in found if f]


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


def _breakdown(heading: str, groups: Mapping[str, list[Sample]]) -> str:
    for name, wanted in (
        ("pass@1 shown", lambda s: s.passed_shown),
        ("pass@1 raw", lambda s: s.passed_raw),
        ("exact match, shown", lambda s: s.exact_shown),
        ("exact match, raw", lambda s: s.exact_raw),
    ):
        scored = {group: i for group, of in sorted(groups.items()) if (i := share_of(of, wanted)) is not None}
        if scored:
            top = nice_top(max(i.high or i.value for i in scored.values()))
            rows = [
                (f"{group} (n = {i.n:,})", "shown" if "shown" in name else "raw", i)
                for group, i in scored.items()
            ]
            marks = mark_rows(rows, "share", 0, min(1.0, top))
            return f'<div><h3>{escape(f"{heading}: {name}")}</h3><div class="rows">{marks}</div></div>'
    return ""


def _counts(heading: str, counts: Mapping[str, int], style: str) -> str:
    total = sum(counts.values())
    shown = list(counts.items())[:9]
    if rest := total - sum(n for _, n in shown):
        shown.append(("others", rest))
    most = max(n for _, n in shown)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="bar">'
        f'<svg aria-hidden="true" class="{style}"><rect width="{100 * n / most:.2f}%" height="10"/></svg></td>'
        f"<td>{n:,}</td><td>{write_number(n / total, 'share')}</td></tr>"
        for name, n in shown
    )
    return f'<div><h3>{escape(heading)}</h3><table class="counts"><tbody>{rows}</tbody></table></div>'


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= _MOST_CHARS:
        return text
    return f"{text[:_MOST_CHARS]}\n[{len(text) - _MOST_CHARS:,} more characters are in the result file]"


def _sample_data(results: Results, texts: Mapping[str, Problem]) -> dict[str, Any]:
    """Return the browser's data: whole programs once, and of each sample where in its program the hole is."""
    place: dict[str, int] = {}
    rows = []
    tasks = set()
    several = False
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
        values[2], values[3] = _cut(values[2]), _cut(values[3])
        for i, value in enumerate(values):
            if isinstance(value, float):
                values[i] = round(value, 4)
        rows.append([*values, *where])
        several |= sample.task_id in tasks
        tasks.add(sample.task_id)
    return {
        "fields": [*_FIELDS, "program", "start", "end"],
        "rows": rows,
        "programs": list(place),
        "several": several,
    }


def _options(name: str, label: str, options: Iterable[tuple[str, str]]) -> str:
    made = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f'<label>{escape(label)}<select id="{name}">{made}</select></label>'


def browser(results: Results, texts: Mapping[str, Problem]) -> str:
    if not results.samples or results.kind == "bpb":
        return ""
    judged = any(s.passed_raw is not None or s.passed_shown is not None for s in results.samples)
    words = ("passed", "failed") if judged else ("exact match", "no exact match")
    verdicts = [("all", "all"), ("good", words[0]), ("bad", words[1]), ("near", f"{words[1]}, but similar")]
    verdicts += [("differ", "raw and shown differ")] if judged else []
    verdicts += [("length", "stopped by length")]
    categories = sorted({s.category for s in results.samples if s.category is not None})
    kinds = (
        _options("category", "Category", [("", "all"), *((c, c) for c in categories)])
        if len(categories) > 1
        else ""
    )
    cut = len(results.samples) - MOST_SAMPLES
    note = (
        f'<p class="note">The first {MOST_SAMPLES:,} samples; {cut:,} more are in the result file.</p>'
        if cut > 0
        else ""
    )
    return f"""<noscript><p>Reading samples here needs JavaScript; the result file holds them all.</p></noscript>
<div class="tools">
<label class="wide">Search in names, programs, answers and verdicts
<input id="search" type="search" autocomplete="off"></label>
{_options("verdict", "Show", verdicts)}
{kinds}
{_options("order", "Order", [("", "as asked"), ("edit", "least similar first"), ("latency", "slowest first")])}
</div>
<div class="browser">
<div><ul class="list" id="list" aria-label="Samples"></ul>
<div class="pages"><button type="button" id="previous" aria-label="previous page">&#8592;</button>
<span id="count" role="status"></span>
<button type="button" id="next" aria-label="next page">&#8594;</button></div></div>
<div class="detail" id="detail"></div>
</div>
{note}
{embedded(_sample_data(results, texts), "samples")}"""


def files(results: Results) -> str:
    """List the files of bits per byte, the hardest first."""
    if results.kind != "bpb":
        return ""
    found = sorted(
        ((s.extra["nats"] / math.log(2) / s.extra["bytes"], s) for s in results.samples), key=lambda x: -x[0]
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(s.task_id)}</th><td>{escape(s.category or "")}</td>'
        f"<td>{s.extra['bytes']:,}</td><td>{write_number(bits, 'bits')}</td></tr>"
        for bits, s in found[:_MOST_FILES]
    )
    note = (
        f'<p class="note">The {_MOST_FILES} hardest of {len(found):,} files.</p>'
        if len(found) > _MOST_FILES
        else ""
    )
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("file", "language", "bytes", "bits per byte"))
    return (
        '<div class="scroll low" tabindex="0" role="region" aria-label="Files"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def embedded(content: Any, name: str) -> str:
    """Return a script element that holds JSON; `<`, `>` and `&` are escapes, so that no text can end it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    # Halves of surrogate pairs have no UTF-8; as JSON escapes they survive.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>'
