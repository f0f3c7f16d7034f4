"""Write the shards: texts are routed out of the prepared files, a row group a shard, then gathered shard by shard.

Not here: who goes where (plan.py). Memory: one prepared file, or one shard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..files.paths import file_hash, replacing, write_atomic
from .rows import CORPUS_COLUMNS, of_each_part

_GROUP_ROWS = 1024
Numbers = npt.NDArray[np.int64]


def route(source: Path, out: Path, row: Numbers, shard: Numbers, place: Numbers) -> str:
    """Write rows of a prepared file, each for its place in its shard, a row group a shard, rising; return its name."""
    note = out.with_name(out.name + ".json")
    if note.is_file() and out.is_file():
        return out.name
    table = pq.read_table(source, columns=list(CORPUS_COLUMNS), memory_map=False)
    order = np.lexsort((place, shard))
    table = table.take(pa.array(row[order])).append_column("place", pa.array(place[order]))
    shards, starts = np.unique(shard[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    with replacing(out) as draft, pq.ParquetWriter(draft, table.schema, compression="zstd") as writer:
        for first, last in zip(starts, ends, strict=True):
            writer.write_table(table.slice(first, last - first), row_group_size=int(last - first))
    write_atomic(note, json.dumps(shards.tolist()).encode())
    return out.name


def gather(number: int, out: Path, sources: Sequence[Path]) -> dict[str, Any]:
    """Write the shard of this number, of routed files that may hold rows of it, and its manifest, which is returned:
    rows, bytes, sha256, languages, licences."""
    note = out.with_name(out.name.removesuffix(".parquet") + ".json")
    if note.is_file() and out.is_file():
        known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        return known
    tables = []
    for source in sources:
        shards = json.loads(source.with_name(source.name + ".json").read_text(encoding="utf-8"))
        if number in shards:
            with pq.ParquetFile(source) as file:
                tables.append(file.read_row_group(shards.index(number)))
    table = pa.concat_tables(tables).sort_by("place").drop_columns(["place"]).combine_chunks()
    with replacing(out) as draft:
        pq.write_table(table, draft, compression="zstd", row_group_size=_GROUP_ROWS)
    content = {
        "file": out.name, "rows": table.num_rows, "bytes": int(pa.compute.sum(table["bytes"]).as_py()),
        "sha256": file_hash(out), "languages": by_column(table, "language"),
        "licences": by_column(table, "licence"),
    }  # fmt: skip
    write_atomic(note, (json.dumps(content, indent=1) + "\n").encode())
    return content


def by_column(table: Any, column: str) -> dict[str, dict[str, int]]:
    """Return files and bytes by the values of a column.

    >>> by_column(pa.table({"language": ["c", "c"], "bytes": [3, 4]}), "language")
    {'c': {'files': 2, 'bytes': 7}}
    """
    grouped = table.group_by(column).aggregate([("bytes", "count"), ("bytes", "sum")]).sort_by(column)
    return {
        row[column] or "": {"files": row["bytes_count"], "bytes": row["bytes_sum"]}
        for row in grouped.to_pylist()
    }


def routes(
    parts: Sequence[Path], folder: Path, part: Numbers, row: Numbers, shard: Numbers, place: Numbers
) -> list[tuple[Path, Path, Numbers, Numbers, Numbers]]:
    """Return route's arguments for all prepared files with something kept; arrays by document."""
    kept = np.flatnonzero(shard >= 0)
    by_part = zip(parts, of_each_part(part[kept], len(parts)), strict=True)
    chosen = [(source, kept[mine]) for source, mine in by_part if mine.size]
    return [(source, folder / source.name, row[mine], shard[mine], place[mine]) for source, mine in chosen]
