"""The corpus builder: read pinned permissive packages, clean, dedup, split by package, write and tokenise.

Not here: packing ids into batches (train/data.py) and the shard format (shards.py).

    sources: read_wheel, read_stdlib -> files
    stages:  clean -> drop_exact -> cap -> drop_near -> drop_benchmark -> drop_leaks
    out:     files-train.jsonl, files-heldout.jsonl, manifest.json, holes.jsonl; tokenise: train.*, heldout.*
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from codegen2.data.sources import (
    STDLIB,
    Package,
    fetch,
    read_packages,
    read_problems,
    read_stdlib,
    read_wheel,
)
from codegen2.data.stages import (
    Drops,
    Rules,
    SourceFile,
    cap,
    clean,
    drop_benchmark,
    drop_exact,
    drop_leaks,
    drop_near,
    order_key,
)
from codegen2.files.shards import write_shard
from codegen2.problems.sets import holes_hash, single_line_holes


class Encoder(Protocol):
    """Name what tokenise needs of a tokenizer: text that holds control words must come back as plain ids."""

    def encode(self, text: str) -> list[int]: ...


def _read_and_clean(
    package: Package, downloads: Path, rules: Rules
) -> tuple[dict[str, object], list[SourceFile], Drops]:
    """Read one package; its manifest entry says so when it is missing or refused."""
    entry: dict[str, object] = {"name": package.name, "version": package.version, "split": package.split}
    if package.name == STDLIB:
        files, drops = read_stdlib(rules)
        listing = "".join(f"{hashlib.sha256(f.text.encode()).hexdigest()} {f.path}\n" for f in files)
        entry |= {"licence": "PSF-2.0", "sha256": hashlib.sha256(listing.encode()).hexdigest()}
        return entry, list(clean(files, rules, drops)), drops
    wheel = fetch(package, downloads)
    if wheel is None:
        return entry | {"refused": "missing: no such wheel"}, [], Drops()
    with wheel.open("rb") as source:
        entry["sha256"] = hashlib.file_digest(source, "sha256").hexdigest()
    licence, files, drops = read_wheel(wheel, package, rules)
    if not licence:
        return entry | {"refused": "licence unknown or not permissive"}, [], drops
    return entry | {"licence": licence}, list(clean(files, rules, drops)), drops


def write_files(path: Path, files: Iterable[SourceFile]) -> int:
    """Write files as JSON lines, through a partial file, and return the bytes of their text."""
    total, draft = 0, path.with_name(path.name + ".partial")
    with draft.open("w", encoding="utf-8", newline="\n") as out:
        for file in files:
            total += len(file.text.encode("utf-8"))
            out.write(json.dumps(asdict(file), ensure_ascii=False) + "\n")
    os.replace(draft, path)
    return total


def read_files(path: Path) -> Iterator[SourceFile]:
    """Read what write_files wrote."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield SourceFile(**json.loads(line))


def build(
    packages: Sequence[Package], out: Path, downloads: Path, rules: Rules, workers: int = 2
) -> dict[str, object]:
    """Build the corpus in `out`: files-train.jsonl, files-heldout.jsonl, and the manifest, which it gives."""
    out.mkdir(parents=True, exist_ok=True)
    downloads.mkdir(parents=True, exist_ok=True)
    sources = [Package(STDLIB, platform.python_version(), "train"), *packages]
    # Training files come first: when a held-out file has a twin, the held-out one goes.
    sources = sorted(
        (p for p in sources if p.split != "decontaminate"), key=lambda p: (p.split != "train", p.name)
    )
    benchmarks = [fetch(p, downloads) for p in packages if p.split == "decontaminate"]
    if None in benchmarks:
        raise ValueError(
            "a benchmark to decontaminate against cannot be fetched; training on it unseen is no option"
        )
    problems = [problem for wheel in benchmarks if wheel for problem in read_problems(wheel)]
    for package in sources:
        if package.name != STDLIB:
            fetch(package, downloads)  # one at a time, before the pool
    heldout = frozenset(p.name for p in sources if p.split == "heldout")
    entries: list[dict[str, object]] = []
    files: list[SourceFile] = []
    drops = Drops()
    with multiprocessing.Pool(workers) as pool:
        for entry, found, dropped in pool.imap(
            partial(_read_and_clean, downloads=downloads, rules=rules), sources
        ):
            entries.append(entry)
            files += found
            drops += dropped
            if "refused" in entry:
                print(f"{entry['name']}=={entry['version']}: {entry['refused']}", file=sys.stderr)
    stages: list[tuple[str, Callable[[list[SourceFile]], list[SourceFile]]]] = [
        ("exact", lambda batch: list(drop_exact(batch, drops))),
        ("cap", lambda batch: cap(batch, heldout, rules, drops)),
        ("near", lambda batch: drop_near(batch, rules, drops, workers)),
        ("benchmark", lambda batch: drop_benchmark(batch, problems, drops)),
    ]
    print(f"clean: {len(files)} files", file=sys.stderr)
    for name, stage in stages:
        files = stage(files)
        print(f"{name}: {len(files)} files", file=sys.stderr)
    train = sorted((f for f in files if f.package not in heldout), key=lambda f: order_key(f, rules.seed))
    held = sorted((f for f in files if f.package in heldout), key=lambda f: order_key(f, rules.seed))
    held = drop_leaks(held, train, rules, drops, workers)
    manifest = _manifest(entries, {"train": train, "heldout": held}, drops, rules)
    write_files(out / "files-train.jsonl", train)
    write_files(out / "files-heldout.jsonl", held)
    (out / "manifest.json").write_text(_dump_manifest(manifest), encoding="utf-8")
    return manifest


def _manifest(
    entries: list[dict[str, object]], splits: dict[str, list[SourceFile]], drops: Drops, rules: Rules
) -> dict[str, object]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    totals: dict[str, object] = {}
    for split, files in splits.items():
        for file in files:
            counts[file.package] += 1
            sizes[file.package] += len(file.text.encode("utf-8"))
        names = {file.package for file in files}
        totals[split] = {
            "packages": len(names),
            "files": len(files),
            "bytes": sum(sizes[name] for name in names),
        }
    reasons: Counter[str] = Counter()
    for (_, reason), number in drops.items():
        reasons[reason] += number
    for entry in entries:
        name = str(entry["name"])
        dropped = {reason: n for (package, reason), n in sorted(drops.items()) if package == name and n}
        entry |= {"files": counts[name], "bytes": sizes[name], "dropped": dropped}
    totals["dropped_files"] = dict(sorted(reasons.items()))
    return {"rules": asdict(rules), "totals": totals, "packages": entries}


def _dump_manifest(manifest: dict[str, object]) -> str:
    packages = manifest["packages"]
    assert isinstance(packages, list)
    head = json.dumps({k: v for k, v in manifest.items() if k != "packages"}, indent=1)[:-2]
    rows = ",\n".join("  " + json.dumps(entry, separators=(",", ":")) for entry in packages)
    return f'{head},\n "packages": [\n{rows}\n ]\n}}\n'  # a package a line keeps it small and easy to compare


def write_holes(files_jsonl: Path, out: Path) -> str:
    """Cut the single-line holes of the held-out files into out/holes.jsonl and return their hash."""
    holes = single_line_holes(read_files(files_jsonl))
    text = "".join(json.dumps(asdict(hole), ensure_ascii=False) + "\n" for hole in holes)
    (out / "holes.jsonl").write_text(text, encoding="utf-8", newline="\n")
    (out / "holes.sha256").write_text(holes_hash(holes) + "\n", encoding="utf-8")
    return holes_hash(holes)


_encoder: Encoder | None = None  # one in each worker process


def _set_encoder(tokenizer: Encoder) -> None:
    global _encoder
    _encoder = tokenizer


def _encode(text: str) -> npt.NDArray[np.uint16]:
    assert _encoder is not None
    return np.asarray(_encoder.encode(text), dtype=np.uint16)  # a quarter of the pickle of a list


def tokenise(
    files_jsonl: Path, out_dir: Path, tokenizer: Encoder, workers: int = 2
) -> dict[str, int | str | None]:
    """Encode every file of files-NAME.jsonl into the shard out_dir/NAME and return its manifest."""
    source_bytes = sum(len(file.text.encode("utf-8")) for file in read_files(files_jsonl))
    with multiprocessing.Pool(workers, _set_encoder, (tokenizer,)) as pool:
        docs = pool.imap(_encode, (file.text for file in read_files(files_jsonl)), chunksize=32)
        return write_shard(out_dir / files_jsonl.stem.removeprefix("files-"), docs, source_bytes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `build` or `tokenise` from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m codegen2.data.corpus", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="fetch, clean, dedup and split into files-*.jsonl")
    builder.add_argument("--packages", type=Path, default=Path(__file__).with_name("nano-packages.txt"))
    builder.add_argument("--download", type=Path, help="folder of wheels, default OUT/wheels")
    encoder = commands.add_parser("tokenise", help="turn files-*.jsonl into token shards")
    for command in (builder, encoder):
        command.add_argument("--out", type=Path, required=True, help="the corpus folder")
        command.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args(argv)
    out: Path = args.out
    if args.command == "build":
        manifest = build(
            read_packages(args.packages), out, args.download or out / "wheels", Rules(), args.workers
        )
        print(json.dumps(manifest["totals"]), f"holes {write_holes(out / 'files-heldout.jsonl', out)}")
    else:
        from codegen2.text.tokenizer import Tokenizer

        for name in ("heldout", "train"):
            print(name, json.dumps(tokenise(out / f"files-{name}.jsonl", out, Tokenizer(), args.workers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
