"""Who runs the tasks of a build: a pool of processes on this machine, or Ray (ray_engine.py).

Not here: the tasks. An engine takes a function and its tasks and yields the results in the order of the tasks.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Engine(Protocol):
    """What a build needs of whoever runs it."""

    def run(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yield function(task) of each task, in their order."""
        ...


class LocalEngine:
    """Run tasks in `jobs` processes; with one, in this one."""

    def __init__(self, jobs: int) -> None:
        """Refuse less than one."""
        if jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {jobs}")
        self._jobs = jobs

    def run(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yield function(task) of each task, in their order; ValueError when a process was ended from outside."""
        if self._jobs == 1 or len(tasks) < 2:
            yield from map(function, tasks)
            return
        # Not forked: Arrow has threads, which a fork leaves behind.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(min(self._jobs, len(tasks)), context) as pool:
            futures: list[concurrent.futures.Future[Any]] = [pool.submit(function, task) for task in tasks]
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
