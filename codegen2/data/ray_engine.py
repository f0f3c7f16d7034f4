"""Run a build on a Ray cluster, by Ray Data: tasks as rows of map_batches.

Not here: the tasks and stages, which are the same as on one machine. All machines must see the corpus folder under the
same path, for tasks read and write files; only names, notes and near pairs travel. An address in RAY_ADDRESS names a
cluster, else one is started here.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
R = TypeVar("R")


class RayEngine:
    """Run tasks on `jobs` workers of a Ray cluster."""

    def __init__(self, jobs: int) -> None:
        """Connect to the cluster, or start one of `jobs` workers here."""
        try:
            import ray
            import ray.data
        except ImportError:
            raise ValueError("the engine ray needs Ray: pip install 'codegen2[ray]'") from None
        self._ray = ray
        if not ray.is_initialized():
            ray.init(
                num_cpus=None if os.environ.get("RAY_ADDRESS") else jobs, include_dashboard=False, log_to_driver=False,
                logging_level="ERROR",
            )  # fmt: skip
        context = ray.data.DataContext.get_current()
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
