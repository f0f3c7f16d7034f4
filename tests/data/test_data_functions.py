"""`codegen2 data build --functions`: how a file is cut, what a function is worth, and what a benchmark keeps out."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from test_data_build import run, wheel
from test_data_stages import rows

from codegen2.cli.main import main
from codegen2.data import build as builder
from codegen2.data.benchmark import benchmark_of
from codegen2.data.engines import LocalEngine
from codegen2.data.fetch import Fetcher
from codegen2.data.functions import body_key, cut
from codegen2.data.manifest import local_items
from codegen2.data.prepare import Config, cut_functions
from codegen2.problems.sets import Problem

MODULE = '''"""A module."""
from __future__ import annotations
import os, math
import numpy as np
from typing import Dict, List, Optional
from .own import helper


@decorated
def mean(values: List[float]) -> Optional[float]:
    """Give the mean."""
    if not values:
        return None
    return math.fsum(values) / len(values)


class Box:
    """A box."""

    def area(self, scale):
        """Give the area."""
        # scaled
        text = """two
  lines"""
        return scale * 2

    class Lid:
        def turn(self, xs):
            total = 0
            for x in xs:
                total += x
            del x
            return helper(total)

    def short(self):
        return 1

    def stub(self):
        """Do nothing.

        For ever.
        """
        raise NotImplementedError


def test_mean():
    """A test."""
    assert mean([1]) == 1
    assert mean([2]) == 2
'''


def test_what_is_cut() -> None:
    found = {f.name: f for f in cut(MODULE)}
    assert list(found) == ["mean", "Box.area", "Box.Lid.turn"]
    assert found["mean"].text == (
        "import math\nfrom typing import List, Optional\n\n\n@decorated\n"
        'def mean(values: List[float]) -> Optional[float]:\n    """Give the mean."""\n'
        "    if not values:\n        return None\n    return math.fsum(values) / len(values)\n"
    )
    assert found["mean"].line == 10
    area = found["Box.area"].text  # a string's own lines lose what stands before them, as far as they have it
    assert area.startswith("def area(self, scale):\n    ") and '"""two\nlines"""\n    return' in area
    assert found["Box.Lid.turn"].text.startswith("def turn(self, xs):\n    total = 0\n")  # no relative import


@pytest.mark.parametrize(
    "text",
    ["def f(:\n", "x = 1\n", "\0", "(" * 500, "def f():\n" + "    x = 1\n" * 50, "a<b\n" * 80_000],
    ids=["wrong", "none", "NUL", "brackets", "long", "longer than is parsed"],
)
def test_nothing_to_cut(text: str) -> None:
    assert list(cut(text)) == []


@pytest.mark.parametrize(
    "source", ["codegen2/data/functions.py", "codegen2/generation/sampling.py", "codegen2/text/cursor.py"]
)
def test_every_function_is_python(source: str) -> None:
    text = (Path(__file__).parents[2] / source).read_text()
    found = list(cut(text))
    assert len(found) > 3
    for function in found:
        (last,) = ast.parse(function.text).body[-1:]
        assert isinstance(last, ast.FunctionDef) and last.name == function.name.rpartition(".")[2]
        assert body_key(last) == function.body  # no line of it was lost or changed


def score(body: str, head: str = "def f(xs, n):") -> float:
    (found,) = cut("import math\nimport torch\n" + head + "\n    '''Doc.'''\n" + body)
    return found.score


def test_scores() -> None:
    own = score("    y = [x * n for x in xs if x > 0]\n    return sorted(y)[0]\n")
    assert own > score("    y = math.sqrt(n)\n    return y\n") >= 0
    assert score("    y = self.model.fit(xs)\n    return project_name(y)\n") < score(
        "    y = xs.pop()\n    return y\n"
    )
    assert score("    y = math.sqrt(n)\n    return y\n") > score("    y = torch.sqrt(n)\n    return y\n")


def key(text: str) -> bytes:
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.FunctionDef)
    return body_key(node)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("def g(b: int, c):\n    d = 0\n    for e in b:\n        d += e\n    return d\n", True),
        ("def f(x, k):\n    'Doc.'\n    y = 0\n    for z in x:\n        y += z\n    return y\n", True),
        ("def f(x, k):\n    y = 0\n    for z in k:\n        y += z\n    return y\n", False),
        ("def f(x, k):\n    y = 1\n    for z in x:\n        y += z\n    return y\n", False),
        ("def f(x, k):\n    y = 0\n    for z in x:\n        y -= z\n    return y\n", False),
        ("def f(x, k):\n    y = 0\n    for z in sorted(x):\n        y += z\n    return y\n", False),
    ],
)
def test_equal_bodies_but_for_names(other: str, same: bool) -> None:
    assert (
        key("def f(x, k):\n    y = 0\n    for z in x:\n        y += z\n    return y\n") == key(other)
    ) is same


PROBLEM = Problem(
    "t/0", "running",
    'def running(numbers):\n    """ Give the running sums, one after the other, of a list.\n    """\n',
    "    out, total = [], 0\n    for number in numbers:\n        total += number\n        out.append(total)\n"
    "    return out\n",
    "def check(candidate):\n    assert candidate([1]) == [1]\n",
)  # fmt: skip


def test_the_stage_keeps_solutions_out() -> None:
    loop = "    for d in a:\n        c += d\n        b.append(c)\n"
    renamed = f"def g(a):\n    'Other.'\n    b, c = [], 0\n{loop}    return b\n"
    worded = '    """Give the running sums one after the other of a list numbers give"""\n'
    copied = f"def running(numbers):\n{worded}    total = 1\n    return total * 2\n"
    fine = "def h(a):\n    'Other.'\n    b = [x + 1 for x in a]\n    return b * 2\n"
    strange = "def k(a):\n    'Other.'\n    one(a.b.c, d.e.f)\n    return two(a)\n"
    table = rows(renamed + "\n\n" + copied + "\n\n" + fine + "\n\n" + strange)
    table = pa.concat_tables([table, rows("package main\n", language="go"), rows("x = 1\n")])
    found = cut_functions(table, -0.5, benchmark_of([PROBLEM])).to_pylist()
    assert [r["dropped"] for r in found] == [
        "cut into functions", "no Python to cut", "cut into functions",
        "benchmark", "benchmark", "", "knows its project",
    ]  # fmt: skip
    assert [r["path"] for r in found[3:]] == ["p/a.py:1:g", "p/a.py:10:running", "p/a.py:16:h", "p/a.py:22:k"]
    assert [r["text"] for r in found[3:]] == [None, None, fine, None]
    assert found[5]["licence"] == "MIT" and found[5]["bytes"] == len(fine)


def functions(word: str, n: int = 6) -> str:
    parts = [
        f"def {word}_{i}(xs, k):\n    '''Sum {word} {i}.'''\n    {word} = {i}\n    for x in xs:\n"
        f"        if x % {i + 2} == k:\n            {word} += x * {i}\n    return [{word}, '{word}{i}']\n"
        for i in range(n)
    ]
    return "\n\n".join(parts)


def test_a_corpus_of_functions(tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    wheel(
        inputs,
        "one",
        {"one/a.py": functions("red"), "one/b.py": functions("green") + "\n\n" + functions("red")},
    )
    wheel(inputs, "two", {"two/a.py": functions("blue") + "\n\n" + functions("green")})
    config = Config(heldout_share=0, decontaminate=False, functions=-0.5, max_test_share=1.0)
    manifest = run(inputs, tmp_path / "out", config)
    assert manifest["dropped"] == {"cut into functions": 3, "exact duplicate": 12}
    texts = pq.read_table(tmp_path / "out" / "train-00000.parquet")["text"].to_pylist()
    assert sorted(texts) == sorted(
        t + "\n" for w in ("red", "green", "blue") for t in functions(w).rstrip().split("\n\n\n")
    )
    # Of functions the held-out twin stays.
    items = [
        i if i.name == "one" else builder.Item(**vars(i) | {"split": "heldout"}) for i in local_items(inputs)
    ]
    builder.build(items, tmp_path / "held", config, LocalEngine(1), Fetcher(tmp_path / "store"))
    held = pq.read_table(tmp_path / "held" / "heldout-00000.parquet")
    train = pq.read_table(tmp_path / "held" / "train-00000.parquet")
    assert held.num_rows == 12 and train.num_rows == 6


def test_training_functions_made_of_held_out_lines_go(tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    wheel(inputs, "held", {"held/a.py": functions("red", 2)})
    shared = "".join(
        f"{line}\n" for line in functions("red", 1).split("\n")[3:6]
    )  # three of at least 8 characters
    half = f"def half(xs, k):\n    'Other words.'\n    red = 0\n{shared}    return [red, xs, k]\n"
    less = f"def less(xs, k):\n    'Words of its own.'\n    red = 1\n{shared}    red += k * 5\n    return red, xs\n"
    other = "        if x % 3 == k:\n            red += x * 1\n"  # of another held-out function, which does not add up
    two = f"def two(xs, k):\n    'Of two.'\n    red = 2\n{shared}{other}    return k, red, xs\n"
    wheel(inputs, "mine", {"mine/a.py": "\n\n".join([half, less, two])})
    items = [
        builder.Item(**vars(i) | {"split": "heldout" if i.name == "held" else ""})
        for i in local_items(inputs)
    ]
    config = Config(heldout_share=0, decontaminate=False, functions=-0.5, max_test_share=1.0)
    manifest = builder.build(items, tmp_path / "out", config, LocalEngine(1), Fetcher(tmp_path / "store"))
    assert manifest["dropped"] == {"cut into functions": 2, "leak": 1}
    assert manifest["largest_leak"] == 0.4286  # 3 of 7
    assert pq.read_table(tmp_path / "out" / "train-00000.parquet")["text"].to_pylist() == [two, less]


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, problems = tmp_path / "in", tmp_path / "mine.jsonl"
    inputs.mkdir()
    wheel(
        inputs, "one", {"one/a.py": PROBLEM.program(PROBLEM.canonical_solution) + "\n\n" + functions("red")}
    )
    record = {"text": "Add.", "task_id": 1, "test_list": ["assert total(1, 2) == 3"]}
    code = functions("red", 1).replace("red_0", "total")
    problems.write_text(json.dumps(record | {"code": code}) + "\n")
    command = [
        "data",
        "build",
        str(inputs),
        "--out",
        str(tmp_path / "out"),
        "--jobs",
        "1",
        "--json",
        "--functions",
    ]
    assert main([*command, "--heldout-share", "0", "--benchmark", str(problems)]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["config"]["functions"] == -0.5
    assert manifest["dropped"] == {"benchmark": 1, "cut into functions": 1}
    assert manifest["overlap"]["sets"]["mine"] == {"problems": 1, "with_shared_13_grams": 0}
    assert main([*command, "--benchmark", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert main([*command, "nan"]) == 2
