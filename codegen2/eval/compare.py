"""`codegen2 eval compare A.json B.json ...`: how much better B is than A, as a table, JSON or a page.

Not here: the differences (differences.py), the page (report/page.py), the runs (run.py, bpb.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from .differences import Comparison, Run, between, compare, notices, write_difference
from .measures import unit_of
from .report.tables import label_of, model_name, print_table, write_number
from .results import SCHEMA, read_results


def read_run(name: str) -> Run:
    """Read a result file, or that of a run's folder. Raises ValueError and OSError."""
    path = Path(name)
    if path.is_dir():
        path = path / "result.json"
    return Run(path.stem if path.stem != "result" else path.parent.name, str(path), read_results(path))


def labelled(runs: Sequence[Run]) -> list[Run]:
    """Name the runs by their models where those differ, else by their files, else by their places too."""
    for names in ([model_name(r.results) for r in runs], [r.label for r in runs]):
        if len(set(names)) == len(runs):
            break
    else:
        names = [f"{i}: {r.label}" for i, r in enumerate(runs, 1)]
    return [dataclasses.replace(r, label=name) for r, name in zip(runs, names, strict=True)]


def to_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return comparisons with one A as a plain JSON object."""
    a = comparisons[0].a
    return {
        "schema": SCHEMA,
        "kind": "compare",
        "problem_set": dataclasses.asdict(a.results.problem_set),
        "a": {"label": a.label, "file": a.file, "model": a.results.model},
        "comparisons": [
            {
                "b": {"label": c.b.label, "file": c.b.file, "model": c.b.results.model},
                "problems": c.problems,
                "only_a": c.only_a,
                "only_b": c.only_b,
                "settings_that_differ": {k: list(v) for k, v in c.settings.items()},
                "differences": [dataclasses.asdict(d) | {"sure": d.sure} for d in c.differences],
            }
            for c in comparisons
        ],
    }


def print_comparison(c: Comparison, file: TextIO | None = None) -> None:
    """Print one comparison as a table."""
    rows: list[list[str | tuple[str, str, str]]] = []
    for d in c.differences:
        unit = unit_of(d.name)
        change = (write_difference(d.difference.value, unit), "bold" if d.sure else "", between(d))
        numbers = write_number(d.a, unit), write_number(d.b, unit)
        rows.append([label_of(d.name), *numbers, change, f"{d.higher:,}", f"{d.lower:,}"])
    print_table(
        f"{c.a.results.problem_set.name}: {c.b.label} compared with {c.a.label}, on {c.problems:,} problems",
        ["score", c.a.label, c.b.label, "difference", "up", "down"],
        rows,
        ["up, down: problems on which it is higher, lower; paired 95 % intervals; bold: without zero"],
        file,
    )


def run_compare(args: argparse.Namespace) -> int:
    """Compare result files and print the differences."""
    runs = labelled([read_run(name) for name in [args.a, *args.b]])
    comparisons = [compare(runs[0], b) for b in runs[1:]]
    for c in comparisons:
        for notice in notices(c):
            print(f"codegen2: {notice}", file=sys.stderr)
    if args.html:
        from .report.page import compare_html, write_page

        write_page(args.html, compare_html(comparisons))
    if args.json:
        print(json.dumps(to_json(comparisons), allow_nan=False))
        return 0
    for c in comparisons:
        print_comparison(c)
    return 0
