"""`codegen2 eval SET` and `codegen2 eval --data FILE`: a problem set as a suite.

Not here: the sets (codegen2/problems), the run (run.py), verdicts (judge.py).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from ..problems.sets import Problem, group_of, problem_set, read_problems
from .generators.base import StopAt, Task
from .judge import Judge, Verdict
from .run import Judges, Suite, decoding_of, on_cores
from .sandbox.limits import Limits
from .scores import PUBLISHED

# What an editor would ask for there; elsewhere an answer is shown to its end.
_STOP_AT: dict[str, StopAt] = {"humaneval": "block", "single-line": "line"}


def problem_suite(args: argparse.Namespace) -> Suite:
    """Return the suite that the arguments name. Raises ValueError for arguments that do not go together."""
    if not (args.no_judge or args.allow_code_execution):
        raise ValueError(
            "judging runs what the model wrote; allow that by --allow-code-execution, or leave it out by --no-judge"
        )
    if args.no_judge and args.published_semantics:
        raise ValueError("--published-semantics judges, --no-judge does not; leave one out")
    everything = read_problems(args.data) if args.what == "problems" else problem_set(args.what)
    stop_at: StopAt = _STOP_AT.get(args.what) if args.stop_at is None else args.stop_at
    decoding = decoding_of(args, None if args.stop_at == "none" else stop_at, early=False)
    ks = ks_of(args.k, args.n)
    problems = choose(everything.problems, args.limit)
    lines = of_whole_lines(everything.problems)

    def judges(stack: contextlib.ExitStack, cores: frozenset[int] | None) -> tuple[Judges, dict[str, Any]]:
        limits = Limits() if args.timeout is None else Limits(timeout_s=args.timeout)
        opened = {}
        for form in ("", PUBLISHED) if args.published_semantics else ("",):
            with on_cores(cores):
                judge = Judge(
                    workers=len(cores) if cores else 2, limits=limits, sandbox=args.sandbox,
                    published_semantics=bool(form), allow_code_execution=args.allow_code_execution,
                )  # fmt: skip
                opened[form] = stack.enter_context(judge)
        by_id = {p.task_id: p for p in problems}
        asked: Judges = {form: functools.partial(_submit, judge, by_id) for form, judge in opened.items()}
        return asked, opened[""].describe()

    return Suite(
        kind="problems",
        name=everything.name,
        title=everything.name,
        sha256=everything.sha256,
        n_problems=len(everything.problems),
        tasks=[_task(p, lines) for p in problems],
        decoding=decoding,
        settings={
            "limit": args.limit, "sandbox": args.sandbox, "timeout_s": args.timeout,
            "published_semantics": args.published_semantics,
        },
        judges=None if args.no_judge else judges,
        ks=ks,
        more={"k": ks, "judged": not args.no_judge},
        problems=problems,
    )  # fmt: skip


def _submit(
    judge: Judge, problems: dict[str, Problem], task: Task, completion: str, unindent: int
) -> Future[Verdict]:
    problem = problems[task.task_id]
    if unindent:
        problem = dataclasses.replace(problem, prompt=problem.prompt[:-unindent])
    return judge.submit(problem, completion)


def _task(problem: Problem, whole_lines: bool) -> Task:
    hole = problem.suffix is not None
    return Task(
        problem.task_id, problem.prompt, problem.suffix, "python", whole_lines and hole,
        problem.canonical_solution if hole else None, group_of(problem.task_id),
    )  # fmt: skip


def ks_of(text: str, n: int) -> list[int]:
    """Read the k of pass@k.

    >>> ks_of("1,10", 20)
    [1, 10]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"--k {text!r} is no list of numbers from 1; write for example 1,10")
    ks = sorted({int(part) for part in parts})
    if ks[-1] > n:
        raise ValueError(
            f"pass@{ks[-1]} needs at least {ks[-1]} answers a problem; give --n {ks[-1]} or more"
        )
    return ks


def choose(problems: Sequence[Problem], limit: int | None) -> list[Problem]:
    """Return limit problems in their order, drawn by their names' hashes: of a smaller limit part of a larger one's."""
    if limit is None or limit >= len(problems):
        return list(problems)
    if limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}; leave it out for all problems")
    drawn = sorted(problems, key=lambda p: hashlib.sha256(p.task_id.encode("utf-8", "replace")).digest())
    kept = {p.task_id for p in drawn[:limit]}
    return [p for p in problems if p.task_id in kept]


def of_whole_lines(problems: Sequence[Problem]) -> bool:
    """Return whether all holes of a set are whole lines with their newlines; one hole alone would betray its answer."""
    holes = [p for p in problems if p.suffix is not None]
    return all(
        (not p.prompt or p.prompt.endswith("\n")) and p.canonical_solution.endswith("\n") for p in holes
    )
