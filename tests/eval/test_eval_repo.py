"""Holes in a repository: which files count, what is cut out, does it parse, and the repository's own tests, shut in."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import ScriptedEngine

from codegen2.api import Model
from codegen2.cli import main as cli
from codegen2.eval import syntax
from codegen2.eval.repo import choose_holes, read_files, read_repository
from codegen2.eval.sandbox.command import Commands, tools
from codegen2.eval.sources import SourceFile
from codegen2.text.languages import LANGUAGES
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()
CALC = """\
def add(left, right):
    total = left + right
    return total


def twice(number):
    # é 漢: columns are characters
    return add(number, number)
"""
CHECK = "import calc\nassert calc.add(1, 2) == 3\nassert calc.twice(4) == 8\n"
PYTHON = sys.executable
STRONG = sys.platform == "linux"

# A text that parses, one that does not, and the arguments that its calls have.
SNIPPETS = {
    "python": ("f(alpha, g(b=1))\n", "def f(:\n", ["alpha", "g(b=1)", "b=1"]),
    "java": ("class A { void m() { f(alpha, 2); } }", "class A { void", ["alpha", "2"]),
    "c++": (
        "int main() { f(alpha, std::max<int>(1, 2)); }",
        "int main( {",
        ["alpha", "std::max<int>(1, 2)", "1", "2"],
    ),
    "c": ("int main() { f(alpha, 2); }", "int main( {", ["alpha", "2"]),
    "go": ("package a\nfunc m() { f(alpha, 2) }", "package a\nfunc {", ["alpha", "2"]),
    "javascript": ("f(alpha, x => 2)", "f(alpha", ["alpha", "x => 2"]),
    "c-sharp": ("class A { void M() { F(alpha, 2); } }", "class A { void", ["alpha", "2"]),
    "rust": ("fn m() { f(alpha, 2); }", "fn m( {", ["alpha", "2"]),
    "typescript": ("const x: number = f(alpha)", "const : =", ["alpha"]),
    "kotlin": ("fun m() { f(alpha, 2) }", "fun m( {", ["alpha", "2"]),
    "php": ("<?php f($alpha, 2);", "<?php f(", ["$alpha", "2"]),
    "ruby": ("f(alpha, 2)\n", "def f(\n", ["alpha", "2"]),
    "scala": ("object A { val x = f(alpha, 2) }", "object A { val", ["alpha", "2"]),
    "sql": ("SELECT a FROM t WHERE b = 1;", "SELECT FROM WHERE (;", []),
    "lua": ("f(alpha, 2)", "f(alpha", ["alpha", "2"]),
    "shell": ("if true; then echo hi; fi\n", "if true; then\n", []),
    "swift": ("f(alpha, 2)", "func f( {", ["alpha", "2"]),
    "dart": ("void m() { f(alpha, 2); }", "void m( {", ["alpha", "2"]),
}


def put(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return put(tmp_path / "repo", {"calc.py": CALC, "check.py": CHECK})


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PATH lead to the interpreter, and to little else."""
    monkeypatch.setenv("PATH", f"{Path(PYTHON).parent}:/usr/bin:/bin")


# ---- languages


def test_nineteen_languages() -> None:
    assert len(LANGUAGES) == 19
    assert {*SNIPPETS, "vue"} == set(LANGUAGES)


@pytest.mark.parametrize("name", SNIPPETS)
def test_each_language_parses(name: str) -> None:
    pytest.importorskip("tree_sitter", reason="needs codegen2[eval]")
    good, bad, wanted = SNIPPETS[name]
    assert syntax.parses(name, good) is True
    assert syntax.parses(name, bad) is False
    assert [good[a:b] for a, b in syntax.arguments(name, good)] == wanted


def test_vue_has_no_grammar_and_tsx_has_its_own() -> None:
    assert syntax.parses("vue", "<") is None
    assert syntax.arguments("vue", "f(alpha)") == []
    tsx = SourceFile("a/B.TSX", "typescript", "const a = <X y={f(1)}/>")
    assert syntax.parses(tsx.dialect, tsx.text)
    assert not syntax.parses("typescript", tsx.text)


def test_a_missing_grammar_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tree_sitter_lua", None)
    syntax._parser.cache_clear()
    with pytest.raises(ValueError, match=r"lua: needs tree-sitter-lua; install codegen2\[eval\]"):
        syntax.parses("lua", "x")


# ---- files


def test_what_counts(tmp_path: Path) -> None:
    root = put(
        tmp_path,
        {
            "a.py": CALC, "windows.py": CALC.replace("\n", "\r\n"), "vector.h": "namespace a { class B; }\n",
            "plain.h": "int a;\n", "README": "x", "vendor/b.py": CALC, "c_pb2.py": CALC,
            "d.py": "# @generated\n" + CALC, "e.min.js": "f()", "f.py": b"\0", "g.py": b"\xff\n", "h.py": "x" * 2000,
            "i.py": "#" * 99 + "\n" + ("#" * 99 + "\n") * 11000, "j.py": "a\rb\n",
            "k.py": "\ufeff" + CALC, ".l.py": CALC,
        },
    )  # fmt: skip
    (root / "link.py").symlink_to("a.py")
    files, left_out = read_files(root)
    assert {f.path: f.language for f in files} == {
        "a.py": "python", "windows.py": "python", "vector.h": "c++", "plain.h": "c",
    }  # fmt: skip
    assert files[-1].crlf and files[-1].text == CALC
    assert left_out == {
        "of no known language": 1, "vendored": 1, "generated": 3, "binary": 1, "not UTF-8": 1,
        "with very long lines": 1, "too large": 1, "a link or no file": 1, "hidden": 1,
        "with lone carriage returns or a byte-order mark": 2,
    }  # fmt: skip
    assert sum(left_out.values()) + len(files) == sum(p.is_file() for p in root.rglob("*"))


def test_a_checkout_gives_what_git_tracks(repo: Path) -> None:
    def git(*args: str) -> None:
        subprocess.run(["git", "-C", str(repo), *args], check=True, capture_output=True)

    git("init", "-q")
    with pytest.raises(ValueError, match="git tracks no file here"):
        read_repository(repo, None)
    put(repo, {"secret.py": "x = 1\n", "é b.py": CALC})
    git("add", "calc.py", "é b.py")
    names, files, _, tracked = read_repository(repo, None)
    assert names == [f.path for f in files] == ["calc.py", "é b.py"] and tracked


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        read_repository(tmp_path / "no", None)


# ---- holes


def test_holes(repo: Path) -> None:
    pytest.importorskip("tree_sitter", reason="needs codegen2[eval]")
    files, _ = read_files(repo)
    lines = choose_holes(files, "line", 100, 100, 0)
    assert [h.middle for h in lines if h.file.path == "calc.py"][:2] == [
        "def add(left, right):",
        "total = left + right",
    ]
    assert lines[1].task_id == "calc.py:2:5 line"
    assert all(h.filled(h.middle) == h.file.text for h in lines)
    blocks = choose_holes(files, "block", 100, 100, 0)
    assert blocks[0].middle == "total = left + right\n    return total"
    arguments = choose_holes(files, "argument", 100, 100, 0)
    assert [h.middle for h in arguments] == [
        "number",
        "number",
    ]  # behind wide characters; 1, 2 and 4 are too short
    assert lines[2].filled("x", unindent=4).split("\n")[2] == "x"


def test_holes_follow_from_the_seed_alone(repo: Path) -> None:
    files, _ = read_files(repo)
    some = choose_holes(files, "line", 3, 2, 5)
    assert choose_holes(files[::-1], "line", 3, 2, 5) == some
    assert len(some) == 3
    assert max(sum(h.file.path == f.path for h in some) for f in files) <= 2
    assert any(choose_holes(files, "line", 3, 2, seed) != some for seed in range(5))
    with pytest.raises(ValueError, match="no block to cut out"):
        choose_holes(files[1:], "block", 3, 2, 0)


# ---- the command in its sandbox


def commands(repo: Path, command: str, mode: str = "strong", **limits: float) -> Commands:
    return Commands(repo, ["calc.py", "check.py"], command, mode, wall_s=limits.get("wall_s", 60))


MODES = [pytest.param("strong", marks=pytest.mark.skipif(not STRONG, reason="Linux only")), "weak"]
ONE_MODE = [MODES[0], pytest.param("weak", marks=pytest.mark.slow if STRONG else ())]


@pytest.mark.parametrize("mode", ONE_MODE)
def test_the_command_sees_the_change_and_not_the_repository(repo: Path, mode: str) -> None:
    run = commands(repo, f"{PYTHON} check.py", mode)
    assert run.run({}).passed
    wrong = run.run({"calc.py": CALC.replace("left + right", "left - right")})
    assert (wrong.passed, wrong.result) == (False, "failed: exit status 1: AssertionError")
    touched = commands(repo, "echo x > calc.py; mkdir new; exit 3", mode).run({})
    assert touched.result == "failed: exit status 3"
    assert (repo / "calc.py").read_text() == CALC
    assert not (repo / "new").exists()


@pytest.mark.parametrize("mode", ONE_MODE)
def test_the_command_ends_in_time_with_all_that_it_started(repo: Path, tmp_path: Path, mode: str) -> None:
    """What only waits gets a second try, alone and with four times the wall clock."""
    run = commands(repo, "sleep 600 & sleep 600", mode, wall_s=0.2)
    assert run.run({}).result == "timed out: 0.8 s of wall clock"
    loud = commands(repo, "while true; do echo 0123456789; done", mode, wall_s=0.1)
    assert loud.run({}).result.startswith("timed out")


def sleepers(seconds: str) -> list[int]:
    line = b"sleep\0" + seconds.encode() + b"\0"
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes() == line:
                found.append(int(folder.name))
    return found


def wait_until(true: Callable[[], bool], seconds: float = 120.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return true()


@pytest.mark.skipif(not STRONG, reason="Linux only")
@pytest.mark.parametrize("mode", ["strong", "weak"])
def test_nothing_of_a_command_outlives_who_asked(repo: Path, mode: str) -> None:
    seconds = f"600.{os.getpid()}"
    program = (
        "import sys\nfrom pathlib import Path\nfrom codegen2.eval.sandbox.command import Commands\n"
        f"Commands(Path(sys.argv[1]), ['calc.py'], 'setsid sleep {seconds} & sleep {seconds}', {mode!r}).run({{}})"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([PYTHON, "-c", program, str(repo)], env=env) as asker:
        assert wait_until(lambda: len(sleepers(seconds)) == 2)
        asker.kill()
    assert wait_until(lambda: not sleepers(seconds))


ATTACKS = {
    f"{PYTHON} -c 'import socket; socket.create_connection((\"127.0.0.1\", 1), 1)'": "Network is unreachable",
    "cat ~/.ssh/* /etc/shadow /root/.bashrc": "No such file",
    "touch /usr/x": "cannot touch",
    "cat secret.env": "No such file",
    "ls /proc/1": "No such file",
    f"{PYTHON} -c 'import os; os.setuid(0)'": "Invalid argument",
    "umount $PWD && cat secret.env": "umount",
    f"{PYTHON} -c 'x = bytearray(9 << 30)'": "MemoryError",
    "head -c 200000000 /dev/zero > big": "head:",
}


@pytest.mark.skipif(not STRONG, reason="Linux only")
def test_what_the_command_cannot_do(repo: Path) -> None:
    """Each attack must fail, and its last words must be what is expected; one run tries them all."""
    put(repo, {"secret.env": "key"})
    trials = [
        f"if ( {attack} ) > out 2>&1; then echo works: {i}; fi\n"
        f'tail -n 1 out | grep -qiF "{said}" || echo says otherwise: {i}\nrm -f out big'
        for i, (attack, said) in enumerate(ATTACKS.items())
    ]
    script = "\n".join(["{", *trials, "} > said", "tr '\\n' ' ' < said", "test ! -s said"])
    limits: dict[str, Any] = {"wall_s": 60, "disk_bytes": 100 << 20}
    outcome = Commands(repo, ["calc.py", "check.py"], script, "strong", **limits).run({})
    assert outcome.passed, outcome.result
    # The same trials tell what does work from what does not.
    beaten = "if ( true ) > out 2>&1; then echo works; fi > said; tr '\\n' ' ' < said; test ! -s said"
    assert (
        Commands(repo, ["calc.py"], beaten, "strong", **limits).run({}).result
        == "failed: exit status 1: works"
    )


@pytest.mark.skipif(not STRONG, reason="Linux only")
def test_a_fork_bomb_is_held_and_gone(repo: Path) -> None:
    bomb = f"{PYTHON} -c 'import os\nwhile True:\n    try: os.fork()\n    except OSError: pass'"
    limits: dict[str, Any] = {"wall_s": 0.3, "processes": 20}
    assert Commands(repo, ["calc.py"], bomb, "strong", **limits).run({}).result.startswith("timed out")
    assert commands(repo, "true").run({}).passed


@pytest.mark.skipif(not STRONG, reason="Linux only")
def test_processes_are_counted(repo: Path) -> None:
    code = (
        "import os, time\nn = 0\ntry:\n    while n < 200:\n        if not os.fork():\n"
        "            time.sleep(9)\n        n += 1\nexcept OSError:\n    pass\nprint(n)\nraise SystemExit(1)"
    )
    limits: dict[str, Any] = {"wall_s": 120, "processes": 20}
    outcome = Commands(repo, ["calc.py"], f"{PYTHON} -c '{code}'", "strong", **limits).run({})
    assert 0 < int(outcome.result.rpartition(":")[2]) < 20


@pytest.mark.skipif(not STRONG or not Path("/var/tmp").is_dir(), reason="needs a folder outside /tmp")
def test_a_repository_that_is_not_in_tmp() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as at:
        root = put(Path(at) / "repo", {"calc.py": CALC, "check.py": CHECK, "secret.env": "key"})
        assert commands(root, f"{PYTHON} check.py && touch new && ! cat secret.env").run({}).passed
        assert sorted(p.name for p in root.iterdir()) == ["calc.py", "check.py", "secret.env"]


@pytest.mark.skipif(not STRONG, reason="Linux only")
def test_a_virtual_environment_inside_the_repository_is_seen(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = repo / ".venv" / "bin" / "tool"
    put(repo, {".venv/bin/tool": "#!/bin/sh\necho tool works; exit 5\n", ".venv/lib/x.py": "", ".env": "key"})
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    outcome = commands(repo, "ls .env; tool").run({})
    assert outcome.result == "failed: exit status 5: tool works"


def test_a_home_is_never_shown_as_a_whole(tmp_path: Path) -> None:
    put(tmp_path, {"bin/x": "", "lib/y": "", "opt/bin/z": "", "opt/lib/w": "", "opt/pyvenv.cfg": ""})
    found = tools(f"{tmp_path}/bin:{tmp_path}/opt/bin:relative:{tmp_path}/none", str(tmp_path))
    assert found == [f"{tmp_path}/{x}" for x in ("bin", "opt/bin", "opt/lib", "opt/pyvenv.cfg")]


# ---- the program


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch):
    def say(text: str) -> None:
        model = Model(ScriptedEngine(TOK.encode(text, allow_control=True)), TOK, "scripted")
        monkeypatch.setattr("codegen2.loading.load", lambda *args, **kwargs: model)

    return say


def evaluate(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict, str]:
    status = cli.main(["eval", "repo", *map(str, argv), "--json", "--max-new-tokens", "16"])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else {}, err


def test_eval_repo(repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], says) -> None:
    pytest.importorskip("tree_sitter", reason="needs codegen2[eval]")
    says("return total\nmore<eom>")
    out = tmp_path / "out"
    status, found, err = evaluate(capsys, repo, "--holes", 50, "--per-file", 50, "--out", out)
    assert status == 0
    assert "2 files found (no git checkout), 2 count; left out: none left out" in err
    assert "only 9 holes of 50" in err
    assert found["kind"] == "repo"
    samples = {s["task_id"]: s for s in found["samples"]}
    right = samples["calc.py:3:5 line"]
    assert (right["shown"], right["exact_shown"], right["expected"]) == ("return total", True, "return total")
    assert right["extra"]["parses_shown"] is True
    assert (right["group"], right["category"]) == ("calc.py", "python")
    assert {"exact_match raw", "exact_match shown", "edit_similarity shown", "parses shown"} <= set(
        found["scores"]
    )
    assert "pass@1 raw" not in found["scores"]
    assert {p.name for p in out.iterdir()} >= {"result.json", "report.html", "samples.jsonl"}


@pytest.mark.slow  # the commands by themselves: above
def test_eval_repo_runs_its_tests(repo: Path, capsys: pytest.CaptureFixture[str], says) -> None:
    says("return add(number, number)<eom>")
    mode = "strong" if STRONG else "weak"
    (repo / "check.py").unlink()
    command = f"{PYTHON} -c '{CHECK}'"
    argv = (repo, "--test-command", command, "--sandbox", mode, "--per-file", 9, "--no-baselines")
    assert evaluate(capsys, *argv)[0] == 2
    status, found, err = evaluate(capsys, *argv, "--allow-code-execution")
    assert status == 0, err
    assert "the command passes on the unchanged copy" in err
    passed = {s["task_id"]: s["passed_shown"] for s in found["samples"]}
    assert passed["calc.py:8:5 line"] is True  # what stood there
    assert passed["calc.py:1:1 line"] is False
    assert len(passed) == 6
    assert found["sandbox"]["mode"] == mode
    status, _, err = evaluate(
        capsys, repo, "--test-command", "false", "--sandbox", mode, "--allow-code-execution"
    )
    assert status == 2 and "does not pass on a copy" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--language", "cobol"], "--language 'cobol' is unknown"),
        (["--language", "rust"], "none of its 2 files counts"),
        (["--n", "3"], "3 times the same"),
        (["--holes", "0"], "must be at least 1"),
    ],
)
def test_wrong_arguments(
    repo: Path, capsys: pytest.CaptureFixture[str], says, argv: list[str], message: str
) -> None:
    says("x<eom>")
    status, _, err = evaluate(capsys, repo, *argv)
    assert status == 2 and message in err
