"""The arguments of `codegen2 data` and what each of its subcommands runs; imports nothing heavy.

Not here: what they do (build.py, fetch.py, report.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LISTS = ("starter", "nano", "algorithms")  # lists of this package, NAME.jsonl beside this file
_LEAST_SCORE = -0.5


def add_data(commands: Any) -> None:
    """Add `data` with its subcommands."""
    parser = commands.add_parser(
        "data",
        help="build a training corpus",
        description="Build a training corpus from permissive packages.",
    )
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    p = kinds.add_parser(
        "build", help="fetch, read, clean, deduplicate, split, shuffle and write",
        description="Build a corpus. Stopped and said again, it goes on.",
    )  # fmt: skip
    _add_build(p)
    p = kinds.add_parser(
        "fetch", help="fetch packages and pin them", description="Fetch packages; nothing is built or run."
    )
    p.add_argument(
        "manifest", metavar="MANIFEST", help=f".tsv or .jsonl, or a list of this package: {', '.join(LISTS)}"
    )
    p.add_argument("--store", type=Path, required=True, metavar="DIR", help="where archives are kept")
    p.add_argument("--lock", type=Path, metavar="FILE", help="write what was found, with hashes (.jsonl)")
    p.add_argument(
        "--pause", type=float, default=0.5, metavar="S", help="between requests (default: %(default)s)"
    )
    p = kinds.add_parser(
        "tokenise", help="turn a corpus into token shards", description="Write DIR/tokens: uint16 shards."
    )
    p.add_argument("corpus", type=Path, metavar="DIR", help="what build wrote")
    _add_engine(p)
    p = kinds.add_parser("report", help="what is in a corpus", description="Show what a corpus holds.")
    p.add_argument("corpus", type=Path, metavar="DIR", help="what build wrote")
    p.add_argument("--json", action="store_true", help="print the manifest instead of tables")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)"
    )
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="what runs them (default: %(default)s)"
    )


def _add_build(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "inputs", nargs="+", metavar="INPUT",
        help=f"a manifest (.tsv, .jsonl; of this package: {', '.join(LISTS)}), a directory, an archive, a Parquet file",
    )  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="the corpus")
    add(
        "--store",
        type=Path,
        metavar="DIR",
        help="where fetched archives are kept (default: OUT/work/archives)",
    )
    add("--languages", metavar="A,B", help="only these (default: all 19)")
    add(
        "--licences",
        choices=["permissive", "strict"],
        default="permissive",
        help="strict: MIT, BSD, Apache, ISC, PSF",
    )
    add("--licence", default="", metavar="SPDX", help="of directories and archives that do not say their own")
    add(
        "--heldout-share",
        type=float,
        default=0.02,
        metavar="X",
        help="of the packages (default: %(default)s)",
    )
    add(
        "--test-share",
        type=float,
        default=0.2,
        metavar="X",
        help="test code of a package at most (default: %(default)s)",
    )
    add("--max-package-mb", type=float, default=0.0, metavar="N", help="of one package at most")
    add(
        "--cap",
        action="append",
        default=[],
        metavar="LANGUAGE=MB",
        help="of a language at most; may be repeated",
    )
    add("--shard-mb", type=float, default=64.0, metavar="N", help="text in a shard (default: %(default)s)")
    add(
        "--opt-out", type=Path, metavar="FILE", help="patterns registry/package/path to leave out, one a line"
    )
    add("--no-decontamination", action="store_true", help="do not look for HumanEval")
    add(
        "--benchmark", action="append", type=Path, default=[], metavar="FILE",
        help="problems to keep out besides HumanEval's, such as mbpp.jsonl; may be repeated",
    )  # fmt: skip
    add(
        "--functions", nargs="?", type=float, const=_LEAST_SCORE, metavar="SCORE",
        help="cut Python into small functions that need little else; the higher, the fewer (default: %(const)s)",
    )  # fmt: skip
    add("--pause", type=float, default=0.5, metavar="S", help="between requests (default: %(default)s)")
    add("--json", action="store_true", help="print the manifest instead of tables")
    _add_engine(parser)


def run_data(args: argparse.Namespace) -> int:
    """Run what was chosen and return the exit status; 1 when fetch missed something."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ValueError("building a corpus needs pyarrow: pip install 'codegen2[data]'") from None
    run = {"build": _build, "fetch": _fetch, "tokenise": _tokenise, "report": _report}[args.what]
    return run(args)


def own_list(name: str) -> Path:
    """Return a list of packages that comes with this one."""
    return Path(__file__).with_name(f"{name}.jsonl")


def _inputs(names: Sequence[str], licence: str) -> list[Any]:
    from .manifest import local_items, read_manifest

    items = []
    for name in names:
        path = own_list(name) if name in LISTS else Path(name)
        if path.suffix in (".tsv", ".jsonl") and path.is_file():
            items += read_manifest(path)
        else:
            items += local_items(path, licence)
    return items


def _engine(args: argparse.Namespace) -> Any:
    if args.engine == "ray":
        from .ray_engine import RayEngine

        return RayEngine(args.jobs)
    from .engines import LocalEngine

    return LocalEngine(args.jobs)


def _config(args: argparse.Namespace) -> Any:
    from ..text.languages import LANGUAGES
    from .items import language_named
    from .prepare import Config, file_hash

    chosen = (
        [language_named(name.strip()) for name in args.languages.split(",")] if args.languages else LANGUAGES
    )
    caps = []
    for text in args.cap:
        name, _, size = text.rpartition("=")
        try:
            caps.append((language_named(name), int(float(size) * 1e6)))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"--cap {text!r}: expected LANGUAGE=MB, such as c#=60 ({error})") from None
    lines = args.opt_out.read_text(encoding="utf-8").splitlines() if args.opt_out else []
    return Config(
        languages=tuple(name for name in LANGUAGES if name in chosen),
        licences=args.licences,
        heldout_share=args.heldout_share,
        max_test_share=args.test_share,
        max_package_bytes=int(args.max_package_mb * 1e6),
        max_language_bytes=tuple(sorted(caps)),
        decontaminate=not args.no_decontamination,
        problems=tuple((str(path.resolve()), file_hash(path)) for path in args.benchmark),
        functions=args.functions,
        opted_out=tuple(line.strip() for line in lines if line.strip() and not line.startswith("#")),
        shard_bytes=int(args.shard_mb * 1e6),
    )


def _build(args: argparse.Namespace) -> int:
    from .build import build, dump
    from .fetch import Fetcher
    from .report import print_report, progress

    config = _config(args)
    items = _inputs(args.inputs, args.licence)
    args.out.mkdir(parents=True, exist_ok=True)
    fetcher = Fetcher(args.store or args.out / "work" / "archives", pause_s=args.pause)
    with progress() as say:
        manifest = build(items, args.out, config, _engine(args), fetcher, say)
    for entry in manifest["missing"]:
        print(f"codegen2: left out {entry['item']}: {entry['why']}", file=sys.stderr)
    if args.json:
        print(dump(manifest), end="")
    else:
        print_report(manifest)
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from .build import fetch_all
    from .fetch import Fetcher
    from .manifest import write_lock
    from .report import progress

    items = _inputs([args.manifest], "")
    with progress() as say:
        found, missing = fetch_all(items, Fetcher(args.store, pause_s=args.pause), say)
    if args.lock:
        write_lock(args.lock, [item for item, _ in found])
    for entry in missing:
        print(f"codegen2: {entry['why']}", file=sys.stderr)
    print(f"{len(found)} packages in {args.store}, {len(missing)} missing")
    return 1 if missing else 0


def _tokenise(args: argparse.Namespace) -> int:
    from ..text.tokenizer import Tokenizer
    from .report import progress
    from .tokens import tokenise

    with progress() as say:
        found = tokenise(args.corpus, Tokenizer(), _engine(args), say)
    for name, note in found.items():
        print(name, json.dumps(note))
    return 0


def _report(args: argparse.Namespace) -> int:
    from .build import dump, read_manifest_of
    from .report import print_report

    manifest = read_manifest_of(args.corpus)
    if args.json:
        print(dump(manifest), end="")
    else:
        print_report(manifest)
    return 0
