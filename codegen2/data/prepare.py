"""The first half of a build: each item on its own, read, judged, masked and signed, into files of prepared rows.

Not here: what needs all items at once (plan.py) and who runs the tasks (engines.py). A task that was done is found by
its note, so a build that was stopped goes on; an item that cannot be read is a note with an error, not the end.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files.paths import file_hash, replacing, write_atomic
from ..files.sources import list_files
from ..text.languages import LANGUAGES
from .archives import Limits
from .benchmark import Benchmark, benchmark_against, decontaminate
from .filters import Rules, hashes, mask, opt_out, quality
from .functions import cut
from .items import Reading
from .licence_gate import licence_gate
from .licences import LICENCE_SETS, permissive
from .manifest import Item, split_of
from .minhash import minhash
from .rows import SCHEMA, Stage, Table, drop, put, table_of, texts_of

FORMAT = 4  # of prepared files; a change of any stage's meaning raises it, and all is prepared again
_PART_BYTES = 64_000_000  # of text in one prepared file
_OF_FILE = ["registry", "package", "version", "licence", "language", "split", "is_test", "path"]


@dataclass(frozen=True)
class Config:
    """Every choice that decides what a corpus holds; sizes in bytes, shares from 0 to 1, 0 is no cap."""

    languages: tuple[str, ...] = LANGUAGES
    licences: str = "permissive"
    heldout_share: float = 0.02  # of the packages' families
    max_test_share: float = 0.2  # of a package's bytes
    max_package_bytes: int = 0
    max_language_bytes: tuple[tuple[str, int], ...] = ()
    jaccard: float = 0.7
    decontaminate: bool = True
    problems: tuple[tuple[str, str], ...] = ()  # more benchmarks: file, sha256
    functions: float | None = None  # cut Python files into functions of at least this score (functions.py)
    opted_out: tuple[str, ...] = ()  # shell patterns of registry/package/path
    shard_bytes: int = 64_000_000
    seed: int = 20261123
    rules: Rules = field(default_factory=Rules)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.licences not in LICENCE_SETS:
            raise ValueError(f"licences {self.licences!r} is unknown; choose {', '.join(LICENCE_SETS)}")
        if unknown := set(self.languages) - set(LANGUAGES) or not self.languages:
            raise ValueError(f"languages {unknown} are unknown; choose of {', '.join(LANGUAGES)}")
        for name in ("heldout_share", "max_test_share", "jaccard"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.functions is not None and not math.isfinite(self.functions):
            raise ValueError(f"functions must be a finite score such as -0.5, got {self.functions}")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes must be positive, got {self.shard_bytes}")

    def fingerprint(self) -> str:
        """Return a hash that changes when any choice does."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)]).encode()).hexdigest()[:16]


def stages(config: Config) -> list[Stage]:
    """Return the stages in their order, each a pure function from a table to a table."""
    found: list[Stage] = []
    if config.opted_out:
        patterns = re.compile("|".join(fnmatch.translate(pattern) for pattern in config.opted_out))
        found.append(functools.partial(opt_out, patterns=patterns))
    found.append(functools.partial(licence_gate, allowed=LICENCE_SETS[config.licences]))
    found.append(functools.partial(quality, rules=config.rules))
    benchmark = benchmark_against(config.problems) if config.decontaminate else None
    judge = [functools.partial(decontaminate, benchmark=benchmark)] if benchmark else []
    found += judge
    if config.functions is not None:
        found += [functools.partial(cut_functions, least_score=config.functions, benchmark=benchmark), *judge]
    return [*found, mask, hashes, minhash]


def cut_functions(table: Table, least_score: float, benchmark: Benchmark | None) -> Table:
    """Put a file's functions in its place, for Python: the one stage that adds rows, behind the files' own, which stay,
    dropped.

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


def task_of(
    item: Item, paths: Sequence[Path], config: Config, folder: Path
) -> tuple[Item, Sequence[Path], Config, Path]:
    """Return prepare's arguments; what it writes is named by all that it depends on, local files by sizes and times."""
    parts = [config.fingerprint(), json.dumps(asdict(item))]
    for path in paths:
        if not item.local:
            parts.append(path.name)
        elif path.is_dir():
            with contextlib.suppress(ValueError):  # reading it says why
                parts += [_stamp(path / name) for name in list_files(path)[0]]
        else:
            parts.append(_stamp(path))
    digest = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "-", item.name).strip("-.")[:60]
    return item, paths, config, folder / f"{name}-{digest}"


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return f"{path} gone"
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def prepare(item: Item, paths: Sequence[Path], config: Config, out: Path) -> dict[str, Any]:
    """Prepare one item and return its note: parts (files), counts, licence, or the error that it was left out for.

    paths: where its files lie; out: the stem of what is written.
    """
    note_path = out.with_name(out.name + ".json")
    if note_path.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged note: prepared again
            note: dict[str, Any] = json.loads(note_path.read_text(encoding="utf-8"))
            if all((out.parent / part["file"]).is_file() for part in note["parts"]):
                return note
    reading = Reading(item, paths, frozenset(config.languages), config.limits)
    try:
        parts, masked = _write_parts(out, _staged(reading.tables(), item, config))
    except Exception as error:
        # Whatever a stranger's file does to a reader, it is this item that is left out, and not the build that ends.
        why = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
        return {"item": asdict(item), "parts": [], "error": " ".join(why.split())[:1000]}
    allowed = LICENCE_SETS[config.licences]
    note = {
        "item": asdict(item), "declared": reading.declared,
        "licence": permissive(reading.declared, allowed), "parts": parts, "masked": masked,
        "left_out": dict(sorted(reading.left_out.items())),
        "notices": {hashlib.sha256(t.encode()).hexdigest(): t for _, t in sorted(reading.notices.items())},
    }  # fmt: skip
    write_atomic(note_path, json.dumps(note, ensure_ascii=False).encode())
    return note


def _staged(tables: Iterator[Table], item: Item, config: Config) -> Iterator[Table]:
    run = stages(config)
    splits: dict[str, str] = {}
    for table in tables:
        packages = table["package"].to_pylist()
        for name in set(packages) - splits.keys():
            splits[name] = split_of(name, item.split, config.heldout_share, config.seed)
        table = put(table, split=[splits[name] for name in packages])
        for stage in run:
            table = stage(table)
        yield table


def _write_parts(out: Path, tables: Iterator[Table]) -> tuple[list[dict[str, Any]], list[int]]:
    """Write tables as Parquet files of about _PART_BYTES of text at most; return them, and the masked counts."""
    parts: list[dict[str, Any]] = []
    masked = Counter[int]()
    table = next(tables, None)
    while table is not None:
        path = out.with_name(f"{out.name}-{len(parts):03}.parquet")
        size, rows = 0, 0
        with replacing(path) as draft, pq.ParquetWriter(draft, SCHEMA, compression="zstd") as writer:
            while table is not None and (not rows or size + table["text"].nbytes <= _PART_BYTES):
                for counts in table["masked"].to_pylist():
                    masked.update(dict(enumerate(counts or ())))
                writer.write_table(table)
                size, rows = size + table["text"].nbytes, rows + table.num_rows
                table = next(tables, None)
        parts.append({"file": path.name, "rows": rows, "sha256": file_hash(path)})
    return parts, [masked[i] for i in range(3)]
