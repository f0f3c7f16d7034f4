"""Show what a corpus holds and what was dropped, as a table; and show the progress of a build.

Not here: the counting (build.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..files.progress import progress_bar
from .build import Say


def print_report(manifest: dict[str, Any]) -> None:
    """Print a manifest's counts to standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for split, found in manifest["splits"].items():
        title = f"{split}: {found['files']:,} files of {found['packages']:,} packages, {found['bytes'] / 1e6:,.1f} MB"
        console.print(title, highlight=False)
        table = Table("language", "files", "MB")
        for name, count in sorted(found["languages"].items(), key=lambda pair: -pair[1]["bytes"]):
            table.add_row(name, f"{count['files']:,}", f"{count['bytes'] / 1e6:,.2f}")
        console.print(table)
    if "heldout" not in manifest["splits"]:
        console.print("no package is held out: say so in the list (split heldout), or raise --heldout-share")
    licences = {name for found in manifest["splits"].values() for name in found["licences"]}
    console.print("licences: " + ", ".join(sorted(licences)))
    table = Table(
        "dropped because of", "files", title=f"{manifest['read_files']:,} files read", title_justify="left"
    )
    for why, number in sorted(manifest["dropped"].items(), key=lambda pair: -pair[1]):
        table.add_row(why, f"{number:,}")
    console.print(table)
    masked = manifest["masked"]
    console.print(
        f"masked: {masked['email']} e-mail addresses, {masked['key']} keys, {masked['address']} addresses"
    )
    for name, found in manifest.get("overlap", {}).get("sets", {}).items():
        shared, total = found["with_shared_13_grams"], found["problems"]
        console.print(f"{name}: {shared} of {total} problems share a 13-gram with the training text")
    for entry in manifest["missing"]:
        console.print(f"missing: {entry['item']}: {entry['why']}", soft_wrap=True, markup=False)


@contextlib.contextmanager
def progress(first: str) -> Iterator[Say]:
    """Yield a function that shows progress on standard error, a bar a stage; `first` names the first stage."""
    with progress_bar(first, lines_every_s=10) as bar:
        yield lambda stage, done, total, what: bar.update(done, total, note=what[-40:], title=stage)
