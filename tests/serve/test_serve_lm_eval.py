"""What lm-evaluation-harness's `local-completions` sends and reads, without the harness.

benchmarks/lm_eval_agreement.py asks with the harness itself and compares with its `hf` model.
"""

import numpy as np
import pytest
from serve_tools import TOK, client
from tiny import random_model

TEXTS = ["def f(x):\n    return x + 1\n", "import os\n", "a = {'b': 1}\n\n\nclass C:\n    pass\n"]


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def http(model):
    with client(model) as found:
        yield found


def post(http, path="/v1/completions", **content):
    reply = http.post(path, json=content)
    assert reply.status_code == 200, reply.text
    return reply.json()


def loglikelihoods(http, pairs):
    """Return (log-likelihood, greedy) of each continuation, as the harness sends and reads them."""
    prompts = [context + continuation for context, continuation in pairs]
    out = post(http, model="x", prompt=prompts, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
    found = []
    for choice, (context, _) in zip(sorted(out["choices"], key=lambda c: c["index"]), pairs, strict=True):
        own = choice["logprobs"]["token_logprobs"][len(context) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        greedy = all(one == max(top.values()) for one, top in zip(own, tops, strict=True))
        found.append((sum(own), greedy))
    return found


def expected(model, context, continuation):
    ids = np.array([context + continuation])
    own = model.engine.token_logprobs(ids)[0][len(context) - 1 :]
    return float(own.astype(np.float64).sum())


def test_loglikelihoods_of_continuations(http, model):
    pairs = []
    for text in TEXTS:
        ids = TOK.encode(text)
        pairs += [
            (ids[:3], ids[3:]),
            ([50256], ids),
        ]  # nothing stands before the second: the document's start
    for (got, _), pair in zip(loglikelihoods(http, pairs), pairs, strict=True):
        assert abs(got - expected(model, *pair)) < 5e-3


def test_greedy_is_what_the_model_would_write(http, model):
    context = TOK.encode(TEXTS[0])
    written = list(model.generate(context, max_new_tokens=6).tokens)
    other = [*written[:5], (written[5] + 1) % 50000]
    assert [greedy for _, greedy in loglikelihoods(http, [(context, written), (context, other)])] == [
        True,
        False,
    ]


def test_a_prompt_as_long_as_the_context_leaves_room_for_one_token(http, model):
    ids = [50256, *TOK.encode("x = 1\n" * 100)][: model.engine.config.n_ctx - 1]
    ((got, _),) = loglikelihoods(http, [(ids[:1], ids[1:])])
    assert abs(got - expected(model, ids[:1], ids[1:])) < 5e-3


def test_generate_until(http, model):
    prompts = [TOK.encode(text) for text in TEXTS]
    out = post(
        http,
        prompt=prompts,
        model="x",
        max_tokens=12,
        temperature=0,
        stop=["\n\n", "<|endoftext|>"],
        seed=1234,
    )
    for choice, ids in zip(out["choices"], prompts, strict=True):
        assert choice["text"] == model.generate(ids, max_new_tokens=12, stop=["\n\n", "<|endoftext|>"]).text


def test_its_remote_tokenizer(http):
    info = http.get("/tokenizer_info").json()
    for name in ("eos_token", "bos_token"):
        assert post(http, "/tokenize", prompt=info[name], add_special_tokens=False)["tokens"][0] == 50256
    tokens = post(http, "/tokenize", prompt=TEXTS[0], add_special_tokens=False)["tokens"]
    assert tokens == TOK.encode(TEXTS[0])
    assert post(http, "/detokenize", tokens=tokens)["prompt"] == TEXTS[0]
