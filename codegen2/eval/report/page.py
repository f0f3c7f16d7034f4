"""The page of a run and the page of a comparison: jinja2's templates filled with results.

A page is one file that asks nothing of any network: style, drawings and the browser's small script are in it, and its
Content-Security-Policy refuses the rest. Templates escape whatever is written into them: a sample may hold any text.
Not here: what is made from samples (samples.py), the drawings (plots.py), names of scores (tables.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ...files.paths import write_atomic
from ...problems.sets import Problem
from ..differences import Comparison, between, notices, write_difference
from ..measures import by_task, unit_of
from ..results import Results, Sample
from . import samples, tables
from .plots import axis, interval_mark, nice_top

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
except ModuleNotFoundError as e:
    raise ValueError(f"reports need {e.name}; install codegen2[eval]") from e

_MOST_CHANGED = 200  # of a page
_MOST_CHARS = 4_000  # of an answer
_FORMS = {"raw": "raw: cut only at <eom>, as in the paper", "shown": "shown: as an editor shows it"}


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("codegen2.eval.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    # tojson escapes what could end a script element; ASCII keeps halves of surrogate pairs, which have no UTF-8.
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    made.filters["zip"] = zip
    made.globals |= {
        "asset": _asset,
        "axis": axis,
        "between": tables.write_interval,
        "between_difference": between,
        "difference": write_difference,
        "ends": lambda low, high, unit: [
            tables.write_end(low + (high - low) * i / 4, unit) for i in range(5)
        ],
        "label": tables.label_of,
        "mark": interval_mark,
        "notices": notices,
        "number": tables.write_number,
        "style_of": style_of,
        "unit": unit_of,
    }
    return made


def _asset(name: str) -> Markup:
    return Markup(resources.files(__package__).joinpath("templates", name).read_text("utf-8"))


def style_of(column: str) -> str:
    """Return the class in report.css of a column's marks."""
    return column if column in ("raw", "shown", "model") else "base"


def write_page(path: str | Path, text: str) -> None:
    """Write a page, all or nothing."""
    write_atomic(path, text.encode("utf-8", "replace"))


def html_report(results: Results, problems: Iterable[Problem] = ()) -> str:
    """Return the page of a run as HTML."""
    texts = {p.task_id: p for p in problems}
    title, model, coverage = results.problem_set.name, tables.model_name(results), tables.coverage(results)
    minutes, seconds = divmod(round(results.wall_s), 60)
    took = f"{minutes} min {seconds} s" if minutes else f"{results.wall_s:.1f} s"
    of = [] if results.problem_set.partial else [coverage]
    columns, rows = tables.table(results)
    forms = [(c, _FORMS[c]) for c in columns if c in _FORMS]
    baselines = [("base", "baselines, without a model")] if results.baselines else []
    return _environment().get_template("run.html").render(
        heading=f"{title}: {model}", title=title, coverage=coverage, facts=[model, *of, results.started, took],
        results=results, tiles=tables.overview(results), columns=columns, rows=rows, plots=_plots(results),
        legend=[] if results.kind == "bpb" else [*forms, *baselines], figures=samples.figures(results),
        breakdowns=samples.breakdowns(results.samples, texts), verdicts=samples.verdicts(results.samples),
        browser=samples.browser(results, texts), files=samples.files(results), settings=_settings(results),
    )  # fmt: skip


def _plots(results: Results) -> list[tuple[str, list[samples.MarkRow], str, float]]:
    """Return (heading, rows of marks, unit, end of the axis) of each score; of bits per byte in one plot."""
    columns, rows = tables.table(results)
    if results.kind == "bpb":
        bits = [(n, cells) for n, cells in rows.items() if "model" in cells and unit_of(n) == "bits"]
        marks = [(tables.label_of(n), "model", cells["model"]) for n, cells in bits]
        return [("", marks, "bits", samples.top_of(marks))] if marks else []
    found = []
    for name, cells in rows.items():
        if unit_of(name) == "share":
            marks = [(c, style_of(c), cells[c]) for c in columns if c in cells]
            top = samples.top_of(marks)
            # Small scores get a nearer end, named under the axis.
            found.append((tables.label_of(name), marks, "share", 1.0 if top > 0.5 else top))
    return found


def _settings(results: Results) -> list[tuple[str, dict[str, Any]]]:
    info = results.problem_set
    evaluated = f"{info.evaluated:,} of {info.problems:,}" + (" (partial)" if info.partial else "")
    about = {"set": info.name, "sha256": info.sha256, "evaluated": evaluated}
    parts = [("Problem set", about), ("Model", results.model), ("Settings", results.settings)]
    parts += [("Sandbox", results.sandbox)] if results.sandbox is not None else []
    return [*parts, ("Versions", results.versions), ("Hardware", results.hardware)]


# ---- the page of a comparison


def compare_html(comparisons: Sequence[Comparison]) -> str:
    """Return the page: differences with their intervals around zero, and the answers whose verdict changed."""
    a = comparisons[0].a
    return _environment().get_template("compare.html").render(
        heading=f"{a.results.problem_set.name}: compared with {a.label}", a=a,
        comparisons=[(c, _difference_plots(c), _changed(c)) for c in comparisons],
    )  # fmt: skip


def _difference_plots(c: Comparison) -> list[tuple[str, float, list[Any]]]:
    found = []
    for unit in ("share", "bits"):
        if rows := [d for d in c.differences if unit_of(d.name) == unit]:
            ends = [x for d in rows for x in (d.difference.low, d.difference.high, d.difference.value)]
            found.append((unit, nice_top(max(abs(x) for x in ends if x is not None)), rows))
    return found


def _changed(c: Comparison) -> list[tuple[str, list[Any], int]]:
    """Return (who alone is right, the first pairs of answers, how many), those that b loses first."""
    of_a, of_b = by_task(c.a.results.samples), by_task(c.b.results.samples)
    found: list[tuple[str, list[Any], int]] = []
    for winner, b_wins in ((c.a.label, False), (c.b.label, True)):
        pairs = []
        for task, first in of_a.items():
            for x, y in zip(first, of_b.get(task, []), strict=False):
                verdicts = {form: (_verdict(x, form), _verdict(y, form)) for form in ("shown", "raw")}
                if form := next((f for f, v in verdicts.items() if v == (not b_wins, b_wins)), None):
                    name = f"{x.task_id}{f' #{x.sample}' if x.sample else ''}, {form}"
                    answers = [(c.a.label, *_answer(x, form)), (c.b.label, *_answer(y, form))]
                    pairs.append((name, answers))
        if pairs:
            found.append((winner, pairs[:_MOST_CHANGED], len(pairs)))
    return found


def _verdict(sample: Sample, form: str) -> bool | None:
    passed: bool | None = getattr(sample, f"passed_{form}")
    same: bool | None = getattr(sample, f"exact_{form}")
    return same if passed is None else passed


def _answer(sample: Sample, form: str) -> tuple[str, str]:
    """Return what came of an answer, and its text."""
    likeness = "exact match" if _verdict(sample, form) else "no exact match"
    text = samples.cut(getattr(sample, form), _MOST_CHARS) or ""
    return getattr(sample, f"result_{form}") or likeness, text
