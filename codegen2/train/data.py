"""Training sequences from token shards: an iterator of (sequence, state) whose state, a plain dict, resumes exactly.

Not here: reading shards (shards.py), hiding spans (corruption.py). Every draw depends on (seed, sequence number)
alone, so the state is three numbers. Letters: T tokens in a sequence, B sequences in a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..config import EOT, VOCAB_SIZE
from ..files.shards import Shard
from ..text.infill import MAX_HOLES, SEP
from .corruption import CorruptionConfig, corrupt_to_fit
from .tables import Tables

State = dict[str, int]
IGNORE = -100  # a target that does not count
_SMALLEST_PIECE = 32  # tokens; less room than this at a sequence's end is padding, not a stump of a file


class Documents(Protocol):
    """What the iterator needs of a shard: a number of documents and their ids, each without its final EOT."""

    def __len__(self) -> int: ...

    def doc(self, i: int) -> np.ndarray: ...


def sequences(
    docs: Documents, length: int, config: CorruptionConfig, seed: int, tables: Tables, state: State | None = None,
    stream: tuple[int, int] = (0, 1),
) -> Iterator[tuple[np.ndarray, State]]:  # fmt: skip
    """Yield (ids (length + 1,), state) for ever; start again from a yielded state to get what followed it.

    A sequence is, with config.causal_probability, files each ended by one EOT; else the same with every piece of a
    file corrupted on its own. A file that does not fit goes on in the next sequence. ids[:-1] are inputs and ids[1:]
    targets; where padding was needed the last ids are IGNORE.
    stream (i, n): read each n-th document of the shuffled list, from the i-th on; n streams share it without overlap.
    """
    state = dict(state or {"sequence": 0, "position": 0, "offset": 0})
    of_stream, n_streams = stream
    if not len(docs):
        raise ValueError("there are no documents to train on; give a shard that holds some")
    epoch, order = -1, np.empty(0, dtype=np.int64)
    while True:
        number = state["sequence"] * n_streams + of_stream
        causal = np.random.default_rng([seed, number]).random() < config.causal_probability
        ids: list[int] = []
        piece = 0
        while (room := length + 1 - len(ids)) >= _SMALLEST_PIECE:
            at = state["position"] * n_streams + of_stream
            if at // len(docs) != epoch:
                epoch = at // len(docs)
                order = np.random.default_rng([seed, epoch, 1]).permutation(len(docs))
            rest = docs.doc(int(order[at % len(docs)]))[state["offset"] :]
            seen = rest[:room]  # no more of it can fit
            if causal:
                used = len(seen)
                ids.extend(seen.tolist())
                if used == len(rest) and used < room:
                    ids.append(EOT)
            else:
                document, used = corrupt_to_fit(seen, room, config, [seed, number, piece, 2], tables)
                ids.extend(document)
                if not used and len(rest):
                    break
            piece += 1
            state["offset"] += used
            if used == len(rest):
                state["position"] += 1
                state["offset"] = 0
        state["sequence"] += 1
        out = np.full(length + 1, IGNORE, dtype=np.int64)
        out[: len(ids)] = ids
        yield out, dict(state)


def batches(
    source: Iterator[tuple[np.ndarray, State]], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, State]]:
    """Yield (inputs (B, T), targets (B, T), state after the last sequence); padding reads EOT and targets IGNORE."""
    for first, state in source:
        rows: list[np.ndarray] = [first]
        for _ in range(batch_size - 1):
            row, state = next(source)
            rows.append(row)
        ids = np.stack(rows)
        inputs = np.where(ids[:, :-1] == IGNORE, EOT, ids[:, :-1])
        yield inputs, ids[:, 1:], state


def document_ids(inputs: np.ndarray) -> np.ndarray:
    """Number the documents of each row of inputs (B, T) from 0; a document's last token is the EOT that ends it.

    The EOT between a corrupted text and its <sep> ends nothing.

    >>> document_ids(np.array([[7, 51199, 8, 50256, 50299, 51199, 5, 50300, 50256, 9, 50256, 3]])).tolist()
    [[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2]]
    """
    ends = inputs == EOT
    ends[:, :-1] &= inputs[:, 1:] != SEP
    numbers = np.zeros(inputs.shape, dtype=np.int64)
    numbers[:, 1:] = np.cumsum(ends[:, :-1], axis=1)
    return numbers


def span_weights(targets: np.ndarray, weight: float) -> np.ndarray:
    """Return float32 weights (B, T) of targets (B, T): `weight` for hidden text and its <eom>, 1 for everything else.

    >>> span_weights(np.array([[7, 51199, 8, 50256, 50299, 51199, 5, 6, 50300, 50256, 9]]), 4.0).astype(int).tolist()
    [[1, 1, 1, 1, 1, 1, 4, 4, 4, 1, 1]]
    """
    weights = np.ones(targets.shape, dtype=np.float32)
    for row, out in zip(targets, weights, strict=True):
        for sep in np.flatnonzero(row == SEP):
            ends = np.flatnonzero(row[sep:] == EOT)
            answers = slice(sep + 1, sep + ends[0] if len(ends) else len(row))
            out[answers][row[answers] < VOCAB_SIZE - MAX_HOLES] = weight
    return weights


def open_shards(paths: Sequence[Path], check_hash: bool = True) -> list[Shard]:
    """Open shards, each given by its path without suffix, or all shards below a directory, in the order of their paths.

    Raises ValueError for a broken shard (with check_hash each is read through once), and where there is none.
    """
    found = []
    for path in paths:
        if path.is_dir():
            stems = sorted(p.with_name(p.name.removesuffix(".idx.npy")) for p in path.rglob("*.idx.npy"))
            if not stems:
                raise ValueError(
                    f"{path}: holds no token shards; make them with codegen2 data, or give another folder"
                )
            found += [Shard(stem, check_hash) for stem in stems]
        else:
            found.append(Shard(path, check_hash))
    return found


class JoinedDocuments:
    """Several shards as one list of documents."""

    def __init__(self, shards: Sequence[Documents]) -> None:
        self._shards = list(shards)
        self._ends = np.cumsum([len(s) for s in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def doc(self, i: int) -> np.ndarray:
        """Return the ids of document i."""
        which = int(np.searchsorted(self._ends, i, side="right"))
        return self._shards[which].doc(i - (int(self._ends[which - 1]) if which else 0))


def fingerprint(docs: Documents) -> str:
    """Return a hash of how many documents there are and of the first, the middle and the last one."""
    n = len(docs)
    digest = hashlib.sha256(str(n).encode())
    for i in (0, n // 2, n - 1) if n else ():
        digest.update(docs.doc(i).astype("<i8").tobytes())
    return digest.hexdigest()


class Pieces:
    """Documents as pieces of at most `length` tokens, each a document, cut behind a line's end where one is near.

    A shuffle of whole documents gives a batch, and for a large file dozens of batches on end, to one file; the model
    then learns that file. A shuffle of pieces does not.
    """

    def __init__(self, docs: Documents, length: int, ends_line: np.ndarray) -> None:
        """ends_line (V,): Tables.ends_line. Raises ValueError when length is below 64 tokens."""
        if length < 64:
            raise ValueError(f"piece_tokens must be at least 64, got {length}")
        self._docs = docs
        self._places: list[tuple[int, int, int]] = []  # document, first token, end
        for i in range(len(docs)):
            n, start = len(docs.doc(i)), 0
            ends = np.flatnonzero(ends_line[docs.doc(i)]) + 1 if n > length else np.empty(0, np.int64)
            while n - start > length:
                at = int(np.searchsorted(ends, start + length, side="right")) - 1
                near = at >= 0 and int(ends[at]) > start + length // 2
                end = int(ends[at]) if near else start + length
                self._places.append((i, start, end))
                start = end
            self._places.append((i, start, n))

    def __len__(self) -> int:
        return len(self._places)

    def doc(self, i: int) -> np.ndarray:
        """Return the ids of piece i."""
        document, start, end = self._places[i]
        return self._docs.doc(document)[start:end]
