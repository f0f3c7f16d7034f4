"""The second half of a build, where all documents meet: duplicates, caps, the order of the shuffle, who goes where.

Not here: the texts, which stay in the prepared files. Documents are numbered by (train before held out, registry,
package, path), so the order in which items came, the number of workers and the engine change nothing; of two that are
alike the first stays, hence a held-out file with a twin in training goes. Letters: N documents that got so far.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .engines import Engine
from .leaks import Places, Texts, leak_shares
from .minhash import BANDS, PERMUTATIONS, near_duplicates, near_pairs_in
from .prepare import Config
from .rows import SCHEMA, of_each_part

_COLUMNS = [name for name in SCHEMA.names if name not in ("text", "minhash", "overlap", "masked")]


@dataclass(frozen=True)
class Plan:
    """Every row's fate: `table` has a row for each file read, sorted; the rest is by row of it.

    `part` and `row`: which prepared file and which row there; `shard` -1 is dropped; `place` in the shard.
    """

    table: Any
    part: Places
    row: Places
    shard: Places
    place: Places
    shards: tuple[str, ...]
    largest_leak: float  # of what stays, the largest share of a file's lines on the other side


def plan(parts: Sequence[Path], config: Config, work: Path, engine: Engine) -> Plan:
    """Decide on all rows of the prepared files, with files in `work` for what does not fit in memory."""
    tables = []
    for number, path in enumerate(parts):
        table = pq.read_table(path, columns=_COLUMNS, memory_map=False)
        table = table.append_column("part", pa.array(np.full(table.num_rows, number)))
        tables.append(table.append_column("row", pa.array(np.arange(table.num_rows))))
    if not tables:
        raise ValueError("nothing was read: all items are missing or refused; see what was said about each")
    table = pa.concat_tables(tables)
    # Training first; but of functions held-out ones, whose files may be held out in another corpus too.
    keys = ("registry", "package", "path", "version", "sha256", "part", "row")
    first = ("split", "descending" if config.functions is None else "ascending")
    table = table.sort_by([first, *((key, "ascending") for key in keys)])
    reasons = np.array(table["dropped"].to_pylist(), dtype=object)
    alive = np.flatnonzero(reasons == "")
    alive = _drop(alive, reasons, _exact(table, alive), "exact duplicate")
    signatures = work / "signatures.npy"
    _gather_signatures(parts, table, alive, signatures)
    bands = [(signatures, len(alive), config.jaccard, range(i, i + 3)) for i in range(0, BANDS, 3)]
    near = np.array(near_duplicates(set().union(*engine.run(near_pairs_in, bands))), dtype=np.int64)
    signatures.unlink()
    alive = _drop(alive, reasons, near, "near duplicate")
    shuffled = _shuffle_keys(table, alive, config.seed)
    for reason, over in _over_caps(table, alive, shuffled, config):
        alive, shuffled = _drop(alive, reasons, over, reason), np.delete(shuffled, over)
    in_file, in_package, largest = _leaks(parts, table, alive, config, work / "leaks", engine)
    reasons[alive[in_package]] = "leak from a package"
    reasons[alive[in_file]] = "leak"
    stays = reasons[alive] == ""
    alive, shuffled = alive[stays], shuffled[stays]
    shard, place, names = _deal(table, alive, shuffled, config)
    dropped = pa.array(reasons.tolist(), type=pa.string())
    table = table.set_column(table.schema.get_field_index("dropped"), "dropped", dropped)
    return Plan(table, _numbers(table["part"]), _numbers(table["row"]), shard, place, names, largest)


def _numbers(column: Any) -> Places:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _drop(alive: Places, reasons: npt.NDArray[np.object_], which: Places, why: str) -> Places:
    """Take `which` (places in `alive`) out, with the reason."""
    reasons[alive[which]] = why
    return np.delete(alive, which)


def _exact(table: Any, alive: Places) -> Places:
    first = np.unique(_codes(table["key"].take(pa.array(alive))), return_index=True)[1]
    return np.setdiff1d(np.arange(len(alive)), first)


def _gather_signatures(parts: Sequence[Path], table: Any, alive: Places, out: Path) -> None:
    """Write the signatures of the rows that got so far as one file, (N, P) uint32, a prepared file at a time."""
    part, row = _numbers(table["part"])[alive], _numbers(table["row"])[alive]
    shape = (max(len(alive), 1), PERMUTATIONS)
    found = np.lib.format.open_memmap(out, mode="w+", dtype="<u4", shape=shape)
    for path, mine in zip(parts, of_each_part(part, len(parts)), strict=True):
        if mine.size:
            column = pq.read_table(path, columns=["minhash"], memory_map=False)["minhash"]
            raw = b"".join(column.take(pa.array(row[mine])).to_pylist())
            found[mine] = np.frombuffer(raw, "<u4").reshape(-1, PERMUTATIONS)
    found.flush()


def _leaks(
    parts: Sequence[Path], table: Any, alive: Places, config: Config, folder: Path, engine: Engine
) -> tuple[Places, Places, float]:  # fmt: skip
    """Return the held-out files that leak from a file, those that leak from a package, and the largest share left.

    Of functions the training ones are judged, and by one held-out function: a few lines stand in many a package.
    """
    chosen = table.select(["registry", "package", "split"]).take(pa.array(alive))
    package = _codes(pc.binary_join_element_wise(chosen["registry"], chosen["package"], "/"))
    part, row = _numbers(table["part"])[alive], _numbers(table["row"])[alive]
    whole_files = config.functions is None
    judged = np.array(chosen["split"].to_pylist(), dtype=object) == ("heldout" if whole_files else "train")

    def texts(which: npt.NDArray[np.bool_]) -> tuple[list[Texts], Places]:
        by_part = [(path, np.flatnonzero(which & (part == number))) for number, path in enumerate(parts)]
        found = [(path, mine) for path, mine in by_part if mine.size]
        places = np.concatenate([mine for _, mine in found] or [np.zeros(0, np.int64)])
        return [(path, row[mine], package[mine]) for path, mine in found], places

    (mine, places), (others, _) = texts(judged), texts(~judged)
    if not mine or not others:
        return places[:0], places[:0], 0.0
    in_file, in_package = leak_shares(mine, others, folder, config.rules.leak_min_line, engine.run)
    shutil.rmtree(folder, ignore_errors=True)
    limit = config.rules.leak_share
    worst = in_package if whole_files else in_file
    left = worst[worst < limit]
    return places[in_file >= limit], places[worst >= limit], float(left.max(initial=0.0))


def _shuffle_keys(table: Any, alive: Places, seed: int) -> npt.NDArray[np.uint64]:
    """Return each document its number in the shuffle: a hash of its name, so that neighbours change nothing."""
    chosen = table.select(["registry", "package", "path"]).take(pa.array(alive))
    names = zip(*(column.to_pylist() for column in chosen.columns), strict=True)
    digests = (hashlib.sha256(f"{seed}|{'/'.join(name)}".encode()).digest()[:8] for name in names)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def _over_caps(
    table: Any, alive: Places, shuffled: npt.NDArray[np.uint64], config: Config
) -> list[tuple[str, Places]]:
    """Name what is over a cap, one cap after the other, in the order of the shuffle; places in what is left then."""
    columns = table.select(["registry", "package", "language", "bytes", "is_test"]).take(pa.array(alive))
    packages = pc.binary_join_element_wise(columns["registry"], columns["package"], "/")
    package = _codes(packages)
    sizes, is_test = _numbers(columns["bytes"]), columns["is_test"].to_numpy()
    languages = np.array(columns["language"].to_pylist(), dtype=object)
    found = []
    left = np.arange(len(alive))

    def cut(reason: str, over: npt.NDArray[np.bool_]) -> None:
        nonlocal left
        found.append((reason, np.flatnonzero(over)))
        left = left[~over]

    share = config.max_test_share
    if share < 1:
        code = np.bincount(package[~is_test], sizes[~is_test], package.max(initial=-1) + 1)
        room = code * share / (1 - share)
        used = _running(package[left], sizes[left] * is_test[left], shuffled[left])
        cut("tests over their share", is_test[left] & (used > room[package[left]]))
    if config.max_package_bytes:
        used = _running(package[left], sizes[left], shuffled[left])
        cut("package over its cap", used > config.max_package_bytes)
    for language, limit in config.max_language_bytes:
        mine = languages[left] == language
        used = _running(np.zeros(left.size, np.int64), sizes[left] * mine, shuffled[left])
        cut("language over its cap", mine & (used > limit))
    return found


def _codes(column: Any) -> Places:
    return np.asarray(column.combine_chunks().dictionary_encode().indices.to_numpy(), dtype=np.int64)


def _running(group: Places, sizes: Places, shuffled: npt.NDArray[np.uint64]) -> Places:
    """Return the running sum of sizes within each group, in the order of the shuffle, at each element's own place."""
    order = np.lexsort((shuffled, group))
    total = np.cumsum(sizes[order])
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    before = np.repeat(total[starts] - sizes[order][starts], np.diff(np.append(starts, len(order))))
    found = np.empty(len(order), dtype=np.int64)
    found[order] = total - before
    return found


def _deal(
    table: Any, alive: Places, shuffled: npt.NDArray[np.uint64], config: Config
) -> tuple[Places, Places, tuple[str, ...]]:
    """Deal what is kept into shards, split by split, in the order of the shuffle."""
    shard = np.full(table.num_rows, -1, dtype=np.int64)
    place = np.zeros(table.num_rows, dtype=np.int64)
    chosen = table.select(["split", "bytes"]).take(pa.array(alive))
    splits, sizes = np.array(chosen["split"].to_pylist(), dtype=object), _numbers(chosen["bytes"])
    names: list[str] = []
    for split in ("train", "heldout"):
        mine = np.flatnonzero(splits == split)
        mine = mine[np.argsort(shuffled[mine], kind="stable")]
        if not mine.size:
            continue
        number = (np.cumsum(sizes[mine]) - sizes[mine]) // config.shard_bytes
        # A file larger than a shard leaves numbers unused.
        number = np.unique(number, return_inverse=True)[1]
        shard[alive[mine]] = number + len(names)
        place[alive[mine]] = np.arange(mine.size)
        names += [f"{split}-{i:05}" for i in range(int(number[-1]) + 1)]
    return shard, place, tuple(names)
