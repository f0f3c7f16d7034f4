"""Build a corpus from packages, directories and Parquet files: fetch, prepare, plan, write.

Not here: token shards (tokens.py), the command line (cli.py). What is written to OUT, the manifest last:

    train-00000.parquet, heldout-00000.parquet, ...   the texts, shuffled, and a manifest of each (.json)
    files.parquet                                     every file that was read: its hash, or why it was dropped
    lock.jsonl, notices.jsonl, manifest.json          what was read; licence texts; counts and hashes
    work/                                             prepared items, which make the next build quick
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files.paths import remove_parts, replacing, write_atomic
from .benchmark import benchmark_against, overlap_report, problem_sets
from .engines import Engine
from .fetch import Fetcher, FetchError
from .manifest import Item, write_lock
from .plan import Plan, plan
from .prepare import Config, prepare, task_of
from .rows import of_each_part
from .write import by_column, gather, route, routes

Say = Callable[[str, int, int, str], None]  # (stage, done, in all, what about)
_LEDGER = (
    "split", "registry", "package", "version", "path", "language", "licence", "bytes", "sha256", "dropped",
)  # fmt: skip


def silent(stage: str, done: int, total: int, what: str) -> None:
    """Report no progress."""


def fetch_all(
    items: Sequence[Item], fetcher: Fetcher, say: Say = silent
) -> tuple[list[tuple[Item, list[Path]]], list[dict[str, str]]]:
    """Fetch one item after the other; return what is there, pinned, and what is missing with the reason."""
    found: list[tuple[Item, list[Path]]] = []
    missing = []
    for number, item in enumerate(items):
        say("fetch", number, len(items), str(item))
        try:
            found.append(fetcher.fetch(item))
        except FetchError as error:
            missing.append({"item": str(item), "why": str(error)})
    say("fetch", len(items), len(items), "")
    return found, missing


def build(
    items: Iterable[Item], out: Path, config: Config, engine: Engine, fetcher: Fetcher, say: Say = silent
) -> dict[str, Any]:
    """Build the corpus of `items` in `out` and return its manifest.

    Said again after an interruption, it goes on; the same items and config give the same bytes, whatever the engine.
    Raises ValueError when nothing can be read, or HumanEval is missing though decontamination is wanted; OSError.
    """
    if config.decontaminate:
        benchmark_against(config.problems)  # before any work: it says what to install
    items = sorted(items, key=lambda item: (item.registry, item.name, item.version, item.local))
    work = out / "work"
    prepared = work / "prepared"
    prepared.mkdir(parents=True, exist_ok=True)
    for folder in (out, *(path for path in work.rglob("*") if path.is_dir())):
        remove_parts(folder)  # of a build that was killed
    fetched, missing = fetch_all(items, fetcher, say)
    tasks = [task_of(item, paths, config, prepared) for item, paths in fetched]
    notes = []
    for number, note in enumerate(engine.run(prepare, tasks), 1):
        say("read", number, len(tasks), str(note["item"]["name"]))
        notes.append(note)
    parts = [prepared / part["file"] for note in notes for part in note["parts"]]
    made = plan(parts, config, work, engine)
    say("plan", 1, 1, "")
    # Whatever the texts, the hashes of the prepared files and the config decide all that follows.
    hashes = [part["sha256"] for note in notes for part in note["parts"]]
    name = hashlib.sha256(json.dumps([config.fingerprint(), hashes]).encode()).hexdigest()[:16]
    shards = _write(made, parts, work / f"plan-{name}", engine, say)
    manifest = _manifest(made, notes, missing, shards, parts, config)
    _publish(made, manifest, notes, [item for item, _ in fetched], work / f"plan-{name}", out)
    return manifest


def _write(made: Plan, parts: Sequence[Path], folder: Path, engine: Engine, say: Say) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    routed = routes(parts, folder, made.part, made.row, made.shard, made.place)
    for number, source in enumerate(engine.run(route, routed), 1):
        say("route", number, len(routed), source)
    sources = [out for _, out, *_ in routed]
    gathers = [(i, folder / f"{name}.parquet", sources) for i, name in enumerate(made.shards)]
    shards = []
    for number, shard in enumerate(engine.run(gather, gathers), 1):
        say("write", number, len(gathers), str(shard["file"]))
        shards.append(shard)
    return shards


def _manifest(
    made: Plan, notes: Sequence[dict[str, Any]], missing: list[dict[str, str]], shards: list[dict[str, Any]],
    parts: Sequence[Path], config: Config,
) -> dict[str, Any]:  # fmt: skip
    dropped = Counter(made.table["dropped"].to_pylist())
    del dropped[""]
    for note in notes:
        dropped += Counter(note.get("left_out", {}))
    masked = np.sum([note.get("masked", [0, 0, 0]) for note in notes], axis=0, dtype=int).tolist()
    kept = made.table.filter(pa.array(made.shard >= 0))
    splits = {
        split: {
            "packages": len(set(zip(chosen["registry"].to_pylist(), chosen["package"].to_pylist(), strict=True))),
            "files": chosen.num_rows, "bytes": int(np.sum(chosen["bytes"].to_numpy())),
            "languages": by_column(chosen, "language"), "licences": by_column(chosen, "licence"),
        }
        for split in ("train", "heldout")
        if (chosen := kept.filter(pa.compute.equal(kept["split"], split))).num_rows
    }  # fmt: skip
    manifest: dict[str, Any] = {
        "config": json.loads(json.dumps(asdict(config))),
        "splits": splits,
        "read_files": made.table.num_rows,
        "dropped": dict(sorted(dropped.items())),
        "largest_leak": round(made.largest_leak, 4),
        "masked": dict(zip(("email", "key", "address"), masked, strict=True)),
        "missing": missing + [
            {"item": f"{note['item']['registry']}/{note['item']['name']}", "why": note["error"]}
            for note in notes if "error" in note
        ],
        "shards": [{key: shard[key] for key in ("file", "rows", "bytes", "sha256")} for shard in shards],
        "items": _per_item(made, notes),
    }  # fmt: skip
    if config.decontaminate:
        manifest["overlap"] = overlap_report(
            _hits(made, parts), benchmark_against(config.problems), problem_sets(config.problems)
        )
    return manifest


def _hits(made: Plan, parts: Sequence[Path]) -> Iterator[tuple[str, list[int]]]:
    """Yield the kept files of the training split that share 13-grams, in the order of the table."""
    kept = np.flatnonzero(
        (made.shard >= 0) & (np.array(made.table["split"].to_pylist(), dtype=object) == "train")
    )
    found: dict[int, list[int]] = {}
    for number, path in enumerate(parts):
        overlap = pq.read_table(path, columns=["overlap"], memory_map=False)["overlap"].to_pylist()
        for i in kept[made.part[kept] == number]:
            if overlap[made.row[i]]:
                found[int(i)] = overlap[made.row[i]]
    names = [made.table[name] for name in ("registry", "package", "path")]
    for i in sorted(found):
        yield "/".join(column[i].as_py() for column in names), found[i]


def _per_item(made: Plan, notes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    reasons = np.array(made.table["dropped"].to_pylist(), dtype=object)
    sizes = made.table["bytes"].to_numpy()
    item_of_part = np.repeat(np.arange(len(notes)), [len(note["parts"]) for note in notes])
    rows = []
    for note, mine in zip(notes, of_each_part(item_of_part[made.part], len(notes)), strict=True):
        kept = mine[made.shard[mine] >= 0]
        counts = Counter(reasons[mine].tolist())
        del counts[""]
        counts += Counter(note.get("left_out", {}))
        row = {key: note["item"][key] for key in ("registry", "name", "version")}
        row |= {key: note[key] for key in ("declared", "licence", "error") if note.get(key)}
        row |= {"files": int(kept.size), "bytes": int(sizes[kept].sum())}
        rows.append(
            row | {"dropped": dict(sorted(counts.items())), "notices": sorted(note.get("notices", {}))}
        )
    return rows


def _publish(
    made: Plan, manifest: dict[str, Any], notes: Sequence[dict[str, Any]], items: Sequence[Item], folder: Path,
    out: Path,
) -> None:  # fmt: skip
    """Put the finished shards in their place, then the tables, the manifest last, and clear the folder of the plan."""
    (out / "manifest.json").unlink(missing_ok=True)  # no manifest while files of two corpora may stand here
    wanted = {shard["file"] for shard in manifest["shards"]}
    for old in [*out.glob("train-*.parquet"), *out.glob("heldout-*.parquet")]:
        if old.name not in wanted:
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)
    for name in sorted(wanted):
        for file in (name, name.removesuffix(".parquet") + ".json"):
            # A copy, so that a stop in between finds both to go on with.
            with replacing(out / file) as draft:
                shutil.copyfile(folder / file, draft)
    ledger = made.table.select(list(_LEDGER))
    names = pa.array([made.shards[i] if i >= 0 else "" for i in made.shard.tolist()])
    with replacing(out / "files.parquet") as draft:
        pq.write_table(ledger.append_column("shard", names), draft, compression="zstd")
    notices = {digest: text for note in notes for digest, text in note.get("notices", {}).items()}
    lines = [
        json.dumps({"sha256": d, "text": notices[d]}, ensure_ascii=False) + "\n" for d in sorted(notices)
    ]
    write_atomic(out / "notices.jsonl", "".join(lines).encode())
    write_lock(out / "lock.jsonl", [item for item in items if not item.local])
    write_atomic(out / "manifest.json", dump(manifest).encode())
    shutil.rmtree(folder, ignore_errors=True)


def dump(manifest: dict[str, Any]) -> str:
    """Write a manifest as JSON, an item a line, which keeps it easy to compare."""
    head = json.dumps({k: v for k, v in manifest.items() if k != "items"}, indent=1, ensure_ascii=False)[:-2]
    rows = ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in manifest["items"])
    return f'{head},\n "items": [\n{rows}\n ]\n}}\n'


def read_manifest_of(out: Path) -> dict[str, Any]:
    """Read the manifest of a finished corpus; raise ValueError when it is not finished."""
    path = out / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{out}: no finished corpus there; run `codegen2 data build ... --out {out}`")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        manifest["shards"], manifest["splits"], manifest["items"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no manifest of this builder ({error!r}); build the corpus again") from None
    return manifest
