"""The columns of a batch of source files, and how a stage drops a row: it stays, without its text, with the reason.

Not here: the stages (filters.py, licence_gate.py, benchmark.py, minhash.py). A stage is a pure function from a table to
a table with the same rows in the same order. So what was dropped, and why, is in the data itself, and is counted there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Table = Any  # pyarrow.Table; pyarrow says little about its types
Stage = Callable[[Table], Table]

# `licence` is the declared expression until the licence gate puts the normalised one there.
_TEXTS = ("registry", "package", "version", "licence", "path", "language", "split")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXTS] + [
        ("bytes", pa.int64()), ("is_test", pa.bool_()),
        ("dropped", pa.string()),  # "" is kept
        ("sha256", pa.binary(32)),  # of the text as it is in the corpus
        ("key", pa.binary(16)),  # equal for texts that differ in white space only
        ("minhash", pa.binary(1024)),  # 256 little-endian uint32
        ("masked", pa.list_(pa.int32(), 3)),  # e-mail addresses, keys, network addresses
        ("overlap", pa.list_(pa.int32())),  # which benchmark 13-grams are in it
        ("text", pa.large_string()),
    ]
)  # fmt: skip
CORPUS_COLUMNS = ("registry", "package", "version", "licence", "path", "language", "bytes", "sha256", "text")


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Make a table of rows; what a row lacks is null, and "" for `dropped`."""
    filled = [{"dropped": "", "split": "", "is_test": False, **row} for row in rows]
    return pa.Table.from_pylist(filled, schema=SCHEMA)


def put(table: Table, **columns: Sequence[Any]) -> Table:
    """Return the table with these columns replaced."""
    for name, values in columns.items():
        place = SCHEMA.get_field_index(name)
        table = table.set_column(place, SCHEMA.field(place), pa.array(values, type=SCHEMA.field(place).type))
    return table


def of_each_part(part: npt.NDArray[np.int64], n: int) -> list[npt.NDArray[np.int64]]:
    """Return where each of n numbers stands in `part`, rising.

    >>> [places.tolist() for places in of_each_part(np.array([2, 0, 2]), 3)]
    [[1], [], [0, 2]]
    """
    order = np.argsort(part, kind="stable")
    return np.split(order, np.searchsorted(part[order], np.arange(1, n)))


def texts_of(table: Table) -> list[str | None]:
    """Return the texts, None where a row is dropped."""
    texts: list[str | None] = table["text"].to_pylist()
    return texts


def drop(table: Table, reasons: Sequence[str]) -> Table:
    """Drop the rows that have a reason; one that was dropped before keeps its first."""
    before = table["dropped"].to_pylist()
    after = [old or new for old, new in zip(before, reasons, strict=True)]
    if after == before:
        return table
    texts = [None if why else text for why, text in zip(after, texts_of(table), strict=True)]
    return put(table, dropped=after, text=texts)
