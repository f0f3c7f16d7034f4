"""The result file: what is written reads back the same, and what is wrong with one is said by its key."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from eval_results import make_results

from codegen2.eval.results import from_json, read_results
from codegen2.problems.statistics import Interval


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    results = make_results(n=3)
    path = tmp_path / "new" / "result.json"
    results.write(path)
    assert read_results(path) == results
    assert list(path.parent.iterdir()) == [path]  # no part is left behind
    assert json.loads(path.read_text("utf-8"))["schema"] == 1
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_results(path) == results


def test_a_run_without_samples_or_intervals_reads_back() -> None:
    results = dataclasses.replace(make_results(), samples=[], scores={"x": Interval(1.0, None, None, 1)})
    assert from_json(results.to_json()) == results


def test_a_sample_stands_on_its_line_without_its_nones() -> None:
    lines = make_results().to_json().splitlines()
    rows = [line for line in lines if '"task_id"' in line]
    assert len(rows) == 8
    assert "null" not in rows[0]
    json.loads(rows[0].rstrip(","))


@pytest.mark.parametrize(
    "change",
    [
        {"wall_s": float("nan")},
        {"settings": {"a": [1.0, float("inf")]}},
        {"scores": {"x": Interval(float("nan"), None, None, 1)}},
        {"samples": [dataclasses.replace(make_results().samples[2], latency_s=float("nan"))]},
    ],
)
def test_nan_is_never_written(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(ValueError, match="finite numbers only"):
        dataclasses.replace(make_results(), **change).write(path)
    assert not path.exists()


def set_at(content: Any, path: str, value: Any) -> None:
    *way, last = path.split(".")
    for step in way:
        content = content[int(step) if step.isdecimal() else step]
    if value is ...:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "key 'schema' is not 1"),
        ("schema", ..., "key 'schema' is missing"),
        ("kind", "poem", "Invalid enum value 'poem' - at `$.kind`"),
        ("wall_s", ..., "missing required field `wall_s`"),
        ("wall_s", True, "Expected `float`, got `bool` - at `$.wall_s`"),
        ("model", [], "Expected `object`, got `array` - at `$.model`"),
        ("problem_set.partial", "no", "Expected `bool`, got `str` - at `$.problem_set.partial`"),
        ("problem_set.sha256", ..., "missing required field `sha256` - at `$.problem_set`"),
        ("scores.pass@1 raw.low", "x", "Expected `float | null`, got `str` - at `$.scores[...].low`"),
        ("samples.3.tokens", 1.5, "Expected `int | null`, got `float` - at `$.samples[3].tokens`"),
        ("samples.3.task_id", ..., "missing required field `task_id` - at `$.samples[3]`"),
        ("samples", None, "Expected `array`, got `null` - at `$.samples`"),
    ],
)
def test_what_is_wrong_is_said_by_its_key(path: str, value: Any, message: str, tmp_path: Path) -> None:
    content = json.loads(make_results().to_json())
    set_at(content, path, value)
    file = tmp_path / "r.json"
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_results(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("[]", "key 'schema' is missing"),
        ('{"schema": NaN}', "NaN is no JSON"),
        ("[" * 99999, "no JSON"),
    ],
)
def test_other_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_a_file_of_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        read_results(path)
