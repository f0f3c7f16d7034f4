"""Token healing: an answer spells the word before the cursor again, as likely as the model has it."""

import itertools
from collections import Counter

import numpy as np
import pytest
from tiny import random_model

from codegen2.engine.protocol import Piece
from codegen2.generation.params import SamplingParams
from codegen2.generation.request import Request, build_prompt
from codegen2.generation.sampling import log_softmax
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()


@pytest.fixture(scope="module")
def model():
    return random_model("native", spread=0.1)


def ways(model, text):
    """Return log p of each way to spell the last word, by (token that begins with the rest, own tokens before it)."""
    prompt = build_prompt(Request(text, params=SamplingParams(max_new_tokens=4)), TOK, model.scheduler.rules)
    word = prompt.words[0]
    tokens = [*prompt.tokens, *word]
    cache = model.engine.new_cache(1, len(tokens))
    rows = model.engine.forward([Piece(0, 0, tokens, len(word) + 1, len(tokens))], cache)[0]
    texts = {t: TOK.decode_bytes([t]) for t in range(50295) if t != 50256}
    found, left, before = {}, TOK.decode_bytes(word), 0.0
    for at, (row, token) in enumerate(zip(rows, word, strict=False)):
        logp = log_softmax(row)
        for other, raw in texts.items():
            if raw.startswith(left):
                found[other, at] = before + logp[other]
        before += logp[token]
        left = left[len(texts[token]) :]
    return found, TOK.decode_bytes(word)


@pytest.mark.parametrize(
    "text", ["x = retu", "return ", "a.impl", "f(", "def f(x):\n    ", "x = '漢", "if a =", "x.prin"]
)
def test_greedy_takes_the_likeliest_way(model, text):
    found, word = ways(model, text)
    token, at = max(found, key=lambda way: found[way])
    done = model.complete(text, max_new_tokens=3)
    left = word[len(TOK.decode_bytes(TOK.encode(word.decode())[:at])) :]
    new = TOK.decode_bytes([token])[len(left) :].decode("utf-8", errors="replace")
    assert done.text.startswith(new)
    if new:
        assert done.tokens[0] == token


def test_sampling_follows_the_ways_probabilities(model):
    text = "x.prin"
    found, _ = ways(model, text)
    expected: Counter[int] = Counter()
    total = np.logaddexp.reduce(list(found.values()))
    for (token, _), logp in found.items():
        expected[token] += float(np.exp(logp - total))
    n = 400
    done = model.complete(text, max_new_tokens=1, temperature=1.0, seed=1, n=n)
    whole = {
        t for t in expected if len(TOK.decode_bytes([t])) > 4 and TOK.decode_bytes([t]).startswith(b"prin")
    }
    seen = Counter(c.tokens[0] for c in done.choices if c.tokens and c.tokens[0] in whole)
    likely = max(whole, key=lambda t: expected[t])
    share, p = seen[likely] / n, expected[likely]
    assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / n) + 0.01


def test_a_healed_word_is_no_answer_and_costs_no_budget(model):
    for text in ("x.retu", "x = ", "foo.ba"):
        done = model.complete(text, max_new_tokens=2, top_logprobs=1)
        assert len(done.tokens) == done.completion_tokens == len(done.choices[0].logprobs) == 2
        assert done.prompt_tokens == len(TOK.encode(text))
        # The first token may begin with text that stands there already.
        joined = TOK.decode(done.tokens)
        assert joined.endswith(done.text) and text.endswith(joined[: len(joined) - len(done.text)])


def test_cached_fresh_streamed_or_batched_it_is_the_same(model):
    texts = ["x = retu", "return ", "f(", "x = retur", "x = return"]
    alone = []
    for text in texts:
        model.scheduler.slots.forget()
        alone.append(model.complete(text, max_new_tokens=4))
    requests = [Request(t, params=SamplingParams(max_new_tokens=4)) for t in texts]
    for order in itertools.islice(itertools.permutations(range(len(texts))), 0, None, 37):
        together = model.answer([requests[i] for i in order])
        assert [r.choices for r in together] == [alone[i].choices for i in order]
    for text, one in zip(texts, alone, strict=True):
        assert "".join(c.text for c in model.stream_complete(text, max_new_tokens=4)) == one.text


def test_a_bias_against_the_words_own_tokens_is_for_new_text_alone(model):
    done = model.complete("x = foo", max_new_tokens=2, logit_bias=dict.fromkeys(TOK.encode(" foo"), -100.0))
    assert done.finish_reason == "length"
