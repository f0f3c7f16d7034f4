"""Who runs the tasks of a build: a pool of processes on this machine, or a Ray cluster.

Not here: the tasks. An engine takes a function and tasks, which are its arguments, and yields the results in the order
of the tasks.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

R = TypeVar("R")
Tasks = Sequence[tuple[Any, ...]]


class LocalEngine:
    """Run tasks in `jobs` processes; with one, in this one."""

    def __init__(self, jobs: int) -> None:
        """Refuse less than one."""
        if jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {jobs}")
        self._jobs = jobs

    def run(self, function: Callable[..., R], tasks: Tasks) -> Iterator[R]:
        """Yield function(*task) of each task, in their order; ValueError when a process was ended from outside."""
        if self._jobs == 1 or len(tasks) < 2:
            yield from itertools.starmap(function, tasks)
            return
        # Not forked: Arrow has threads, which a fork leaves behind.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(min(self._jobs, len(tasks)), context) as pool:
            futures = [pool.submit(function, *task) for task in tasks]
            try:
                for future in futures:
                    yield future.result()
            except concurrent.futures.process.BrokenProcessPool:
                raise ValueError(
                    "a worker was ended from outside, perhaps for want of memory; say the same command again, with"
                    " fewer --jobs, and it goes on"
                ) from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


class RayEngine:
    """Run tasks on a Ray cluster by Ray Data, as rows of map_batches.

    RAY_ADDRESS names a cluster, else one of `jobs` workers is started here. All machines must see the corpus folder
    under the same path, for tasks read and write files; only names, notes and near pairs travel.
    """

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

    def run(self, function: Callable[..., R], tasks: Tasks) -> Iterator[R]:
        """Yield function(*task) of each task, in their order."""
        if not tasks:
            return
        rows = [{"number": i, "task": pickle.dumps(task)} for i, task in enumerate(tasks)]

        def work(batch: dict[str, Any]) -> dict[str, Any]:
            results = [pickle.dumps(function(*pickle.loads(task))) for task in batch["task"]]
            return {"number": batch["number"], "result": np.array(results, dtype=object)}

        data = self._ray.data.from_items(rows, override_num_blocks=len(rows))
        done = data.map_batches(work, batch_size=1, batch_format="numpy")
        # Order is asked for above; sorting by number costs nothing and holds even so.
        for row in sorted(done.iter_rows(), key=lambda row: row["number"]):
            yield pickle.loads(row["result"])


Engine = LocalEngine | RayEngine
