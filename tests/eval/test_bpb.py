"""Bits per byte of files: which are taken, how they are scored, and what is left out aloud; languages of files."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from codegen2.eval.bpb import (
    choose,
    collect,
    files_info,
    run_bpb,
    score_files,
    scores_of,
)
from codegen2.eval.cli import add_bpb_arguments
from codegen2.eval.results import read_results
from codegen2.eval.sources import SourceFile
from codegen2.text.languages import EXTENSIONS, LANGUAGES, language_of


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with a file of every kind that is taken or left out."""
    top = tmp_path / "project"
    files: dict[str, bytes] = {
        "a.py": b"x = 1\n",
        "sub/b.rs": "// \u00e9\n".encode(),
        "sub/run": b"#!/usr/bin/env bash\necho hi\n",
        "sub/readme.txt": b"words\n",
        "sub/LICENSE": b"words\n",
        "empty.py": b"",
        "bytes.py": b"x\0y",
        "latin.py": b"# \xe9\n",
        "long.py": b"x = 1\n" * 100,
        ".hidden.py": b"x = 1\n",
        ".hg/c.py": b"x = 1\n",
        ".hg/d.py": b"x = 1\n",
        "mark.go": b"\xef\xbb\xbfpackage a\n",
    }
    for name, data in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (top / "link.py").symlink_to(top / "a.py")
    return top


def test_folders_are_looked_through_and_the_rest_is_counted(tree: Path) -> None:
    found, skipped = collect([str(tree)], max_bytes=200)
    assert [(s.path, s.language, len(s.text.encode())) for s in found] == [
        ("a.py", "python", 6), ("mark.go", "go", 10), ("sub/b.rs", "rust", 6), ("sub/run", "shell", 28),
    ]  # fmt: skip
    assert +skipped == {
        "of no known language": 2, "empty": 1, "binary": 1, "not UTF-8": 1, "too large": 1, "hidden": 1,
        "a link or no file": 1,
    }  # fmt: skip


def test_of_a_checkout_only_what_git_tracks_is_scored(tree: Path) -> None:
    for argv in (["init", "-q"], ["add", "a.py", "long.py", ".hidden.py"]):
        subprocess.run(["git", "-C", str(tree), *argv], check=True, capture_output=True)
    found, skipped = collect([str(tree)], max_bytes=200)
    assert [s.path for s in found] == ["a.py"]
    assert +skipped == {"too large": 1, "hidden": 1}


def test_named_files_are_taken_whatever_they_are_called(tree: Path) -> None:
    names = [
        str(tree / "sub/readme.txt"),
        str(tree / "long.py"),
        str(tree / ".hidden.py"),
        str(tree / "a.py"),
    ]
    found, skipped = collect([*names, names[0], str(tree)], max_bytes=200)
    assert len(found) == 7 and skipped["too large"] == 0
    assert {s.language for s in found if s.path.endswith(".txt")} == {"other"}
    assert len(collect([str(tree), *names], max_bytes=200)[0]) == 7


def test_two_files_of_one_name_stay_two(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.py").write_text("y = 2\n")
    found, _ = collect([str(tree), str(tmp_path / "other")])
    names = [s.path for s in found]
    assert "a.py" in names and (tmp_path / "other" / "a.py").as_posix() in names
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("bytes.py", ValueError, "bytes.py: binary"),
        ("empty.py", ValueError, "empty.py: empty"),
        ("latin.py", ValueError, "latin.py: not UTF-8"),
        ("none.py", FileNotFoundError, "none.py"),
    ],
)
def test_a_named_file_that_cannot_be_scored_is_refused(
    tree: Path, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        collect([str(tree / name)])


def test_the_choice_is_the_same_whatever_the_order() -> None:
    sources = [SourceFile(f"{i}", "go" if i % 2 else "c", f"text {i}") for i in range(40)]
    chosen = choose(sources, 5)
    assert [s.language for s in chosen].count("go") == 5 and len(chosen) == 10
    assert {s.path for s in choose(sources[::-1], 5)} == {s.path for s in chosen}
    assert {s.path for s in choose(sources, 3)} < {s.path for s in chosen}
    assert choose(sources, None) == sources
    with pytest.raises(ValueError, match="--per-language must be at least 1, got 0"):
        choose(sources, 0)


@dataclass
class Score:
    tokens: list[int]
    logprobs: list[float]


class EveryByteCostsTwoBits:
    def score(self, text: str) -> Score:
        n = len(text.encode())
        return Score([0] * n, [-2 * math.log(2)] * n)


def test_bits_per_byte_are_summed_before_they_are_divided() -> None:
    sources = [SourceFile("a", "go", "aa\u00e9"), SourceFile("b", "c", "b" * 12)]
    samples = list(score_files(EveryByteCostsTwoBits().score, sources))
    assert [s.tokens for s in samples] == [4, 12]
    scores = scores_of(samples)
    assert list(scores) == ["bits_per_byte all", "bits_per_byte c", "bits_per_byte go"]  # the largest first
    assert all(i.value == pytest.approx(2.0) for i in scores.values())
    assert scores["bits_per_byte go"].low is None  # one file says nothing of the spread
    samples[0].extra["nats"] *= 3
    assert scores_of(samples)["bits_per_byte all"].value == pytest.approx((6 * 4 + 2 * 12) / 16)


def test_a_score_that_is_no_number_is_refused() -> None:
    class Broken:
        def score(self, text: str) -> Score:
            return Score([0], [math.nan])

    with pytest.raises(ValueError, match="a: the model's score is nan"):
        list(score_files(Broken().score, [SourceFile("a", "go", "x")]))


def test_the_hash_is_of_names_and_texts() -> None:
    one, two = SourceFile("a", "go", "x"), SourceFile("b", "go", "x")
    assert files_info([one], [one], 1).sha256 != files_info([two], [two], 1).sha256
    assert files_info([one, two], [one], 1).partial and not files_info([one], [one], 1).partial


def test_the_command_scores_a_folder_with_the_box(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_bpb_arguments(parser)
    out = tmp_path / "out"
    args = parser.parse_args([str(tree), "--max-bytes", "200", "--json", "--out", str(out)])
    for name in (
        "model",
        "adapter",
        "engine",
        "dtype",
        "head_dtype",
        "threads",
        "revision",
        "max_prompt_tokens",
    ):
        setattr(args, name, None)
    args.device, args.no_check = "cpu", True
    assert run_bpb(args) == 0
    printed, said = capsys.readouterr()
    assert "left out: 2 of no known language, 1 hidden" in said
    results = read_results(out / "result.json")
    assert json.loads(printed)["problem_set"] == {
        "name": "files", "sha256": results.problem_set.sha256, "problems": 4, "evaluated": 4, "partial": False,
    }  # fmt: skip
    assert (out / "report.html").exists()
    assert 0.1 < results.scores["bits_per_byte all"].value < 12
    assert {s.category for s in results.samples} == {"python", "go", "rust", "shell"}


# ---- languages


def test_nineteen_languages_and_no_ending_of_two() -> None:
    endings = [e for of in EXTENSIONS.values() for e in of]
    assert len(LANGUAGES) == 19 and len(endings) == len(set(endings))


@pytest.mark.parametrize(
    ("path", "text", "language"),
    [
        ("A.PY", "", "python"), ("x.h", "int f(void);", "c"), ("x.h", "std::string s;", "c++"),
        ("x.h", "class Foo {", "c++"), ("x.h", "/* the class of */ int x;", "c"), ("a.tsx", "", "typescript"),
        ("de.ts", '\n<?xml version="1.0"?><TS>', None), ("Rakefile", "", "ruby"), ("x.txt", "#!/bin/sh\n", None),
        ("run", "#!/usr/bin/python3.11 -u\n", "python"), ("run", "#!/usr/bin/env -S FOO=1 node\n", "javascript"),
        ("run", "#! /bin/sh", "shell"), ("run", "#!\n", None), ("run", "words", None), ("run", "#!/usr/bin/awk", None),
    ],
)  # fmt: skip
def test_a_language_is_told_by_name_then_by_text(path: str, text: str, language: str | None) -> None:
    assert language_of(path, text) == language
