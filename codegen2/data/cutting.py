"""The stage that puts the functions of Python files in the files' place, for `codegen2 data build --functions`.

Not here: how a file is cut (functions.py). The one stage that adds rows: they follow the files' own, which stay,
dropped.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from .benchmark import Benchmark
from .functions import cut
from .rows import Table, drop, table_of, texts_of

_OF_FILE = ["registry", "package", "version", "licence", "language", "split", "is_test", "path"]


def cut_functions(table: Table, least_score: float, benchmark: Benchmark | None) -> Table:
    """Put a file's functions in its place, for Python; the file's own row stays, dropped.

    Dropped are functions below the score, and those that do what a solution of the benchmark does, names apart, or
    share 13 words on end with a problem. Other languages' rows are dropped.
    """
    found: list[dict[str, Any]] = []
    reasons = []
    for row, text in zip(table.select(_OF_FILE).to_pylist(), texts_of(table), strict=True):
        python = row["language"] == "python"
        reasons.append("" if text is None else "cut into functions" if python else "no Python to cut")
        for function in cut(text) if text and python else ():
            path = f"{row['path']}:{function.line}:{function.name}"
            why = "knows its project" if function.score < least_score else ""
            if benchmark and (function.body in benchmark.bodies or benchmark.overlap(function.text)):
                why = "benchmark"
            size = len(function.text.encode("utf-8"))
            found.append(
                row | {"path": path, "text": None if why else function.text, "bytes": size, "dropped": why}
            )
    whole = drop(table, reasons)
    return pa.concat_tables([whole, table_of(found)]) if found else whole
