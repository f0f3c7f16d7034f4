"""The loop of a run: problems in, answers and verdicts into the run's folder, while progress is shown.

Not here: who answers (generators/), what a verdict is (judge.py, repo.py), numbers (scores.py).

Clocks. An answer's latency is wall time, so nothing of ours may compete with it: the model computes on some cores and
judging on others (share_cores), and where there is no other core, they take turns. Verdicts do not depend on either:
their limits count the candidate's own CPU seconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from .generators.own import ROWS, Decoding, Generator, Request
from .store import Folder

MOST_WAITING = (
    256  # programs handed to a judge and not yet judged: bounds memory, and what a kill makes undone
)
BASELINES = ("empty middle", "previous line")


@dataclass(frozen=True)
class Task:
    """One problem of a run: what is asked, what would be right (None: unknown), and what it belongs to."""

    request: Request
    expected: str | None = None
    group: str | None = None
    category: str | None = None

    @property
    def task_id(self) -> str:
        """Return the problem's name."""
        return self.request.task_id


class Said(Protocol):
    """Name what is read of a verdict (judge.Verdict)."""

    @property
    def passed(self) -> bool: ...
    @property
    def result(self) -> str: ...


class Asker(Protocol):
    """Judge an answer in the background; unindent: columns before the hole that go."""

    def submit(self, task: Task, completion: str, unindent: int) -> Future[Any]: ...


class Judging:
    """Hand answers to judges and write down what they say. forms: a judge by what is added to an answer's name."""

    def __init__(
        self, forms: dict[str, Asker], folder: Folder, cores: frozenset[int] | None, turns: bool
    ) -> None:
        """cores: what judging runs on, None leaves that to the system; turns: nothing else may run meanwhile."""
        self._forms = forms
        self._journal = folder.verdicts
        self._cores = cores
        self._turns = turns
        self._waiting: list[tuple[Future[Any], str, str]] = []
        self._same: dict[tuple[str, str, str, int], Future[Any]] = {}

    def ask(self, task: Task, name: str, completion: str, unindent: int = 0) -> None:
        """Have an answer judged, unless that was done; equal programs of a problem are judged once."""
        for form, judge in self._forms.items():
            answer = name + form
            if (task.task_id, answer) in self._journal:
                continue
            same = (task.task_id, form, completion, unindent)
            if same not in self._same:
                with on_cores(self._cores):  # threads and processes that this starts stay on them
                    self._same[same] = judge.submit(task, completion, unindent)
            self._waiting.append((self._same[same], task.task_id, answer))

    def pause(self) -> None:
        """Let an answer's time be taken: where cores are shared, wait until nothing is being judged."""
        self.collect(everything=self._turns)

    def collect(self, everything: bool = False) -> None:
        """Write down what is judged; wait for the rest if everything is wanted or much is waiting."""
        if not everything and len(self._waiting) < MOST_WAITING:
            left = [w for w in self._waiting if not w[0].done()]
        else:
            keep = 0 if everything else MOST_WAITING // 2
            wait([w[0] for w in self._waiting[: len(self._waiting) - keep]])
            left = [w for w in self._waiting if not w[0].done()]
        for future, task_id, answer in self._waiting:
            if future.done() and (task_id, answer) not in self._journal:
                said: Said = future.result()
                record = {"task_id": task_id, "answer": answer, "passed": said.passed, "result": said.result}
                self._journal.add(record)
        self._waiting = left
        waiting = {w[1] for w in left}
        self._same = {k: f for k, f in self._same.items() if k[0] in waiting}


def answer_all(
    tasks: Sequence[Task],
    n: int,
    how: Decoding,
    generator: Generator,
    folder: Folder,
    judging: Judging,
    *,
    baselines: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Answer each task n times and have the answers judged; what the folder holds already is not done again.

    Batches are those of the whole run, whatever part of one is missing. progress is called after each task.
    """
    for task in tasks:
        for first in range(0, n, ROWS):
            numbers = range(first, min(first + ROWS, n))
            missing = [i for i in numbers if (task.task_id, i) not in folder.samples]
            if missing:
                judging.pause()
                answers = generator.answer(task.request, numbers, how)
                for i, answer in zip(numbers, answers, strict=True):
                    if i in missing:
                        key = {"task_id": task.task_id, "sample": i}
                        folder.samples.add(
                            key
                            | {
                                "raw": answer.raw,
                                "shown": answer.shown,
                                "unindent": answer.unindent,
                                "finish_reason": answer.finish_reason,
                                "tokens": answer.tokens,
                            }
                        )
                        folder.timings.add(key | {"latency_s": round(answer.latency_s, 6)})
            for i in numbers:
                record = folder.samples.records[task.task_id, i]
                judging.ask(task, f"{i} raw", record["raw"])
                judging.ask(task, f"{i} shown", record["shown"], record["unindent"])
        if baselines:
            for name in BASELINES:
                judging.ask(task, name, baseline(name, task.request))
        progress()
    judging.collect(everything=True)


def answer_until_stopped(
    title: str,
    tasks: Sequence[Task],
    n: int,
    how: Decoding,
    generator: Generator,
    folder: Folder,
    judging: Judging,
    baselines: bool,
) -> bool:
    """Do answer_all with a bar under a title, and say whether Ctrl-C ended it."""
    try:
        with progress_of(title, len(tasks)) as progress:
            answer_all(tasks, n, how, generator, folder, judging, baselines=baselines, progress=progress)
    except KeyboardInterrupt:
        return True
    return False


def baseline(name: str, request: Request) -> str:
    """Return the answer that needs no model: nothing, or the line before the hole once more.

    >>> baseline("previous line", Request("t", "a = 1\\nb = 2\\n", "c = 3\\n"))
    'b = 2\\n'
    >>> baseline("previous line", Request("t", "a = 1\\nb = ", "\\nc = 3\\n"))
    '1'
    """
    if name == "empty middle":
        return ""
    before, _, begun = request.prompt.rpartition("\n")
    line = next((x for x in reversed(before.split("\n")) if x.strip()), "")[len(begun) :]
    # A hole that has its own line and is not followed by a line end brings one.
    return line + "\n" if not begun and not (request.suffix or "").startswith("\n") else line


@contextlib.contextmanager
def share_cores(threads: int | None, judge: bool) -> Iterator[tuple[int | None, frozenset[int] | None]]:
    """Keep this thread to some of its cores, for the model, and return their number and the cores left for judging.

    threads: what the user wants the model to have; None leaves one core to judging, two of eight or more. Cores are
    None where nothing is left, or the system cannot keep a process to cores: then answering and judging take turns.
    """
    cores = sorted(os.sched_getaffinity(0)) if judge and hasattr(os, "sched_setaffinity") else []
    wanted = threads or len(cores) - (2 if len(cores) >= 8 else 1)
    if not 0 < wanted < len(cores):
        yield threads, None
        return
    with on_cores(frozenset(cores[:wanted])):
        yield wanted, frozenset(cores[wanted:])


@contextlib.contextmanager
def on_cores(cores: frozenset[int] | None) -> Iterator[None]:
    """Run this thread, and what it starts, on these cores; None changes nothing."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)  # on Linux of the calling thread
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def progress_of(text: str, total: int) -> Iterator[Callable[[], None]]:
    """Return a function that draws one more problem done, and the time left; nothing where there is no terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)
