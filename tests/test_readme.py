"""Whatever README.md and examples/ show runs as it stands, with the model in the box and without a network.

Blocks of README.md run in order in one empty folder that holds examples/: ```python in one namespace, and the
lines of ```console that begin with "$ ". A block after `<!-- test: skip, REASON -->` is left out; those after
`<!-- test: torch -->` run by themselves, where PyTorch is installed.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import codegen2
from codegen2 import loading
from codegen2.cli import main as cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DEMO = "inventory.py"  # a file with holes, no program
SCRIPTS = sorted(p.name for p in (ROOT / "examples").glob("*.py") if p.name != DEMO)

_BLOCK = re.compile(
    r"(?:<!-- test: (skip, [^\n]+|torch) -->\n+)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)

both_engines = pytest.mark.parametrize(
    "engine",
    ["native", pytest.param("reference", marks=[pytest.mark.torch, pytest.mark.slow])],
    indirect=True,
    scope="session",
)


def blocks(torch: bool = False) -> list[tuple[str, str]]:
    """Return (language, text) of every block that is to run without PyTorch, or of those that need it."""
    wanted = "torch" if torch else None
    return [(m[2], m[3]) for m in _BLOCK.finditer(README) if m[2] in ("python", "console") and m[1] == wanted]


@pytest.fixture
def one_load(box_model: codegen2.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let load() without a name give the model that is loaded already; with a name it loads as ever."""
    real = codegen2.load

    def load(name: Any = None, **kwargs: Any) -> codegen2.Model:
        return box_model if name is None else real(name, **kwargs)

    monkeypatch.setattr(codegen2, "load", load, raising=False)
    monkeypatch.setattr(loading, "load", load)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder with examples/ in it the current one, and `codegen2` a command there."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    command = tmp_path / "bin" / "codegen2"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m codegen2 "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("CODEGEN2_CACHE", str(tmp_path / "cache"))
    # The hub library's own variable would be kept for later tests.
    monkeypatch.setenv("CODEGEN2_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_line(line: str, room: Path) -> None:
    """Run a line of a console block: one of codegen2 in this process, to load once, others in a shell."""
    if line.startswith("codegen2 ") and not set(line) & set("|<>&;$#*"):
        status = cli.main(shlex.split(line)[1:])
        assert status == 0, f"exit status {status}: {line}"
        return
    done = subprocess.run(["sh", "-euc", line], cwd=room, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_reader_of_blocks_reads_something() -> None:
    languages = [language for language, _ in blocks()]
    assert languages.count("python") >= 5 and languages.count("console") >= 3
    assert [language for language, _ in blocks(torch=True)] == ["console", "python", "python"]


@both_engines
def test_readme_runs(
    room: Path, one_load: None, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run_blocks(blocks(), room)


@pytest.mark.torch
@pytest.mark.filterwarnings("default")  # the snippets call transformers, whose warnings are not ours
@pytest.mark.parametrize("max_length", [24, pytest.param(128, marks=pytest.mark.slow)])
def test_the_card_s_snippets_run(
    max_length: int, room: Path, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default with shorter answers than the README's."""
    chosen = blocks(torch=True)
    assert sum("max_length=128" in text for _, text in chosen) == 2
    run_blocks([(kind, text.replace("=128", f"={max_length}")) for kind, text in chosen], room)


def run_blocks(chosen: list[tuple[str, str]], room: Path) -> None:
    """Run blocks in order, those of Python in one namespace."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    for number, (language, text) in enumerate(chosen, start=1):
        where = f"README block {number}:\n{text}"
        if language == "python":
            try:
                exec(compile(text, f"README block {number}", "exec"), namespace)
            except Exception as e:
                raise AssertionError(where) from e
            continue
        lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        assert lines, where
        for line in lines:
            run_line(line, room)


@both_engines
@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_run(
    script: str, room: Path, one_load: None, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(room / "examples" / script), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_demo_file_has_holes() -> None:
    text = (ROOT / "examples" / DEMO).read_text("utf-8")
    assert text.count("<FILL>") == 5
    assert f"examples/{DEMO}" in (ROOT / "Makefile").read_text("utf-8")


@pytest.mark.parametrize("name", [n for n in codegen2.PRESETS if n != "nano"])
def test_the_table_of_sizes_is_right(name: str) -> None:
    n = codegen2.PRESETS[name].n_params
    int8 = (
        codegen2.PRESETS[name].vocab_size * codegen2.PRESETS[name].n_embd * 2
    )  # wte and head, beside int4 blocks
    packed = (n - int8) * 4.5 / 8 + int8
    sizes = " | ".join(f"{size / 1e9:.1f} GB" for size in (packed, n, 2 * n, 4 * n))
    row = f"| {name} | {n:,} | {sizes} |"
    assert row in README


def test_the_box_s_size_is_right() -> None:
    assert f"{codegen2.PRESETS['nano'].n_params / 1e6:.0f} million parameters" in README


def test_files_that_the_docs_name_are_there() -> None:
    pages = [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    folders = "tests|codegen2|benchmarks|scripts|docs|examples|train|data|eval|text|serve"
    named = {
        (page.name, name)
        for page in pages
        for name in re.findall(rf"[`( ]((?:{folders})/[\w./-]*\w)[`) ]", page.read_text("utf-8"))
    }
    lost = {
        (page, name)
        for page, name in named
        if not any((at / name).exists() for at in (ROOT, ROOT / "codegen2"))
    }
    assert len(named) > 30 and not lost
