"""Mixtures: how much a run reads of each language, phase by phase, and the one order of pieces that follows from it.

Not here: what becomes of a piece (data.py). The order is drawn once, by one seed, and stored in the run's folder;
training reads it from the first piece to the last, without shuffling, and then again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..files.paths import write_atomic
from ..files.shards import Shard
from .data import Documents, Pieces, State

ORDER_FILE = "mixture.npz"
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Phase:
    """A stretch of a run: the tokens of text it reads, and the shares of some labels; the others share the rest."""

    tokens: int
    shares: dict[str, float]


@dataclass(frozen=True)
class Mixture:
    """What is read: labels are the languages that shards name, and "functions" for those of small functions.

    The others' parts of the rest grow as their size to the power `rest_power`, and over the whole run nobody of them
    is read more than `most_epochs` times. Documents are cut behind line ends into pieces of at most `piece_tokens`;
    those below `smallest_piece` tokens are left out.
    """

    phases: tuple[Phase, ...]
    piece_tokens: int = 1536
    smallest_piece: int = 24
    rest_power: float = 0.6
    most_epochs: float = 4.0

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("a mixture needs a phase at least; give it tokens and shares")
        for phase in self.phases:
            if phase.tokens < 1:
                raise ValueError(f"a phase's tokens must be at least 1, got {phase.tokens}")
            if min(phase.shares.values(), default=0) < 0 or sum(phase.shares.values()) > 1 + 1e-9:
                raise ValueError(
                    f"a phase's shares must be 0 or more and add up to at most 1, got {phase.shares}"
                )

    @property
    def tokens(self) -> int:
        """Return how many tokens of text all phases read together."""
        return sum(phase.tokens for phase in self.phases)


class MixedDocuments:
    """The pieces of documents in the order of a mixture."""

    def __init__(self, pieces: Pieces, order: Numbers, label_of: Numbers, labels: Sequence[str]) -> None:
        """order: numbers of pieces; label_of: each piece's label, its place in labels."""
        self._pieces, self._order, self._label_of = pieces, order, label_of
        self.labels = list(labels)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> np.ndarray:
        """Return the ids of the piece at place i of the order."""
        return self._pieces[int(self._order[i])]

    def tokens_read(self, before: State | None, after: State, stream: tuple[int, int]) -> list[int]:
        """Count the tokens by label that a stream (i, n) read between two of its states."""
        counts = [0] * len(self.labels)
        of_stream, n_streams = stream
        start = before or {"position": 0, "offset": 0}
        for position in range(start["position"], after["position"] + 1):
            piece = int(self._order[(position * n_streams + of_stream) % len(self._order)])
            first = start["offset"] if position == start["position"] else 0
            last = after["offset"] if position == after["position"] else int(self._pieces.sizes[piece])
            counts[self._label_of[piece]] += last - first
        return counts


def mixed(
    docs: Documents, mixture: Mixture, seed: int, ends_line: np.ndarray, run_dir: Path, store: bool = True
) -> MixedDocuments:
    """Return what a run reads of shards, in the order that lies in run_dir; where there is none it is drawn and stored.

    Raises ValueError where a shard names no languages, a label of the mixture has no documents, or the stored order is
    that of other shards or another mixture.
    """
    shards = getattr(docs, "datasets", [docs])  # of a ConcatDataset
    names, document_label = _document_labels(shards)
    pieces = Pieces(docs, mixture.piece_tokens, ends_line)
    label_of = document_label[pieces.documents]
    hashes = [shard.sha256 for shard in shards if isinstance(shard, Shard)]
    made_of = json.dumps([asdict(mixture), seed, hashes])
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    path = run_dir / ORDER_FILE
    if path.is_file():
        order = _read_order(path, digest)
    else:
        order = draw_order(pieces.sizes, label_of, names, mixture, np.random.default_rng(seed))
        if store:
            content = io.BytesIO()
            np.savez(content, order=order, made_of=digest)
            write_atomic(path, content.getvalue())
    return MixedDocuments(pieces, order, label_of, names)


def _read_order(path: Path, digest: str) -> Numbers:
    try:
        with np.load(path, allow_pickle=False) as stored:
            order: Numbers = stored["order"]
            made_of = str(stored["made_of"])
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{path}: no order of a mixture ({error!r}); remove it, it is drawn again") from None
    if made_of != digest:
        raise ValueError(
            f"{path} is the order of other shards, another mixture or seed; give the same, or another run directory"
        )
    return order


def _document_labels(shards: Sequence[Documents]) -> tuple[list[str], Numbers]:
    """Return the labels, and of each document of all shards the place of its own among them."""
    names: list[str] = []
    found = []
    for shard in shards:
        if not isinstance(shard, Shard) or (runs := shard.languages) is None:
            raise ValueError(
                f"{getattr(shard, 'stem', 'this list of documents')} does not say its documents' languages, which a"
                " mixture needs; write the shard again by `codegen2 data tokenise`"
            )
        names += sorted({name for name, _ in runs} - set(names))
        found.append(np.repeat([names.index(name) for name, _ in runs], [count for _, count in runs]))
    return names, np.concatenate(found)


def draw_order(
    sizes: Numbers, label_of: Numbers, names: Sequence[str], mixture: Mixture, rng: np.random.Generator
) -> Numbers:
    """Draw the numbers of pieces to read; sizes and label_of by piece, label_of a place in names.

    A label's pieces are drawn without replacement, over all phases, and anew when all were drawn; a phase's pieces of
    all labels are shuffled together.
    """
    large = sizes >= mixture.smallest_piece
    pools = {name: _Pool(np.flatnonzero(large & (label_of == i)), sizes, rng) for i, name in enumerate(names)}
    wanted = {name for phase in mixture.phases for name in phase.shares}
    if empty := [name for name in sorted(wanted) if name not in pools or not pools[name].size]:
        raise ValueError(
            f"the mixture wants {', '.join(empty)}, of which the shards have nothing; give more shards"
        )
    order = []
    for phase in mixture.phases:
        budgets = _budgets(phase, mixture, {name: pool.size for name, pool in pools.items()})
        drawn = np.concatenate([pools[name].draw(budget) for name, budget in budgets.items()])
        order.append(drawn[rng.permutation(len(drawn))])
    return np.concatenate(order)


def _budgets(phase: Phase, mixture: Mixture, sizes: dict[str, int]) -> dict[str, float]:
    """Return the tokens that a phase reads of each label; sizes: the tokens that there are.

    >>> mixture = Mixture((Phase(1000, {"python": 0.5}),))
    >>> found = _budgets(mixture.phases[0], mixture, {"python": 5000, "c": 32_000, "lua": 1000, "sql": 5})
    >>> {name: round(tokens) for name, tokens in found.items()}
    {'python': 500, 'c': 442, 'lua': 55, 'sql': 2}
    """
    budgets = {name: phase.tokens * share for name, share in phase.shares.items()}
    rest = phase.tokens * (1 - sum(phase.shares.values()))
    weights = {name: size**mixture.rest_power for name, size in sizes.items() if name not in budgets}
    most = mixture.most_epochs * phase.tokens / mixture.tokens
    for name, weight in weights.items():
        budgets[name] = min(rest * weight / sum(weights.values()), most * sizes[name])
    return budgets


class _Pool:
    """A label's pieces, dealt like cards that are shuffled again when all are out."""

    def __init__(self, pieces: Numbers, sizes: Numbers, rng: np.random.Generator) -> None:
        self.pieces = pieces[rng.permutation(len(pieces))]
        self.size = int(sizes[pieces].sum())
        self._sizes, self._rng, self._at = sizes, rng, 0

    def draw(self, tokens: float) -> Numbers:
        """Deal pieces of so many tokens together, or of a few more."""
        dealt: list[Numbers] = [self.pieces[:0]]
        while tokens > 0 and len(self.pieces):
            if self._at == len(self.pieces):
                self.pieces = self.pieces[self._rng.permutation(len(self.pieces))]
                self._at = 0
            total = np.cumsum(self._sizes[self.pieces[self._at :]])
            n = min(int(np.searchsorted(total, tokens)) + 1, len(total))
            dealt.append(self.pieces[self._at : self._at + n])
            self._at += n
            tokens -= int(total[n - 1])
        return np.concatenate(dealt)
