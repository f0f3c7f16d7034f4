"""`codegen2 eval repo DIR`: how well a model fills holes in a repository of the user's own.

Not here: which holes (repo.py), how a command is shut in (sandbox/command.py), the loop (run.py).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .._version import __version__
from ..text.languages import LANGUAGES
from . import syntax
from .generators.own import Request
from .program import decoding_of, finish, folder_of, generator_of, now
from .repo import Hole, SourceFile, choose_holes, list_files, read_files
from .results import Results, Sample, SetInfo
from .run import Asker, Judging, Task, answer_until_stopped, share_cores
from .sandbox.command import CommandLimits, Commands, Outcome
from .scores import baseline_samples, hardware, samples_of, scores_of, versions, whole
from .store import Folder


class _Tests:
    """Ask the repository's tests about tasks that are holes."""

    def __init__(self, commands: Commands, holes: dict[str, Hole], pool: ThreadPoolExecutor) -> None:
        self._commands = commands
        self._holes = holes
        self._pool = pool

    def submit(self, task: Task, completion: str, unindent: int) -> Future[Outcome]:
        hole = self._holes[task.task_id]
        text = hole.filled(completion, unindent)
        if hole.file.crlf:
            text = text.replace("\n", "\r\n")
        return self._pool.submit(self._commands.run, {hole.file.path: text})


class _Syntax:
    """Say whether a file still parses with a hole filled; None where it did not before, or there is no grammar."""

    def __init__(self, holes: dict[str, Hole]) -> None:
        self._holes = holes
        self._before: dict[str, bool | None] = {}

    def __call__(self, task: Task, completion: str, unindent: int) -> bool | None:
        hole = self._holes[task.task_id]
        file = hole.file
        if file.path not in self._before:
            self._before[file.path] = syntax.parses(file.dialect, file.text)
        if not self._before[file.path]:
            return None
        return syntax.parses(file.dialect, hole.filled(completion, unindent))


def read_repository(
    folder: Path, languages: Sequence[str] | None
) -> tuple[list[str], list[SourceFile], Counter[str], bool]:
    """Return the files' names, those that count, how many others do not and why, and whether git tracks them.

    Raises ValueError for an unknown language, or where no file counts.
    """
    for name in languages or ():
        if name not in LANGUAGES:
            raise ValueError(f"--language {name!r} is unknown; choose of {', '.join(LANGUAGES)}")
    names, tracked = list_files(folder)
    files, left_out = read_files(folder, names)
    if languages:
        wanted = [f for f in files if f.language in languages]
        left_out["of other languages than asked for"] += len(files) - len(wanted)
        files = wanted
    if not files:
        raise ValueError(f"{folder}: none of its {len(names)} files counts ({_counts(left_out)})")
    return names, files, +left_out, tracked


def _counts(left_out: Counter[str]) -> str:
    return ", ".join(f"{n} {why}" for why, n in left_out.most_common()) or "none left out"


def _choose(args: argparse.Namespace, root: Path) -> tuple[list[str], list[Hole], dict[str, Any]]:
    """Return the names of the repository's files, the holes, and for the report how many files count; says it aloud."""
    names, files, left_out, tracked = read_repository(root, args.language)
    of = "tracked by git" if tracked else "found (no git checkout)"
    print(
        f"codegen2: {len(names)} files {of}, {len(files)} count; left out: {_counts(left_out)}",
        file=sys.stderr,
    )
    holes = choose_holes(files, args.kind, args.holes, args.per_file, args.seed)
    if len(holes) < args.holes:
        print(
            f"codegen2: only {len(holes)} holes of {args.holes} at {args.per_file} a file; --per-file allows more",
            file=sys.stderr,
        )
    return names, holes, {"files": len(files), "left_out": dict(left_out), "tracked_by_git": tracked}


def run_repo(args: argparse.Namespace) -> int:
    """Fill holes, compare and perhaps test them, then write and print the results; 130 where it was interrupted."""
    if args.test_command and not args.allow_code_execution:
        raise ValueError(
            "--test-command runs what the model wrote; allow that by --allow-code-execution, or leave it out"
        )
    root = Path(args.directory)
    names, holes, counts = _choose(args, root)
    stop_at = {"line": "line", "block": "block", "argument": None}[args.kind]
    how = decoding_of(args, stop_at, early=True)
    by_id = {hole.task_id: hole for hole in holes}
    tasks = [_task(hole) for hole in holes]
    local = args.endpoint is None
    digest = hashlib.sha256("\0".join(f"{t.task_id}\0{t.request}\0{t.expected}" for t in tasks).encode())
    settings = dataclasses.asdict(how) | {
        "n": args.n, "kind": args.kind, "holes": args.holes, "per_file": args.per_file, "languages": args.language,
        "test_command": args.test_command, "test_timeout_s": args.test_timeout, "sandbox": args.sandbox,
    }  # fmt: skip
    started, clock = now(), time.monotonic()
    with contextlib.ExitStack() as stack:
        threads, cores = stack.enter_context(
            share_cores(args.threads, judge=local and bool(args.test_command))
        )
        generator = generator_of(args, threads)
        about = {
            "codegen2": __version__,
            "model": generator.describe(),
            "problems": {"name": root.resolve().name, "sha256": digest.hexdigest()},
            "settings": settings,
        }
        folder = stack.enter_context(folder_of(args.out, about))
        forms: dict[str, Asker] = {}
        sandbox = None
        if args.test_command:
            commands = _commands(args, root, names)
            pool = ThreadPoolExecutor(len(cores) if cores else 1)
            stack.callback(pool.shutdown, cancel_futures=True)
            forms[""], sandbox = _Tests(commands, by_id, pool), commands.describe()
        judging = Judging(forms, folder, cores, turns=local and cores is None)
        interrupted = answer_until_stopped(
            f"holes in {root.resolve().name}",
            tasks,
            args.n,
            how,
            generator,
            folder,
            judging,
            not args.no_baselines,
        )
        more = counts | {
            "threads": threads, "judging_cores": len(cores) if cores else None,
            "baselines": not args.no_baselines,
        }  # fmt: skip
        results = _results(args, tasks, by_id, folder, about, settings | more, sandbox, started)
    finish(dataclasses.replace(results, wall_s=round(time.monotonic() - clock, 3)), args)
    if interrupted:
        print("codegen2: interrupted; the same command with the same --out goes on", file=sys.stderr)
    return 130 if interrupted else 0


def _task(hole: Hole) -> Task:
    name = hole.file.language
    request = Request(hole.task_id, hole.file.text[: hole.start], hole.file.text[hole.end :], name)
    return Task(request, hole.middle, hole.file.path, name)


def _commands(args: argparse.Namespace, root: Path, names: Sequence[str]) -> Commands:
    """Return what runs the tests. Raises ValueError where they fail on the repository as it is."""
    limits = CommandLimits(wall_s=args.test_timeout)
    commands = Commands(root, names, args.test_command, args.sandbox, limits, args.test_show)
    first = commands.run({})
    if not first.passed:
        raise ValueError(
            f"--test-command {args.test_command!r} does not pass on a copy of {root} as it is ({first.result}); it has"
            " no network and sees the files that git tracks, what PATH leads to and what --test-show names"
        )
    print(f"codegen2: the command passes on the unchanged copy in {first.wall_s:.1f} s", file=sys.stderr)
    return commands


def _results(
    args: argparse.Namespace, tasks: Sequence[Task], holes: dict[str, Hole], folder: Folder, about: dict[str, Any],
    settings: dict[str, Any], sandbox: dict[str, Any] | None, started: str,
) -> Results:  # fmt: skip
    parses = _Syntax(holes)
    samples = whole(tasks, samples_of(tasks, args.n, folder, parses), args.n)
    if not samples:
        raise ValueError("no hole was filled; the same command with the same --out goes on")
    done = {s.task_id for s in samples}
    scores = scores_of(samples, [1])
    of = baseline_samples([t for t in tasks if t.task_id in done], folder, parses)
    baselines = {} if args.no_baselines else {name: scores_of(found, [1]) for name, found in of.items()}
    info = SetInfo(f"{about['problems']['name']}: {args.kind}s", about["problems"]["sha256"], len(tasks), len(done),
                   len(done) < len(tasks))  # fmt: skip
    shown = [_with_text(s, holes[s.task_id]) for s in samples]
    return Results("repo", about["model"], settings, versions(), hardware(), started, 0.0, info, sandbox, scores,
                   baselines, shown)  # fmt: skip


def _with_text(sample: Sample, hole: Hole) -> Sample:
    """Add what is around the hole, for the report: 30 lines before it and 10 after."""
    before = hole.file.text[: hole.start].split("\n")[-31:]
    after = hole.file.text[hole.end :].split("\n")[:11]
    return dataclasses.replace(
        sample, prompt="\n".join(before), suffix="\n".join(after), expected=hole.middle
    )
