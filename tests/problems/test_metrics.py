"""Matches against a slow twin, intervals against their definitions and against coverage."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen2.problems.statistics import (
    Interval,
    bootstrap,
    edit_similarity,
    exact_match,
    levenshtein,
    median,
    paired_difference,
    wilson,
)


def slow_levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


@given(st.text("ab\n \U0001f600", max_size=90), st.text("ab\n \U0001f600", max_size=90))
def test_levenshtein_equals_its_slow_twin(a: str, b: str) -> None:
    assert levenshtein(a, b) == slow_levenshtein(a, b)


def test_levenshtein_of_long_texts_equals_its_slow_twin() -> None:
    rng = random.Random(3)
    a = "".join(rng.choice("xyz") for _ in range(700))
    b = "".join(c for c in a if rng.random() > 0.1) + "tail"
    assert levenshtein(a, b) == slow_levenshtein(a, b) > 50


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
def test_similarity_is_one_exactly_where_texts_match(a: str, b: str) -> None:
    assert (edit_similarity(a, b) == 1.0) == exact_match(a, b)
    assert 0.0 <= edit_similarity(a, b) == edit_similarity(b, a) <= 1.0


def test_indentation_counts_and_white_space_at_the_end_does_not() -> None:
    assert exact_match("  x\n", "  x") and not exact_match("x", "  x")
    assert edit_similarity("x", "  x\n") == pytest.approx(1 / 3)
    assert edit_similarity("", "abc") == 0.0


def test_metrics_import_without_numpy_and_need_no_other_library() -> None:
    code = (
        "import sys; import codegen2.problems.statistics as m; assert 'numpy' not in sys.modules;"
        " print(m.edit_similarity('ab', 'abc'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(2 / 3)


# ---- intervals


def test_bootstrap_is_the_percentile_interval_of_resampled_means() -> None:
    rng = random.Random(1)
    values = [rng.random() for _ in range(60)]
    drawn = np.random.default_rng(9)
    means = [np.mean(drawn.choice(values, 60)) for _ in range(4000)]
    found = bootstrap(values)
    assert found.value == pytest.approx(sum(values) / 60)
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.01)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.01)
    assert found.n == 60


def test_bootstrap_gives_the_same_every_time_and_in_pieces_of_any_size() -> None:
    values = [float(i % 7 == 0) for i in range(700)]  # 10,000 x 700 indices come in many pieces
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)
    assert bootstrap([0.0, 1.0, 1.0, 1.0]) == Interval(0.75, 0.25, 1.0, 4)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.RandomState(11)
    hits = 0
    for _ in range(150):
        found = bootstrap((rng.rand(50) < 0.3).astype(float).tolist())
        hits += found.low <= 0.3 <= found.high  # type: ignore[operator]
    assert 133 <= hits <= 149


def test_groups_are_drawn_whole() -> None:
    """Copies of a value add nothing: the interval stays that of the groups, and would shrink without them."""
    rng = random.Random(2)
    each = [float(rng.random() < 0.4) for _ in range(40)]
    copied, groups = [v for v in each for _ in range(9)], [i for i in range(40) for _ in range(9)]
    whole, alone, wrong = bootstrap(copied, groups), bootstrap(each), bootstrap(copied)
    assert (whole.value, whole.low, whole.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert whole.n == 360
    assert wrong.high - wrong.low < 0.5 * (whole.high - whole.low)  # type: ignore[operator]


def test_weights_make_a_ratio_of_sums() -> None:
    found = bootstrap([10.0, 90.0, 30.0], weights=[10.0, 30.0, 60.0])
    assert found.value == pytest.approx(1.3)
    assert found.low is not None and found.high is not None
    assert 0.5 <= found.low < 1.3 < found.high <= 3.0


def test_degenerate_cases() -> None:
    assert bootstrap([0.25]) == Interval(0.25, None, None, 1)  # one problem says nothing of its spread
    assert bootstrap([0.5, 0.5, 0.5], [1, 1, 1]) == Interval(0.5, None, None, 3)  # nor does one group
    assert bootstrap([0.5] * 5) == Interval(0.5, 0.5, 0.5, 5)
    none = bootstrap([0.0] * 164, share=True)  # 0 of 164 does not mean 0 for certain
    assert (none.low, none.high) == wilson(0, 164)
    assert none.high == pytest.approx(0.0229, abs=1e-4)
    assert bootstrap([0.0] * 4) == Interval(0.0, 0.0, 0.0, 4)  # not a share: no such rule
    one = bootstrap([1.0], share=True)
    assert (one.low, one.high) == wilson(1, 1)


@pytest.mark.parametrize(
    ("values", "groups", "weights", "message"),
    [
        ([], None, None, "at least one value"),
        ([1.0, float("nan")], None, None, "finite"),
        ([1.0, 2.0], [1], None, "equally many; there are 2 values"),
        ([1.0, 2.0], None, [1.0], "equally many"),
        ([1.0, 2.0], None, [1.0, 0.0], "weights positive"),
    ],
)
def test_bad_values_are_refused(values: list[float], groups: object, weights: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(values, groups, weights=weights)  # type: ignore[arg-type]


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    rng = random.Random(5)
    hard = [rng.random() for _ in range(100)]
    better = [min(1.0, h + 0.02) for h in hard]
    found = paired_difference(hard, better)
    assert found.value == pytest.approx(0.02, abs=0.002)
    assert found.low is not None and found.low > 0.01
    a, b = bootstrap(hard), bootstrap(better)
    assert a.high > b.low  # type: ignore[operator]
    assert paired_difference(better, hard).value == -found.value
    with pytest.raises(ValueError, match="there are 1 and 2 values"):
        paired_difference([1.0], [1.0, 2.0])


def test_median_and_its_interval() -> None:
    assert median([3.0, 1.0]) == Interval(2.0, None, None, 2)
    rng = np.random.RandomState(4)
    hits = 0
    for _ in range(300):
        found = median(rng.lognormal(0, 1, 51).tolist())
        hits += found.low <= 1.0 <= found.high  # type: ignore[operator]
    assert 278 <= hits <= 300
    with pytest.raises(ValueError, match="at least one value"):
        median([])
