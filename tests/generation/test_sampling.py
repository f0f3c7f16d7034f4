"""Sampling: literal logits first, slow twins next, then counts that agree with the probabilities promised."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from few import few
from hypothesis import given
from hypothesis import strategies as st

from codegen2.generation import sampling
from codegen2.generation.params import SamplingParams
from codegen2.generation.sampling import (
    apply_bias,
    apply_penalties,
    candidates,
    choose,
    log_softmax,
    row_rng,
    top_alternatives,
)
from codegen2.native import choose_instruction_set, instruction_sets

V = 51200


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, dtype=np.float32))


def kept(logits: np.ndarray, **params: float) -> list[int]:
    return np.flatnonzero(candidates(logits, SamplingParams(**{"temperature": 1.0, **params}))).tolist()  # type: ignore[arg-type]


# Parameters


def test_defaults_are_greedy_and_a_stop_string_may_stand_alone() -> None:
    assert SamplingParams().temperature == 0
    assert SamplingParams(stop="\n").stop == ("\n",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(cancel=threading.Event()).cancel is not None
    assert SamplingParams(max_new_tokens=0, seed=-1, n=2, best_of=2, deadline_s=0.5).best_of == 2


def test_the_bias_is_a_copy() -> None:
    bias = {1: 2}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 50
    assert params.logit_bias == {1: 2.0}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_new_tokens", -1, "max_new_tokens must be a whole number of at least 0, got -1"),
        ("max_new_tokens", 1.0, "got 1.0"),
        ("max_new_tokens", True, "got True"),
        ("temperature", -0.1, "temperature must be finite and at least 0, got -0.1; 0 is greedy"),
        ("temperature", math.inf, "temperature must be finite"),
        ("temperature", math.nan, "got nan"),
        ("temperature", "1", "got '1'"),
        ("top_k", -1, "top_k must be a whole number of at least 0, got -1; 0 turns it off"),
        ("top_p", 1.1, "top_p must be from 0 to 1, got 1.1; 1 turns it off"),
        ("min_p", -0.1, "min_p must be from 0 to 1"),
        ("repetition_penalty", 0, "repetition_penalty must be finite and above 0"),
        ("presence_penalty", 2.5, "presence_penalty must be from -2 to 2"),
        ("frequency_penalty", math.nan, "frequency_penalty must be from -2 to 2, got nan"),
        ("logit_bias", {1: 101}, r"logit_bias\[1\] must be from -100 to 100, got 101"),
        ("logit_bias", {1: math.nan}, "got nan"),
        ("logit_bias", {-1: 1}, "logit_bias: a token id must be a whole number of at least 0, got -1"),
        ("logit_bias", {"a": 1}, "logit_bias must map token ids"),
        ("logit_bias", [1], "logit_bias must map token ids"),
        ("seed", 1.5, "seed must be a whole number, got 1.5"),
        ("stop", ("a", ""), "stop has an empty string"),
        ("stop", "", "stop has an empty string"),
        ("stop", (1,), "stop must be a string or a list of strings"),
        ("stop", None, "stop must be a string or a list of strings"),
        ("n", 0, "n must be a whole number from 1 to 10000, got 0"),
        ("n", 10**20, "n must be a whole number from 1 to 10000"),
        ("best_of", 10**20, "best_of must be a whole number from 1 to 10000"),
        ("top_logprobs", -1, "top_logprobs must be"),
        ("deadline_s", 0, "deadline_s must be finite and above 0"),
        ("deadline_s", -1, "deadline_s must be finite and above 0"),
        ("cancel", 1, r"cancel must have is_set\(\)"),
    ],
)
def test_a_wrong_value_is_refused_by_name(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_best_of_counts_at_least_n() -> None:
    with pytest.raises(ValueError, match="best_of must be a whole number from 3 to 10000, got 2"):
        SamplingParams(n=3, best_of=2)


# Penalties and bias


def test_repetition_penalty_counts_a_token_once_wherever_it_stood() -> None:
    logits = np.array([2.0, -2.0, 4.0, 1.0], dtype=np.float32)
    got = apply_penalties(logits, [0, 0], [1, 0, 2], SamplingParams(repetition_penalty=2.0))
    assert got.tolist() == [1.0, -4.0, 2.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 4.0, 1.0]
    assert got.dtype == np.float32


def test_presence_and_frequency_look_at_the_answer_only() -> None:
    params = SamplingParams(presence_penalty=1.0, frequency_penalty=0.5)
    logits = np.zeros(4, dtype=np.float32)
    assert apply_penalties(logits, [3, 3], [1, 2, 2], params).tolist() == [0.0, -1.5, -2.0, 0.0]
    assert not logits.any()


def test_penalties_follow_each_other() -> None:
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=1.0)
    assert apply_penalties(np.array([4.0, 4.0]), [1], [0], params).tolist() == [1.0, 2.0]


def test_without_penalties_nothing_is_copied() -> None:
    logits = np.zeros(3)
    assert apply_penalties(logits, [1], [2], SamplingParams()) is logits
    assert (
        apply_penalties(logits, [], [], SamplingParams(repetition_penalty=2.0, presence_penalty=1.0))
        is logits
    )
    assert apply_bias(logits, SamplingParams()) is logits


def test_a_bias_of_minus_100_bans() -> None:
    logits = np.array([200.0, 1.0, 0.0], dtype=np.float32)
    biased = apply_bias(logits, SamplingParams(logit_bias={0: -100, 2: 3}))
    assert biased.tolist() == [-math.inf, 1.0, 3.0]
    assert logits[0] == 200.0
    assert choose(biased, SamplingParams(), row_rng(0, 0)) == 2
    with pytest.raises(ValueError, match=r"token id 3 is not in the vocabulary \(0..2\)"):
        apply_bias(logits, SamplingParams(logit_bias={3: 1}))


# Candidates


def test_filters_literally() -> None:
    logits = logits_of(0.1, 0.4, 0.2, 0.3)
    assert candidates(logits, SamplingParams(temperature=1.0)).round(4).tolist() == [0.1, 0.4, 0.2, 0.3]
    assert candidates(logits, SamplingParams(temperature=0.5)).round(4).tolist() == [
        0.0333,
        0.5333,
        0.1333,
        0.3,
    ]
    assert candidates(logits, SamplingParams()).tolist() == [0, 1, 0, 0]
    assert kept(logits, top_k=1) == [1]
    assert kept(logits, top_k=3) == [1, 2, 3]
    assert kept(logits, top_k=9) == [0, 1, 2, 3]
    assert kept(logits, top_p=0.39) == [1]
    assert kept(logits, top_p=0.69) == [1, 3]
    assert kept(logits, top_p=0.71) == [1, 2, 3]
    assert kept(logits, top_p=0.0) == [1]  # always at least one
    assert kept(logits, min_p=0.6) == [1, 3]
    assert kept(logits, min_p=1.0) == [1]


def test_the_order_of_filters() -> None:
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert kept(logits, top_k=2, top_p=0.55) == [0]  # of 0.7, top_k's rest: 0.4 / 0.7 = 0.571 is enough
    assert kept(logits, top_p=0.55) == [0, 1]
    assert kept(logits, temperature=0.5, top_p=0.52) == [0]  # 0.16 / 0.30 = 0.533
    assert kept(logits, temperature=0.5, min_p=0.6) == [0]  # 0.09 / 0.16 = 0.5625 after the temperature
    assert kept(logits, top_p=0.9, min_p=0.7) == [0, 1]


def test_of_equals_the_lower_ids_stay() -> None:
    logits = np.array([0.0, 1.0, 1.0, 1.0, -1.0], dtype=np.float32)
    assert kept(logits, top_k=2) == [1, 2]
    assert kept(logits, top_p=0.4) == [1, 2]
    assert kept(np.zeros(V, dtype=np.float32), top_k=3) == [0, 1, 2]
    assert kept(np.zeros(V, dtype=np.float32), top_p=0.5) == list(range(V // 2))
    assert choose(logits, SamplingParams(), row_rng(0, 0)) == 1


def test_what_float32_does_not_hold_draws_no_banned_token() -> None:
    logits = np.array([1.0, 5.0, 2.0], np.float32)
    banned = np.array([False, True, False])
    for temperature in (1e39, 1e300):
        params = SamplingParams(temperature=temperature)
        drawn = {choose(logits, params, row_rng(seed, 0), banned) for seed in range(20)}
        assert drawn == {0, 2}
        assert candidates(np.array([0, -np.inf, 1], np.float32), params).round(3).tolist() == [0.5, 0, 0.5]
    for penalty in (1e-300, 1e300):
        out = apply_penalties(logits, [0, 1], [], SamplingParams(repetition_penalty=penalty))
        assert np.isfinite(out).all() and (out[0] > out[2]) == (penalty < 1)


def test_extreme_logits_and_temperatures() -> None:
    logits = np.array([1e4, 1e4 - 1, -math.inf, -1e4], dtype=np.float32)
    for temperature in (1e-310, 1e-30, 1e-3):
        assert candidates(logits, SamplingParams(temperature=temperature)).tolist() == [1, 0, 0, 0]
    assert candidates(logits, SamplingParams(temperature=1e30)).round(3).tolist() == [
        0.333,
        0.333,
        0.0,
        0.333,
    ]
    assert kept(logits, top_k=3) == [0, 1]  # a banned token is no candidate, even among the k


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_logits_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="logits: the largest is"):
        choose(np.array([0.0, bad]), SamplingParams(temperature=temperature), row_rng(0, 0))
    with pytest.raises(ValueError, match="every token that could come next is banned"):
        choose(np.array([-math.inf]), SamplingParams(temperature=temperature), row_rng(0, 0))


def slow_candidates(logits: np.ndarray, params: SamplingParams) -> dict[int, float]:
    """The twin: plain Python over a sorted list."""
    top = max(float(x) for x in logits)
    rows = [(math.exp((float(x) - top) / params.temperature), -i) for i, x in enumerate(logits)]
    rows = sorted(rows, reverse=True)[: params.top_k or len(rows)]
    if params.top_p < 1:
        whole, mass, nucleus = sum(w for w, _ in rows), 0.0, []
        for weight, i in rows:
            nucleus.append((weight, i))
            mass += weight
            if mass >= params.top_p * whole:
                break
        rows = nucleus
    rows = [(w, i) for w, i in rows if w >= params.min_p]
    whole = sum(w for w, _ in rows)
    return {-i: w / whole for w, i in rows}


SPREADS = ((0.01, 1.0), (3.0, 0.2), (3.0, 1.0))
FILTERS = (
    {}, {"top_k": 40}, {"top_k": 3000}, {"top_p": 0.95}, {"min_p": 0.05},
    {"top_k": 2000, "top_p": 0.7, "min_p": 0.001},
)  # fmt: skip


@pytest.mark.parametrize(
    ("spread", "filters", "temperature"), few(((s, f, t) for f in FILTERS for s, t in SPREADS), 4)
)
def test_candidates_equal_the_slow_twin(spread: float, filters: dict[str, float], temperature: float) -> None:
    """With a spread of 0.01 nearly all of 51,200 tokens are in the nucleus: the path that sorts them all."""
    logits = np.random.default_rng(1).normal(0, spread, V)  # float64, so that both sides round alike
    params = SamplingParams(temperature=temperature, **filters)  # type: ignore[arg-type]
    slow = slow_candidates(logits, params)
    fast = candidates(logits, params)
    assert set(np.flatnonzero(fast)) == set(slow)
    assert max(abs(fast[i] - p) for i, p in slow.items()) < 1e-12
    assert np.abs(candidates(logits.astype(np.float32), params) - fast).max() < 1e-4


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=200),  # small whole numbers: many ties
    st.integers(0, 250),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_small_rows_with_ties_equal_the_slow_twin(
    values: list[int], top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.array(values, dtype=np.float64)
    params = SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    slow, fast = slow_candidates(logits, params), candidates(logits, params)
    assert abs(fast.sum() - 1) < 1e-12
    # A sum that reaches top_p, or a weight that reaches min_p, to the last bit may fall on either side.
    assert abs(len(slow) - np.count_nonzero(fast)) <= 1
    if len(slow) == np.count_nonzero(fast):
        assert np.allclose([fast[i] for i in slow], list(slow.values()), atol=1e-12)


# Drawing


def test_counts_agree_with_candidates() -> None:
    """Chi-square of 500 draws; 5 standard deviations, so a right sampler fails once in a million seeds."""
    logits = np.random.default_rng(2).normal(0, 2, 1000).astype(np.float32)
    for filters in ({}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.02}):
        params = SamplingParams(temperature=0.9, **filters)
        wanted = candidates(logits, params)
        rng, n = row_rng(7, 0), 500
        counts = np.bincount([choose(logits, params, rng) for _ in range(n)], minlength=1000)
        assert counts[wanted == 0].sum() == 0
        common = wanted * n >= 5
        observed = np.append(counts[common], counts[~common].sum())
        expected = np.append(wanted[common], wanted[~common].sum()) * n
        used = expected > 0
        chi2 = float(((observed - expected)[used] ** 2 / expected[used]).sum())
        freedom = int(used.sum()) - 1
        assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom), (filters, chi2, freedom)


class Fixed:
    """Stand in for a generator whose draw is known, and count the draws."""

    def __init__(self, u: float) -> None:
        self.u, self.draws = u, 0

    def random(self) -> float:
        self.draws += 1
        return self.u


@given(st.floats(0, 1, exclude_max=True), st.lists(st.integers(-9, 9), min_size=1, max_size=700))
def test_a_draw_inverts_the_running_sum(u: float, values: list[int]) -> None:
    logits = np.array(values, dtype=np.float64)
    params, rng = SamplingParams(temperature=1.0), Fixed(u)
    token = choose(logits, params, rng)  # type: ignore[arg-type]
    mass = np.append(0.0, candidates(logits, params).cumsum())
    assert mass[token] - 1e-9 <= u <= mass[token + 1] + 1e-9
    assert rng.draws == 1


def test_a_draw_at_either_end_has_a_probability() -> None:
    logits = np.full(1000, -math.inf)
    logits[[300, 700]] = 0.0
    params = SamplingParams(temperature=1.0)
    draws = [choose(logits, params, Fixed(u)) for u in (0.0, 0.4999, 0.5, math.nextafter(1.0, 0.0))]  # type: ignore[arg-type]
    assert draws == [300, 300, 700, 700]


def test_greedy_draws_nothing_and_temperature_0_is_greedy() -> None:
    rng = Fixed(0.99)
    assert choose(np.array([0.0, 2.0, 2.0]), SamplingParams(top_k=3), rng) == 1  # type: ignore[arg-type]
    assert rng.draws == 0


def test_a_row_s_randomness_depends_on_seed_and_row_only() -> None:
    def draws(seed: int | None, row: int) -> list[float]:
        return [float(u) for u in row_rng(seed, row).random(4)]

    assert draws(3, 0) == draws(3, 0)
    rows = [draws(s, r) for s in (0, 1, 2**63, -5) for r in (0, 1, 2)]
    assert len({tuple(r) for r in rows}) == len(rows)
    assert draws(-1, 0) == draws(2**64 - 1, 0)
    assert draws(None, 0) != draws(None, 0)
    # A fixed point: the same seed gives the same text on every machine and version.
    assert row_rng(1234, 5).random(2).round(12).tolist() == [0.576245018972, 0.319771113328]


# Log-probabilities


def test_log_softmax() -> None:
    rows = np.array([[1000.0, 1000.0, -math.inf], [0.0, math.log(3.0), -1e9]], dtype=np.float32)
    assert np.exp(log_softmax(rows)).round(6).tolist() == [[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]
    logits = np.random.default_rng(3).normal(0, 5, V).astype(np.float32)
    assert abs(np.exp(log_softmax(logits)).sum() - 1) < 1e-12
    assert log_softmax(logits).dtype == np.float64


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=400), st.integers(0, 30))
def test_top_alternatives_equal_a_full_sort(values: list[int], k: int) -> None:
    logits = np.array(values, dtype=np.float32)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    got = top_alternatives(logits, k)
    assert [i for i, _ in got] == order
    assert np.allclose([p for _, p in got], log_softmax(logits)[order])


@pytest.mark.parametrize("temperature", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.2}, {"top_k": 7, "top_p": 0.5}]
)
def test_banned_tokens_are_as_if_their_logits_were_nothing(temperature, options):
    params = SamplingParams(temperature=temperature, **options)
    rng = np.random.default_rng(3)
    for turn in range(20):
        logits = rng.normal(0, 3, 300).astype(np.float32)
        logits[7] = 20.0 if turn % 2 else -20.0  # the largest is banned, or none that matters
        banned = rng.random(300) < 0.3
        banned[7] = True
        got = choose(logits, params, np.random.default_rng(turn), banned)
        assert not banned[got]
        assert got == choose(np.where(banned, -np.inf, logits), params, np.random.default_rng(turn))
    with pytest.raises(ValueError, match="every token that could come next is banned"):
        choose(logits, params, rng, np.ones(300, dtype=bool))


@pytest.mark.parametrize("n", [1, 15, 256, 1000, 51_200])
@pytest.mark.parametrize("temperature", [1e-300, 0.2, 1.0, 1e300])
def test_the_compiled_weights_are_numpy_s(n, temperature):
    rng = np.random.default_rng(n)
    logits = np.minimum(rng.normal(0, 4, n), 9).astype(np.float32)
    logits[n // 2] = -np.inf
    banned = rng.random(n) < 0.2
    banned[-1] = False
    logits[-1] = 9.0
    for isa in instruction_sets():
        choose_instruction_set(isa)
        for mask in (None, banned):
            weights, sums = sampling.weigh(logits, 9.0, temperature, mask)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sampling, "_kernel", lambda: None)
                plain, plain_sums = sampling.weigh(logits, 9.0, temperature, mask)
            assert weights.dtype == plain.dtype == np.float32
            np.testing.assert_allclose(weights, plain, rtol=2e-6, atol=1e-37)
            np.testing.assert_allclose(sums, plain_sums, rtol=1e-6, atol=1e-35)
            assert weights[-1] == 1 and not weights[np.isneginf(logits)].any()
            assert mask is None or not weights[mask].any()
    choose_instruction_set(None)
