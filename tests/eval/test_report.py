"""The table and the page: what they say, that no sample breaks out, and that the page asks for nothing outside."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from eval_results import HOSTILE, PROBLEMS, make_results, make_samples

from codegen2.eval.measures import pass_curve
from codegen2.eval.report.page import html_report, write_page
from codegen2.eval.report.plots import histogram, interval_mark
from codegen2.eval.report.tables import print_results, table, verdict_kinds
from codegen2.eval.results import Results, Sample, SetInfo
from codegen2.problems.statistics import Interval


class Page(HTMLParser):
    """Read a page as a browser does: its elements, their attributes, and what scripts hold."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if self.open and (tag == self.open[-1]):
            self.open.pop()
        elif not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            raise AssertionError(f"</{tag}> inside {self.open}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.text += data


def hostile(results: Results) -> Results:
    """Put hostile text wherever a run may hold text of others."""
    return dataclasses.replace(
        results,
        model={"name": HOSTILE, HOSTILE: [HOSTILE]},
        settings={HOSTILE: {HOSTILE: HOSTILE}},
        problem_set=dataclasses.replace(results.problem_set, name=HOSTILE),
        scores=results.scores | {HOSTILE: Interval(0.5, 0.4, 0.6, 9)},
        baselines={HOSTILE: results.baselines["empty middle"]},
        samples=[
            dataclasses.replace(s, category=HOSTILE + str(i % 2), result_shown=HOSTILE + str(i % 2))
            for i, s in enumerate(results.samples)
        ],
    )


def test_no_text_breaks_out_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write_page(path, html_report(hostile(make_results(n=3)), PROBLEMS))
    page = Page(path.read_text("utf-8"))
    assert page.open == []
    assert len(page.scripts) == 2  # the data and the browser
    assert "<b>é" not in path.read_text("utf-8")
    data = json.loads(page.scripts[0])
    answers = [row[data["fields"].index("raw")] for row in data["rows"]]
    # json.loads joins the escapes of a pair; a lone half is what it was.
    assert any(HOSTILE in a for a in answers)


def test_the_page_asks_for_nothing_outside() -> None:
    text = html_report(make_results(n=2), PROBLEMS)
    page = Page(text)
    assert not [a for _, attrs in page.elements for a in attrs if a in ("src", "href", "srcset")]
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest", text)
    [policy] = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_the_data_holds_each_program_once_and_its_holes(tmp_path: Path) -> None:
    data = json.loads(Page(html_report(make_results(n=4), PROBLEMS)).scripts[0])
    assert data["several"] is True
    assert len(data["programs"]) == 8 and len(data["rows"]) == 32
    for row, sample in zip(data["rows"], make_samples(4), strict=True):
        problem = next(p for p in PROBLEMS if p.task_id == sample.task_id)
        program, start, end = row[-3:]
        assert data["programs"][program][start:end] == problem.canonical_solution
        assert data["programs"][program][:start] == problem.prompt


def test_places_in_programs_count_as_a_browser_counts() -> None:
    """Beyond the basic plane a character is two units in a script's string."""
    sample = Sample("x", raw="a", prompt="\U0001f600 = ", suffix="!", expected="\U0001f600\U0001f600")
    data = json.loads(Page(html_report(dataclasses.replace(make_results(), samples=[sample]))).scripts[0])
    assert data["rows"][0][-3:] == [0, 5, 9]


def test_the_page_says_what_there_is() -> None:
    text = Page(html_report(make_results(n=3, problems=6), PROBLEMS)).text
    for wanted in (
        "PARTIAL: 6 of 8 problems", "single-line", "box", "pass@1", "exact match", "edit similarity", "empty middle",
        "latency, median", "pass@k, k from 1 to 3", "no network", "temperature", "2026-11-24", "ab" * 32,
        "Verdicts, shown", "timed out",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert "PARTIAL" not in Page(html_report(make_results())).text


def test_drawings_are_told_in_words_and_controls_have_labels() -> None:
    page = Page(html_report(make_results(n=3, problems=6), PROBLEMS))
    drawings = [a for tag, a in page.elements if tag == "svg" and a.get("role") == "img"]
    assert len(drawings) > 5 and all(a["aria-label"] for a in drawings)
    assert [a for a in drawings if str(a["aria-label"]).startswith("raw: 33.3 %, ")]
    assert ("html", {"lang": "en"}) in page.elements
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_a_page_without_samples_or_problems_has_no_script() -> None:
    page = Page(html_report(dataclasses.replace(make_results(), samples=[])))
    assert page.scripts == []


def test_a_large_run_stays_small_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import codegen2.eval.report.samples as module

    monkeypatch.setattr(module, "MOST_SAMPLES", 10)
    results = make_results(n=4)
    long = [dataclasses.replace(s, raw="x" * 50_000) for s in results.samples]
    page = Page(html_report(dataclasses.replace(results, samples=long), PROBLEMS))
    assert "The first 10 samples; 22 more are in the result file" in page.text
    assert len(page.scripts[0]) < 10 * 21_000
    assert "30,000 more characters" in page.scripts[0]


def test_bits_per_byte_have_their_own_plot_and_list() -> None:
    samples = [Sample(f"f{i}.py", category="python", extra={"nats": 10.0 + i, "bytes": 20}) for i in range(3)]
    results = Results(
        "bpb", {"name": "box"}, {}, {}, {}, "now", 1.0, SetInfo("files", "0", 3, 3, False), None,
        {"bits_per_byte all": Interval(0.79, 0.72, 0.87, 3)}, {}, samples,
    )  # fmt: skip
    text = Page(html_report(results)).text
    assert "all 3 files" in text and "0.790" in text and "f2.py" in text
    assert text.index("f2.py") < text.index("f0.py")  # the hardest first


# ---- the terminal


def printed(results: Results) -> str:
    file = io.StringIO()
    print_results(results, file)
    return file.getvalue()


def test_the_table_puts_baselines_beside_the_model() -> None:
    columns, rows = table(make_results())
    assert columns == ["raw", "shown", "empty middle"]
    assert next(iter(rows)) == "pass@1" and set(rows["pass@1"]) == {"raw", "shown", "empty middle"}
    text = printed(make_results(problems=6))
    assert "PARTIAL: 6 of 8 problems" in text
    assert "33.3 %" in text and "sandbox: strong" in text
    odd = {"[red]x[/red]": Interval(0.5, 0.4, 0.6, 9)}
    assert "[red]x[/red]" in printed(dataclasses.replace(make_results(), scores=odd))
    assert "[link" in printed(dataclasses.replace(make_results(), model={"name": "[link=x]y[/link]"}))


def test_pass_curve_is_pass_at_k_for_k_up_to_n() -> None:
    samples = make_samples(4)
    curve = dict(pass_curve(samples, "raw"))
    assert sorted(curve) == [1, 2, 3, 4]
    assert curve[1].value == pytest.approx(sum(bool(s.passed_raw) for s in samples) / len(samples))
    assert curve[1].value < curve[2].value < curve[3].value <= curve[4].value == 1.0
    assert pass_curve([dataclasses.replace(s, passed_raw=None) for s in samples], "raw") == []


def test_verdicts_are_counted_by_kind() -> None:
    counts = verdict_kinds(make_samples(), "raw")
    assert counts == {"failed: NameError": 5, "passed": 3}


# ---- drawings


def test_an_interval_is_drawn_where_it_is() -> None:
    drawn = interval_mark(Interval(0.25, 0.125, 0.5, 4), 0.0, 0.5, "raw", "a < b")
    assert 'x1="25.00%" x2="100.00%"' in drawn and 'cx="50.00%"' in drawn and "a &lt; b" in drawn
    assert "whisker" not in interval_mark(Interval(0.25, None, None, 1), 0, 1, "raw", "")
    assert 'class="zero" x1="50.00%"' in interval_mark(Interval(0.0, -1.0, 1.0, 4), -1, 1, "raw", "")


def test_a_histogram_counts_both_ends() -> None:
    drawn = histogram([("n", "raw", [0.0, 0.5, 1.0, 7.0, -1.0])], [0, 0.5, 1.0], ["0", "1"], "w")
    assert re.findall(r"<title>n: (\d+)</title>", drawn) == ["2", "3"]


def test_unknown_settings_of_any_shape_are_shown() -> None:
    odd: dict[str, Any] = {"a": [], "b": [{"c": [1, [2]]}], "d": True, "e": None, "f": 1.5}
    assert "none" in Page(html_report(dataclasses.replace(make_results(), settings=odd))).text
