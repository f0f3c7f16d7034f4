"""The held-out files and holes that the box's card is measured on, read from the packages they were taken from.

held_out.tsv freezes what an earlier corpus builder chose before the box was trained: 647 files of 16 packages, in their
shuffled order, and of 1,000 single-line holes which of a file's lines each is (rank:line, lines counted from 0). It
holds no text: the packages are fetched, pinned by the list `nano`, and every text is compared with its digest.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from codegen2.data.archives import Limits, members
from codegen2.data.cli import own_list
from codegen2.data.fetch import Fetcher
from codegen2.data.manifest import read_manifest
from codegen2.problems.sets import Hole

# sha256 of the holes (problems.sets.holes_hash), as the card names it.
HOLES_SHA256 = "183a062a58b07e5656c20d7406758fc49ddae9c982283a3923e931cab47f56e1"


@dataclass(frozen=True)
class HeldOutFile:
    """A file of a held-out package; holes are (rank among all holes, line counted from 0)."""

    package: str
    path: str
    text: str
    holes: tuple[tuple[int, int], ...]


def read_held_out(store: Path) -> list[HeldOutFile]:
    """Return the held-out files in their frozen order, fetching into `store` the packages that are not there yet.

    Raises ValueError where a package cannot be had or a file is another than the frozen one.
    """
    with Path(__file__).with_suffix(".tsv").open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source, delimiter="\t"))
    wanted: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        wanted[row["package"]].add(row["path"])
    texts: dict[tuple[str, str], str] = {}
    fetcher = Fetcher(store)
    for item in read_manifest(own_list("nano")):
        package = f"{item.name}=={item.version}"
        if package in wanted:
            (archive,) = fetcher.fetch(item)[1]
            for path, content in members(archive, wanted[package].__contains__, Limits()):
                texts[package, path] = (content or b"").decode("utf-8-sig")
    found = []
    for row in rows:
        text = texts.get((row["package"], row["path"]))
        if text is None or hashlib.sha256(text.encode()).hexdigest()[:16] != row["sha256"]:
            raise ValueError(f"{row['package']} {row['path']}: is not the frozen file; fetch {store} anew")
        pairs = [pair.split(":") for pair in row["holes"].split()]
        holes = tuple((int(rank), int(line)) for rank, line in pairs)
        found.append(HeldOutFile(row["package"].partition("==")[0], row["path"], text, holes))
    return found


def frozen_holes(files: list[HeldOutFile]) -> list[Hole]:
    """Return the 1,000 holes in the order in which they were drawn."""
    ranked = {}
    for file in files:
        lines = file.text.split("\n")
        for rank, line in file.holes:
            prefix = "".join(text + "\n" for text in lines[:line])
            suffix = "".join("\n" + text for text in lines[line + 1 :])
            ranked[rank] = Hole(file.package, file.path, line, prefix, lines[line], suffix)
    return [ranked[rank] for rank in sorted(ranked)]
