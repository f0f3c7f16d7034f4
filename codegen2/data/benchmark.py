"""Keep HumanEval, and other problems if told, out of the corpus, and say what is there all the same: 13-grams.

Not here: the problems (problems.py). All four sets count: functions, and the holes that were made of them. Files that
hold a problem are dropped; shared 13-grams are only reported, for one may be nobody's invention. 13-grams: Brown et
al., "Language Models are Few-Shot Learners", 2020.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..problems.sets import SETS, Problem, ProblemSet, group_of, problem_set, read_problems
from .functions import body_keys
from .leaks import positions
from .minhash import ngram_hashes
from .rows import Table, drop, put, texts_of

NGRAM = 13
_LONG = 30  # characters of a line that is hardly there by chance; two such neighbours count
_COMMENT = "#/*;-%! \t"  # before a line of a docstring that was carried into another language


def _plain_lines(text: str) -> list[str]:
    return [plain for line in text.split("\n") if (plain := line.strip().lstrip(_COMMENT))]


@dataclass(frozen=True)
class Benchmark:
    """What gives a problem away: neighbouring long lines, signatures with their words, and all 13-grams."""

    pairs: frozenset[tuple[str, str]]
    documented: Mapping[str, Set[str]]  # signature -> the lines that describe it
    grams: npt.NDArray[np.uint64]  # (G,), rising
    owners: tuple[tuple[str, ...], ...]  # functions that hold gram i
    bodies: frozenset[bytes] = frozenset()  # functions.body_key of the solutions

    def holds(self, text: str) -> bool:
        """Return whether a text holds a problem's two neighbouring long lines, or a signature and a line about it."""
        lines = _plain_lines(text)
        if any(pair in self.pairs for pair in pairwise(lines)):
            return True
        known = set(lines)
        return any(not known.isdisjoint(self.documented[s]) for s in known & self.documented.keys())

    def overlap(self, text: str) -> list[int]:
        """Return which of the 13-grams are in a text, rising."""
        places: list[int] = positions(self.grams, np.unique(ngram_hashes(text, NGRAM, lower=True))).tolist()
        return places


def benchmark_of(problems: Iterable[Problem]) -> Benchmark:
    """Make it of any problems."""
    pairs: set[tuple[str, str]] = set()
    documented: defaultdict[str, set[str]] = defaultdict(set)
    owners: dict[int, set[str]] = defaultdict(set)
    bodies: set[bytes] = set()
    seen: set[str] = set()
    for problem in problems:
        whole = problem.program(problem.canonical_solution)
        if whole in seen:  # the holes of a function, put together again, are the function
            continue
        seen.add(whole)
        for text in (whole, problem.test):
            lines = _plain_lines(text)
            pairs |= {(a, b) for a, b in pairwise(lines) if min(len(a), len(b)) >= _LONG}
        lines = _plain_lines(problem.prompt)
        start = f"def {problem.entry_point}("
        words = {x for x in lines if len(x) >= 20 and not x.startswith(("def ", "from ", "import "))}
        for line in list(dict.fromkeys(line for line in lines if line.startswith(start)))[:9]:
            documented[line] |= words
        bodies |= body_keys(whole, problem.entry_point)
        for gram in ngram_hashes(whole, NGRAM, lower=True).tolist():
            owners[gram].add(group_of(problem.task_id))
    grams = np.array(sorted(owners), np.uint64)
    of_gram = tuple(tuple(sorted(owners[g])) for g in sorted(owners))
    return Benchmark(frozenset(pairs), dict(documented), grams, of_gram, frozenset(bodies))


def problem_sets(files: Iterable[tuple[str, str]] = ()) -> list[ProblemSet]:
    """Return HumanEval's four sets and those in files, each (path, sha256), of the forms that problems.py reads.

    Raises ValueError when the package with HumanEval is missing, or a file holds no problems; OSError.
    """
    return [*map(problem_set, SETS), *(read_problems(path) for path, _ in files)]


@functools.cache
def benchmark_against(files: tuple[tuple[str, str], ...] = ()) -> Benchmark:
    """Return the benchmark of problem_sets."""
    return benchmark_of(problem for known in problem_sets(files) for problem in known.problems)


def decontaminate(table: Table, benchmark: Benchmark) -> Table:
    """Drop the rows that hold a problem, and note the 13-grams of the others."""
    table = drop(
        table, ["benchmark" if t is not None and benchmark.holds(t) else "" for t in texts_of(table)]
    )
    return put(table, overlap=[None if t is None else benchmark.overlap(t) for t in texts_of(table)])


def overlap_report(
    hits: Iterable[tuple[str, list[int]]], benchmark: Benchmark, known: Iterable[ProblemSet]
) -> dict[str, Any]:
    """Count, for each set, the problems that share a 13-gram with the corpus; `hits` are (file, grams)."""
    files: Counter[str] = Counter()
    grams: dict[str, set[int]] = defaultdict(set)
    examples: dict[str, str] = {}
    n_files = 0
    for file, found in hits:
        n_files += 1
        for function in sorted({owner for i in found for owner in benchmark.owners[i]}):
            files[function] += 1
            examples.setdefault(function, file)
            grams[function].update(i for i in found if function in benchmark.owners[i])
    sets = {}
    for one in known:
        groups = [group_of(problem.task_id) for problem in one.problems]
        sets[one.name] = {"problems": len(groups), "with_shared_13_grams": sum(g in grams for g in groups)}
    worst = sorted(grams, key=lambda function: (-len(grams[function]), function))[:20]
    return {
        "ngram": NGRAM, "files": n_files, "sets": sets,
        "functions": [
            {"task": f, "ngrams": len(grams[f]), "files": files[f], "example": examples[f]} for f in worst
        ],
    }  # fmt: skip
