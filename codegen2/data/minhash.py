"""Near duplicates: MinHash signatures of word 5-grams, bands to find candidates, and which of them stay.

Not here: exact duplicates and the order of documents (plan.py). Broder, "On the resemblance and containment of
documents", 1997; the numbers are The Stack's: 256 permutations, 5-grams, Jaccard 0.7. Letters: N documents, P = 256
permutations, R = 42 bands of 6.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .rows import Table, put, texts_of

PERMUTATIONS, NGRAM = 256, 5
# A pair at 0.7 is found with probability 0.995, at 0.8 with 0.999997; what is found is then compared by all 256.
BANDS, ROWS = 42, 6
_SEED = 20261123
_MAX_LEADERS = 500  # files of one bucket that resemble none before them; more of these share boilerplate only
_WORD = re.compile(r"\w+")
_P, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)

Hashes = npt.NDArray[np.uint64]
Signature = npt.NDArray[np.uint32]
Pair = tuple[int, int]  # documents, the earlier and the later one


@functools.lru_cache(500_000)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(30))) * _MIX
    return values ^ (values >> np.uint64(31))


def ngram_hashes(text: str, n: int = NGRAM, lower: bool = False) -> Hashes:
    """Return the hashes of a text's word n-grams, in order, (K,); a text of fewer words has one, of all its words."""
    words = _WORD.findall(text.lower() if lower else text)
    if not words:
        return np.zeros(0, np.uint64)
    ids = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    n = min(n, len(words))
    total = np.zeros(len(words) - n + 1, np.uint64)
    for i in range(n):
        total = total * _P + ids[i : len(words) - n + 1 + i]
    return _mixed(total)


@functools.cache
def _permutations() -> tuple[Signature, Signature]:
    rng = np.random.Generator(np.random.PCG64(_SEED))
    a, b = rng.integers(0, 2**32, size=(2, PERMUTATIONS), dtype=np.uint32)
    return a | np.uint32(1), b


def signature(text: str) -> Signature:
    """Return the MinHash signature of a text, uint32 (P,): the share of equal places of two estimates their Jaccard."""
    values = np.unique((ngram_hashes(text) >> np.uint64(32)).astype(np.uint32))
    a, b = _permutations()
    least = np.full(PERMUTATIONS, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(values), 1024):  # (1024, P) stays in the cache
        least = np.minimum(least, (values[start : start + 1024, None] * a + b).min(axis=0))
    return least


def minhash(table: Table) -> Table:
    """Fill in the signatures of the rows that are not dropped."""
    signatures = [None if t is None else signature(t).astype("<u4").tobytes() for t in texts_of(table)]
    return put(table, minhash=signatures)


def band_keys(signatures: Signature, band: int) -> Hashes:
    """Return each document's key in one band, uint64 (N,): those with an equal one are candidates."""
    keys = np.zeros(len(signatures), np.uint64)
    for row in range(band * ROWS, (band + 1) * ROWS):
        keys = _mixed(keys * _P + signatures[:, row].astype(np.uint64))
    return keys


def groups_of(keys: Hashes) -> Iterable[npt.NDArray[np.int64]]:
    """Yield the documents, rising, that share a key of one band; keys (N,)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    for first, last in pairwise(edges.tolist()):
        if last - first > 1:
            yield order[first:last].astype(np.int64)


def pairs_of(group: npt.NDArray[np.int64], signatures: Signature, jaccard: float) -> list[Pair]:
    """Return pairs (earlier, later) of a group, rising document numbers, that are as near as `jaccard`.

    The first document is compared with all others; those near it are done; the first of the rest is compared with
    the rest, and so on: work grows with the number of different texts, not with the number of their copies.
    """
    found: list[Pair] = []
    left = group
    for _ in range(_MAX_LEADERS):
        if left.size < 2:
            break
        leader, rest = int(left[0]), left[1:]
        mine = signatures[leader]
        chunks = (rest[i : i + 4096] for i in range(0, rest.size, 4096))
        equal = np.concatenate([(signatures[chunk] == mine).sum(axis=1) for chunk in chunks])
        near = equal >= jaccard * PERMUTATIONS
        found += [(leader, int(other)) for other in rest[near]]
        left = rest[~near]
    return found


def near_pairs(signatures: Signature, jaccard: float, bands: Iterable[int] = range(BANDS)) -> set[Pair]:
    """Return the pairs of documents that are as near as `jaccard` and meet in one of the bands; signatures (N, P)."""
    found: set[Pair] = set()
    for band in bands:
        for group in groups_of(band_keys(signatures, band)):
            found.update(pairs_of(group, signatures, jaccard))
    return found


def near_pairs_in(signatures: Path, n: int, jaccard: float, bands: range) -> set[Pair]:
    """Return the near pairs of the first n signatures in a file, which is mapped."""
    return near_pairs(np.load(signatures, mmap_mode="r")[:n], jaccard, bands)


def near_duplicates(pairs: Iterable[Pair]) -> list[int]:
    """Return the documents to drop, rising: each that is near to an earlier one which stays.

    >>> near_duplicates([(0, 1), (1, 2)])
    [1]
    """
    dropped: set[int] = set()
    for later, earlier in sorted({(later, earlier) for earlier, later in pairs}):
        if earlier not in dropped:
            dropped.add(later)
    return sorted(dropped)
