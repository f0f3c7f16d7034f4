"""The subcommands that look after models and files: convert, models, cache, info.

Not here: the ones that run a model (generate.py). Arguments come from main.py, which also turns errors into sentences.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import PRESETS
from ..engine.system import allowed_cores
from ..files.paths import cache_dir
from ..files.progress import progress_bar
from ..files.textfile import read_text
from .generate import print_json, print_pairs


def run_convert(args: argparse.Namespace) -> int:
    """Convert a checkpoint and say what was written."""
    from ..checkpoint.convert import convert
    from ..checkpoint.hub import resolve

    source = resolve(None if args.source == "box" else args.source, args.revision)
    with progress_bar(f"converting {args.source}", unit="bytes") as bar:
        texts = [read_text(file).text for file in args.calibrate] if args.calibrate else None
        notes = convert(
            source, args.destination, args.to, dtype=args.dtype, head_dtype=args.head_dtype, calibrate=texts,
            overwrite=args.overwrite, check=not args.no_check, progress=bar.update,
        )  # fmt: skip
    for note in notes:
        print(f"codegen2: {note}", file=sys.stderr)
    print(args.destination)
    return 0


def run_models(args: argparse.Namespace) -> int:
    """List the sizes."""
    from ..checkpoint.hub import hub_names, local_directory
    from ..checkpoint.room import human

    rows: list[dict[str, Any]] = []
    for name, config in PRESETS.items():
        here = "box" if name == "nano" else local_directory(name)
        hub_name = None if name == "nano" else hub_names(name)[0]
        rows.append(
            {
                "name": name, "hub_name": hub_name, "parameters": config.n_params,
                "float32_bytes": 4 * config.n_params, "bfloat16_bytes": 2 * config.n_params,
                "local": None if here is None else str(here),
            }
        )  # fmt: skip
    if args.json:
        print_json({"models": rows})
        return 0
    print(f"{'name':6} {'parameters':>15} {'float32':>9} {'bfloat16':>9}  here")
    for row in rows:
        f32, bf16 = human(row["float32_bytes"]), human(row["bfloat16_bytes"])
        print(f"{row['name']:6} {row['parameters']:>15,} {f32:>9} {bf16:>9}  {row['local'] or 'no'}")
    return 0


def _kept() -> list[dict[str, Any]]:
    """Return what is on disk that `cache rm` can remove: name, kind, path and bytes of each."""
    from ..checkpoint.hub import downloaded
    from ..checkpoint.native.cache import native_cache_dir

    native = native_cache_dir()
    # All but locks, which go by themselves.
    packed = [("native", path) for path in _inside(native) if path.is_dir()]
    computed = [("computed", path) for path in _inside(cache_dir()) if path != native]
    found = [(name, "download", path, size) for name, path, size in downloaded()]
    found += [(path.name, kind, path, _size(path)) for kind, path in packed + computed]
    return [dict(zip(("name", "kind", "path", "bytes"), each, strict=True)) for each in found]


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; one that goes away meanwhile counts nothing."""
    size = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return size


def run_cache(args: argparse.Namespace) -> int:
    """List or remove what is kept on this disk."""
    from ..checkpoint.room import human

    kept = _kept()
    if args.action == "ls":
        if args.names:
            raise ValueError("cache ls takes no names")
        if args.json:
            _print_entries(kept)
            return 0
        for k in kept:
            print(f"{human(k['bytes']):>9}  {k['kind']:9} {k['name']}  {k['path']}")
        return 0
    if unknown := set(args.names) - {"all"} - {k["name"] for k in kept}:
        raise ValueError(
            f"cache: nothing called {', '.join(sorted(unknown))}; codegen2 cache ls lists the names"
        )
    chosen = [k for k in kept if "all" in args.names or k["name"] in args.names]
    if args.action == "verify":
        return _verify(chosen if args.names else kept, args.json)
    if not args.names:
        raise ValueError("cache rm needs names from cache ls, or all")
    for k in chosen:
        if k["path"].is_dir():
            shutil.rmtree(k["path"])
        else:
            k["path"].unlink()
    if args.json:
        _print_entries(chosen)
    else:
        print(f"removed {human(sum(k['bytes'] for k in chosen))}")
    return 0


def _verify(kept: list[dict[str, Any]], as_json: bool) -> int:
    """Read what was computed once and compare it with its digests. Raises ValueError that names what is damaged."""
    from ..checkpoint.digests import DIGESTS, damaged_file

    rows = []
    for k in kept:
        if k["kind"] != "download" and k["name"][0] != ".":  # what begins with a dot is being written
            entries = [k["path"]] if k["kind"] == "native" else [p.parent for p in k["path"].rglob(DIGESTS)]
            found = [damaged_file(entry, thorough=True) for entry in entries]
            rows += [{"name": k["name"], "damaged": [str(f) for f in found if f]}] if found else []
    if as_json:
        print_json({"entries": rows})
    if bad := [row for row in rows if row["damaged"]]:
        files = ", ".join(file for row in bad for file in row["damaged"])
        remedy = (
            f"codegen2 cache rm {' '.join(row['name'] for row in bad)} removes it, and it is computed anew"
        )
        raise ValueError(f"{files}: not as written; {remedy}")
    if not as_json:
        print(f"whole: {len(rows)}")
    return 0


def _print_entries(kept: list[dict[str, Any]]) -> None:
    print_json({"entries": [k | {"path": str(k["path"])} for k in kept]})


def run_info(args: argparse.Namespace) -> int:
    """Return what would run here."""
    from importlib import metadata

    from ..checkpoint.adapter import read_adapter
    from ..checkpoint.hub import resolve
    from ..checkpoint.layout import load_config
    from ..checkpoint.room import available_memory

    try:
        torch_version: str | None = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch_version = None
    from ..native import instruction_sets

    try:
        isas = instruction_sets()
    except ValueError:  # not built
        isas = []
    directory = resolve(args.model, args.revision)
    config = load_config(directory)[0]
    if args.adapter:
        read_adapter(Path(args.adapter), config)  # one that does not fit is said here
    content: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": allowed_cores(),
        "memory_available_bytes": available_memory(),
        "torch": torch_version,
        "engines": [*(["native"] if isas else []), *(["reference"] if torch_version else [])],
        "instruction_sets": isas,
        "model": {"path": str(directory), "parameters": config.n_params, **dataclasses.asdict(config)},
    }
    (print_json if args.json else print_pairs)(content)
    return 0
