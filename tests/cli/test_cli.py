"""The command line: results, files kept as they are, errors in one sentence, interruptions."""

import codecs
import json
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
from tiny import ScriptedEngine, random_model

from codegen2 import loading
from codegen2.api import Model
from codegen2.cli import main as cli
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()
SLOW_REFERENCE = pytest.param("reference", marks=[pytest.mark.torch, pytest.mark.slow])


@pytest.fixture
def says(monkeypatch):
    """Return a function that makes the command line's model say a text."""

    def say(text):
        model = Model(ScriptedEngine(TOK.encode(text, allow_control=True)), TOK, "scripted")
        monkeypatch.setattr(loading, "load", lambda *args, **kwargs: model)
        return model

    return say


def run(capsys, *argv):
    """Run the command line in this process; give exit status, standard output, standard error."""
    status = cli.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return status, out, err


def test_infill_prints_the_filled_file(tmp_path, capsys, says):
    says("return a + b<eom>")
    path = tmp_path / "x.py"
    path.write_text("def add(a, b):\n    <FILL>\n")
    assert run(capsys, "infill", path) == (0, "def add(a, b):\n    return a + b\n", "")
    assert run(capsys, "infill", path, "--mark")[1] == "def add(a, b):\n    ⟦return a + b⟧\n"
    assert path.read_text() == "def add(a, b):\n    <FILL>\n"


def test_infill_at_a_position(tmp_path, capsys, says):
    says("漢<eom>")
    path = tmp_path / "x.py"
    path.write_text("é = (1, )\nb\n")
    assert run(capsys, "infill", path, "--at", "1:9")[1] == "é = (1, 漢)\nb\n"
    assert run(capsys, "infill", path, "--at", "3:1")[1] == "é = (1, )\nb\n漢"


def test_several_holes_at_once(tmp_path, capsys, says):
    says("one<eom><sep>two<eom>")
    path = tmp_path / "x.txt"
    path.write_text("a @@ b @@ c\n")
    assert run(capsys, "infill", path, "--hole", "@@", "--max-new-tokens", 9)[1] == "a one b two c\n"
    says("one<eom><sep>two<eom>")
    assert (
        run(capsys, "infill", path, "--at", "1:12", "--at", "1:1", "--max-new-tokens", 9)[1]
        == "onea @@ b @@ ctwo\n"
    )


def test_json_has_the_documented_keys(tmp_path, capsys, says):
    says("x) + y\n<eom>")
    path = tmp_path / "x.py"
    path.write_text("\nf(<FILL>)\n")
    status, out, _ = run(capsys, "infill", path, "--json", "--stop-at", "line")
    content = json.loads(out)
    assert status == 0
    assert set(content) == {
        "model", "text", "holes", "prompt_tokens", "dropped_prefix_chars", "dropped_suffix_chars",
    }  # fmt: skip
    [hole] = content["holes"]
    assert set(hole) == {"text", "raw", "cuts", "confidence", "finish_reason", "line", "column"}
    assert (hole["line"], hole["column"]) == (2, 3)
    assert hole["raw"].startswith("x) + y")
    says("b c<eom>")
    content = json.loads(run(capsys, "complete", "--prompt", "a", "--json")[1])
    assert set(content) == {"model", "choices", "prompt_tokens", "dropped_chars"}
    assert content["choices"] == [{"text": "b c", "tokens": TOK.encode("b c"), "finish_reason": "stop"}]
    says("b<eom>")
    content = json.loads(run(capsys, "infill", path, "--n", 3, "--json")[1])
    assert [(h["text"], h["line"], h["column"]) for h in content["holes"]] == [("b", 2, 3)] * 3


@pytest.mark.parametrize(
    ("mark", "encoding", "newline"),
    [
        (b"", "utf-8", "\n"),
        (codecs.BOM_UTF8, "utf-8", "\r\n"),
        (codecs.BOM_UTF16_LE, "utf-16-le", "\r\n"),
        (codecs.BOM_UTF32_BE, "utf-32-be", "\n"),
    ],
)
def test_write_keeps_mode_encoding_mark_and_line_ends(tmp_path, capsys, says, mark, encoding, newline):
    says("b = 2\nc = 'é'<eom>")
    path = tmp_path / "x.py"
    path.write_bytes(mark + f"a = 'ü'{newline}<FILL>{newline}d = 4{newline}".encode(encoding))
    path.chmod(0o750)
    link = tmp_path / "link.py"
    link.symlink_to(path)
    assert run(capsys, "infill", link, "--write") == (0, "", "")
    expected = f"a = 'ü'{newline}b = 2{newline}c = 'é'{newline}d = 4{newline}"
    assert path.read_bytes() == mark + expected.encode(encoding)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert link.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.py", "x.py"]


def test_a_failed_write_leaves_the_file(tmp_path, capsys, says, monkeypatch):
    says("b<eom>")
    path = tmp_path / "x.py"
    path.write_text("a <FILL>\n")

    def full(*args):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("codegen2.files.paths.os.replace", full)
    status, _, err = run(capsys, "infill", path, "--write")
    assert (status, err) == (2, f"codegen2: {path}: no space left on device\n")
    assert path.read_text() == "a <FILL>\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"abc", [], "no <FILL> in it and no --at"),
        (b"abc", ["--at", "2:1"], "line 2 does not exist; the text has lines 1 to 1"),
        (b"abc", ["--at", "1:5"], "column 5 does not exist; line 1 has columns 1 to 4"),
        (b"abc", ["--at", "1"], "no position; write LINE:COL"),
        (b"a\n\xff<FILL>", [], "byte 2 (line 2) is no UTF-8 (0xff); convert the file"),
        (b"<FILL><FILL>", ["--stop-at", "line"], "--stop-at works with one hole, here are 2"),
        (b"<FILL>", ["--hole", ""], "--hole must not be empty"),
        (b"<FILL>", ["--temperature", "-1"], "temperature must be"),
        (b"<FILL>", ["--max-new-tokens", "5000"], "max_new_tokens: 5000 leave"),
    ],
)
def test_user_errors_are_one_sentence(tmp_path, capsys, says, content, options, message):
    says("x<eom>")
    path = tmp_path / "x.py"
    path.write_bytes(content)
    status, out, err = run(capsys, "infill", path, *options)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["complete", "FILE", "--prompt", "x"], "FILE and --prompt are two texts; give one of them"),
        (
            ["infill", "FILE", "--at", "1:1", "--hole", "@@"],
            "--at and --hole both say where the holes are; give one",
        ),
        (["infill", "FILE", "--mark", "--write"], "--mark is for the printed file; leave it out"),
        (["infill", "FILE", "--mark", "--json"], "--mark is for the printed file; leave it out"),
        (["score", "FILE", "--tokens"], "--tokens goes with --json; give both"),
        (
            ["complete", "--prompt", "x", "--revision", "main"],
            "the model in the box has no revision 'main'; leave",
        ),
        (
            ["convert", "box", "/tmp/y", "--to", "hf", "--revision", "main"],
            "the model in the box has no revision",
        ),
        (["info", "--revision", "main"], "the model in the box has no revision"),
    ],
)
def test_what_would_be_passed_over_is_refused(tmp_path, capsys, argv, sentence):
    path = tmp_path / "x.py"
    path.write_text("a <FILL>\n")
    status, out, err = run(capsys, *(path if word == "FILE" else word for word in argv))
    assert (status, out) == (2, "")
    assert sentence.replace("FILE and", f"{path} and") in err
    assert path.read_text() == "a <FILL>\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["infill", "/nowhere/x.py"],
        ["score", "/"],
        ["complete", "--prompt", "x", "--model", "/nowhere"],
        ["convert", "/nowhere", "/tmp/y", "--to", "hf"],
        ["info", "--model", "/nowhere"],
        ["infill", "-", "--write"],
        ["cache", "rm"],
        ["cache", "rm", "nothing-of-the-kind"],
        ["cache", "verify", "nothing-of-the-kind"],
    ],
)
def test_what_is_not_there(capsys, argv):
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("codegen2: ")
    assert err.count("\n") == 1


def test_bad_arguments_exit_2(capsys):
    for argv in (["infill"], ["nothing"], ["complete", "--n", "x"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(argv)
        assert exit_.value.code == 2
        capsys.readouterr()


def test_standard_input(capsys, says, monkeypatch, tmp_path):
    says(" c<eom>")
    source = tmp_path / "in"
    source.write_bytes("a é<FILL>b".encode())
    with source.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run(capsys, "infill", "-")[1] == "a é cb"


def test_complete(capsys, says):
    says("b\nc<eom>")
    assert run(capsys, "complete", "--prompt", "a ", "--echo") == (0, "a b\nc\n", "")
    assert run(capsys, "complete", "--prompt", "a ", "--stop", "\nc")[1] == "b\n"
    assert "--- answer 2 of 2 (stop)\nb\nc\n" in run(capsys, "complete", "--prompt", "a ", "--n", "2")[1]


def test_long_input_is_reported(capsys, says, tmp_path):
    says("x<eom>")
    path = tmp_path / "long.py"
    path.write_text("a = 1\n" * 500 + "<FILL>\n" + "b = 2\n" * 500)
    status, _, err = run(capsys, "infill", path)
    assert status == 0
    assert "it did not see the" in err


def test_score_and_embed(engine, tmp_path, capsys, monkeypatch):
    model = random_model(engine)
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: model)
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text("x = 1\n")
    b.write_text("def f():\n    pass\n")
    content = json.loads(run(capsys, "score", a, b, "--json", "--tokens")[1])
    expected = [model.score(p.read_text()) for p in (a, b)]
    assert [f["bits_per_byte"] for f in content["files"]] == [s.bits_per_byte for s in expected]
    assert content["files"][0]["tokens"][0]["token"] == TOK.encode("x")[0]
    total = -sum(sum(s.logprobs) for s in expected) / np.log(2) / sum(s.n_bytes for s in expected)
    assert content["bits_per_byte"] == pytest.approx(total)
    assert run(capsys, "score", a, b)[1].count("bits per byte") == 3
    a.write_text("")
    assert "nothing to score" in run(capsys, "score", a)[2]
    out = tmp_path / "b.npy"
    assert run(capsys, "embed", b, "--pooling", "mean", "--out", out)[0] == 0
    np.testing.assert_allclose(np.load(out), model.embed(b.read_text(), "mean"))
    content = json.loads(run(capsys, "embed", b)[1])
    assert content["shape"] == list(model.embed(b.read_text()).shape)


def test_models_info_and_cache(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEGEN2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    content = json.loads(run(capsys, "models", "--json")[1])
    assert [m["name"] for m in content["models"]] == ["nano", "1B", "3.7B", "7B", "16B"]
    assert content["models"][4]["bfloat16_bytes"] == 2 * 16_032_155_648
    assert "16,032,155,648" in run(capsys, "models")[1]
    assert json.loads(run(capsys, "info", "--json")[1])["model"]["vocab_size"] == 51200
    (tmp_path / "cache" / "selfcheck").mkdir(parents=True)
    (tmp_path / "cache" / "selfcheck" / "x.json").write_text("{}")
    entries = json.loads(run(capsys, "cache", "ls", "--json")[1])["entries"]
    own = [e for e in entries if e["kind"] == "computed"]
    assert [(e["name"], e["bytes"]) for e in own] == [("selfcheck", 2)]
    assert run(capsys, "cache", "rm", "selfcheck")[0] == 0
    assert not (tmp_path / "cache" / "selfcheck").exists()


@pytest.mark.slow  # README.md does it too
def test_convert_the_box(capsys, tmp_path):
    out = tmp_path / "gptj"
    assert run(capsys, "convert", "box", out, "--to", "gptj", "--dtype", "bfloat16")[:2] == (0, f"{out}\n")
    assert (out / "model.safetensors").stat().st_size > 1e6
    status, _, err = run(capsys, "convert", "box", out, "--to", "gptj")
    assert status == 2
    assert str(out) in err


def start(*argv):
    return subprocess.Popen(
        [sys.executable, "-m", "codegen2", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "CODEGEN2_OFFLINE": "1"},
    )  # fmt: skip


def start_complete(budget, engine):
    options = ["--max-new-tokens", str(budget), "--temperature", "1", "--seed", "1", "--engine", engine]
    return start("complete", "--prompt", "import os\n", *options)


# With PyTorch a process takes seconds to start.
@pytest.mark.parametrize("engine", ["native", SLOW_REFERENCE], indirect=True)
def test_ctrl_c_keeps_what_is_there(engine):
    process = start_complete(1500, engine)
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=600)
    assert first + rest
    assert (process.returncode, err) == (130, "")


def test_ctrl_c_does_not_write(tmp_path, capsys, says):
    model = says("b c d e f g h i j k l m n o p")
    forward = model.engine.forward

    def interrupted(pieces, cache):
        if model.engine.passes == 3:
            signal.raise_signal(signal.SIGINT)
        return forward(pieces, cache)

    model.engine.forward = interrupted
    path = tmp_path / "x.py"
    path.write_text("a <FILL>\n")
    assert run(capsys, "infill", path, "--write") == (130, "", "")
    assert path.read_text() == "a <FILL>\n"
    model.engine.passes = 0
    model.scheduler.slots.forget()
    status, out, _ = run(capsys, "infill", path)
    assert (status, out) == (130, "a b c d e\n")  # what was there when it came


@pytest.mark.parametrize("engine", ["native", SLOW_REFERENCE], indirect=True)
def test_a_closed_pipe_is_quiet(engine):
    process = start_complete(300, engine)
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(), err) == (141, "")
    process.stderr.close()


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("codegen2 ")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["infil"], "argument COMMAND: invalid choice: 'infil'; did you mean infill?"),
        (
            ["complete", "--suggest-above", "0.5"],
            "unrecognized arguments: --suggest-above; another command takes it; see codegen2 --help",
        ),
        (
            ["infill", "--temprature", "1", "x"],
            "unrecognized arguments: --temprature x; did you mean --temperature?",
        ),
        (
            ["complete", "--top-k", "x", "y"],
            "argument --top-k: invalid int value: 'x'; see codegen2 complete --help",
        ),
    ],
)
def test_what_was_mistyped_is_one_sentence(argv, sentence, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(argv)
    assert e.value.code == 2
    assert capsys.readouterr().err.partition(": ")[2] == sentence + "\n"


@pytest.mark.parametrize(
    "argv", [["complete", "--top-logprobs", "2"], ["score", "x", "--max-prompt-tokens", "99"],
             ["embed", "x", "--max-prompt-tokens", "99"], ["eval", "bpb", "x", "--max-prompt-tokens", "99"]]
)  # fmt: skip
def test_no_command_has_options_that_it_would_not_read(argv, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(argv)
    assert e.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_without_a_command_help_is_shown(capsys):
    with pytest.raises(SystemExit) as e:
        cli.main([])
    assert e.value.code == 0
    assert "infill" in capsys.readouterr().out


def test_an_unknown_size_names_those_there_are(capsys):
    assert cli.main(["complete", "--model", "2B", "--prompt", "x"]) == 2
    assert "those are 1B, 3.7B, 7B and 16B" in capsys.readouterr().err


def test_several_infills_are_shown(tmp_path, capsys):
    path = tmp_path / "a.py"
    path.write_text("x = \n")
    argv = ["infill", str(path), "--at", "1:5", "--n", "5", "--temperature", "1", "--max-new-tokens", "2"]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.count("--- answer ") == 5
    assert cli.main([*argv, "--write"]) == 2
    assert "--write takes one answer" in capsys.readouterr().err
    assert path.read_text() == "x = \n"


@pytest.mark.parametrize("name", ["a.ipynb", "A.IPYNB", "link.py"])
def test_a_notebook_is_not_filled(tmp_path, capsys, name):
    (tmp_path / "link.py").symlink_to("a.ipynb")
    (tmp_path / "a.ipynb").write_text("{}")
    path = tmp_path / name
    if not path.is_file():
        path.write_text("{}")
    assert cli.main(["infill", str(path), "--at", "1:1"]) == 2
    assert "a notebook is JSON" in capsys.readouterr().err
