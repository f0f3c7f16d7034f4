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
import time
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import PRESETS
from ..engine.system import allowed_cores
from ..files.paths import cache_dir
from ..files.progress import progress_bar
from ..files.textfile import read_text
from .generate import print_json, print_pairs

_PRUNE_OPTIONS = ("unused_days", "max_gb", "dry_run")


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
    """Return what is on disk that `cache rm` can remove: name, kind, path, bytes, source and last use of each."""
    from ..checkpoint.hub import downloaded, hub_name
    from ..checkpoint.native.cache import last_used, sources

    found: list[dict[str, Any]] = [
        {"name": name, "kind": "download", "path": path, "bytes": size, "source": name, "last_used": None}
        for name, path, size in downloaded()
    ]
    made = ("native", "merged")
    # All but locks, which go by themselves.
    entries = [(kind, p) for kind in made for p in _inside(cache_dir() / kind) if p.is_dir()]
    for kind, path in entries + [("computed", p) for p in _inside(cache_dir()) if p.name not in made]:
        names = [" with ".join(hub_name(Path(s)) or s for s in source) for source in sources(path)]
        found.append(
            {
                "name": path.name, "kind": kind, "path": path, "bytes": _size(path),
                "source": ", ".join(names) or None, "last_used": last_used(path),
            }
        )  # fmt: skip
    return found


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
    """List, verify or remove what is kept on this disk."""
    from ..checkpoint.room import human

    kept = _kept()
    if args.names and args.action in ("ls", "prune"):
        raise ValueError(f"cache {args.action} takes no names; cache rm does")
    given = [f"--{n.replace('_', '-')}" for n in _PRUNE_OPTIONS if getattr(args, n)]
    if given and args.action != "prune":
        raise ValueError(f"{', '.join(given)}: for cache prune; cache rm takes names")
    if unknown := set(args.names) - {"all"} - {k["name"] for k in kept}:
        raise ValueError(
            f"cache: nothing called {', '.join(sorted(unknown))}; codegen2 cache ls lists the names"
        )
    if args.action == "rm" and not args.names:
        raise ValueError("cache rm needs names from cache ls, or all")
    chosen = [k for k in kept if not args.names or "all" in args.names or k["name"] in args.names]
    if args.action == "verify":
        return _verify(chosen, args.json)
    if args.action == "prune":
        chosen = _needless(chosen, args)
    if args.action != "ls" and not args.dry_run:
        _remove(chosen)
    if args.json:
        print_json({"entries": [k | {"path": str(k["path"])} for k in chosen]})
        return 0
    for k in chosen:
        if args.action == "ls":
            day = "" if k["last_used"] is None else time.strftime("%Y-%m-%d", time.localtime(k["last_used"]))
            origin = f"  of {k['source']}" if k["source"] and k["kind"] != "download" else ""
            print(f"{human(k['bytes']):>9}  {k['kind']:9} {day:10}  {k['name']}  {k['path']}{origin}")
        elif args.action == "prune":
            print(f"{human(k['bytes']):>9}  {k['name']}: {k['why']}")
    if args.action != "ls":
        print(f"{'would remove' if args.dry_run else 'removed'} {human(sum(k['bytes'] for k in chosen))}")
    return 0


def _remove(chosen: list[dict[str, Any]]) -> None:
    for k in chosen:
        if k["path"].is_dir():
            shutil.rmtree(k["path"])
        else:
            k["path"].unlink()


def _needless(kept: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what was packed or merged and is not needed, with the reason: it can be made again. No downloads."""
    from ..checkpoint.native.cache import sources

    for name in ("unused_days", "max_gb"):
        if (value := getattr(args, name)) is not None and not 0 <= value < 1e9:
            raise ValueError(f"--{name.replace('_', '-')} must be from 0 to 1e9, got {value:g}")
    mine = sorted((k for k in kept if k["kind"] in ("native", "merged")), key=lambda k: -k["last_used"])
    size, now, found = 0, time.time(), []
    for k in mine:
        idle_days = (now - k["last_used"]) / 86_400
        known = sources(k["path"])
        if k["name"].startswith("."):
            if idle_days < 1:  # somebody may be writing it
                continue
            why = "left by a run that was killed"
        elif known and not any(all(Path(path).exists() for path in source) for source in known):
            why = "its source is gone"
        elif args.unused_days is not None and idle_days > args.unused_days:
            why = f"not used for {idle_days:.0f} days"
        elif args.max_gb is not None and (size := size + k["bytes"]) > args.max_gb * 1e9:
            why = f"more than {args.max_gb:g} GB"
        else:
            continue
        found.append(k | {"why": why})
    return found


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
