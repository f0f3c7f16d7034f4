"""`codegen2 eval repo DIR`: holes in a user's own repository: which files count, what is cut out, and that as a suite.

Not here: grammars (syntax.py), the run (run.py), how a command is shut in (sandbox/command.py). A file counts when
files/sources.py finds it (tracked by git where the folder is a checkout; neither hidden nor vendored), it has one of
our languages and looks written by hand; what does not count is counted aloud.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..files.sources import list_files
from ..text.languages import LANGUAGES
from . import syntax
from .generators.base import StopAt, Task
from .results import Sample
from .run import Judges, Suite, decoding_of
from .sandbox.command import Commands
from .sandbox.sandbox import Verdict
from .scores import Parses
from .sources import SourceFile, code_files

Kind = Literal["line", "block", "argument"]
_LONGEST_LINE, _LONGEST_MEAN = 1000, 100  # longer is minified, or data
_GENERATED_NAME = re.compile(
    r"_pb2(_grpc)?\.py$|\.pb\.(go|cc|h)$|\.min\.js$|\.g\.dart$|\.d\.ts$|\.designer\.cs$", re.I
)
_GENERATED_TEXT = re.compile(
    r"@generated|do not (edit|modify)|(automatically|auto-?) ?generated|generated (by|from|code)", re.I
)
_BLOCK_LINES = (2, 20)


@dataclass(frozen=True)
class Hole:
    """A hole: text[start:end] of a file is what is wanted."""

    file: SourceFile
    kind: Kind
    start: int
    end: int

    @property
    def task_id(self) -> str:
        """Return path:line:column, 1-based, and the kind."""
        before = self.file.text[: self.start]
        column = self.start - (before.rfind("\n") + 1) + 1
        return f"{self.file.path}:{before.count(chr(10)) + 1}:{column} {self.kind}"

    @property
    def middle(self) -> str:
        """Return what is wanted."""
        return self.file.text[self.start : self.end]

    def filled(self, text: str, unindent: int = 0) -> str:
        """Return the file's text with the hole filled; unindent: columns before it that go."""
        return self.file.text[: self.start - unindent] + text + self.file.text[self.end :]


def read_files(folder: Path) -> tuple[list[SourceFile], Counter[str]]:
    """Read the files that count, and count the others by why they do not."""
    kept: list[SourceFile] = []
    left_out: Counter[str] = Counter()
    for file in code_files(folder, left_out):
        text, lines = file.text, file.text.split("\n")
        if _GENERATED_NAME.search(file.path) or _GENERATED_TEXT.search(text[:1500]):
            left_out["generated"] += 1
        elif "\r" in text.replace("\r\n", "") or text.startswith("\ufeff"):
            left_out["with lone carriage returns or a byte-order mark"] += 1
        elif max(map(len, lines)) > _LONGEST_LINE or len(text) > _LONGEST_MEAN * len(lines):
            left_out["with very long lines"] += 1
        else:
            kept.append(replace(file, text=text.replace("\r\n", "\n"), crlf="\r\n" in text))
    return kept, left_out


def line_spans(file: SourceFile) -> list[tuple[int, int]]:
    """Return the lines of 8 or more characters that are not blank, from their first one to their end.

    The indentation stands before the cursor, as an editor puts it there.

    >>> line_spans(SourceFile("a.py", "python", "if x:\\n    return x + 1\\n"))
    [(10, 22)]
    """
    found, at = [], 0
    for line in file.text.split("\n"):
        if len("".join(line.split())) >= 8:
            found.append((at + len(line) - len(line.lstrip()), at + len(line.rstrip())))
        at += len(line) + 1
    return found


def block_spans(file: SourceFile) -> list[tuple[int, int]]:
    """Return the runs of 2 to 20 lines that stand deeper than the line before, from the first one's indentation on.

    >>> block_spans(SourceFile("a.py", "python", "if x:\\n    y = 1\\n    z = 2\\n\\nw = 3\\n"))
    [(10, 25)]
    """
    lines = file.text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    depths = [len(line) - len(line.lstrip()) if line.strip() else None for line in lines]
    found, above = [], None
    for first, depth in enumerate(depths):
        if depth is None:
            continue
        if above is not None and depth > above:
            last = first
            for at in range(first, min(first + _BLOCK_LINES[1] + 1, len(lines))):
                deep = depths[at]
                if deep is not None and deep < depth:
                    break
                if deep is not None:
                    last = at
            if _BLOCK_LINES[0] <= last - first + 1 <= _BLOCK_LINES[1]:
                found.append((starts[first] + depth, starts[last] + len(lines[last].rstrip())))
        above = depth
    return found


def argument_spans(file: SourceFile) -> list[tuple[int, int]]:
    """Return the arguments of calls that have 3 or more characters and stand in one line."""
    spans = syntax.arguments(file.dialect, file.text)
    return [(a, b) for a, b in spans if b - a >= 3 and "\n" not in file.text[a:b]]


_SPANS: dict[Kind, Callable[[SourceFile], list[tuple[int, int]]]] = {
    "line": line_spans,
    "block": block_spans,
    "argument": argument_spans,
}


def choose_holes(files: Sequence[SourceFile], kind: Kind, n: int, per_file: int, seed: int) -> list[Hole]:
    """Choose up to n holes at random, per_file of a file at most, in the order of files; raises ValueError for none.

    The order in which files come does not matter.
    """
    if n < 1 or per_file < 1:
        raise ValueError(f"--holes and --per-file must be at least 1, got {n} and {per_file}")
    ordered = sorted(files, key=lambda f: f.path)
    eligible = [(i, span) for i, file in enumerate(ordered) for span in _SPANS[kind](file)]
    random.Random(f"{seed} {kind}").shuffle(eligible)
    taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
    chosen: list[tuple[int, tuple[int, int]]] = []
    for i, span in eligible:
        if len(chosen) == n:
            break
        if len(taken[i]) < per_file:
            taken[i].append(span)
            chosen.append((i, span))
    if not chosen:
        raise ValueError(
            f"no {kind} to cut out in the {len(files)} files that count; give another --kind or folder"
        )
    return [Hole(ordered[i], kind, *span) for i, span in sorted(set(chosen))]


def _parses(holes: dict[str, Hole]) -> Parses:
    """Return what says whether a file still parses with a hole filled; None where it did not before, or no grammar."""

    @functools.cache
    def before(file: SourceFile) -> bool | None:
        return syntax.parses(file.dialect, file.text)

    def parses(task: Task, completion: str, unindent: int) -> bool | None:
        hole = holes[task.task_id]
        filled = hole.filled(completion, unindent)
        return syntax.parses(hole.file.dialect, filled) if before(hole.file) else None

    return parses


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
    if not names:
        raise ValueError(
            f"{folder}: {'git tracks no file here' if tracked else 'empty'}; give another folder"
        )
    files, left_out = read_files(folder)
    wanted = [f for f in files if not languages or f.language in languages]
    left_out["of other languages than asked for"] += len(files) - len(wanted)
    if not wanted:
        raise ValueError(f"{folder}: none of its {len(names)} files counts ({_counts(left_out)})")
    return names, wanted, +left_out, tracked


def _counts(left_out: Counter[str]) -> str:
    return ", ".join(f"{n} {why}" for why, n in (+left_out).most_common()) or "none left out"


def _choose(args: argparse.Namespace, root: Path) -> tuple[list[str], list[Hole], dict[str, Any]]:
    """Return the names of the repository's files, the holes, and for the report how many files count; says it aloud."""
    names, files, left_out, tracked = read_repository(root, args.language)
    of = "tracked by git" if tracked else "found (no git checkout)"
    counted = f"{len(names)} files {of}, {len(files)} count; left out: {_counts(left_out)}"
    print(f"codegen2: {counted}", file=sys.stderr)
    holes = choose_holes(files, args.kind, args.holes, args.per_file, args.seed)
    if len(holes) < args.holes:
        fewer = f"only {len(holes)} holes of {args.holes} at {args.per_file} a file; --per-file allows more"
        print(f"codegen2: {fewer}", file=sys.stderr)
    return names, holes, {"files": len(files), "left_out": dict(left_out), "tracked_by_git": tracked}


def repo_suite(args: argparse.Namespace) -> Suite:
    """Return the suite that the arguments name. Raises ValueError, also where the repository's own tests fail."""
    if args.test_command and not args.allow_code_execution:
        raise ValueError(
            "--test-command runs what the model wrote; allow that by --allow-code-execution, or leave it out"
        )
    root = Path(args.directory)
    names, holes, counts = _choose(args, root)
    stop_at: StopAt = {"line": "line", "block": "block", "argument": None}[args.kind]
    by_id = {hole.task_id: hole for hole in holes}
    tasks = [_task(hole) for hole in holes]
    digest = hashlib.sha256("\0".join(map(repr, tasks)).encode())
    name = root.resolve().name

    def judges(stack: contextlib.ExitStack, cores: frozenset[int] | None) -> tuple[Judges, dict[str, Any]]:
        commands = _commands(args, root, names)
        pool = ThreadPoolExecutor(len(cores) if cores else 1)
        stack.callback(pool.shutdown, cancel_futures=True)

        def submit(task: Task, completion: str, unindent: int) -> Future[Verdict]:
            hole = by_id[task.task_id]
            text = hole.filled(completion, unindent)
            if hole.file.crlf:
                text = text.replace("\n", "\r\n")
            return pool.submit(commands.run, {hole.file.path: text})

        return {"": submit}, commands.describe()

    return Suite(
        kind="repo",
        name=name,
        title=f"{name}: {args.kind}s",
        sha256=digest.hexdigest(),
        n_problems=len(tasks),
        tasks=tasks,
        decoding=decoding_of(args, stop_at, early=True),
        settings={
            "kind": args.kind, "holes": args.holes, "per_file": args.per_file, "languages": args.language,
            "test_command": args.test_command, "test_timeout_s": args.test_timeout, "sandbox": args.sandbox,
        },
        judges=judges if args.test_command else None,
        more=counts,
        parses=_parses(by_id),
        show=lambda sample: _with_text(sample, by_id[sample.task_id]),
    )  # fmt: skip


def _task(hole: Hole) -> Task:
    name, text = hole.file.language, hole.file.text
    return Task(
        hole.task_id, text[: hole.start], text[hole.end :], name, expected=hole.middle, group=hole.file.path,
        category=name,
    )  # fmt: skip


def _commands(args: argparse.Namespace, root: Path, names: Sequence[str]) -> Commands:
    """Return what runs the tests. Raises ValueError where they fail on the repository as it is."""
    commands = Commands(
        root, names, args.test_command, args.sandbox, wall_s=args.test_timeout, show=args.test_show
    )
    first = commands.run({})
    if not first.passed:
        raise ValueError(
            f"--test-command {args.test_command!r} does not pass on a copy of {root} as it is ({first.result}); it has"
            " no network and sees the files that git tracks, what PATH leads to and what --test-show names"
        )
    print(f"codegen2: the command passes on the unchanged copy in {first.wall_s:.1f} s", file=sys.stderr)
    return commands


def _with_text(sample: Sample, hole: Hole) -> Sample:
    """Add what is around the hole, for the report: 30 lines before it and 10 after."""
    before = hole.file.text[: hole.start].split("\n")[-31:]
    after = hole.file.text[hole.end :].split("\n")[:11]
    return replace(sample, prompt="\n".join(before), suffix="\n".join(after), expected=hole.middle)
