"""Lists of what a corpus is made of: registry, name, version, licence and, once known, each archive's name and hash.

Not here: how they are fetched (fetch.py) or read (items.py). Two forms: a table (.tsv with a header; more columns are
ignored) names packages and versions; a lock (.jsonl, one package a line) pins their archives too.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files.paths import read_unpacked, write_atomic
from .archives import SUFFIXES, is_archive

REGISTRIES = ("pypi", "npm", "debian", "debian-source")
SPLITS = ("", "train", "heldout")
_LOCK_KEYS = {"registry", "name", "version", "licence", "split", "archives"}


@dataclass(frozen=True)
class Archive:
    """One file of a package: `hash` is "sha256:HEX" or "sha512:HEX"; `path` is its place on a Debian mirror."""

    name: str
    hash: str
    bytes: int = 0
    path: str = ""

    def __post_init__(self) -> None:
        # It becomes a file's name, and lists and registries come from anywhere.
        if not re.fullmatch(r"(?!\.+$)[\w.+~@%-]{1,200}", self.name, re.ASCII):
            raise ValueError(f"archive {self.name!r:.200} is no plain file name; correct the list")
        if not re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", self.hash):
            raise ValueError(f"{self.name}: {self.hash!r:.200} is no hash; expected sha256:HEX or sha512:HEX")
        if type(self.bytes) is not int or not isinstance(self.path, str):
            raise ValueError(f"{self.name}: expected bytes as a number and path as text; correct the list")


@dataclass(frozen=True)
class Item:
    """One package of the corpus, or one local directory, archive or Parquet file (`local`).

    `split` "" lets the name decide; `licence` is what the list's author read, "" what the package itself says.
    """

    registry: str
    name: str
    version: str
    licence: str = ""
    split: str = ""
    archives: tuple[Archive, ...] = ()
    local: str = ""

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}" + (f" {self.version}" if self.version else "")


def family(name: str) -> str:
    """Return the family of a package name, its first word: kin go into one split.

    >>> family("python-docx"), family("@scope/pkg-a"), family("flet-map")
    ('docx', 'scope', 'flet')
    """
    words = [word for word in re.split(r"[-_./@]+", name.lower()) if word and word != "python"]
    return words[0] if words else name.lower()


def split_of(name: str, declared: str, share: float, seed: int) -> str:
    """Return "train" or "heldout": what was declared, else by a hash of the family, so that versions change nothing."""
    if declared:
        return declared
    digest = hashlib.sha256(f"{seed}|split|{family(name)}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") < share * 2**64 else "train"


def read_manifest(path: Path) -> list[Item]:
    """Read a table or a lock, each package once; raise ValueError naming the line and what was expected."""
    try:
        text = read_unpacked(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text ({error}); give a .tsv or .jsonl list") from None
    if path.name.removesuffix(".gz").endswith(".tsv"):
        items = [_item(f"{path}: row {number}", row, ()) for number, row in _table(path, text)]
    else:
        lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        items = [_locked(f"{path}: line {number}", line) for number, line in lines]
    found: dict[tuple[str, str], Item] = {}
    for item in items:  # a table may name a package once a language
        key = (item.registry, item.name)
        if key in found and found[key].version != item.version:
            raise ValueError(f"{path}: {item.registry}/{item.name} has two versions; keep one of them")
        found.setdefault(key, item)
    _check_families(path, found.values())
    return sorted(found.values(), key=lambda item: (item.registry, item.name))


def _table(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"{path}: row {rows.reader.line_num} is no row of a table ({error}); correct it"
        ) from None


def _locked(where: str, line: str) -> Item:
    try:
        row = json.loads(line)
        archives = tuple(Archive(**archive) for archive in row.get("archives", ()))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where}: no package of a lock ({error!s:.300}); write it by `codegen2 data fetch`"
        ) from None
    if unknown := set(row) - _LOCK_KEYS:
        raise ValueError(f"{where}: unknown keys {sorted(unknown)!s:.300}; expected {sorted(_LOCK_KEYS)}")
    return _item(where, row, archives)


def _item(where: str, row: dict[str, Any], archives: tuple[Archive, ...]) -> Item:
    registry, name, version = (str(row.get(key) or "").strip() for key in ("registry", "name", "version"))
    if registry not in REGISTRIES or not name or not version:
        raise ValueError(
            f"{where}: expected a registry of {', '.join(REGISTRIES)}, a name and a version, found"
            f" {registry!r:.100} {name!r:.100} {version!r:.100}"
        )
    if not re.fullmatch(r"(@[\w.~-]+/)?[\w.+~-]+", name) or ".." in name:
        raise ValueError(f"{where}: {name!r:.200} is no package name")
    split = str(row.get("split") or "").strip()
    if split not in SPLITS:
        raise ValueError(
            f"{where}: split {split!r:.200} is unknown; choose train or heldout, or leave it out"
        )
    licence = str(row.get("licence") or "").strip()
    return Item(registry, name, version, licence, split, archives)


def _check_families(path: Path, items: Iterable[Item]) -> None:
    splits: dict[str, set[str]] = {}
    for item in items:
        if item.split:
            splits.setdefault(family(item.name), set()).add(item.split)
    if torn := sorted(name for name, found in splits.items() if len(found) > 1):
        raise ValueError(f"{path}: {torn} are in both splits; kin must not be torn apart")


def write_lock(path: Path, items: Iterable[Item]) -> None:
    """Write a lock, atomically."""
    rows = [{k: v for k, v in asdict(item).items() if k in _LOCK_KEYS and v} for item in items]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def local_items(path: Path, licence: str = "") -> list[Item]:
    """Make items of a directory, an archive or a Parquet file.

    A directory of archives or Parquet files is each of them; any other directory is one package, named as it is.
    Raises ValueError when nothing can be made of the path.
    """
    if path.is_file() and (is_archive(path) or path.suffix == ".parquet"):
        return [_local(path, licence)]
    if not path.is_dir():
        raise ValueError(
            f"{path}: neither a directory nor a manifest, an archive ({' '.join(SUFFIXES)}) or .parquet"
        )
    found = sorted(p for p in path.iterdir() if p.is_file() and (is_archive(p) or p.suffix == ".parquet"))
    return [_local(p, licence) for p in found] if found else [_local(path, licence)]


def _local(path: Path, licence: str) -> Item:
    path = path.resolve()
    name = path.name
    for suffix in (*SUFFIXES, ".parquet"):
        name = name.removesuffix(suffix)
    parts = re.match(r"(.+?)[-_](\d[\w.+~]*)", name) if path.is_file() and path.suffix != ".parquet" else None
    if parts:
        return Item("local", parts[1].lower().replace("_", "-"), parts[2], licence, local=str(path))
    return Item("local", name, "", licence, local=str(path))
