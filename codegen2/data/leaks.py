"""The leak check: a held-out file goes when half of its lines stand in one training file, or in one training package.

Not here: near duplicates (minhash.py), which compare whole files; this finds a file's lines inside a larger one, or
spread over several. Letters: H held-out files, L their distinct lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
# Which rows of a prepared file to read, and the code of each row's package.
Texts = tuple[Path, Places, Places]
Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]  # an engine's run

# A line of more held-out files than this tells nothing of where a file is from, and is not counted.
_COMMON = 1000


def line_hashes(text: str, min_chars: int = 1) -> Hashes:
    """Return the sorted distinct 64-bit hashes of a text's stripped lines of at least min_chars characters."""
    lines = {line for raw in text.split("\n") if len(line := raw.strip()) >= min_chars}
    joined = b"".join(hashlib.blake2b(line.encode("utf-8"), digest_size=8).digest() for line in lines)
    return np.sort(np.frombuffer(joined, dtype="<u8").astype(np.uint64))


def lines_of(part: Path, row: Places, min_chars: int) -> list[Hashes]:
    """Return the line hashes of rows of a prepared file."""
    texts = pq.read_table(part, columns=["text"], memory_map=False)["text"].take(pa.array(row))
    return [line_hashes(text, min_chars) for text in texts.to_pylist()]


def write_index(lines: Sequence[Hashes], folder: Path) -> npt.NDArray[np.int64]:
    """Write the index of held-out lines (L,) and whose they are; return how many lines count a file, (H,)."""
    owners = np.repeat(np.arange(len(lines)), [one.size for one in lines])
    flat = np.concatenate([*lines, np.zeros(0, np.uint64)])
    order = np.argsort(flat, kind="stable")
    known, counts = np.unique(flat[order], return_counts=True)
    telling = counts <= _COMMON
    keep = np.repeat(telling, counts)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "lines.npy", known[telling])
    np.save(folder / "starts.npy", np.concatenate([[0], np.cumsum(counts[telling])]))
    np.save(folder / "owners.npy", owners[order][keep])
    return np.bincount(owners[order][keep], minlength=len(lines))


def search(
    part: Path, row: Places, package: Places, index: Path, min_chars: int
) -> tuple[Places, Places, dict[int, Places]]:
    """Look for held-out lines in training files; index: where write_index wrote.

    Return held-out files (K,), the most lines that one training file here has of each (K,), and for each package the
    places in the index of all lines that it has here.
    """
    known, starts, owners = (
        np.load(index / f"{name}.npy", mmap_mode="r") for name in ("lines", "starts", "owners")
    )
    most: dict[int, int] = {}
    packages: dict[int, list[Places]] = {}
    for code, lines in zip(package.tolist(), lines_of(part, row, min_chars), strict=True):
        found = positions(known, lines)
        if found.size:
            packages.setdefault(code, []).append(found)
            for owner, n in zip(*counted(found, starts, owners), strict=True):
                most[owner] = max(most.get(owner, 0), n)
    joined = {code: np.unique(np.concatenate(found)) for code, found in packages.items()}
    return np.array(list(most), np.int64), np.array(list(most.values()), np.int64), joined


def positions(known: Hashes, lines: Hashes) -> Places:
    """Return where lines stand among the known ones, both rising; those that do not stand there are left out."""
    places = np.searchsorted(known, lines)
    places[places == len(known)] = 0
    return places[known[places] == lines] if len(known) else places[:0]


def counted(found: Places, starts: Places, owners: Places) -> tuple[list[int], list[int]]:
    """Return the files that own the lines at these places of the index, and how many of them each owns."""
    hits = [owners[starts[i] : starts[i + 1]] for i in found.tolist()]
    files, n = np.unique(np.concatenate([*hits, owners[:0]]), return_counts=True)
    return files.tolist(), n.tolist()


def leak_shares(
    held: Sequence[Texts], train: Sequence[Texts], index: Path, min_chars: int, run: Run
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return, for each held-out file in `held`'s order, the largest share of its lines in one training file, and in
    one training package, (H,) each. Lines of at least min_chars characters count; index: a folder to write to."""
    lines = [
        one for found in run(lines_of, [(part, row, min_chars) for part, row, _ in held]) for one in found
    ]
    sizes = np.maximum(write_index(lines, index), 1)
    in_file, in_package = np.zeros(len(lines)), np.zeros(len(lines))
    packages: dict[int, list[Places]] = {}
    for files, n, found in run(search, [(*texts, index, min_chars) for texts in train]):
        np.maximum.at(in_file, files, n / sizes[files])
        for package, places in found.items():
            packages.setdefault(package, []).append(places)
    starts, owners = np.load(index / "starts.npy"), np.load(index / "owners.npy")
    for found in packages.values():
        files, n = counted(np.unique(np.concatenate(found)), starts, owners)
        in_package[files] = np.maximum(in_package[files], np.array(n) / sizes[files])
    return in_file, in_package
