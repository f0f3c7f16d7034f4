"""Run a build on a Ray cluster, by Ray Data: tasks as rows of map_batches, bands through one keyed shuffle.

Not here: the tasks and stages, which are the same as on one machine. All machines must see the corpus folder under the
same path, for tasks read and write files; only names, notes and band keys travel. An address in RAY_ADDRESS names a
cluster, else one is started here.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .minhash import BANDS, band_keys, groups_of, open_signatures, pairs_of

T = TypeVar("T")
R = TypeVar("R")
_BLOCK = 4096  # documents


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("the engine ray needs Ray: pip install 'codegen2[ray]'") from None
    return ray


class RayEngine:
    """Run tasks on `jobs` workers of a Ray cluster."""

    def __init__(self, jobs: int) -> None:
        """Connect to the cluster, or start one of `jobs` workers here."""
        self._ray = _ray()
        self._jobs = jobs
        if not self._ray.is_initialized():
            self._ray.init(
                num_cpus=None if os.environ.get("RAY_ADDRESS") else jobs, include_dashboard=False, log_to_driver=False,
                logging_level="ERROR",
            )  # fmt: skip
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True

    def run(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yield function(task) of each task, in their order."""
        if not tasks:
            return
        rows = [{"number": i, "task": pickle.dumps(task)} for i, task in enumerate(tasks)]

        def work(batch: dict[str, Any]) -> dict[str, Any]:
            results = [pickle.dumps(function(pickle.loads(task))) for task in batch["task"]]
            return {"number": batch["number"], "result": np.array(results, dtype=object)}

        data = self._ray.data.from_items(rows, override_num_blocks=len(rows))
        done = data.map_batches(work, batch_size=1, batch_format="numpy")
        # Order is asked for above; sorting by number costs nothing and holds even so.
        for row in sorted(done.iter_rows(), key=lambda row: row["number"]):
            yield pickle.loads(row["result"])

    def pairs(self, signatures: Path, n: int, jaccard: float) -> set[tuple[int, int]]:
        """Return the near pairs: band keys are shuffled to their groups, and each group is compared where it lands."""
        if not n:
            return set()

        def keys(batch: dict[str, Any]) -> dict[str, Any]:
            starts = batch["item"].tolist()
            documents = np.concatenate([np.arange(s, min(s + _BLOCK, n)) for s in starts])
            found = band_keys(np.asarray(open_signatures(signatures, n)[documents]))
            keyed = found.reshape(-1)
            # A group of Ray's is many buckets of ours: one call a bucket would be millions of calls.
            share = (keyed % np.uint64(max(1, n // _BLOCK))).astype(np.int64)
            return {"document": np.repeat(documents, BANDS), "key": keyed.view(np.int64), "share": share}

        def compare(group: dict[str, Any]) -> dict[str, Any]:
            order = np.argsort(group["document"], kind="stable")
            documents, mapped = group["document"][order], open_signatures(signatures, n)
            found: set[tuple[int, int]] = set()
            for places in groups_of(group["key"][order].view(np.uint64)):
                found.update(pairs_of(documents[places], mapped, jaccard))
            near = np.array(sorted(found), dtype=np.int64).reshape(-1, 2)
            return {"earlier": near[:, 0], "later": near[:, 1]}

        blocks = self._ray.data.from_items(list(range(0, n, _BLOCK)))
        banded = blocks.map_batches(keys, batch_size=1, batch_format="numpy")
        near = banded.groupby("share").map_groups(compare, batch_format="numpy")
        found: set[tuple[int, int]] = set()
        for batch in near.iter_batches(batch_format="numpy", batch_size=_BLOCK):
            found.update(zip(batch["earlier"].tolist(), batch["later"].tolist(), strict=True))
        return found
