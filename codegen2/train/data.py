"""Training sequences from token shards: an iterator of (sequence, state) whose state, a plain dict, resumes exactly.

Not here: reading shards (shards.py), hiding spans (corruption.py). Every draw depends on (seed, sequence number)
alone, so the state is three numbers. Letters: T tokens in a sequence, B sequences in a batch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..config import EOT, VOCAB_SIZE
from ..files.shards import Shard
from ..text.infill import MAX_HOLES, SEP
from .corruption import CorruptionConfig, corrupt_to_fit
from .tables import Tables
from .text_holes import corrupt_text_to_fit

State = dict[str, int]
IGNORE = -100  # a target that does not count
_HELD_OUT = re.compile(r"(?:held[-_]?out|valid(?:ation)?|val|test|dev|eval)(?![a-z])", re.IGNORECASE)
_SMALLEST_PIECE = 32  # tokens; less room than this at a sequence's end is padding, not a stump of a file


class Documents(Protocol):
    """Documents' ids, each without its final EOT: a list of arrays, a shard, several joined by ConcatDataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...


def sequences(
    docs: Documents, length: int, config: CorruptionConfig, seed: int, tables: Tables, state: State | None = None,
    stream: tuple[int, int] = (0, 1), shuffle: bool = True,
) -> Iterator[tuple[np.ndarray, State]]:  # fmt: skip
    """Yield (ids (length + 1,), state) for ever; start again from a yielded state to get what followed it.

    A sequence is, with config.causal_probability, files each ended by one EOT; else the same with every piece of a
    file corrupted on its own. A file that does not fit goes on in the next sequence. ids[:-1] are inputs and ids[1:]
    targets; where padding was needed the last ids are IGNORE.
    stream (i, n): read each n-th document of the list, from the i-th on; n streams share it without overlap. The list
    is shuffled for each pass over it, or with shuffle=False read as it stands.
    """
    state = dict(state or {"sequence": 0, "position": 0, "offset": 0})
    of_stream, n_streams = stream
    if not len(docs):
        raise ValueError("there are no documents to train on; give a shard that holds some")
    epoch, order = -1, np.empty(0, dtype=np.int64)
    while True:
        number = state["sequence"] * n_streams + of_stream
        rng = np.random.default_rng([seed, number])
        causal = rng.random() < config.causal_probability
        ids: list[int] = []
        piece = 0
        while (room := length + 1 - len(ids)) >= _SMALLEST_PIECE:
            at = state["position"] * n_streams + of_stream
            if at // len(docs) != epoch:
                epoch = at // len(docs)
                order = np.random.default_rng([seed, epoch, 1]).permutation(len(docs)) if shuffle else order
            at %= len(docs)
            rest = docs[int(order[at]) if shuffle else at][state["offset"] :]
            seen = rest[:room]  # no more of it can fit
            if causal:
                used = len(seen)
                ids.extend(seen.tolist())
                if used == len(rest) and used < room:
                    ids.append(EOT)
            else:
                if config.text_hole_probability:
                    document, used = corrupt_text_to_fit(
                        seen, room, config, rng, [seed, number, len(ids)], tables
                    )
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


def open_shards(paths: Sequence[Path], check_hash: bool = True, held_out: bool = False) -> list[Shard]:
    """Open the shards that shard_stems finds; with check_hash each is read through once. Errors as its and Shard's."""
    return [Shard(stem, check_hash) for stem in shard_stems(paths, held_out)[0]]


def shard_stems(paths: Sequence[Path], held_out: bool = False) -> tuple[list[Path], list[Path]]:
    """Return shards (paths without suffix) to train on, or to score with held_out, and those that folders hold besides.

    A path is a shard, or a folder: all shards below it, in their order, each once. Which are held out their names say,
    or those of their folders: heldout-00000 as data build writes it, valid, test and the like. Raises ValueError for a
    held-out shard to train on, and where there is none.
    """
    found: dict[Path, Path] = {}
    others: list[Path] = []
    for path in paths:
        if path.is_dir():
            stems = sorted(_stem(p) for p in path.rglob("*.idx.npy"))
            mine = [stem for stem in stems if _is_held_out(stem, path) == held_out]
            if not mine and held_out:  # a folder of shards with other names
                mine = [stem for stem in stems if not stem.name.startswith("train")]
            what = "token shards", f"codegen2 data tokenise {path}"
            if stems:
                kind = "that are" if held_out else "but"
                what = f"shards {kind} held out", "hold packages out when building it (--heldout-share)"
            if not mine:
                raise ValueError(f"{path}: holds no {what[0]}; {what[1]}, or give another folder")
            others += [stem for stem in stems if stem not in mine]
        else:
            mine = [_stem(path)]
            if not any(
                mine[0].with_name(mine[0].name + end).exists() for end in (".json", ".bin", ".idx.npy")
            ):
                raise ValueError(
                    f"{path}: no folder and no shard; codegen2 data tokenise CORPUS writes CORPUS/tokens"
                )
            if not held_out and _is_held_out(mine[0], path.parent):
                raise ValueError(f"{path}: is held out, so it is not trained on; give it by --valid")
        found |= {stem.resolve(): stem for stem in mine}
    return list(found.values()), others


def _stem(path: Path) -> Path:
    return path.with_name(re.sub(r"\.(bin|json|idx\.npy|source)$", "", path.name))


def _is_held_out(stem: Path, folder: Path) -> bool:
    folders = (folder.resolve().name, *stem.relative_to(folder).parts[:-1])
    return bool(_HELD_OUT.match(stem.name)) or any(_HELD_OUT.fullmatch(name) for name in folders)


def fingerprint(docs: Documents) -> str:
    """Return a hash of how many documents there are and of the first, the middle and the last one."""
    n = len(docs)
    digest = hashlib.sha256(str(n).encode())
    for i in (0, n // 2, n - 1) if n else ():
        digest.update(docs[i].astype("<i8").tobytes())
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
        places = []  # document, first token, end
        for i in range(len(docs)):
            tokens, start = docs[i], 0
            n = len(tokens)
            ends = np.flatnonzero(ends_line[tokens]) + 1 if n > length else np.empty(0, np.int64)
            while n - start > length:
                at = int(np.searchsorted(ends, start + length, side="right")) - 1
                near = at >= 0 and int(ends[at]) > start + length // 2
                end = int(ends[at]) if near else start + length
                places.append((i, start, end))
                start = end
            places.append((i, start, n))
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)

    @property
    def documents(self) -> np.ndarray:
        """Return the number of each piece's document."""
        return self._places[:, 0]

    @property
    def sizes(self) -> np.ndarray:
        """Return each piece's length, tokens."""
        return self._places[:, 2] - self._places[:, 1]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> np.ndarray:
        """Return the ids of piece i."""
        document, start, end = self._places[i].tolist()
        return self._docs[document][start:end]
