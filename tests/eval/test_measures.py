"""pass@k against exact fractions, and against the chance itself, drawn."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from codegen2.eval.measures import pass_at_k


def exact(n: int, c: int, k: int) -> Fraction:
    return 1 - Fraction(math.comb(n - c, k), math.comb(n, k))


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (1, 0, 1, Fraction(0)), (1, 1, 1, Fraction(1)), (2, 1, 1, Fraction(1, 2)), (2, 1, 2, Fraction(1)),
        (4, 1, 2, Fraction(1, 2)), (5, 2, 3, Fraction(9, 10)), (10, 3, 5, Fraction(11, 12)),
        (10, 1, 10, Fraction(1)), (20, 1, 10, Fraction(1, 2)), (100, 5, 1, Fraction(1, 20)),
        (200, 1, 100, Fraction(1, 2)), (200, 0, 100, Fraction(0)), (200, 101, 100, Fraction(1)),
        (200, 100, 100, 1 - Fraction(1, math.comb(200, 100))), (10_000, 1, 1, Fraction(1, 10_000)),
    ],
)  # fmt: skip
def test_known_cases(n: int, c: int, k: int, expected: Fraction) -> None:
    assert exact(n, c, k) == expected  # the table agrees with the definition
    assert pass_at_k(n, c, k) == pytest.approx(float(expected), rel=1e-12, abs=0)


def test_every_small_case_is_the_definition() -> None:
    for n in range(1, 16):
        for c in range(n + 1):
            for k in range(1, n + 1):
                assert pass_at_k(n, c, k) == pytest.approx(float(exact(n, c, k)), rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("n", "c", "k"),
    [(1_000_000, 1, 1), (50_000, 1, 2), (50_000, 3, 25_000), (40_000, 39_999, 1), (30_000, 15_000, 10)],
)
def test_large_n_keeps_its_digits(n: int, c: int, k: int) -> None:
    """1 - (1 - tiny) in plain floats would lose them, and the binomials do not fit a float."""
    assert pass_at_k(n, c, k) == pytest.approx(float(exact(n, c, k)), rel=1e-11, abs=0)


def test_it_is_the_chance_that_k_drawn_samples_hold_a_right_one() -> None:
    rng = random.Random(7)
    samples = [True] * 3 + [False] * 9
    hits = sum(any(rng.sample(samples, 4)) for _ in range(20_000))
    assert hits / 20_000 == pytest.approx(pass_at_k(12, 3, 4), abs=0.015)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (5, 2, 6, "pass@6 needs at least 6 samples a problem"),
        (5, 2, 0, "pass@0 needs"),
        (5, 6, 1, "c must be from 0 to n = 5 samples, got 6"),
        (5, -1, 1, "c must be from 0"),
    ],
)
def test_impossible_numbers_are_refused(n: int, c: int, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)
