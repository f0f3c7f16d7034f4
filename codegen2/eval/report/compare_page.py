"""The page of a comparison: differences with their intervals around zero, and the answers whose verdict changed.

Not here: how differences come about (differences.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ...files.paths import write_atomic
from ..differences import Comparison, Difference, between, notices, write_difference
from ..results import Sample
from .page import page, section
from .plots import axis, interval_mark, nice_top
from .tables import by_task, label_of, title, unit_of, write_number

_MOST_CHANGED = 200  # of a page
_MOST_CHARS = 4_000  # of an answer


def write_compare_html(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write the page of comparisons with one A, all or nothing."""
    write_atomic(path, compare_html(comparisons).encode("utf-8", "replace"))


def compare_html(comparisons: Sequence[Comparison]) -> str:
    """Return the page as HTML."""
    a = comparisons[0].a
    heading = f"{title(a.results)}: compared with {a.label}"
    body = [f'<header><h1>{escape(heading)}</h1><p class="sub">{escape(a.file)}</p></header>']
    for c in comparisons:
        said = "".join(f'<p class="note">{escape(n)}</p>' for n in notices(c))
        name = f"{c.b.label} against {c.a.label}, {c.problems:,} problems"
        body.append(section(name, _plot(c) + _table(c) + said))
        body.append(section(f"Answers that changed: {c.b.label}", _changed(c)))
    body.append("<footer>codegen2 eval compare. Paired differences with 95 % intervals.</footer>")
    return page(heading, "\n".join(body))


def _plot(c: Comparison) -> str:
    parts = []
    for unit in ("share", "bits"):
        rows = [d for d in c.differences if unit_of(d.name) == unit]
        if not rows:
            continue
        ends = [
            abs(x)
            for d in rows
            for x in (d.difference.low, d.difference.high, d.difference.value)
            if x is not None
        ]
        top = nice_top(max(ends))
        for d in rows:
            number = write_difference(d.difference.value, unit)
            words = f"{label_of(d.name)}: {number}, {between(d)}"
            style = _style(d)
            parts.append(
                f'<span class="what">{escape(label_of(d.name))}</span>'
                f"{interval_mark(d.difference, -top, top, style, words)}"
                f'<span class="number">{number}<small>{escape(between(d))}</small></span>'
            )
        numbers = [write_difference(top * i / 2, unit) for i in (-2, -1, 0, 1, 2)]
        parts.append(f'<span class="blank"></span>{axis(numbers)}<span class="blank"></span>')
    note = '<p class="note">Shares in points of a hundred; right of the middle line is more than A.</p>'
    return f'<div class="rows">{"".join(parts)}</div>{note}' if parts else ""


def _style(d: Difference) -> str:
    return "shown" if d.name.endswith(" shown") else "raw"


def _table(c: Comparison) -> str:
    heads = ("score", c.a.label, c.b.label, "difference", "problems up", "problems down")
    rows = []
    for d in c.differences:
        unit = unit_of(d.name)
        change = f"{write_difference(d.difference.value, unit)}<small>{escape(between(d))}</small>"
        cells = (write_number(d.a, unit), write_number(d.b, unit), change, f"{d.higher:,}", f"{d.lower:,}")
        rows.append(
            f'<tr><th scope="row">{escape(label_of(d.name))}</th>'
            + "".join(f"<td>{x}</td>" for x in cells)
            + "</tr>"
        )
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Differences"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _verdict(sample: Sample, form: str) -> bool | None:
    passed: bool | None = getattr(sample, f"passed_{form}")
    same: bool | None = getattr(sample, f"exact_{form}")
    return same if passed is None else passed


def _changed(c: Comparison) -> str:
    """List the samples judged otherwise in b than in a, those that b loses first; folded."""
    of_a, of_b = by_task(c.a.results.samples), by_task(c.b.results.samples)
    parts = []
    for heading, winner in ((f"only {c.a.label} is right", False), (f"only {c.b.label} is right", True)):
        found = []
        for task, first in of_a.items():
            for x, y in zip(first, of_b.get(task, []), strict=False):
                for form in ("shown", "raw"):
                    if (_verdict(x, form), _verdict(y, form)) == (not winner, winner):
                        found.append((x, y, form))
                        break
        items = "".join(_pair(c, x, y, form) for x, y, form in found[:_MOST_CHANGED])
        more = len(found) - _MOST_CHANGED
        note = f'<p class="note">{more:,} more are not shown.</p>' if more > 0 else ""
        if found:
            parts.append(f"<h3>{escape(heading)}: {len(found):,}</h3>{items}{note}")
    return "".join(parts)


def _pair(c: Comparison, x: Sample, y: Sample, form: str) -> str:
    texts = "".join(
        f'<div><h3>{escape(run.label)}</h3><p class="facts">{escape(_said(s, form))}</p>'
        f"<pre>{escape(_text(s, form))}</pre></div>"
        for run, s in ((c.a, x), (c.b, y))
    )
    name = f"{x.task_id}{f' #{x.sample}' if x.sample else ''}, {form}"
    return f'<details><summary>{escape(name)}</summary><div class="pair">{texts}</div></details>'


def _said(sample: Sample, form: str) -> str:
    result: str | None = getattr(sample, f"result_{form}")
    return result or ("exact match" if _verdict(sample, form) else "no exact match")


def _text(sample: Sample, form: str) -> str:
    text: str = getattr(sample, form) or ""
    return (
        text
        if len(text) <= _MOST_CHARS
        else f"{text[:_MOST_CHARS]}\n[{len(text) - _MOST_CHARS:,} more characters]"
    )
