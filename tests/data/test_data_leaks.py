"""The leak check of `codegen2 data`: held-out files whose lines stand in training files or packages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
import numpy as np
import pyarrow.parquet as pq
from test_data_build import wheel
from test_data_stages import rows

from codegen2.data import build as builder
from codegen2.data import leaks
from codegen2.data.engines import LocalEngine
from codegen2.data.fetch import Fetcher
from codegen2.data.manifest import local_items
from codegen2.data.prepare import Config


def lines(word: str, n: int) -> list[str]:
    """Return lines that no other word shares."""
    return [f"{word}_{i} = make_{word}({i})" for i in range(n)]


def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    return [function(*task) for task in tasks]


def shares(folder: Path, held: list[str], *train: tuple[int, str]) -> tuple[list[float], list[float]]:
    """Return the leak shares of held-out texts; training texts come with their package's number, a part each."""
    found = []
    for name, texts, packages in (
        ("held", held, [9] * len(held)),
        *((f"train{i}", [text], [package]) for i, (package, text) in enumerate(train)),
    ):
        pq.write_table(rows(*texts), folder / name)
        found.append((folder / name, np.arange(len(texts)), np.array(packages)))
    in_file, in_package = leaks.leak_shares(found[:1], found[1:], folder / "index", 8, run)
    return in_file.tolist(), in_package.tolist()


def test_shares(tmp_path: Path) -> None:
    mine = "\n".join(
        [*lines("held", 10), "x = 1", *lines("held", 10)]
    )  # twice is once, and the short line none
    parts = [
        "\n".join(["    " + line for line in lines("held", 10)[i : i + n]])
        for i, n in ((0, 3), (2, 3), (9, 1))
    ]
    other = "\n".join([*lines("other", 4), *lines("held", 1)])
    assert shares(tmp_path, [mine, other, "x = 1"], (0, parts[0]), (0, parts[1]), (1, parts[2])) == (
        [0.3, 0.2, 0.0],
        [0.5, 0.2, 0.0],
    )
    assert shares(tmp_path, [mine], (0, "\n".join(lines("none", 9)))) == ([0.0], [0.0])
    assert shares(tmp_path, [mine]) == ([0.0], [0.0])


def test_lines_of_everybody_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = ["\n".join([*lines(f"own{i}", 3), *lines("all", 3)]) for i in range(4)]
    train = (0, "\n".join(lines("all", 3)))
    assert shares(tmp_path, held, train)[0] == [0.5] * 4
    monkeypatch.setattr(leaks, "_COMMON", 3)
    assert shares(tmp_path, held, train)[0] == [0.0] * 4


def test_as_slow_counting_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)

    def text() -> str:
        return "\n".join(f"line_number_{i}" for i in rng.integers(60, size=rng.integers(1, 30)))

    held, train = [text() for _ in range(30)], [(int(rng.integers(4)), text()) for _ in range(12)]
    sets = [set(h.split("\n")) for h in held]
    by_package = {p: set("\n".join(t for q, t in train if p == q).split("\n")) for p, _ in train}
    in_file, in_package = shares(tmp_path, held, *train)
    assert in_file == [max(len(h & set(t.split("\n"))) for _, t in train) / len(h) for h in sets]
    assert in_package == [max(len(h & t) for t in by_package.values()) / len(h) for h in sets]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_leaks_are_dropped(tmp_path: Path, jobs: int) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    wheel(inputs, "one", {f"one/{i}.py": "\n".join(lines(f"one{i}", 40)) for i in range(3)})
    mixed = [line for i in range(3) for line in lines(f"one{i}", 4)]
    files = {
        "two/leak.py": [*lines("own", 9), *lines("one0", 9)],  # half: too little for a near duplicate
        "two/spread.py": [*lines("mine", 12), *mixed],
        "two/fine.py": [*lines("fine", 13), *mixed],
        "two/clean.py": lines("clean", 20),
    }
    wheel(inputs, "two", {path: "\n".join(text) for path, text in files.items()})
    items = [dataclasses.replace(i, split="heldout" if i.name == "two" else "") for i in local_items(inputs)]
    config = Config(heldout_share=0.0, decontaminate=False, max_test_share=1.0)
    manifest = builder.build(items, tmp_path / "out", config, LocalEngine(jobs), Fetcher(tmp_path / "store"))
    assert manifest["dropped"] == {"leak": 1, "leak from a package": 1}
    assert manifest["largest_leak"] == 0.48
    ledger = pq.read_table(tmp_path / "out" / "files.parquet").to_pylist()
    assert {r["path"]: r["dropped"] for r in ledger if r["dropped"]} == {
        "two/leak.py": "leak",
        "two/spread.py": "leak from a package",
    }
    assert manifest["splits"]["train"]["files"] == 3 and manifest["splits"]["heldout"]["files"] == 2
    assert not (tmp_path / "out" / "work" / "leaks").exists()
