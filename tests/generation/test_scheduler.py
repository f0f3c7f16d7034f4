"""The one token loop: stopping, budgets, batches, seeds, cancelling, what is kept; on scripted and on random models."""

import itertools
import threading
from collections import Counter

import numpy as np
import pytest
from few import few
from tiny import CONFIG, ScriptedEngine, random_engine, random_model

from codegen2.api import HOLE, Model
from codegen2.config import EOT, ModelConfig
from codegen2.engine.protocol import Piece
from codegen2.generation import sequence
from codegen2.generation.params import SamplingOptions, SamplingParams
from codegen2.generation.request import Request
from codegen2.text.cursor import Place
from codegen2.text.infill import EOM, SEP, mask
from codegen2.text.postprocess import process
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()


def scripted(text_or_ids):
    script = TOK.encode(text_or_ids, allow_control=True) if isinstance(text_or_ids, str) else text_or_ids
    return Model(ScriptedEngine(script), TOK, "scripted")


@pytest.fixture(scope="module")
def model(engine):
    return random_model(engine)


def test_options_are_the_fields_of_sampling_params():
    assert set(SamplingOptions.__annotations__) == set(SamplingParams.__dataclass_fields__)


def test_completion_ends_at_the_documents_end():
    done = scripted("x = 1\n<|endoftext|>more").complete("# begin\n")
    assert (done.text, done.finish_reason) == ("x = 1\n", "stop")
    assert done.choices[0].stop_token == EOT


def test_a_hash_does_not_end_anything():
    assert scripted("a # b\n# c\n<eom>").complete("x").text == "a # b\n# c\n"


def test_the_budget_ends_it():
    done = scripted("abc def ghi jkl mno").infill("x", "y", max_new_tokens=3)
    assert (done.raw, done.finish_reason) == ("abc def g", "length")


def test_a_stop_string_is_not_shown():
    done = scripted("one two\nthree").complete("x", stop=["\nth"])
    assert (done.text, done.finish_reason) == ("one two", "stop")


def test_a_byte_order_mark_is_a_stop_string_like_another():
    # It was taken off as at a file's beginning, and the empty rest failed every request that ran.
    done = scripted("one\ufefftwo").complete("x", stop="\ufeff")
    assert (done.text, done.finish_reason) == ("one", "stop")


def test_control_tokens_are_never_chosen():
    # The script insists on <sep>; the likeliest allowed token is id 0, "!".
    done = scripted([SEP]).complete("x", max_new_tokens=2)
    assert done.tokens == (0, 0)
    assert scripted([mask(3)]).infill("a", "b", max_new_tokens=1).tokens == (0,)


def test_infill_ends_at_eom_and_line():
    assert scripted("b + c<eom>zzz").infill("a = ", "\n").text == "b + c"
    done = scripted("b = 1\nc = 2\nd = 3\n<eom>").infill("a = 0\n", "\nz = 9\n", stop_at="line")
    assert (done.text, done.finish_reason) == ("b = 1", "stop")


def test_several_holes_go_on_with_the_next_mask():
    model = scripted("one<eom><sep>two<|endoftext|><sep>three<eom>")
    done = model.infill_spans(["a ", HOLE, " b ", HOLE, " c ", HOLE, " d"], max_new_tokens=20)
    # What stands for <sep> in the script is where the loop itself feeds the next mask.
    assert [c.raw for c in done.choices] == ["one", "two", "three"]
    assert [c.finish_reason for c in done.choices] == ["stop"] * 3
    fed = model.engine.fed
    # The word before a hole moves into it and is spelled again behind the mask.
    assert fed.count(mask(2)) == fed.count(mask(3)) == 2  # in the prompt, and as the question
    at = len(fed) - fed[::-1].index(mask(2)) - 1
    assert fed[at - 1 : at + 2] == [EOM, mask(2), *TOK.encode(" ")]
    assert [i for i in fed[: fed.index(SEP) + 2] if i >= 50256] == [
        mask(1),
        mask(2),
        mask(3),
        EOT,
        SEP,
        mask(1),
    ]


def test_each_hole_has_the_whole_budget():
    model = scripted("a b c d e f g h i j k l")
    done = model.infill_spans(["x", HOLE, "y", HOLE, "z"], max_new_tokens=2)
    assert [c.finish_reason for c in done.choices] == ["length", "length"]
    assert [len(TOK.encode(c.raw)) for c in done.choices] == [2, 2]
    done = scripted("a b c d e f").infill_spans(["x", HOLE, "y", HOLE, "z"], max_new_tokens=1)
    assert [bool(c.raw) for c in done.choices] == [True, True]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [(["a"], "no HOLE"), ([HOLE, 3], "str or HOLE"), ([b"a", HOLE], "str or HOLE")],
)
def test_bad_pieces(model, pieces, message):
    with pytest.raises(ValueError, match=message):
        model.infill_spans(pieces)


def test_spans_take_no_n(model):
    with pytest.raises(ValueError, match="one answer each"):
        model.infill_spans(["a", HOLE], n=2)


def test_a_row_of_a_batch_equals_the_row_alone(model):
    prompts = [TOK.encode(t) for t in ("def f(x):\n", "a", "import os\nimport sys\n\n\nclass A:\n    x = 1")]
    batch = model.generate_batch(prompts, max_new_tokens=8)
    assert [g.tokens for g in batch] == [model.generate(p, max_new_tokens=8).tokens for p in prompts]
    assert model.generate_batch([]) == []


def test_row_i_gives_the_same_text_whatever_the_batch(model):
    options = {"temperature": 1.0, "seed": 3, "max_new_tokens": 6}
    three = model.complete("x = ", n=3, **options)
    five = model.complete("x = ", n=5, **options)
    assert [c.tokens for c in three.choices] == [c.tokens for c in five.choices[:3]]
    assert len({tuple(c.tokens) for c in five.choices}) == 5
    prompts = [TOK.encode(t) for t in ("x = ", "import os\n", "y")]
    rows = model.generate_batch(prompts, **options)
    assert [g.tokens for g in model.generate_batch(prompts[:2], **options)] == [g.tokens for g in rows[:2]]


def test_an_option_that_nobody_knows_is_refused(model):
    for options in ({"stop_at": "line"}, {"temprature": 1}):
        with pytest.raises(TypeError, match="unexpected keyword"):
            model.complete("x", **options)


def logits_of(model, tokens):
    cache = model.engine.new_cache(1, len(tokens))
    return model.engine.forward([Piece(0, 0, tokens, len(tokens), len(tokens))], cache)[0]


def test_greedy_is_the_argmax_of_the_whole_pass(model):
    prompt = TOK.encode("for i in range(")
    done = model.generate(prompt, max_new_tokens=10)
    logits = logits_of(model, [*prompt, *done.tokens])
    assert tuple(logits.argmax(-1)[len(prompt) - 1 : -1].tolist()) == done.tokens


def test_reported_logprobs_are_the_models(model):
    prompt = TOK.encode("while ")
    done = model.generate(prompt, max_new_tokens=4, top_logprobs=3, temperature=0.7, seed=1)
    exact = model.engine.token_logprobs(np.array([[*prompt, *done.tokens]]))[0][len(prompt) - 1 :]
    told = done.choices[0].logprobs
    assert [t.token for t in told] == [*done.tokens]
    np.testing.assert_allclose([t.logprob for t in told], exact, atol=1e-4)
    assert all(len(t.top) in (3, 4) and t.top[0][1] >= t.logprob for t in told)
    assert all(t.token in dict(t.top) for t in told)


def test_the_token_that_ended_it_has_a_logprob_too():
    done = scripted("ab<eom>").complete("x", top_logprobs=1)
    assert [t.token for t in done.choices[0].logprobs] == [*TOK.encode("ab"), EOM]
    assert done.completion_tokens == len(done.tokens) + 1


def test_echo_tells_every_token_of_the_prompt(model):
    prompt = [EOT, *TOK.encode("a = b\n" * 40)]  # more than one pass of log-probabilities
    params = SamplingParams(max_new_tokens=0, top_logprobs=2)
    done = model.answer([Request(tokens=tuple(prompt), echo=True, params=params)])[0]
    assert [t.token for t in done.prompt_logprobs] == prompt
    assert done.prompt_logprobs[0].logprob is None
    exact = model.engine.token_logprobs(np.array([prompt]))[0]
    np.testing.assert_allclose([t.logprob for t in done.prompt_logprobs[1:]], exact, atol=1e-4)
    with pytest.raises(ValueError, match="echo is of all of them"):
        model.answer([Request("a = b\n" * 200, echo=True, params=params)])


def test_best_of_chooses_by_middle_and_suffix(model):
    done = model.infill("x = (", ")\n", n=2, best_of=4, temperature=1.0, seed=5, max_new_tokens=3)
    assert len(done.choices) == 2
    assert done.choices[0].logprob >= done.choices[1].logprob
    prefix, suffix = TOK.encode("x = ("), TOK.encode(")\n")
    assert len({c.text for c in done.choices}) > 1
    everything = model.infill("x = (", ")\n", n=4, temperature=1.0, seed=5, max_new_tokens=3)

    def together(middle):
        tail = TOK.encode(middle) + suffix
        return model.engine.token_logprobs(np.array([[EOT, *prefix, *tail]]))[0][-len(tail) :].sum()

    best = max(everything.choices, key=lambda m: together(m.text))
    assert done.text == best.text
    assert done.choices[0].logprob == pytest.approx(together(best.text), abs=1e-3)


def test_best_of_completions_are_sorted(model):
    done = model.complete("x", n=2, best_of=4, temperature=1.0, seed=5, max_new_tokens=3)
    told = model.complete("x", n=4, top_logprobs=1, temperature=1.0, seed=5, max_new_tokens=3).choices
    means = sorted((np.mean([t.logprob for t in c.logprobs]) for c in told), reverse=True)
    np.testing.assert_allclose([c.logprob for c in done.choices], means[:2], atol=1e-5)


def test_streams_end_with_a_reason_and_add_up():
    model = scripted("漢字 = 1\n<eom>")
    chunks = list(model.stream_complete("x"))
    assert "".join(c.text for c in chunks) == "漢字 = 1\n"
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].result.text == "漢字 = 1\n"
    chunks = list(scripted("a = 1\nb = 2\nc = 3\nd = 4\ne = 5\n<eom>").stream_infill("", "z = 9\n"))
    assert "".join(c.text for c in chunks) == chunks[-1].result.text == "a = 1\nb = 2\nc = 3\nd = 4\ne = 5\n"
    assert [c.text for c in chunks[:2]] == ["a = 1", "\nb = 2"]  # whole lines, two lines late


def test_cancel_and_deadline(model):
    cancel = threading.Event()
    stream = model.stream_complete("x", cancel=cancel, max_new_tokens=50)
    first = next(stream)
    cancel.set()
    rest = list(stream)
    assert rest[-1].finish_reason == "cancel"
    assert rest[-1].result.text.startswith(first.text)
    assert len(rest[-1].result.tokens) <= 3 + 6  # a draft may have been right
    assert model.complete("x", cancel=cancel).finish_reason == "cancel"
    assert model.complete("x", deadline_s=1e-9, max_new_tokens=50).finish_reason == "deadline"
    with pytest.raises(ValueError, match="deadline_s must be finite and above 0"):
        model.complete("x", deadline_s=0)


def test_at_its_deadline_an_infill_keeps_whole_lines():
    model, now = scripted("a = 1\nb = 2\nc = 3\nd = 4\n<eom>"), [0.0]
    model.scheduler.clock = lambda: now[0]
    handle = model.scheduler.add(Request("", "z\n", params=SamplingParams(deadline_s=5.0, speculate=False)))
    for _ in range(3):  # "a", " =", " 1"
        model.scheduler.step()
    now[0] = 6.0
    while model.scheduler.step():
        pass
    assert (handle.result.text, handle.result.finish_reason) == ("a = 1\n", "deadline")


def test_no_new_tokens_is_a_warm_up(model):
    done = model.complete("x", max_new_tokens=0)
    assert (done.text, done.finish_reason) == ("", "length")


def test_the_context_ends_it(model):
    prompt = [5] * (CONFIG.n_ctx - 4)
    done = model.generate(prompt, max_new_tokens=50)
    assert done.finish_reason == "length"
    assert len(done.tokens) == 5  # four more fit the cache; the fifth is chosen and never fed
    with pytest.raises(ValueError, match="256 tokens leave no room"):
        model.generate([5] * CONFIG.n_ctx)


@pytest.mark.parametrize(
    ("ids", "message"), [([], "no tokens"), ([51200], "51200 is outside"), ([-1], "-1 is outside")]
)
def test_bad_ids(model, ids, message):
    with pytest.raises(ValueError, match=message):
        model.generate(ids)


ODD_PREFIXES = ("", "\t\tif x:\n\t\t\t", "x" * 3000, "\ufeffimport os\n", "a = 1\r\nb = 2\r\n", "漢" * 400)
ODD_SUFFIXES = ("", "\n", "y" * 3000, "\r\n)", "    \t")


@pytest.mark.parametrize(
    ("prefix", "suffix", "anchor"),
    few(itertools.product(ODD_PREFIXES, ODD_SUFFIXES, ("line", "cursor")), 7),
)
def test_odd_inputs_go_through(model, prefix, suffix, anchor):
    done = model.infill(prefix, suffix, max_new_tokens=4, anchor=anchor)
    assert done.prompt_tokens <= CONFIG.n_ctx - 4
    assert isinstance(done.text, str)
    assert bool(done.dropped) == (len(prefix) > 300 or len(suffix) > 300)


def test_too_large_a_budget_is_refused(model):
    with pytest.raises(ValueError, match="ask for at most 236"):
        model.infill("a", "b", max_new_tokens=250)
    with pytest.raises(ValueError, match="decode bytes"):
        model.complete(b"abc")


def test_less_of_the_prompt_can_be_shown(model):
    short = Model(model.engine, TOK, max_prompt_tokens=40)
    text = "a = b\n" * 30
    done = short.infill(text, text, max_new_tokens=2)
    assert 30 < done.prompt_tokens <= 40 + 4
    assert done.dropped
    assert short.complete(text, max_new_tokens=2).prompt_tokens <= 40
    holes = short.infill_spans([text, HOLE, "c = d\n" * 12, HOLE, text], max_new_tokens=2)
    assert 48 < holes.prompt_tokens <= 48 + 16 + 6
    assert short.score(text).logprobs == model.score(text).logprobs
    for wrong in (0, CONFIG.n_ctx + 1, "x"):
        with pytest.raises(ValueError, match="max_prompt_tokens must be from 16"):
            Model(model.engine, TOK, max_prompt_tokens=wrong)


def test_score_is_the_sum_over_windows(model):
    text = "def f(a, b):\n    return a + b\n" * 40  # several windows of 256
    score = model.score(text)
    ids = TOK.encode(text)
    assert score.tokens == ids
    assert len(score.logprobs) == len(ids)
    first = model.engine.token_logprobs(np.array([[EOT, *ids[:255]]]))[0]
    np.testing.assert_allclose(score.logprobs[:255], first, atol=1e-4)
    second = model.engine.token_logprobs(np.array([[EOT, *ids][128:384]]))[0]
    np.testing.assert_allclose(score.logprobs[255:383], second[127:], atol=1e-4)
    assert score.bits_per_byte == pytest.approx(-sum(score.logprobs) / np.log(2) / len(text))


def test_scoring_nothing(model):
    assert model.score("").tokens == []
    with pytest.raises(ValueError, match="at least one byte"):
        _ = model.score("").bits_per_byte


def test_embeddings(model):
    ids = TOK.encode("def f(): pass")
    states = model.embed("def f(): pass")
    np.testing.assert_allclose(states, model.engine.hidden(np.array([[EOT, *ids]]))[0, 1:], atol=1e-5)
    np.testing.assert_allclose(model.embed("def f(): pass", "mean"), states.mean(0), atol=1e-6)
    np.testing.assert_allclose(model.embed("def f(): pass", "last"), states[-1], atol=1e-6)
    assert model.embed("x = 1\n" * 100).shape == (len(TOK.encode("x = 1\n" * 100)), CONFIG.n_embd)
    assert model.embed("").shape == (0, CONFIG.n_embd)
    with pytest.raises(ValueError, match="nothing to pool"):
        model.embed("", "mean")
    with pytest.raises(ValueError, match="pooling must be"):
        model.embed("x", "max")


PREFIX = "import os\n\n\ndef read(path):\n    with open(path) as f:\n"
SUFFIX = "\n\ndef write(path):\n    pass\n"


def test_what_was_asked_before_changes_nothing(model):
    fresh = random_model("native" if hasattr(model.engine, "handle") else "reference")
    for text in ("a = b\n", "a = b\nc = d\n", "a = ", "x", "a = b\nc = d\nif e:\n"):
        for options in ({}, {"temperature": 0.9, "seed": 4}, {"n": 2, "temperature": 0.9, "seed": 4}):
            fresh.scheduler.slots.forget()
            kept = model.complete(text, max_new_tokens=5, **options)
            assert [c.tokens for c in kept.choices] == [
                c.tokens for c in fresh.complete(text, max_new_tokens=5, **options).choices
            ]


def test_only_what_changed_is_read(model):
    model.scheduler.slots.forget()
    first = model.complete("a = b\nc = d\n", max_new_tokens=4)
    assert (first.timings.cached_n, first.timings.prompt_n) == (0, first.prompt_tokens)
    again = model.complete("a = b\nc = d\n", max_new_tokens=4)
    assert again.timings.prompt_n == 1  # the last token's logits are not kept
    other = model.complete("a = b\nc = e\n", max_new_tokens=0)
    assert other.timings.cached_n == TOK.encode("a = b\nc = d\n").index(TOK.encode(" d")[0])


def test_a_typed_key_costs_a_token_or_two(model):
    prefix, read = PREFIX, []
    for key in "        return f.read()\n        x = 1":
        prefix += key
        read.append(model.infill(prefix, SUFFIX, max_new_tokens=2).timings.prompt_n)
    assert sorted(read)[len(read) // 2] <= 3
    assert (
        sum(n > 3 for n in read) <= 4
    )  # the first key, the new line, and where more room is kept for the line
    for end in range(len(prefix) - 1, len(prefix) - 8, -1):  # backspaces
        assert model.infill(prefix[:end], SUFFIX, max_new_tokens=2).timings.prompt_n <= 3


def test_answers_to_one_prompt_read_it_once(model):
    model.scheduler.slots.forget()
    text = "def f(a, b):\n    return a + b\n" * 5
    done = model.complete(text, n=4, temperature=1.0, seed=1, max_new_tokens=3)
    assert done.timings.prompt_n <= done.prompt_tokens + 3


def test_requests_are_answered_together_as_alone(model):
    requests = [
        Request(PREFIX, SUFFIX, params=SamplingParams(max_new_tokens=6)),
        Request(tokens=(5, 6, 7), params=SamplingParams(max_new_tokens=3, temperature=1.0, seed=2, n=3)),
        Request("x = ", params=SamplingParams(max_new_tokens=9)),
        Request("a", "b", ("c",), params=SamplingParams(max_new_tokens=2)),
    ]
    together = model.answer(requests)
    alone = [model.answer([r])[0] for r in requests]
    assert [r.choices for r in together] == [r.choices for r in alone]


def test_a_wrong_request_harms_no_other(model):
    good = Request("x = ", params=SamplingParams(max_new_tokens=2))
    wrong = Request("x", params=SamplingParams(logit_bias={10**6: 1.0}))
    with pytest.raises(ValueError, match="token 1000000 is not in the vocabulary"):
        model.answer([good, wrong])
    assert model.answer([good])[0].finish_reason == "length"
    every = dict.fromkeys(range(CONFIG.vocab_size), -100.0)
    with pytest.raises(ValueError, match="every token that could come next is banned"):
        model.complete("x", logit_bias=every)


def test_weights_that_are_no_numbers_are_told():
    engine = ScriptedEngine([1])
    engine._forward = lambda piece: np.full((piece.n_logits, CONFIG.vocab_size), np.nan, np.float32)
    with pytest.raises(ValueError, match="weights are damaged"):
        Model(engine, TOK).generate([5])


def test_two_streams_at_once_do_not_disturb_each_other(model):
    expected = [model.complete(t, max_new_tokens=9).text for t in ("a", "b = c\n")]
    one = model.stream_complete("a", max_new_tokens=9)
    next(one)
    two = model.stream_complete("b = c\n", max_new_tokens=9)
    next(two)
    next(one)
    one.close()
    assert list(two)[-1].result.text == expected[1]
    assert model.complete("a", max_new_tokens=9).text == expected[0]
    assert not model.scheduler.running and not model.scheduler.waiting


def test_threads_share_a_model(model):
    texts = [f"x{i} = " for i in range(6)]
    expected = [model.complete(t, max_new_tokens=6).text for t in texts]
    found = [""] * len(texts)

    def ask(i):
        found[i] = model.complete(texts[i], max_new_tokens=6).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


class Flag:
    """Set after it was looked at so often: cancels inside a pass, whatever the machine's speed."""

    def __init__(self, looks):
        self.looks = looks

    def is_set(self):
        self.looks -= 1
        return self.looks < 0


def test_cancelled_inside_a_prompt_nothing_is_left_behind():
    config = ModelConfig(n_ctx=1024, n_embd=64, n_layer=6, n_head=1)
    model = Model(random_engine("native", config, spread=0.05, kind="int8"), TOK)
    text = "a = b + c\n" * 180
    expected = model.complete(text, max_new_tokens=4).tokens
    for looks in (0, 2, 3, 5, 9):
        model.complete(f"# {looks}\n" + text, cancel=Flag(looks), max_new_tokens=4)
        assert model.complete(text, max_new_tokens=4).tokens == expected


def test_users_share_nothing_that_was_read():
    model = random_model("native")
    ask = {"prefix": "def secret(a):\n    return a\n" * 8, "params": SamplingParams(max_new_tokens=2)}
    first, guess, again = (
        model.answer([Request(**ask, user=user)])[0] for user in ("alice", "mallory", "alice")
    )
    assert (first.timings.cached_n, guess.timings.cached_n) == (0, 0)
    assert again.timings.cached_n > 20
    assert first.choices == guess.choices == again.choices


def test_many_answers_leave_places_for_others():
    model = random_model("native")
    model.scheduler.max_running, model.scheduler.reserved = 8, 2
    many = model.scheduler.add(Request("x", params=SamplingParams(max_new_tokens=30, n=20, temperature=1.0)))
    for _ in range(4):
        model.scheduler.step()
    assert sum(s.slot is not None for s in many.sequences) == 6
    other = model.scheduler.add(Request("y", params=SamplingParams(max_new_tokens=2)))
    while not other.done:
        model.scheduler.step()
    assert not many.done
    while not many.done:
        model.scheduler.step()
    assert many.result is not None
    assert len(many.result.choices) == 20


def test_many_answers_of_one_are_few_rows_of_a_pass_beside_another():
    scheduler = random_model("native").scheduler
    sampled = SamplingParams(max_new_tokens=12, min_new_tokens=12, n=10, temperature=1.0, seed=1)
    many, one = (
        Request("x", params=sampled, user="a"),
        Request("y", params=SamplingParams(max_new_tokens=8), user="b"),
    )

    def answers(*requests: Request) -> list[list[tuple[int, ...]]]:
        handles = [scheduler.add(request) for request in requests]
        while scheduler.step():
            pass
        return [[c.tokens for c in h.result.choices] for h in handles]

    alone = answers(many) + answers(one)
    rows = []
    real = scheduler._note_pass
    scheduler._note_pass = lambda plan, seconds: (
        rows.append(Counter(p.handle.group for p in plan if not p.n_prompt)),
        real(plan, seconds),
    )
    assert answers(many, one) == alone
    assert max(r["a"] for r in rows if r["b"]) == 4  # beside the other, in turn
    assert max(r["a"] for r in rows if not r["b"]) == 10


def test_a_user_who_floods_leaves_places_and_short_passes_to_others():
    model = random_model("native")
    scheduler = model.scheduler
    scheduler.max_running, scheduler.reserved = 8, 2
    params = SamplingParams(max_new_tokens=20, min_new_tokens=20, temperature=1.0)
    flood = [scheduler.add(Request(f"{i} = x(1, 2)\n" * 12, params=params, user="a")) for i in range(40)]
    for _ in range(12):
        scheduler.step()
    assert sum(s.slot is not None for h in flood for s in h.sequences) <= 6
    long = SamplingParams(max_new_tokens=120, min_new_tokens=120, temperature=1.0)
    quiet = scheduler.add(Request("y", params=long, user="b"))
    read = []
    real = scheduler._note_pass
    scheduler._note_pass = lambda plan, seconds: (
        read.append(sum(p.n_prompt for p in plan)),
        real(plan, seconds),
    )
    while not quiet.done:
        scheduler.step()
    assert len(read) < 140 and sum(h.done for h in flood) < 40  # it waits for nobody's end
    assert max(read[-8:]) <= 32
    for handle in flood:
        scheduler.cancel(handle)
    while scheduler.step():
        pass


def test_between_the_pieces_of_ranking_others_have_their_turn():
    model = random_model("native")
    params = SamplingParams(max_new_tokens=3, best_of=3, temperature=1.0, seed=1)
    best = model.scheduler.add(Request("def f(x):\n", "\ny = 1\n" * 20, params=params, raw=True))
    while best.ranking is None:
        model.scheduler.step()
    other = model.scheduler.add(Request("y", params=SamplingParams(max_new_tokens=1)))
    model.scheduler.step()
    assert other.done and not best.done
    while not best.done:
        model.scheduler.step()
    assert best.result.choices[0].logprob < 0
    gone = model.scheduler.add(Request("def f(x):\n", "\ny = 1\n" * 20, params=params, raw=True))
    while gone.ranking is None:
        model.scheduler.step()
    model.scheduler.cancel(gone)
    assert not model.scheduler.step() and gone.result.interrupted == "cancelled"


@pytest.mark.parametrize("kind", ["native", pytest.param("reference", marks=pytest.mark.torch)])
def test_log_probabilities_in_pieces_are_those_of_the_whole(kind):
    engine = random_model(kind).engine
    ids = np.arange(5, 65)[None]
    whole, cache = engine.token_logprobs(ids), engine.new_cache(1, 60)
    pieces = [engine.token_logprobs(ids[:, a : a + 17], cache, a) for a in range(0, 59, 16)]
    assert np.allclose(np.concatenate(pieces, 1), whole, atol=1e-5)


def test_cancelling_many_answers_reads_the_file_around_them_once(monkeypatch):
    model, found = random_model("native"), []
    params = SamplingParams(n=20, max_new_tokens=30, temperature=1.0)
    many = [
        model.scheduler.add(Request("x = 1\n" * 9, "y\n" * 9, params=params, stop_at="block"))
        for _ in range(4)
    ]
    monkeypatch.setattr(sequence, "process", lambda *a, **k: (found.append(a), process(*a, **k))[1])
    model.scheduler.step()
    for handle in many:
        model.scheduler.cancel(handle)
    model.scheduler.step()
    assert all(h.done for h in many) and len(found) <= 8
    assert Place.of("a\n", "b", "c") is Place.of("a\n", "b", "c")
