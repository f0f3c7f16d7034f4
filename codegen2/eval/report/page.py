"""One page that shows a run: scores with intervals, breakdowns, settings, and every sample to search and read.

The page is one file that asks nothing of any network: style, drawings and the browser's small script are in it, and
its Content-Security-Policy refuses the rest. Whatever is written into it is escaped: a sample may hold any text.
Not here: what is made from samples (samples.py), the drawings (plots.py), names (tables.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from ...files.paths import write_atomic
from ...problems.sets import Problem
from ..results import Results
from .plots import legend, mark_rows, nice_top
from .samples import browser, charts, files
from .tables import (
    coverage,
    label_of,
    model_name,
    overview,
    table,
    title,
    unit_of,
    write_interval,
    write_number,
)

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none';"
    " form-action 'none'"
)


def write_html(path: str | Path, results: Results, problems: Iterable[Problem] = ()) -> None:
    """Write the page of a run, all or nothing; problems: those asked, whose texts the samples are shown in."""
    write_atomic(path, html_report(results, problems).encode("utf-8", "replace"))


def html_report(results: Results, problems: Iterable[Problem] = ()) -> str:
    """Return the page of a run as HTML."""
    texts = {p.task_id: p for p in problems}
    body = [
        _heading(results),
        _tiles(results),
        section("Scores", _score_plot(results)),
        section("Breakdown", charts(results, texts)),
        section("All numbers", _score_table(results)),
        section("Samples", browser(results, texts)),
        section("Files", files(results)),
        section("How it was run", _settings(results)),
        f"<footer>codegen2 eval, {escape(results.started)}. All intervals are 95 %.</footer>",
    ]
    return page(f"{title(results)}: {model_name(results)}", "\n".join(body), script=bool(results.samples))


def page(heading: str, body: str, script: bool = False) -> str:
    """Put a body into a whole page with its style; script: with the sample browser's."""
    here = resources.files("codegen2.eval.report") / "templates"
    code = f"<script>{here.joinpath('report.js').read_text('utf-8')}</script>" if script else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(heading)}</title>
<style>{here.joinpath("report.css").read_text("utf-8")}</style>
</head>
<body>
<main>
{body}
</main>
{code}
</body>
</html>
"""


def section(heading: str, content: str) -> str:
    """Return a section with its heading; nothing where there is no content."""
    return f"<section><h2>{escape(heading)}</h2>\n{content}\n</section>" if content else ""


def _heading(results: Results) -> str:
    minutes, seconds = divmod(round(results.wall_s), 60)
    took = f"{minutes} min {seconds} s" if minutes else f"{results.wall_s:.1f} s"
    of = coverage(results)
    badge = (
        f'<p class="badge">{escape(of)}: not comparable with whole sets</p>'
        if results.problem_set.partial
        else ""
    )
    about = [model_name(results), *([] if badge else [of]), results.started, took]
    return (
        f"<header><h1>{escape(title(results))}</h1>"
        f'<p class="sub">{escape(" · ".join(about))}</p>{badge}</header>'
    )


def _tiles(results: Results) -> str:
    forms = {"raw": "raw", "shown": "shown"}
    made = []
    for base, cells in overview(results):
        unit = unit_of(base)
        numbers = "".join(
            f'<div class="{_style(column)}"><b>{write_number(i.value, unit)}</b>'
            f"<span>{escape(write_interval(i, unit))}</span><span>{forms.get(column, '')}</span></div>"
            for column, i in cells
        )
        made.append(
            f'<div class="tile"><span class="name">{escape(label_of(base))}</span><div>{numbers}</div></div>'
        )
    return f'<div class="tiles">{"".join(made)}</div>' if made else ""


def _style(column: str) -> str:
    return column if column in ("raw", "shown", "model") else "base"


def _score_plot(results: Results) -> str:
    columns, rows = table(results)
    parts, forms = [], [c for c in columns if c in ("raw", "shown")]
    names = {"raw": "raw: cut only at <eom>, as in the paper", "shown": "shown: as an editor shows it"}
    items = [(c, names[c]) for c in forms] + (
        [("base", "baselines, without a model")] if results.baselines else []
    )
    if results.kind == "bpb":
        found = [
            (label_of(r.name), "model", r.cells["model"])
            for r in rows
            if "model" in r.cells and unit_of(r.name) == "bits"
        ]
        top = nice_top(max((i.high or i.value for *_, i in found), default=1))
        return f'<div class="rows">{mark_rows(found, "bits", 0, top)}</div>' if found else ""
    for row in rows:
        if unit_of(row.name) != "share":
            continue
        cells = [(column, _style(column), row.cells[column]) for column in columns if column in row.cells]
        top = nice_top(max(i.high or i.value for *_, i in cells))
        high = 1.0 if top > 0.5 else top  # small scores get a nearer end, named under the axis
        parts.append(f"<h3>{escape(label_of(row.name))}</h3>{mark_rows(cells, 'share', 0, high)}")
    if not parts:
        return ""
    return f'{legend(items) if items else ""}<div class="rows">{"".join(parts)}</div>'


def _score_table(results: Results) -> str:
    columns, rows = table(results)
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    lines = []
    for row in rows:
        unit = unit_of(row.name)
        cells = []
        for column in columns:
            i = row.cells.get(column)
            cells.append(
                "<td></td>"
                if i is None
                else f"<td>{write_number(i.value, unit)}"
                f"<small>{escape(write_interval(i, unit))} (n = {i.n:,})</small></td>"
            )
        lines.append(f'<tr><th scope="row">{escape(label_of(row.name))}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="All numbers"><table>'
        f'<thead><tr><th scope="col">score</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _settings(results: Results) -> str:
    info = results.problem_set
    about = {
        "set": info.name,
        "sha256": info.sha256,
        "evaluated": f"{info.evaluated:,} of {info.problems:,}" + (" (partial)" if info.partial else ""),
    }
    parts = [("Problem set", about), ("Model", results.model), ("Settings", results.settings)]
    parts += [("Sandbox", results.sandbox)] if results.sandbox is not None else []
    parts += [("Versions", results.versions), ("Hardware", results.hardware)]
    blocks = "".join(f"<div><h3>{escape(name)}</h3>{_definitions(content)}</div>" for name, content in parts)
    return f'<div class="columns">{blocks}</div>'


def _definitions(content: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{escape(k.replace('_', ' '))}</dt><dd>{_plain(v)}</dd>" for k, v in content.items())
    return f"<dl>{rows}</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return _definitions(value)
    if isinstance(value, list | tuple):
        return "<ul>" + "".join(f"<li>{_plain(v)}</li>" for v in value) + "</ul>" if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else escape(str(value))
