"""Comparing runs: only like with like, paired, and what is not shared is said."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import pytest
from eval_results import HOSTILE, make_results
from test_report import Page

from codegen2.eval.cli import add_compare_arguments
from codegen2.eval.compare import (
    Run,
    compare,
    labelled,
    notices,
    print_comparison,
    run_compare,
    to_json,
)
from codegen2.eval.report.page import compare_html
from codegen2.eval.results import Results, Sample, SetInfo
from codegen2.problems.statistics import Interval


def run(results: Results, label: str = "a") -> Run:
    return Run(label, f"{label}.json", results)


def all_right(results: Results) -> Results:
    fixed = [dataclasses.replace(s, passed_raw=True, exact_raw=True) for s in results.samples]
    return dataclasses.replace(results, samples=fixed)


def test_the_difference_is_paired_and_counts_what_changed() -> None:
    a = make_results(n=2)
    found = compare(run(a), run(all_right(a), "b"))
    by_name = {d.name: d for d in found.differences}
    first = by_name["pass@1 raw"]
    right = [
        sum(bool(s.passed_raw) for s in a.samples if s.task_id == t) / 2
        for t in dict.fromkeys(s.task_id for s in a.samples)
    ]
    assert first.a == pytest.approx(sum(right) / 8) and first.b == 1.0
    assert first.difference.value == pytest.approx(1 - sum(right) / 8)
    assert (first.higher, first.lower) == (sum(r < 1 for r in right), 0)
    assert first.sure and not by_name["pass@1 shown"].sure
    same = by_name["pass@1 shown"]
    assert (same.difference.value, same.higher, same.lower) == (0.0, 0, 0)
    assert by_name["latency_s mean"].difference.value == 0.0
    back = compare(run(all_right(a)), run(a, "b")).differences[0]
    assert back.difference.value == -first.difference.value and back.lower == first.higher


def test_pass_at_k_is_compared_where_both_have_it() -> None:
    a = make_results(n=3)
    scores = a.scores | {"pass@3 raw": Interval(1.0, 1.0, 1.0, 8)}
    a = dataclasses.replace(a, scores=scores)
    names = {d.name: d for d in compare(run(a), run(a, "b")).differences}
    assert names["pass@3 raw"].a == 1.0 > names["pass@1 raw"].a
    b = dataclasses.replace(a, scores={k: v for k, v in scores.items() if k != "pass@3 raw"})
    assert "pass@3 raw" not in {d.name for d in compare(run(a), run(b, "b")).differences}


def test_problems_on_one_side_only_are_left_out_and_said() -> None:
    a, b = make_results(), make_results(problems=6)
    found = compare(run(a), run(b, "b"))
    assert found.problems == 6 and len(found.only_a) == 2 and found.only_b == []
    said = notices(found)
    assert said[0].startswith("2 problems of a.json are missing in b.json (SingleLineInfilling/t/3/L6, ")
    assert "b.json: PARTIAL: 6 of 8 problems" in said
    assert found.differences[0].difference.value == 0.0  # on the six that both have


def test_settings_that_differ_are_said() -> None:
    b = dataclasses.replace(
        make_results(), settings={"temperature": 0.6, "stop": ["<&>"], "nested": {"a": None}}
    )
    assert compare(run(make_results()), run(b, "b")).settings == {"settings.temperature": (0.2, 0.6)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "repo"}, "of different kinds, 'problems' and 'repo'"),
        (
            {"problem_set": SetInfo("humaneval", "0", 8, 8, False)},
            "of different problem sets, 'single-line' and",
        ),
        (
            {"problem_set": SetInfo("single-line", "0", 8, 8, False)},
            "differ though both are called 'single-line'",
        ),
        ({"samples": []}, "have no problem in common"),
    ],
)
def test_like_is_compared_with_like(change: dict[str, object], message: str) -> None:
    b = dataclasses.replace(make_results(), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        compare(run(make_results()), run(b, "b"))


def bits(nats: list[float], size: int = 10) -> Results:
    samples = [
        Sample(f"f{i}", category="go" if i else "c", extra={"nats": x, "bytes": size * (i + 1)})
        for i, x in enumerate(nats)
    ]
    scores = {f"bits_per_byte {n}": Interval(1.0, None, None, 1) for n in ("all", "c", "go")}
    return Results(
        "bpb", {}, {}, {}, {}, "", 0.0, SetInfo("files", "0", 3, 3, False), None, scores, {}, samples
    )


def test_bits_per_byte_are_compared_by_bytes_and_language() -> None:
    found = compare(run(bits([7.0, 14.0, 30.0])), run(bits([7.0, 14.0, 24.0]), "b"))
    rows = {d.name: d for d in found.differences}
    assert rows["bits_per_byte all"].a == pytest.approx(51 / math.log(2) / 60)
    assert rows["bits_per_byte all"].difference.value == pytest.approx(-6 / math.log(2) / 60)
    assert rows["bits_per_byte go"].difference.value == pytest.approx(-6 / math.log(2) / 50)
    assert (rows["bits_per_byte c"].difference.value, rows["bits_per_byte c"].difference.low) == (0.0, None)
    with pytest.raises(ValueError, match="f0 has another length in b.json"):
        compare(run(bits([1.0])), run(bits([1.0], size=11), "b"))


def test_runs_are_named_by_what_tells_them_apart() -> None:
    box, other = make_results(), make_results(name="1B")
    assert [r.label for r in labelled([run(box), run(other, "b")])] == ["box", "1B"]
    assert [r.label for r in labelled([run(box), run(box, "b")])] == ["a", "b"]
    assert [r.label for r in labelled([run(box), run(box)])] == ["1: a", "2: a"]


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_compare_arguments(parser)
    return parser.parse_args(words)


def test_the_command_reads_files_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_results().write(tmp_path / "one" / "result.json")
    all_right(make_results()).write(tmp_path / "two.json")
    make_results(problems=6).write(tmp_path / "three.json")
    page = tmp_path / "c.html"
    names = [str(tmp_path / "one"), str(tmp_path / "two.json"), str(tmp_path / "three.json")]
    assert run_compare(parse(*names, "--html", str(page))) == 0
    out, err = capsys.readouterr()
    assert "two compared with one, on 8 problems" in out and "three compared with one, on 6 problems" in out
    assert "2 problems of" in err and "PARTIAL: 6 of 8" in err
    assert page.exists()
    assert run_compare(parse(*names, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert [c["problems"] for c in told["comparisons"]] == [8, 6]
    assert told["comparisons"][0]["differences"][0]["higher"] == 5
    assert told["comparisons"][1]["only_a"] == ["SingleLineInfilling/t/3/L6", "SingleLineInfilling/t/3/L7"]


def test_the_page_holds_what_changed_and_no_text_breaks_out() -> None:
    a = dataclasses.replace(make_results(), model={"name": HOSTILE})
    b = all_right(make_results(name="other"))
    [x, y] = labelled([run(a), run(b, "b")])
    text = compare_html([compare(x, y)])
    page = Page(text)
    assert page.open == [] and page.scripts == []
    assert "only other is right: 5" in page.text
    assert not re.search(r"https?://|url\(", text)


def test_the_table_prints_any_label() -> None:
    file = io.StringIO()
    [x, y] = labelled([run(make_results(name="[red]")), run(make_results(name="b"), "b")])
    print_comparison(compare(x, y), file)
    assert "[red]" in file.getvalue()
    json.dumps(to_json([compare(x, y)]), allow_nan=False)
