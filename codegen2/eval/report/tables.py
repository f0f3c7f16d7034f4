"""How results are named, written and grouped for people; the table on a terminal.

Not here: the page (page.py), its drawings (plots.py), or how the numbers come about.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TextIO

from ...problems.statistics import Interval
from ..measures import FORMS, count_kinds, split_name, unit_of
from ..results import Results, Sample


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


def write_interval(interval: Interval, unit: str, write: Callable[[float, str], str] = write_number) -> str:
    """Write only the interval, without a unit that both ends share; "no interval" where nothing is known.

    >>> write_interval(Interval(0.3, 0.256, 0.402, 9), "share"), write_interval(Interval(1.0, 0.9, 1.25, 9), "s")
    ('25.6 to 40.2', '900 ms to 1.25 s')
    """
    if interval.low is None or interval.high is None:
        return "no interval"
    low, high = write(interval.low, unit), write(interval.high, unit)
    sign = high.rpartition(" ")[2]
    if low.endswith(f" {sign}"):
        low, high = low.removesuffix(f" {sign}"), high.removesuffix(f" {sign}")
    return f"{low} to {high}"


def table(results: Results) -> tuple[list[str], dict[str, dict[str, Interval]]]:
    """Return the columns ("raw", "empty middle"), the model's before the baselines', and each score's cells by column.

    A baseline's column holds its raw score where it has raw and shown ones: it is the same text.
    """
    columns: list[str] = []
    rows: dict[str, dict[str, Interval]] = {}
    both = any(split_name(n)[1] for n in results.scores)
    for name, interval in results.scores.items():
        base, form = split_name(name)
        # What has only one form (tokens, time) stands with the raw answer, which is what was generated.
        column = form or ("raw" if both else "model")
        columns += [column] if column not in columns else []
        rows.setdefault(base, {})[column] = interval
    columns.sort(key=lambda c: FORMS.index(c) if c in FORMS else -1)
    for baseline, scores in results.baselines.items():
        columns.append(baseline)
        for name, interval in scores.items():
            base, form = split_name(name)
            if form != "shown" or f"{base} raw" not in scores:
                rows.setdefault(base, {})[baseline] = interval
    return columns, rows


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
    columns, rows = table(results)
    drawn = [
        [label_of(name), *(_cell(cells[c], unit_of(name)) if c in cells else "" for c in columns)]
        for name, cells in rows.items()
    ]
    notes = ["95 % intervals below each value"]
    if results.sandbox is not None and (mode := results.sandbox.get("mode")):
        notes.append(f"sandbox: {mode}")
    heading = f"{results.problem_set.name}: {model_name(results)}, {coverage(results)}"
    print_table(heading, ["score", *columns], drawn, notes, file)


def _cell(interval: Interval, unit: str) -> tuple[str, str, str]:
    return write_number(interval.value, unit), "", write_interval(interval, unit)


def print_table(
    heading: str, columns: list[str], rows: list[list[str | tuple[str, str, str]]], notes: list[str],
    file: TextIO | None = None,
) -> None:  # fmt: skip
    """Print a table; a cell is a text, or a text, its style, and what stands below it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(heading), title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        drawn.add_column(Text(column), justify="right" if i else "left")
    for row in rows:
        drawn.add_row(
            *(
                Text(x) if isinstance(x, str) else Text.assemble((x[0], x[1]), "\n", (x[2], "dim"))
                for x in row
            )
        )
    console = Console(file=file or sys.stdout, highlight=False)
    console.print(drawn)
    for note in notes:
        console.print(Text(note), style="dim")


def verdict_kinds(samples: Iterable[Sample], form: str) -> dict[str, int]:
    """Count what came of the samples that were judged."""
    return count_kinds(said for s in samples if (said := getattr(s, f"result_{form}")) is not None)


def overview(results: Results) -> list[tuple[str, list[tuple[str, Interval]]]]:
    """Return the scores that a page shows large, the model's first four shares or bits: (name, [(form, score)])."""
    rows = [row for row in table(results)[1].items() if unit_of(row[0]) in ("share", "bits")]
    found = [(name, [(c, cells[c]) for c in ("model", *FORMS) if c in cells]) for name, cells in rows]
    return [(name, cells) for name, cells in found if cells][:4]
