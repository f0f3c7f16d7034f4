"""From a folder to a trained model, by the commands of docs/training.md: offline, and with a tiny model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("torch")

from codegen2.cli.main import main
from codegen2.config import ModelConfig
from codegen2.train import program, recipes
from codegen2.train.config import Stage, TrainConfig

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
PATH = re.findall(r"^\$ codegen2 ((?:data|train) [^#\n]*)", TEXT.partition("## Objective")[0], re.MULTILINE)


def packages(folder: Path, names: tuple[str, ...]) -> list[str]:
    for name in names:
        for i in range(3):
            path = folder / name / f"{name}_{i}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{name}_{i}_{n} = make_{name}({n + i}, '{name}')\n" for n in range(20)))
    return [str(folder / name) for name in names]


def test_the_commands_of_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "end_process", lambda: None)
    model = ModelConfig(n_ctx=64, n_embd=16, n_layer=1, n_head=1, rotary_dim=8, tie_word_embeddings=True)
    small = TrainConfig(
        model, stages=(Stage(0, 64, 1),), max_steps=2, warmup_steps=1, checkpoint_every=2, bfloat16=False
    )
    monkeypatch.setitem(recipes.RECIPES, "tiny", lambda: small)
    sources = packages(tmp_path / "src", ("beta", "two", "alpha"))  # alpha is held out, by its name's hash
    options = ["--licence", "MIT", "--heldout-share", "0.5", "--jobs", "1", "--no-decontamination"]
    assert [command.split()[0] for command in PATH] == ["data", "data", "train"]
    said = []
    for command in PATH:
        argv = shlex.split(command)
        argv = ["data", "build", *sources, *argv[3:], *options] if argv[1] == "build" else argv
        argv += ["--jobs", "1"] if argv[1] == "tokenise" else []
        for _ in range(2):  # a second run finds what is there
            assert main(argv) == 0, command
            said.append(capsys.readouterr())
    for built in said[:2]:
        assert "train: 6 files of 2 packages" in built.out and "heldout: 3 files of 1 packages" in built.out
        assert "codegen2 data tokenise corpus" in built.err
    assert "codegen2 train tiny --shard corpus/tokens" in said[2].err and said[2].out == said[3].out
    assert "without 1 held-out shards" in said[4].err
    log = (tmp_path / "runs" / "first" / "log.jsonl").read_text("utf-8")
    assert "valid_bits_per_byte" in log
