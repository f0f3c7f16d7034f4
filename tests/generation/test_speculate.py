"""Guessing from the text at hand: what is guessed, when it is worth it, and that it changes no answer."""

import itertools

import numpy as np
import pytest
from tiny import ScriptedEngine, random_model

from codegen2.api import HOLE, Model
from codegen2.config import EOT
from codegen2.generation.generate import Row, run
from codegen2.generation.sampling import SamplingParams
from codegen2.generation.speculate import Lookup, Pace, Purse
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()
REPEATING = "def f(a, b):\n    return a + b\n\n\n" * 4


def test_the_longest_and_latest_match_is_followed():
    lookup = Lookup([1, 2, 3, 9, 2, 3, 8, 2, 3])
    assert lookup.guess(2) == ([8, 2], 2)
    for token in (9, 2, 3):
        lookup.add(token)
    assert lookup.guess(1) == ([8], 5)  # 2 3 9 2 3 stood before: longer than the latest 2 3
    assert Lookup([1, 2, 3]).guess(4) == ([], 0)
    assert Lookup([]).guess(4) == ([], 0)


def test_control_tokens_are_not_guessed():
    assert Lookup([1, 2, 3, EOT, 4, 1, 2]).guess(4) == ([3], 2)
    assert Lookup([1, 2, EOT, 4, 1, 2]).guess(4) == ([], 2)


def test_the_pace_follows_success_and_cost():
    rich = Purse()
    rich.note(tokens=100, passes=50.0)
    pace = Pace()
    assert pace.most(0, rich) == 0
    for _ in range(200):
        pace.note_guess(6, 3, 3)
        pace.note_guess(2, 0, 3)
    assert pace.most(6, rich) >= 4
    assert pace.most(2, rich) == 0  # switched off where it does not pay
    for rows, cost in ((1, 1.0), (2, 2.0), (4, 4.0), (7, 7.0)):
        for _ in range(40):
            pace.note_cost(rows, cost)
    assert pace.most(6, rich) == 0  # every row costs a pass: never worth it
    cheap = Pace()
    for rows in range(1, 8):
        cheap.note_cost(rows, 1.0)
    for _ in range(30):
        cheap.note_guess(6, 6, 6)
    assert cheap.most(6, rich) == 6


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.9, "seed": 3}, {"temperature": 1.0, "seed": 1, "top_p": 0.5}]
)
def test_answers_do_not_change(options):
    model = random_model("native")
    model.engine.pace = Eager()
    for prompt in (REPEATING, "x = [1, 2, 3, 1, 2, 3, 1, 2", "a"):
        slow = model.complete(prompt, max_new_tokens=40, speculate=False, top_logprobs=2, **options)
        fast = model.complete(prompt, max_new_tokens=40, top_logprobs=2, **options)
        assert fast.choices == slow.choices
        middle = model.infill(prompt, REPEATING, max_new_tokens=30, **options).raw
        assert middle == model.infill(prompt, REPEATING, max_new_tokens=30, speculate=False, **options).raw
    pieces = [REPEATING, HOLE, REPEATING, HOLE, "\n"]
    several = [model.infill_spans(pieces, max_new_tokens=9, speculate=s, **options) for s in (True, False)]
    assert [c.raw for c in several[0].choices] == [c.raw for c in several[1].choices]


def test_an_answer_never_loses_more_than_a_few_hundredths():
    """Every guess is wrong, however sure the match: what is paid for them stays under 2.5 % of the passes."""
    pace = Pace()
    for rows, cost in ((1, 1.0), (2, 1.03), (3, 1.2), (7, 1.9)):
        pace.note_cost(rows, cost)
    purse = Purse()
    checks = 0
    assert pace.most(6, purse) == 0  # nothing is written yet
    for _ in range(400):
        k = pace.most(6, purse)
        checks += k > 0
        purse.note(tokens=1, passes=pace.cost(1 + k))
    assert checks > 50
    assert 0 <= purse.spare < 0.2


class Eager(Pace):
    """Always check as many guesses as there are."""

    def most(self, match, purse):
        return 6 if match else 0


class Echo(ScriptedEngine):
    """Says a list of tokens, and counts how often it is asked."""

    exact_rows = True

    def __init__(self, script):
        super().__init__(script)
        self.pace = Eager()
        self.passes = 0

    def new_cache(self, batch_size, capacity):
        self.cache = super().new_cache(batch_size, capacity)
        return self.cache

    def extend(self, ids, cache):
        self.passes += 1
        at = cache.length - self.prompt_length  # what stands in the cache decides, as in a real engine
        cache.length += ids.shape[1]
        logits = np.zeros((1, ids.shape[1], self.config.vocab_size), np.float32)
        for t in range(ids.shape[1]):
            logits[0, t, self.script[min(at + t + 1, len(self.script) - 1)]] = 50.0
        return logits


@pytest.mark.parametrize("wrong", range(1, 9))
def test_right_guesses_save_passes_and_wrong_ones_leave_no_trace(wrong):
    prompt = list(range(100, 120))
    script = [*range(102, 110), *range(200, 205), *range(102, 102 + wrong), 7, 8, EOT]
    engine = Echo(script)
    rows = [Row([*prompt, 100, 101], SamplingParams(max_new_tokens=60), TOK)]
    for _ in run(engine, rows):
        pass
    done = rows[0].result()
    assert done.tokens == script[:-1]
    assert done.finish_reason == "stop"
    assert engine.passes < len(script) - 5
    assert engine.cache.length == len(prompt) + 2 + len(script) - 1
    assert rows[0].fed == script[:-1]


def test_the_budget_and_the_context_end_it_just_as_well():
    for budget in range(1, 12):
        engine = Echo([*range(102, 120), EOT])
        done = Model(engine, TOK).generate([*range(100, 120), 100, 101], max_new_tokens=budget)
        assert done.tokens == list(range(102, 102 + budget))
        assert done.finish_reason == "length"
    nearly = list(itertools.islice(itertools.cycle(range(40)), 250))
    script = [(nearly[-1] + 1 + i) % 40 for i in range(40)]
    done = Model(Echo(script), TOK).generate(nearly, max_new_tokens=100)
    assert done.tokens == script[:7]  # six more fit the context of 256; the seventh is chosen and never fed
