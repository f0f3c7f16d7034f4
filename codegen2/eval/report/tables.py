"""How results are named, written and grouped for people; the table on a terminal.

Not here: the page (page.py), its drawings (plots.py), or how the numbers come about.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TextIO

from ...problems.statistics import Interval
from ..measures import FORMS, count_kinds, split_name, unit_of
from ..results import Results, Sample

_TITLES = {
    "problems": "Problems",
    "repo": "Holes in a repository",
    "bpb": "Bits per byte",
}


def label_of(name: str) -> str:
    """Return a score's name as people read it.

    >>> label_of("exact_match"), label_of("latency_s median"), label_of("bits_per_byte all")
    ('exact match', 'latency, median', 'bits per byte, all')
    """
    word, _, rest = name.partition(" ")
    word = word.removesuffix("_s").replace("_", " ")
    return f"{word}, {rest}" if rest else word


def write_number(value: float, unit: str) -> str:
    """Write a number with its unit.

    >>> write_number(0.4213, "share"), write_number(0.0712, "s"), write_number(1234.5, ""), write_number(2.5, "bits")
    ('42.1 %', '71 ms', '1,234', '2.500')
    """
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "s":
        return f"{1000 * value:.0f} ms" if abs(value) < 1 else f"{value:.2f} s"
    if unit == "bits":
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def write_end(value: float, unit: str) -> str:
    """Write a number of an axis as short as it can be.

    >>> write_end(0.25, "share"), write_end(0.0, "s"), write_end(1.5, "s")
    ('25 %', '0', '1.5 s')
    """
    if value == 0:
        return "0"
    return f"{100 * value:.3g} %" if unit == "share" else f"{value:.3g} s" if unit == "s" else f"{value:.3g}"


def write_interval(interval: Interval, unit: str) -> str:
    """Write only the interval, without a unit that both ends share; "no interval" where nothing is known.

    >>> write_interval(Interval(0.3, 0.256, 0.402, 9), "share"), write_interval(Interval(1.0, 0.9, 1.25, 9), "s")
    ('25.6 to 40.2', '900 ms to 1.25 s')
    """
    if interval.low is None or interval.high is None:
        return "no interval"
    low, high = write_number(interval.low, unit), write_number(interval.high, unit)
    sign = high.rpartition(" ")[2]
    if low.endswith(f" {sign}"):
        low, high = low.removesuffix(f" {sign}"), high.removesuffix(f" {sign}")
    return f"{low} to {high}"


@dataclass(frozen=True)
class Row:
    """One score of everything that was scored: cells maps a column ("raw", "empty middle") to its interval."""

    name: str
    cells: dict[str, Interval]


def table(results: Results) -> tuple[list[str], list[Row]]:
    """Return the columns, the model's before the baselines', and a row for each score.

    A baseline's column holds its raw score where it has raw and shown ones: it is the same text.
    """
    columns: list[str] = []
    cells: dict[str, dict[str, Interval]] = {}
    both = any(split_name(n)[1] for n in results.scores)
    for name, interval in results.scores.items():
        base, variant = split_name(name)
        # What has only one form (tokens, time) stands with the raw answer, which is what was generated.
        column = variant or ("raw" if both else "model")
        columns += [column] if column not in columns else []
        cells.setdefault(base, {})[column] = interval
    columns.sort(key=lambda c: FORMS.index(c) if c in FORMS else -1)
    for baseline, scores in results.baselines.items():
        columns.append(baseline)
        for name, interval in scores.items():
            base, variant = split_name(name)
            if variant != "shown" or f"{base} raw" not in scores:
                cells.setdefault(base, {})[baseline] = interval
    return columns, [Row(name, found) for name, found in cells.items()]


def title(results: Results) -> str:
    """Return a run's title: the problem set's name, or what was done."""
    return results.problem_set.name or _TITLES[results.kind]


def model_name(results: Results) -> str:
    """Return the model's name as the run says it."""
    return str(results.model.get("name") or "model")


def coverage(results: Results) -> str:
    """Say of how many problems the scores are.

    A partial set is said to be one, in capitals. Answers that were not judged count in pass@k as if they had failed.
    """
    info = results.problem_set
    what = {"bpb": "files", "repo": "holes"}.get(results.kind, "problems")
    said = f"all {info.problems:,} {what}"
    if info.partial:
        said = f"PARTIAL: {info.evaluated:,} of {info.problems:,} {what}"
    counts = [verdict_kinds(results.samples, form).get("not judged", 0) for form in FORMS]
    return said + (f"; NOT JUDGED: {max(counts):,} answers, not passed in pass@k" if any(counts) else "")


def print_results(results: Results, file: TextIO | None = None) -> None:
    """Print the scores as a table, and what they are of."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns, rows = table(results)
    heading = f"{title(results)}: {model_name(results)}, {coverage(results)}"
    drawn = Table(title=Text(heading), title_justify="left", title_style="bold")
    drawn.add_column("score")
    for column in columns:
        drawn.add_column(Text(column), justify="right")
    for row in rows:
        unit = unit_of(row.name)
        texts = [Text(label_of(row.name))]
        for column in columns:
            found = row.cells.get(column)
            texts.append(Text("") if found is None else _cell(found, unit))
        drawn.add_row(*texts)
    console = Console(file=file or sys.stdout, highlight=False)
    console.print(drawn)
    console.print(Text("95 % intervals below each value"), style="dim")
    if results.sandbox is not None and (mode := results.sandbox.get("mode")):
        console.print(Text(f"sandbox: {mode}"), style="dim")


def _cell(interval: Interval, unit: str) -> Any:
    from rich.text import Text

    return Text.assemble(write_number(interval.value, unit), "\n", (write_interval(interval, unit), "dim"))


# ---- what the page shows beside the scores, made from samples


def verdict_kinds(samples: Iterable[Sample], form: str) -> dict[str, int]:
    """Count what came of the samples that were judged."""
    return count_kinds(said for s in samples if (said := getattr(s, f"result_{form}")) is not None)


def overview(results: Results) -> list[tuple[str, list[tuple[str, Interval]]]]:
    """Return the scores that a page shows large, the model's first four shares or bits: (name, [(form, score)])."""
    rows = [row for row in table(results)[1] if unit_of(row.name) in ("share", "bits")]
    found = [(row.name, [(c, row.cells[c]) for c in ("model", *FORMS) if c in row.cells]) for row in rows]
    return [(name, cells) for name, cells in found if cells][:4]
