"""Drafts from the text at hand: what is drafted, when it is worth it, and that it changes no answer."""

import itertools

import pytest
from tiny import ScriptedEngine, random_model

from codegen2.api import HOLE, Model
from codegen2.config import EOT
from codegen2.generation.speculate import DraftPolicy, PromptLookup, saved
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()
REPEATING = "def f(a, b):\n    return a + b\n\n\n" * 4


def test_the_longest_and_latest_match_is_followed():
    tokens = [1, 2, 3, 9, 2, 3, 8, 2, 3]
    lookup = PromptLookup(tokens)
    assert lookup.draft(2) == ([8, 2], 2)
    lookup.extend([*tokens, 9, 2, 3])
    assert lookup.draft(1) == ([8], 5)  # 2 3 9 2 3 stood before: longer than the latest 2 3
    assert PromptLookup([1, 2, 3]).draft(4) == ([], 0)
    assert PromptLookup([]).draft(4) == ([], 0)


def test_control_tokens_are_not_drafted():
    assert PromptLookup([1, 2, 3, EOT, 4, 1, 2]).draft(4) == ([3], 2)
    assert PromptLookup([1, 2, EOT, 4, 1, 2]).draft(4) == ([], 2)


def test_the_policy_follows_success_and_cost():
    rich = 50.0
    policy = DraftPolicy()
    assert policy.most(0, rich) == 0
    for _ in range(200):
        policy.note_draft(6, 3, 3)
        policy.note_draft(2, 0, 3)
    assert policy.most(6, rich) >= 4
    assert policy.most(2, rich) == 0  # switched off where it does not pay
    for rows, cost in ((1, 1.0), (2, 2.0), (4, 4.0), (7, 7.0)):
        for _ in range(40):
            policy.note_cost(rows, cost)
    assert policy.most(6, rich) == 0  # every row costs a pass: never worth it
    cheap = DraftPolicy()
    for rows in range(1, 8):
        cheap.note_cost(rows, 1.0)
    for _ in range(30):
        cheap.note_draft(6, 6, 6)
    assert cheap.most(6, rich) == 6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.9, "seed": 3},
        pytest.param({"temperature": 1.0, "seed": 1, "top_p": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_answers_do_not_change(options):
    model = random_model("native")
    model.scheduler.drafter.policy = Eager()
    for prompt in (REPEATING, "x = [1, 2, 3, 1, 2, 3, 1, 2", "a"):
        slow = model.complete(prompt, max_new_tokens=16, speculate=False, top_logprobs=2, **options)
        fast = model.complete(prompt, max_new_tokens=16, top_logprobs=2, **options)
        assert fast.choices == slow.choices
        middle = model.infill(prompt, REPEATING, max_new_tokens=8, **options).raw
        assert middle == model.infill(prompt, REPEATING, max_new_tokens=8, speculate=False, **options).raw
    pieces = [REPEATING, HOLE, REPEATING, HOLE, "\n"]
    several = [model.infill_spans(pieces, max_new_tokens=9, speculate=s, **options) for s in (True, False)]
    assert [c.raw for c in several[0].choices] == [c.raw for c in several[1].choices]


def test_an_answer_never_loses_more_than_a_few_hundredths():
    """Every guess is wrong, however sure the match: what is paid for them stays under 2.5 % of the passes."""
    policy = DraftPolicy()
    for rows, cost in ((1, 1.0), (2, 1.03), (3, 1.2), (7, 1.9)):
        policy.note_cost(rows, cost)
    spare, checks = 0.0, 0
    assert policy.most(6, spare) == 0  # nothing is written yet
    for _ in range(400):
        k = policy.most(6, spare)
        checks += k > 0
        spare += saved(1, policy.cost(1 + k))
    assert checks > 50
    assert -1e-9 <= spare < 0.2


class Eager(DraftPolicy):
    """Always check as many guesses as there are."""

    def most(self, match, spare):
        return 6 if match else 0


def scripted(script):
    model = Model(ScriptedEngine(script), TOK)
    model.scheduler.drafter.policy = Eager()
    return model


@pytest.mark.parametrize("wrong", range(1, 9))
def test_right_drafts_save_passes_and_wrong_ones_leave_no_trace(wrong):
    prompt = list(range(100, 120))
    script = [*range(102, 110), *range(200, 205), *range(102, 102 + wrong), 7, 8, EOT]
    model = scripted(script)
    done = model.generate([*prompt, 100, 101], max_new_tokens=60)
    assert [*done.tokens] == script[:-1]
    assert done.finish_reason == "stop"
    assert model.engine.passes < len(script) - 5
    assert model.scheduler.slots.slots[0].tokens == [*prompt, 100, 101, *script[:-1]]


def test_an_answer_saves_up_for_drafts_and_repeated_text_is_drafted():
    # By the policy as it is: all others here draft always.
    script = [*range(100, 120)] * 4
    model = Model(ScriptedEngine([*script, EOT]), TOK)
    for rows in range(1, 8):
        model.scheduler.drafter.policy.note_cost(rows, 1 + 0.04 * (rows - 1))
    model.scheduler.drafter.policy.note_cost = lambda rows, seconds: None
    done = model.generate([1, 2, *range(100, 120)], max_new_tokens=90)
    assert [*done.tokens] == script
    assert model.engine.passes < 30
    before = model.engine.passes
    model.generate([3, 4, *range(100, 120)], max_new_tokens=90, speculate=False)
    assert model.engine.passes - before > 80


def test_the_budget_and_the_context_end_it_just_as_well():
    for budget in range(1, 12):
        done = scripted([*range(102, 120), EOT]).generate([*range(100, 120), 100, 101], max_new_tokens=budget)
        assert [*done.tokens] == list(range(102, 102 + budget))
        assert done.finish_reason == "length"
    nearly = list(itertools.islice(itertools.cycle(range(40)), 216))
    script = [(nearly[-1] + 1 + i) % 40 for i in range(80)]
    done = scripted(script).generate(nearly, max_new_tokens=40)
    assert [*done.tokens] == script[:40]
