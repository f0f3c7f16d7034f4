"""`codegen2 eval SET` and `codegen2 eval --data FILE`: from arguments to a run, its results and its report.

Not here: the loop (run.py), arguments (cli.py), holes in a repository (repo_program.py).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from .._version import __version__
from ..problems.sets import Problem, ProblemSet, group_of, problem_set, read_problems
from .generators.own import Decoding, Generator, OwnModel, Request
from .judge import Judge, Limits, Verdict
from .report.page import write_html
from .report.tables import print_results
from .results import Results, SetInfo
from .run import Asker, Judging, Task, answer_until_stopped, on_cores, share_cores
from .scores import PUBLISHED, baseline_samples, differing, hardware, samples_of, scores_of, versions, whole
from .store import Folder

# What an editor would ask for there; elsewhere an answer is shown to its end.
_STOP_AT = {"humaneval": "block", "single-line": "line"}


class _Programs:
    """Ask a Judge about tasks that are problems."""

    def __init__(self, judge: Judge, problems: Sequence[Problem]) -> None:
        self._judge = judge
        self._problems = {p.task_id: p for p in problems}

    def submit(self, task: Task, completion: str, unindent: int) -> Future[Verdict]:
        problem = self._problems[task.task_id]
        if unindent:
            problem = dataclasses.replace(problem, prompt=problem.prompt[:-unindent])
        return self._judge.submit(problem, completion)


def generator_of(args: argparse.Namespace, threads: int | None) -> Generator:
    """Return the model that the arguments name. Raises ValueError for two of them."""
    ways = [name for name in ("model", "model_transformers", "endpoint") if getattr(args, name)]
    if len(ways) > 1:
        named = " and ".join("--" + w.replace("_", "-") for w in ways)
        raise ValueError(f"{named} name two models; give one, and compare runs by codegen2 eval compare")
    if args.endpoint:
        from .generators.endpoint import Endpoint

        return Endpoint(args.endpoint, args.endpoint_model, args.api_key_env, args.endpoint_timeout)
    if args.endpoint_model or args.api_key_env:
        raise ValueError("--endpoint-model and --api-key-env go with --endpoint URL; give that, too")
    if args.model_transformers:
        from .generators.transformers_model import TransformersModel

        return TransformersModel(args.model_transformers, args.device, args.dtype, threads)
    from ..loading import choose_engine, load

    model = load(
        args.model, engine=args.engine, dtype=args.dtype, head_dtype=args.head_dtype, device=args.device,
        threads=threads, revision=args.revision, max_prompt_tokens=args.max_prompt_tokens,
        check=not args.no_check,
    )  # fmt: skip
    engine = choose_engine(args.engine, args.dtype, args.device)
    dtype = args.dtype or {"native": "int8"}.get(engine, "float32" if args.device == "cpu" else "bfloat16")
    return OwnModel(model, {"engine": engine, "dtype": dtype, "device": args.device})


@contextlib.contextmanager
def folder_of(out: str | None, about: dict[str, Any]) -> Iterator[Folder]:
    """Open the run's folder; one that is gone afterwards where none was named. Says what it goes on with."""
    with contextlib.ExitStack() as stack:
        path = out or stack.enter_context(tempfile.TemporaryDirectory(prefix="codegen2-eval-"))
        folder = stack.enter_context(Folder(path, about))
        if folder.continued:
            mended = sum(j.mended for j in (folder.samples, folder.timings, folder.verdicts))
            note = f", {mended} bytes of unfinished lines taken off" if mended else ""
            print(f"codegen2: going on with {len(folder.samples.records)} answers{note}", file=sys.stderr)
        yield folder


def finish(results: Results, args: argparse.Namespace, problems: Sequence[Problem] = ()) -> None:
    """Write the result file and the report, and print."""
    if args.out:
        results.write(Path(args.out, "result.json"))
        write_html(Path(args.out, "report.html"), results, problems)
    if args.html:
        write_html(args.html, results, problems)
    if args.json:
        sys.stdout.write(results.to_json())
    else:
        print_results(results)


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


def decoding_of(args: argparse.Namespace, stop_at: Any, early: bool) -> Decoding:
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


def _judges(
    stack: contextlib.ExitStack,
    args: argparse.Namespace,
    problems: Sequence[Problem],
    cores: frozenset[int] | None,
) -> tuple[dict[str, Asker], dict[str, Any] | None]:
    """Return the judges by what they add to an answer's name, and what the sandbox says of itself."""
    if args.no_judge:
        return {}, None
    limits = Limits() if args.timeout is None else Limits(timeout_s=args.timeout)
    forms: dict[str, Asker] = {}
    said: dict[str, Any] = {}
    for form in ["", *([PUBLISHED] if args.published_semantics else [])]:
        with on_cores(cores):
            judge = Judge(
                workers=len(cores) if cores else 2, limits=limits, sandbox=args.sandbox,
                published_semantics=bool(form), allow_code_execution=args.allow_code_execution,
            )  # fmt: skip
            stack.enter_context(judge)
        forms[form] = _Programs(judge, problems)
        said = said or judge.describe()
    return forms, said


def run_problems(args: argparse.Namespace) -> int:
    """Answer and judge a problem set, then write and print the results; 130 where it was interrupted."""
    if not (args.no_judge or args.allow_code_execution):
        raise ValueError(
            "judging runs what the model wrote; allow that by --allow-code-execution, or leave it out by --no-judge"
        )
    if args.no_judge and args.published_semantics:
        raise ValueError("--published-semantics judges, --no-judge does not; leave one out")
    everything = read_problems(args.data) if args.what == "problems" else problem_set(args.what)
    stop_at = args.stop_at or _STOP_AT.get(args.what)
    how = decoding_of(args, None if stop_at == "none" else stop_at, early=False)
    ks = ks_of(args.k, args.n)
    problems = choose(everything.problems, args.limit)
    lines = of_whole_lines(everything.problems)
    tasks = [
        Task(
            Request(p.task_id, p.prompt, p.suffix, "python", lines and p.suffix is not None),
            None if p.suffix is None else p.canonical_solution,
            group_of(p.task_id),
        )
        for p in problems
    ]
    local = args.endpoint is None
    settings = dataclasses.asdict(how) | {
        "n": args.n,
        "limit": args.limit,
        "sandbox": args.sandbox,
        "timeout_s": args.timeout,
        "published_semantics": args.published_semantics,
    }
    started, clock = now(), time.monotonic()
    with contextlib.ExitStack() as stack:
        threads, cores = stack.enter_context(share_cores(args.threads, judge=local and not args.no_judge))
        generator = generator_of(args, threads)
        about = {
            "codegen2": __version__,
            "model": generator.describe(),
            "problems": {"name": everything.name, "sha256": everything.sha256},
            "settings": settings,
        }
        folder = stack.enter_context(folder_of(args.out, about))
        forms, sandbox = _judges(stack, args, problems, cores)
        judging = Judging(forms, folder, cores, turns=local and cores is None)
        interrupted = answer_until_stopped(
            everything.name, tasks, args.n, how, generator, folder, judging, not args.no_baselines
        )
        # What may change when a run goes on.
        more = {
            "k": ks, "threads": threads, "judging_cores": len(cores) if cores else None,
            "judged": not args.no_judge, "baselines": not args.no_baselines,
        }  # fmt: skip
        results = _results(args, everything, tasks, folder, about, settings | more, sandbox, started)
    results = dataclasses.replace(results, wall_s=round(time.monotonic() - clock, 3))
    finish(results, args, problems)
    if interrupted:
        print("codegen2: interrupted; the same command with the same --out goes on", file=sys.stderr)
    return 130 if interrupted else 0


def _results(
    args: argparse.Namespace,
    everything: ProblemSet,
    tasks: Sequence[Task],
    folder: Folder,
    about: dict[str, Any],
    settings: dict[str, Any],
    sandbox: dict[str, Any] | None,
    started: str,
) -> Results:
    samples = whole(tasks, samples_of(tasks, args.n, folder), args.n)
    if not samples:
        raise ValueError("no problem was answered; the same command with the same --out goes on")
    done = {s.task_id for s in samples}
    of = baseline_samples([t for t in tasks if t.task_id in done], folder)
    baselines = {name: scores_of(found, [1]) for name, found in of.items()}
    if (differ := differing(samples)) is not None:
        settings = settings | {"differing_from_published": differ}
    return Results(
        "problems",
        about["model"],
        settings,
        versions(),
        hardware(),
        started,
        0.0,
        SetInfo(
            everything.name,
            everything.sha256,
            len(everything.problems),
            len(done),
            len(done) < len(everything.problems),
        ),
        sandbox,
        scores_of(samples, settings["k"]),
        {} if args.no_baselines else baselines,
        samples,
    )
