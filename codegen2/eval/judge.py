"""Judge completions: does a problem's test pass on the program that a completion makes? And `codegen2 eval judge`.

Not here: how model-written code is shut in (sandbox/).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ..engine.system import allowed_cores
from ..files.progress import progress_bar
from ..problems.sets import SETS, Problem, ProblemSet, group_of, problem_set, read_problems, read_records
from .measures import by_task, count_kinds, score
from .results import Sample
from .sandbox.limits import Limits
from .sandbox.sandbox import Sandbox, Verdict, describe
from .sandbox.turns import run_fairly

__all__ = ["Judge", "Limits", "Verdict", "run_judge"]
_KS = (1, 10, 100)
_PATIENCE = 20  # a second try ends after so many times the wall clock, or the wall clock without any work
_ALLOW = "judging runs what a model wrote; allow that by --allow-code-execution (in Python: allow_code_execution=True)"


class Judge:
    """Judge completions on several workers at once, each with its own launcher; a context manager, thread-safe.

    published_semantics: test and candidate in one sandboxed interpreter, as the published harness runs them; such a
    verdict is the candidate's own word, and good for comparison only.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        sandbox: str = "strong",
        published_semantics: bool = False,
        allow_code_execution: bool = False,
    ) -> None:
        """Start the workers. Raises ValueError unless code may run; OSError where the sandbox cannot be made."""
        if not allow_code_execution:
            raise ValueError(_ALLOW)
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.limits, self.sandbox, self.published_semantics = limits, sandbox, published_semantics
        with contextlib.ExitStack() as stack:
            closing = (contextlib.closing(Sandbox(sandbox, limits)) for _ in range(workers))
            self._all = [stack.enter_context(one) for one in closing]
            self._sandboxes = stack.pop_all()
        self._free: SimpleQueue[Sandbox] = SimpleQueue()
        for one in self._all:
            self._free.put(one)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="judge")

    def judge(self, problem: Problem, completion: str) -> Verdict:
        """Judge one completion; waits for a free worker. Raises OSError when no sandbox can be made any more."""
        job = {
            "kind": "run" if self.published_semantics else "check", "program": problem.program(completion),
            "prompt": problem.prompt, "test": problem.test, "entry_point": problem.entry_point,
        }  # fmt: skip
        worker = self._free.get()
        try:
            wall_s = self.limits.backstop_s
            outcome = run_fairly(
                lambda alone: worker.run(
                    job | {"wall_s": wall_s, "longest_s": _PATIENCE * wall_s if alone else wall_s}
                ),
                lambda outcome: bool(outcome["starved"]),
            )
        finally:
            self._free.put(worker)
        return Verdict(outcome["result"] == "passed", outcome["result"], outcome["wall_s"], outcome["cpu_s"])

    def submit(self, problem: Problem, completion: str) -> Future[Verdict]:
        """Judge in the background."""
        return self._pool.submit(self.judge, problem, completion)

    def describe(self) -> dict[str, Any]:
        """Return which sandbox was active, what it guarantees and what not: a JSON object for reports."""
        return describe(self.sandbox, self.limits, self._all[0].root, self.published_semantics)

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and end the workers."""
        self._pool.shutdown(cancel_futures=True)
        self._sandboxes.close()

    def __enter__(self) -> Judge:
        """Return itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Close; after an error or Ctrl-C without waiting for what has begun."""
        if kind is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._sandboxes.close()
        self.close()


def read_samples(path: str | Path) -> list[Sample]:
    """Read samples as HumanEval's harness does: a JSON object with task_id and completion a line, blank lines aside.

    A sample's number counts those of its task from 0. Raises ValueError naming the line, OSError.
    """
    found: list[Sample] = []
    seen: Counter[str] = Counter()
    for where, record in read_records(path):
        for key in ("task_id", "completion"):
            if not isinstance(record.get(key), str):
                raise ValueError(f"{where}: {key!r} must be there and a string")
        task = record["task_id"]
        found.append(Sample(task, seen[task], raw=record["completion"]))
        seen[task] += 1
    if not found:
        raise ValueError(f"{path} has no samples; each line needs an object with task_id and completion")
    return found


def run_judge(args: argparse.Namespace) -> int:
    """Judge a file of samples and print the scores; 0, whatever passes."""
    if not args.allow_code_execution:
        raise ValueError(_ALLOW)
    limits = Limits(timeout_s=args.timeout)
    samples = read_samples(args.samples)
    problems = problem_set(args.data) if args.data in SETS else read_problems(args.data)
    by_id = {p.task_id: p for p in problems.problems}
    if unknown := sorted({s.task_id for s in samples} - set(by_id)):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"{args.samples}: not in {args.data}: {', '.join(unknown[:5])}{more}; give the problems' own file"
        )
    clock = time.monotonic()
    verdicts: dict[bool, list[Verdict]] = {}
    sandbox: dict[str, Any] = {}
    for published in (False, True) if args.published_semantics else (False,):
        with Judge(
            workers=allowed_cores() if args.workers is None else args.workers, limits=limits, sandbox=args.sandbox,
            published_semantics=published, allow_code_execution=True,
        ) as judge:  # fmt: skip
            sandbox = sandbox or judge.describe()
            name = f"{args.data}, published" if published else args.data
            verdicts[published] = _judge_all(judge, samples, by_id, name)
    report = _report(samples, verdicts, problems)
    report |= {"sandbox": sandbox, "wall_s": round(time.monotonic() - clock, 3)}
    if args.json:
        print(json.dumps(report, ensure_ascii=True, indent=1))
    else:
        _print_report(report)
    return 0


def _judge_all(
    judge: Judge, samples: Sequence[Sample], by_id: dict[str, Problem], name: str
) -> list[Verdict]:
    futures = [judge.submit(by_id[s.task_id], s.raw or "") for s in samples]
    with progress_bar(name, len(samples)) as bar, contextlib.ExitStack() as stack:
        # After Ctrl-C what has not begun is not begun.
        stack.callback(lambda: [f.cancel() for f in futures])
        verdicts = []
        for future in futures:
            verdicts.append(future.result())
            bar.advance()
    return verdicts


def _report(
    samples: Sequence[Sample], verdicts: dict[bool, list[Verdict]], problems: ProblemSet
) -> dict[str, Any]:
    def scores(of: Sequence[Verdict]) -> dict[str, Any]:
        judged = [
            replace(sample, passed_raw=verdict.passed, group=group_of(sample.task_id))
            for sample, verdict in zip(samples, of, strict=True)
        ]
        fewest = min(map(len, by_task(judged).values()))
        found = {f"pass@{k}": score(judged, f"pass@{k} raw") for k in _KS if k <= fewest}
        return {name: asdict(made) for name, made in found.items() if made}

    rows = [
        {"task_id": s.task_id, "sample": s.sample} | asdict(v)
        for s, v in zip(samples, verdicts[False], strict=True)
    ]
    evaluated = len({s.task_id for s in samples})
    report: dict[str, Any] = {
        "schema": 1,
        "kind": "judged samples",
        "problem_set": {
            "name": problems.name, "sha256": problems.sha256, "problems": len(problems.problems),
            "evaluated": evaluated, "partial": evaluated < len(problems.problems),
        },
        "scores": scores(verdicts[False]),
    }  # fmt: skip
    if True in verdicts:
        report["scores_published"] = scores(verdicts[True])
        for row, verdict in zip(rows, verdicts[True], strict=True):
            row |= {"passed_published": verdict.passed, "result_published": verdict.result}
        report["differing_from_published"] = sum(r["passed"] != r["passed_published"] for r in rows)
    return report | {"samples": rows}


def _print_report(report: dict[str, Any]) -> None:
    about, rows = report["problem_set"], report["samples"]
    partial = f" of {about['problems']} (a part of the set)" if about["partial"] else ""
    print(f"{about['name']}: {len(rows)} samples of {about['evaluated']} problems{partial}")
    for key, title in (("scores", ""), ("scores_published", " as published")):
        for name, found in report.get(key, {}).items():
            span = "" if found["low"] is None else f"  [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
            print(f"{name}{title}  {100 * found['value']:.1f} %{span}")
    if "differing_from_published" in report:
        print(f"differing from the published harness: {report['differing_from_published']} samples")
    kinds = count_kinds(row["result"] for row in rows)
    print("results: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    print(
        f"sandbox: {report['sandbox']['mode']}; not guaranteed: {'; '.join(report['sandbox']['does_not_hold'])}"
    )
