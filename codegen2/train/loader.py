"""Micro-batches for one process of a run, in an order that depends on the step alone, from worker processes if wished.

Not here: what is in a sequence (data.py). A run has n streams, which walk over the documents side by side, and its
micro-batch m, counted from the run's begin, comes of stream m % n. With one process or many, with workers or without,
the same micro-batches make the same step; and the states of all streams are the whole state of the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .config import Stage, TrainConfig
from .data import Documents, State, batches, document_ids, sequences, span_weights
from .stop import leave_signals_alone
from .tables import Tables


@dataclass(frozen=True)
class MicroBatch:
    """Inputs and targets (B, T), each target's weight, the documents' numbers where masked, and where its stream
    stands behind it."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    documents: np.ndarray | None
    stream: int
    state: State


@dataclass(frozen=True)
class Source:
    """What the streams read and where they stand: states has one a stream, None at the begin."""

    docs: Documents
    config: TrainConfig
    stage: Stage
    tables: Tables
    states: list[State | None]

    def read(self, stream: int) -> Iterator[MicroBatch]:
        """Yield the micro-batches of one stream from its state on, for ever."""
        config, stage = self.config, self.stage
        rows = sequences(
            self.docs, stage.seq_len, stage.corruption or config.corruption, config.seed, self.tables,
            self.states[stream], (stream, config.n_streams), shuffle=config.mixture is None,
        )  # fmt: skip
        for inputs, targets, state in batches(rows, stage.micro_batch_size):
            if inputs.max() >= config.model.vocab_size:
                raise ValueError(
                    f"an id of {inputs.max()} is outside the vocabulary; the shard is damaged, write it again"
                )
            weights = span_weights(targets, stage.span_weight)
            documents = document_ids(inputs) if config.document_mask else None
            yield MicroBatch(inputs, targets, weights, documents, stream, state)


class _Streams(IterableDataset[MicroBatch]):
    """Take turns between streams; of w workers, worker i has each w-th of the turns, so together they keep them."""

    def __init__(self, source: Source, order: list[int]) -> None:
        self._source, self._order = source, order

    def __iter__(self) -> Iterator[MicroBatch]:
        worker = get_worker_info()
        order = self._order if worker is None else self._order[worker.id :: worker.num_workers]
        readers = {stream: self._source.read(stream) for stream in order}
        while True:
            for stream in order:
                yield next(readers[stream])


def micro_batches(source: Source, first: int, rank: int, n_ranks: int, workers: int) -> Iterator[MicroBatch]:
    """Yield the micro-batches first + rank, first + rank + n_ranks, ... of a run, for ever.

    Raises ValueError where processes do not divide a step's micro-batches, or workers a process's streams.
    """
    config = source.config
    if config.grad_accum_steps % n_ranks:
        raise ValueError(
            f"{n_ranks} processes cannot share {config.grad_accum_steps} micro-batches a step evenly; choose"
            " grad_accum_steps a multiple of the number of processes"
        )
    mine = config.n_streams // n_ranks
    if workers and mine % workers:
        raise ValueError(
            f"{workers} workers cannot share {mine} streams evenly; choose streams a multiple of"
            f" {workers * n_ranks}, or other workers"
        )
    order = [(first + rank + i * n_ranks) % config.n_streams for i in range(mine)]
    dataset = _Streams(source, order)
    if not workers:
        return iter(dataset)
    # Forked, because a shard's memory map is shared so and copied otherwise; workers touch no accelerator.
    options: dict[str, Any] = {"multiprocessing_context": "fork", "prefetch_factor": 4}
    options["worker_init_fn"] = leave_signals_alone
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_same, **options))


def _same(batch: Any) -> Any:
    return batch
