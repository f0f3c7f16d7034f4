"""The one way of an evaluation: tasks in, answers and verdicts into the run's folder, then scores, files and a report.

`codegen2 eval SET` (problems.py) and `codegen2 eval repo DIR` (repo.py) make a Suite of their arguments, and run_suite
does the rest. Not here: who answers (generators/), what a verdict is (judge.py, sandbox/), numbers (scores.py).

Clocks. An answer's latency is wall time, so nothing of ours may compete with it: the model computes on some cores and
judging on others (share_cores), and where there is no other core, they take turns. Verdicts do not depend on either:
their limits count the candidate's own CPU seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..files.progress import progress_bar
from .generators import from_args
from .generators.base import ROWS, Decoding, Generator, StopAt, Task
from .results import Kind, Results, SetInfo
from .scores import (
    BASELINES,
    Parses,
    Show,
    baseline,
    baseline_samples,
    differing,
    hardware,
    samples_of,
    scores_of,
    versions,
    whole,
)
from .store import Folder

if TYPE_CHECKING:
    from ..problems.sets import Problem

# Programs handed to a judge and not yet judged: bounds memory, and what a kill makes undone.
MOST_WAITING = 256


# Judges an answer in the background; the number: columns before the hole that go. What comes says passed and result.
Judge = Callable[[Task, str, int], Future[Any]]
Judges = dict[str, Judge]  # by what each adds to an answer's name


@dataclass(frozen=True)
class Suite:
    """What is asked and how it is judged.

    n_problems: of the whole set, of which tasks may be a part. settings: what must be equal for a run to be continued;
    more: what else a report says. judges: makes, on the cores given, the judges, and what the sandbox says of itself;
    None judges nothing. parses: whether an answer parses. show: adds to a sample what a report needs; problems: the
    texts that samples are shown in.
    """

    kind: Kind
    name: str
    title: str
    sha256: str
    n_problems: int
    tasks: Sequence[Task]
    decoding: Decoding
    settings: dict[str, Any]
    judges: Callable[[contextlib.ExitStack, frozenset[int] | None], tuple[Judges, dict[str, Any]]] | None = (
        None
    )
    ks: Sequence[int] = (1,)
    more: dict[str, Any] = field(default_factory=dict)
    parses: Parses | None = None
    show: Show = lambda sample: sample
    problems: Sequence[Problem] = ()


def decoding_of(args: argparse.Namespace, stop_at: StopAt, early: bool) -> Decoding:
    """Return how answers are drawn. Raises ValueError, also for several greedy answers, which would all be the same."""
    if args.n < 1:
        raise ValueError(f"--n must be at least 1, got {args.n}")
    if args.n > 1 and args.temperature == 0:
        raise ValueError(
            f"--n {args.n} with temperature 0 gives {args.n} times the same; give a --temperature"
        )
    return Decoding(args.max_new_tokens, args.temperature, args.top_p, args.seed, stop_at, early)


def now() -> str:
    """Return the time as results have it."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def run_suite(args: argparse.Namespace, suite: Suite) -> int:
    """Answer and judge, then write and print the results; 130 where it was interrupted.

    The part of a run that is in its folder is not done again.
    """
    started, clock = now(), time.monotonic()
    local = args.endpoint is None
    with contextlib.ExitStack() as stack:
        threads, cores = stack.enter_context(
            share_cores(args.threads, judge=local and suite.judges is not None)
        )
        generator = from_args(args, threads)
        about: dict[str, Any] = {
            "codegen2": __version__,
            "model": generator.describe(),
            "problems": {"name": suite.name, "sha256": suite.sha256},
            "settings": dataclasses.asdict(suite.decoding) | {"n": args.n} | suite.settings,
        }
        folder = stack.enter_context(_open_folder(args.out, about))
        judges: Judges = {}
        sandbox = None
        if suite.judges:
            judges, sandbox = suite.judges(stack, cores)
        judging = Judging(judges, folder, cores, turns=local and cores is None)
        interrupted = False
        try:
            with progress_bar(suite.title, len(suite.tasks)) as bar:
                answer_all(
                    suite.tasks, args.n, suite.decoding, generator, folder, judging,
                    baselines=not args.no_baselines, progress=bar.advance,
                )  # fmt: skip
        except KeyboardInterrupt:
            interrupted = True
        judging_cores = len(cores) if cores else None  # may change when a run is continued, as what follows
        machine = {"threads": threads, "judging_cores": judging_cores, "baselines": not args.no_baselines}
        results = _results(args, suite, folder, about, machine, sandbox, started)
    finish(dataclasses.replace(results, wall_s=round(time.monotonic() - clock, 3)), args, suite.problems)
    if interrupted:
        print("codegen2: interrupted; the same command with the same --out goes on", file=sys.stderr)
    return 130 if interrupted else 0


@contextlib.contextmanager
def _open_folder(out: str | None, about: dict[str, Any]) -> Iterator[Folder]:
    """Open the run's folder; one that is gone afterwards where none was named. Says what it goes on with."""
    with contextlib.ExitStack() as stack:
        path = out or stack.enter_context(tempfile.TemporaryDirectory(prefix="codegen2-eval-"))
        folder = stack.enter_context(Folder(path, about))
        if folder.continued:
            mended = sum(j.mended for j in (folder.samples, folder.timings, folder.verdicts))
            note = f", {mended} bytes of unfinished lines taken off" if mended else ""
            print(f"codegen2: going on with {len(folder.samples.records)} answers{note}", file=sys.stderr)
        yield folder


def _results(
    args: argparse.Namespace, suite: Suite, folder: Folder, about: dict[str, Any], machine: dict[str, Any],
    sandbox: dict[str, Any] | None, started: str,
) -> Results:  # fmt: skip
    samples = whole(suite.tasks, samples_of(suite.tasks, args.n, folder, suite.parses), args.n)
    if not samples:
        raise ValueError("no problem was answered; the same command with the same --out goes on")
    done = {s.task_id for s in samples}
    settings = about["settings"] | suite.more | machine
    if (differ := differing(samples)) is not None:
        settings["differing_from_published"] = differ
    baselines = {}
    if not args.no_baselines:
        of = baseline_samples([t for t in suite.tasks if t.task_id in done], folder, suite.parses)
        baselines = {name: scores_of(found, [1]) for name, found in of.items()}
    partial = len(done) < suite.n_problems
    info = SetInfo(suite.title, suite.sha256, suite.n_problems, len(done), partial)
    return Results(
        suite.kind, about["model"], settings, versions(), hardware(), started, 0.0, info, sandbox,
        scores_of(samples, suite.ks), baselines, [suite.show(s) for s in samples],
    )  # fmt: skip


def finish(results: Results, args: argparse.Namespace, problems: Sequence[Problem] = ()) -> None:
    """Write the result file and the report, and print."""
    from .report.tables import print_results

    pages = [Path(args.out, "report.html")] if args.out else []
    pages += [Path(args.html)] if args.html else []
    if args.out:
        results.write(Path(args.out, "result.json"))
    if pages:
        from .report.page import html_report, write_page

        text = html_report(results, problems)
        for path in pages:
            write_page(path, text)
    if args.json:
        sys.stdout.write(results.to_json())
    else:
        print_results(results)


class Judging:
    """Hand answers to judges and write down what they say."""

    def __init__(self, judges: Judges, folder: Folder, cores: frozenset[int] | None, turns: bool) -> None:
        """cores: what judging runs on, None leaves that to the system; turns: nothing else may run meanwhile."""
        self._judges = judges
        self._journal = folder.verdicts
        self._cores = cores
        self._turns = turns
        self._waiting: list[tuple[Future[Any], str, str]] = []
        self._same: dict[tuple[str, str, str, int], Future[Any]] = {}

    def ask(self, task: Task, name: str, completion: str, unindent: int = 0) -> None:
        """Have an answer judged, unless that was done; equal programs of a problem are judged once."""
        for form, judge in self._judges.items():
            answer = name + form
            if (task.task_id, answer) in self._journal:
                continue
            same = (task.task_id, form, completion, unindent)
            if same not in self._same:
                with on_cores(self._cores):  # threads and processes that this starts stay on them
                    self._same[same] = judge(task, completion, unindent)
            self._waiting.append((self._same[same], task.task_id, answer))

    def pause(self) -> None:
        """Let an answer's time be taken: where cores are shared, wait until nothing is being judged."""
        self.collect(everything=self._turns)

    def collect(self, everything: bool = False) -> None:
        """Write down what is judged; wait for the rest if everything is wanted or much is waiting."""
        if everything or len(self._waiting) >= MOST_WAITING:
            keep = 0 if everything else MOST_WAITING // 2
            wait([w[0] for w in self._waiting[: len(self._waiting) - keep]])
        left = [w for w in self._waiting if not w[0].done()]
        for future, task_id, answer in self._waiting:
            if future.done() and (task_id, answer) not in self._journal:
                said = future.result()
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
                answers = generator.answer(task, numbers, how)
                for i, answer in zip(numbers, answers, strict=True):
                    if i in missing:
                        key = {"task_id": task.task_id, "sample": i}
                        record = dataclasses.asdict(answer)
                        folder.timings.add(key | {"latency_s": round(record.pop("latency_s"), 6)})
                        folder.samples.add(key | record)
            for i in numbers:
                record = folder.samples.records[task.task_id, i]
                judging.ask(task, f"{i} raw", record["raw"])
                judging.ask(task, f"{i} shown", record["shown"], record["unindent"])
        if baselines:
            for name in BASELINES:
                judging.ask(task, name, baseline(name, task))
        progress()
    judging.collect(everything=True)


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
