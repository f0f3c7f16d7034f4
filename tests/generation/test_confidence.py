"""How sure the model is of an answer, and what is held back because of it; brackets of suggestions."""

import dataclasses

import numpy as np
import pytest
from tiny import ScriptedEngine, random_model

from codegen2.api import HOLE, Model
from codegen2.generation.confidence import Confidence
from codegen2.generation.params import SamplingParams
from codegen2.generation.request import Request
from codegen2.generation.sampling import log_norm, log_softmax
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()
SURE = Confidence(bias=2.0, slope=1.5)
PREFIX, SUFFIX = "def f(value):\n    ", "\n    return total\n"


def judged(suggest_above: float = 0.0, confidence: Confidence | None = SURE) -> Model:
    model = random_model("native")
    return Model(model.engine, TOK, "judged", confidence=confidence, suggest_above=suggest_above)


def scripted(text: str, suggest_above: float = 0.0) -> Model:
    script = TOK.encode(text, allow_control=True)
    return Model(ScriptedEngine(script), TOK, confidence=SURE, suggest_above=suggest_above)


def test_log_norm_is_what_log_softmax_subtracts():
    logits = np.random.default_rng(0).normal(0, 8, 51200).astype(np.float32)
    np.testing.assert_allclose(logits - log_norm(logits), log_softmax(logits), atol=2e-5)


def test_confidence_is_the_curve_over_the_sum_of_log_probabilities():
    """Of the answer's own tokens, the ending one included; the hole begins at a line, so that nothing is healed."""
    choice = judged().infill("x = 1\n", "\ny = 2\n", max_new_tokens=5, top_logprobs=1).choices[0]
    nats = -sum(t.logprob for t in choice.logprobs)
    assert choice.confidence == pytest.approx(SURE.probability(nats), rel=1e-4)


def test_a_healed_word_counts_once_and_only_by_how_it_goes_on():
    """That the word before the cursor is there is known: it may be as unlikely as it likes."""
    model = judged()
    plain, healed = (
        model.infill("zqxj", ")", max_new_tokens=1, anchor=a).choices[0] for a in ("line", "cursor")
    )
    assert SURE.probability(30.0) < min(plain.confidence, healed.confidence)


def test_a_model_that_says_nothing_of_it():
    model = judged(confidence=None)
    assert model.infill("a", "b", max_new_tokens=2).choices[0].confidence is None
    with pytest.raises(ValueError, match=r"suggest_above: this model's config\.json has no confidence"):
        model.infill("a", "b", suggest_above=0.3)
    assert model.infill("a", "b", suggest_above=0.0, max_new_tokens=2).choices[0].cuts is not None


@pytest.mark.parametrize(
    "said",
    [{"bias": 1.0}, {"bias": 1, "slope": 0}, {"bias": float("nan"), "slope": 1}, [1, 2],
     {"bias": 0, "slope": 1, "x": 1}, {"bias": "a", "slope": 1}],
)  # fmt: skip
def test_damaged_configs_are_refused(said):
    with pytest.raises(ValueError, match=r"config\.json: confidence must .*correct it"):
        Confidence.of_config({"confidence": said})


@pytest.mark.parametrize("above", [-0.1, 1.5, float("nan"), "x"])
def test_thresholds_are_probabilities(above):
    with pytest.raises(ValueError, match="suggest_above must be"):
        SamplingParams(suggest_above=above)
    with pytest.raises(ValueError, match="suggest_above must be"):
        judged(above)


def test_plain_continuation_and_raw_answers_are_not_judged():
    model = judged()
    assert model.complete("a", max_new_tokens=1, suggest_above=0.9).choices[0].confidence is None
    raw = Request("a", "b", raw=True, params=SamplingParams(max_new_tokens=2, suggest_above=0.9))
    assert model.answer([raw])[0].choices[0].confidence is None


def test_held_back_says_so_and_costs_less():
    model = judged()
    whole = model.infill(PREFIX, SUFFIX, max_new_tokens=12).choices[0]
    sure = whole.confidence
    assert whole.text and sure < 0.5
    held = model.infill(PREFIX, SUFFIX, max_new_tokens=12, suggest_above=0.9)
    choice = held.choices[0]
    assert choice.text == "" and choice.raw and choice.finish_reason == "stop"
    assert choice.cuts[-1].reason.startswith("held back: 0.") and choice.cuts[-1].reason.endswith(
        " below 0.9"
    )
    assert held.completion_tokens < 12
    just = model.infill(PREFIX, SUFFIX, max_new_tokens=12, suggest_above=sure).choices[0]
    assert just == whole  # as sure as asked for


def test_ending_early_changes_no_verdict():
    """What is shown at a threshold is what has that confidence when nothing is held back."""
    model = judged()
    prompts = [f"x = {i}\ny = {i + 1}\n" for i in range(12)]
    sure = [model.infill(p, "\n", max_new_tokens=6).choices[0] for p in prompts]
    middle = sorted(c.confidence for c in sure)[6]
    for prompt, all_of_it in zip(prompts, sure, strict=True):
        shown = model.infill(prompt, "\n", max_new_tokens=6, suggest_above=middle).choices[0]
        assert shown.text == (all_of_it.text if all_of_it.confidence >= middle else "")


def test_only_suggestions_have_the_models_threshold():
    model = judged(suggest_above=0.999)
    request = Request(PREFIX, SUFFIX, params=SamplingParams(max_new_tokens=6))
    (shown,), (held,) = (
        model.answer([r])[0].choices for r in (request, dataclasses.replace(request, suggest=True))
    )
    assert shown.text and not held.text
    every = dataclasses.replace(
        request, suggest=True, params=SamplingParams(max_new_tokens=6, suggest_above=0)
    )
    assert model.answer([every])[0].choices[0].text


@pytest.mark.parametrize("above", [0.0, 0.999])
def test_streamed_as_in_one_piece(above):
    model = judged()
    options = {"max_new_tokens": 40, "suggest_above": above}
    text = "".join(c.text for c in model.stream_infill(PREFIX, SUFFIX, **options))
    assert text == model.infill(PREFIX, SUFFIX, **options).text


def test_each_of_several_holes_is_judged():
    done = judged().infill_spans(["a = ", HOLE, "\nb = ", HOLE, "\n"], max_new_tokens=4, suggest_above=0.999)
    assert [c.text for c in done.choices] == ["", ""]
    assert all(c.cuts[-1].reason.startswith("held back") for c in done.choices)


@pytest.mark.parametrize(
    ("written", "prefix", "suffix", "shown"),
    [
        ("a, b))<eom>", "f(", ")\n", "a, b"),  # a closing bracket too many
        ("g(a<eom>", "f(", ")\n", ""),  # one too few
        ("'a<eom>", "x = ", "\n", ""),  # a quote without its partner
        ("g(a<eom>", "f(", "\n", "g(a"),  # the text was not whole before
        ("it's<eom>", '"""Say ', '"""\n', "it's"),  # prose
        ("[1]\ny = (\n<eom>", "x = ", "\n\nz = 1\n", "[1]"),  # up to the last whole line
    ],
)
def test_a_suggestion_keeps_brackets_and_quotes_in_pairs(written, prefix, suffix, shown):
    model = scripted(written)
    request = Request(prefix, suffix, trim_overlap=False, suggest=True, heal=False, anchor="cursor")
    choice = model.answer([request])[0].choices[0]
    assert choice.text == shown
    assert any(c.reason == "brackets" for c in choice.cuts) == (choice.text != written.removesuffix("<eom>"))
