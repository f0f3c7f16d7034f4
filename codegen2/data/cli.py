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

from ..files.arguments import add_option as option

LISTS = ("starter", "box", "nano", "algorithms")  # lists of this package, NAME.jsonl beside this file
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
        description="Build a corpus. Stopped and started again, it goes on.",
    )  # fmt: skip
    _add_build(p)
    p = kinds.add_parser(
        "fetch", help="fetch packages and pin them", description="Fetch packages; nothing is built or run."
    )
    option(p, "manifest", str, "LIST", f".tsv or .jsonl, or a list of this package: {', '.join(LISTS)}")
    option(p, "--store", Path, "DIR", "where archives are kept", required=True)
    option(p, "--lock", Path, "FILE", "write what was found, with hashes (.jsonl)")
    option(p, "--pause", float, "S", "between requests", 0.5)
    p = kinds.add_parser(
        "tokenise", help="turn a corpus into token shards", description="Write DIR/tokens: uint16 shards."
    )
    option(p, "corpus", Path, "DIR", "what build wrote")
    _add_engine(p)
    p = kinds.add_parser("report", help="what is in a corpus", description="Show what a corpus holds.")
    option(p, "corpus", Path, "DIR", "what build wrote")
    p.add_argument("--json", action="store_true", help="print the manifest instead of tables")


def _add_engine(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)"
    )
    p.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="what runs them (default: %(default)s)"
    )


def _add_build(p: argparse.ArgumentParser) -> None:
    forms = (
        f"a list (.tsv, .jsonl; of this package: {', '.join(LISTS)}), a directory, an archive, a Parquet file"
    )
    option(p, "inputs", str, "INPUT", forms, nargs="+")
    option(p, "--out", Path, "DIR", "the corpus", required=True)
    option(p, "--store", Path, "DIR", "where fetched archives are kept (default: OUT/work/archives)")
    option(p, "--languages", str, "A,B", "only these (default: all 19)")
    p.add_argument(
        "--licences", choices=["permissive", "strict"], default="permissive",
        help="strict: MIT, BSD, Apache-2.0, ISC, HPND and Python's (default: %(default)s)",
    )  # fmt: skip
    option(p, "--licence", str, "SPDX", "of directories and archives that do not say their own", "")
    option(p, "--heldout-share", float, "X", "of the packages", 0.02)
    option(p, "--test-share", float, "X", "test code of a package at most", 0.2)
    option(p, "--max-package-mb", float, "N", "of one package at most; 0: no limit", 0.0)
    option(p, "--cap", str, "LANGUAGE=MB", "of a language at most; may be repeated", action="append")
    option(p, "--shard-mb", float, "N", "text in a shard", 64.0)
    option(p, "--opt-out", Path, "FILE", "patterns registry/package/path to leave out, one a line")
    p.add_argument("--no-decontamination", action="store_true", help="do not look for HumanEval")
    more = "problems to keep out besides HumanEval's, such as mbpp.jsonl; may be repeated"
    option(p, "--benchmark", Path, "FILE", more, action="append")
    p.add_argument(
        "--functions", nargs="?", type=float, const=_LEAST_SCORE, metavar="SCORE",
        help="cut Python into small functions that need little else; the higher, the fewer (default: %(const)s)",
    )  # fmt: skip
    option(p, "--pause", float, "S", "between requests", 0.5)
    p.add_argument("--json", action="store_true", help="print the manifest instead of tables")
    _add_engine(p)


def run_data(args: argparse.Namespace) -> int:
    """Run what was chosen and return the exit status; 1 when fetch missed something."""
    try:
        import license_expression  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError(f"building a corpus needs {error.name}: pip install 'codegen2[data]'") from None
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
        if path.name.removesuffix(".gz").endswith((".tsv", ".jsonl")):
            items += read_manifest(path)
        else:
            items += local_items(path, licence)
    return items


def _engine(args: argparse.Namespace) -> Any:
    from .engines import LocalEngine, RayEngine

    return (RayEngine if args.engine == "ray" else LocalEngine)(args.jobs)


def _config(args: argparse.Namespace) -> Any:
    from ..files.paths import check_regular, file_hash
    from ..text.languages import LANGUAGES
    from .items import language_named
    from .prepare import Config

    named = args.languages.split(",") if args.languages else LANGUAGES
    chosen = [language_named(name.strip()) for name in named]
    caps = []
    for text in args.cap or ():
        name, _, size = text.rpartition("=")
        try:
            caps.append((language_named(name), int(float(size) * 1e6)))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"--cap {text!r}: expected LANGUAGE=MB, such as c#=60 ({error})") from None
    lines = check_regular(args.opt_out).read_text(encoding="utf-8").splitlines() if args.opt_out else []
    return Config(
        languages=tuple(name for name in LANGUAGES if name in chosen),
        licences=args.licences,
        heldout_share=args.heldout_share,
        max_test_share=args.test_share,
        max_package_bytes=int(args.max_package_mb * 1e6),
        max_language_bytes=tuple(sorted(caps)),
        decontaminate=not args.no_decontamination,
        problems=tuple((str(path.resolve()), file_hash(path)) for path in args.benchmark or ()),
        functions=args.functions,
        opted_out=tuple(line.strip() for line in lines if line.strip() and not line.startswith("#")),
        shard_bytes=int(args.shard_mb * 1e6),
    )


def _build(args: argparse.Namespace) -> int:
    from .build import build
    from .fetch import Fetcher
    from .report import progress

    config = _config(args)
    items = _inputs(args.inputs, args.licence)
    args.out.mkdir(parents=True, exist_ok=True)
    fetcher = Fetcher(args.store or args.out / "work" / "archives", pause_s=args.pause)
    with progress("fetch") as say:
        manifest = build(items, args.out, config, _engine(args), fetcher, say)
    for entry in manifest["missing"]:
        print(f"codegen2: left out {entry['item']}: {entry['why']}", file=sys.stderr)
    status = _show(manifest, args.json)
    print(f"{args.out} is built; to train on it: codegen2 data tokenise {args.out}", file=sys.stderr)
    return status


def _fetch(args: argparse.Namespace) -> int:
    from .build import fetch_all
    from .fetch import Fetcher
    from .manifest import write_lock
    from .report import progress

    items = _inputs([args.manifest], "")
    with progress("fetch") as say:
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

    with progress("tokenise") as say:
        found = tokenise(args.corpus, Tokenizer(), _engine(args), say)
    for name, note in found.items():
        print(name, json.dumps(note))
    tokens = args.corpus / "tokens"
    valid = f" --valid {tokens}" if any(name.startswith("heldout") for name in found) else ""
    print(
        f"to train on them: codegen2 train tiny --shard {tokens}{valid} --run-dir runs/first", file=sys.stderr
    )
    return 0


def _report(args: argparse.Namespace) -> int:
    from .build import read_manifest_of

    return _show(read_manifest_of(args.corpus), args.json)


def _show(manifest: dict[str, Any], as_json: bool) -> int:
    from .build import dump
    from .report import print_report

    if as_json:
        print(dump(manifest), end="")
    else:
        print_report(manifest)
    return 0
