"""Span corruption: by hand, undone, at the configured rates."""

import itertools

import numpy as np
import pytest
from documents import read_document
from hypothesis import given
from hypothesis import strategies as st

from codegen2.train.corruption import (
    CorruptionConfig,
    apply_spans,
    choose_line_span,
    choose_spans,
    corrupt,
    corrupt_to_fit,
    draw_lengths,
    place_spans,
)
from codegen2.train.tables import Tables

FIVES = Tables([b"\n" if i % 5 == 4 else b"x" for i in range(500)])  # lines of five tokens

SEEDS = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_worked_example_id_for_id():
    first = apply_spans(range(11, 21), [(2, 4), (7, 8)])
    assert first == [
        11,
        12,
        51199,
        15,
        16,
        17,
        51198,
        19,
        20,
        50256,
        50299,
        51199,
        13,
        14,
        50300,
        51198,
        18,
        50300,
        50256,
    ]
    second = apply_spans(range(31, 37), [(1, 2)])
    assert second == [31, 51199, 33, 34, 35, 36, 50256, 50299, 51199, 32, 50300, 50256]


@given(st.integers(1, 600), SEEDS)
def test_spans_are_apart_inside_and_undone(n, seed):
    config = CorruptionConfig()
    spans = choose_spans(n, config, rng(seed))
    assert all(0 <= a < b <= n for a, b in spans)
    assert all(b < c for (_, b), (c, _) in itertools.pairwise(spans))
    tokens = list(range(1000, 1000 + n))
    document = apply_spans(tokens, spans)
    assert len(document) == n + 3 * len(spans) + 3
    assert read_document(document) == tokens


def test_rates_are_as_configured():
    config = CorruptionConfig()
    ratios, lengths = [], []
    for seed in range(1500):
        spans = choose_spans(2000, config, rng(seed))
        ratios.append(sum(b - a for a, b in spans) / 2000)
        lengths += draw_lengths(10**6 // 500, config, rng([seed, 1]))
    # Uniform on 0.05..0.5: mean 0.275, a tenth below 0.095. Standard error of the mean 0.0034.
    assert abs(np.mean(ratios) - 0.275) < 0.01
    assert abs(np.mean(np.array(ratios) < 0.095) - 0.1) < 0.02
    # Log-uniform on 1..256: half of the spans are shorter than 16.
    assert abs(np.mean(np.array(lengths) < 16) - 0.5) < 0.02
    uniform = draw_lengths(400_000, CorruptionConfig(log_uniform=False, span_length=(1, 999)), rng())
    assert abs(np.mean(uniform) - 500) < 40


def test_every_place_is_equally_likely():
    # 5 tokens, spans of 1 and 2 with a gap: starts (0,2) (0,3) (1,3).
    seen = [tuple(a for a, _ in place_spans(5, [1, 2], rng(s))) for s in range(6000)]
    assert set(seen) == {(0, 2), (0, 3), (1, 3)}
    assert all(abs(seen.count(x) / 6000 - 1 / 3) < 0.03 for x in set(seen))


def test_what_does_not_fit_is_refused():
    assert place_spans(4, [2, 1], rng()) == [(0, 2), (3, 4)]
    with pytest.raises(ValueError, match="2 spans of 3 tokens"):
        place_spans(3, [2, 1], rng())
    with pytest.raises(ValueError, match="no tokens"):
        choose_spans(0, CorruptionConfig(), rng())


@given(st.integers(1, 400), st.integers(0, 300), SEEDS)
def test_fitting_shortens_the_piece_not_a_span(n, room, seed):
    tokens = np.arange(1000, 1000 + n)
    document, used = corrupt_to_fit(tokens, room, CorruptionConfig(), [seed], FIVES)
    assert len(document) <= room
    if used:
        assert read_document(document) == tokens[:used].tolist()
        assert room - len(document) <= 3 * 899
    else:
        assert document == []
    assert used or room < 7 + 3 * n


@given(st.lists(st.booleans(), min_size=1, max_size=60), SEEDS)
def test_line_spans_stay_inside(flags, seed):
    spans = choose_line_span(np.array(flags), rng(seed))
    assert all(0 <= a < b <= len(flags) for a, b in spans)


def test_line_spans_are_lines():
    # Lines of 5, 1 and 6 tokens; the second is too short to be asked for.
    ends = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1], dtype=bool)
    spans = [choose_line_span(ends, rng(seed))[0] for seed in range(2000)]
    starts, stops = [a for a, _ in spans], {b for _, b in spans}
    assert 5 not in starts
    assert abs(np.mean(np.isin(starts, [0, 6])) - 0.55) < 0.05  # at the start, some by chance
    assert abs(np.mean(np.isin(starts, [1, 7])) - 0.30) < 0.05  # behind the first token
    assert {5, 12} <= stops  # with the newline
    assert {4, 11} <= stops  # without
    assert choose_line_span(ends[:5], rng()) == []  # one line
    assert choose_line_span(np.array([0, 1, 0, 1], dtype=bool), rng()) == []  # short ones


def test_line_spans_are_mixed_in():
    config = CorruptionConfig(line_span_probability=1.0)
    document = corrupt(list(range(40)), config, rng(3), FIVES)
    assert document.count(50300) == 1


def test_line_spans_come_in_short_pieces():
    config = CorruptionConfig(line_span_probability=1.0, line_span_piece=(20, 60))
    used = [corrupt_to_fit(np.arange(500), 512, config, [seed], FIVES)[1] for seed in range(200)]
    assert min(used) >= 20
    assert max(used) <= 60
    assert len(set(used)) > 20
    mixed = CorruptionConfig(line_span_probability=0.5, line_span_piece=(20, 60))
    pieces = [corrupt_to_fit(np.arange(500), 4000, mixed, [seed], FIVES) for seed in range(200)]
    # A piece is short exactly where it hides lines; the others hide tokens of the whole file.
    assert all((used <= 60) == (document.count(50300) == 1) for document, used in pieces if used <= 60)
    assert 60 < sum(used <= 60 for _, used in pieces) < 140


@pytest.mark.parametrize(
    "bad",
    [
        {"mask_ratio": (0, 0.5)},
        {"mask_ratio": (0.5, 0.2)},
        {"span_length": (0, 3)},
        {"causal_probability": 1.5},
        {"line_span_piece": (9, 8)},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        CorruptionConfig(**bad)
