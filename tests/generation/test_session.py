"""Sessions: the same answers as without one, for less reading; and the anchor that typing does not move."""

import threading

import pytest
from tiny import CONFIG, ScriptedEngine, random_engine, random_model

from codegen2.api import Model
from codegen2.config import ModelConfig
from codegen2.generation.session import Session
from codegen2.text.context import Dropped
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()
PREFIX = "import os\n\n\ndef read(path):\n    with open(path) as f:\n"
SUFFIX = "\n\ndef write(path):\n    pass\n"


@pytest.fixture(scope="module")
def model(engine):
    return random_model(engine)


def test_answers_are_those_without_a_session(model):
    session = model.session()
    for text in ("a = b\n", "a = b\nc = d\n", "a = ", "x", "a = b\nc = d\nif e:\n"):
        for options in ({}, {"temperature": 0.9, "seed": 4}, {"n": 2, "temperature": 0.9, "seed": 4}):
            kept = model.complete(text, session=session, max_new_tokens=5, **options)
            fresh = model.complete(text, max_new_tokens=5, **options)
            assert [c.tokens for c in kept.choices] == [c.tokens for c in fresh.choices]


def test_only_what_changed_is_read(model):
    session = model.session()
    first = model.complete("a = b\nc = d\n", session=session, max_new_tokens=4)
    assert (session.reused, session.evaluated) == (0, first.prompt_tokens)
    model.complete("a = b\nc = d\n", session=session, max_new_tokens=4)
    assert session.evaluated == 1  # the last token's logits are not kept
    model.complete("a = b\nc = e\n", session=session, max_new_tokens=0)
    assert session.reused == TOK.encode("a = b\nc = d\n").index(TOK.encode(" d")[0])
    # What was written is kept too: going on from it costs a token.
    written = model.generate(TOK.encode("a = b\n"), max_new_tokens=6).tokens
    session = model.session()
    model.complete("a = b\n", session=session, max_new_tokens=6)
    text = "a = b\n" + TOK.decode(written)
    if TOK.encode(text)[: len(written) + 4] == [*TOK.encode("a = b\n"), *written]:
        model.complete(text, session=session, max_new_tokens=0)
        assert session.evaluated == 1


def test_typing_on_a_line_reads_what_was_typed(model):
    session = model.session()
    prefix = PREFIX
    for number, key in enumerate("        return f.read()\n        x = 1"):
        prefix += key
        kept = model.infill(prefix, SUFFIX, anchor="line", session=session, max_new_tokens=2)
        if number:
            assert session.evaluated <= 3
        assert kept.prompt_tokens == session.reused + session.evaluated
    # Backspaces and the same line again.
    for end in range(len(prefix) - 1, len(prefix) - 12, -1):
        model.infill(prefix[:end], SUFFIX, anchor="line", session=session, max_new_tokens=2)
        assert session.evaluated <= 3
    # Elsewhere in the file, everything behind is read again; and then no more.
    model.infill(PREFIX[:12], SUFFIX, anchor="line", session=session, max_new_tokens=2)
    assert session.evaluated > 3
    model.infill(PREFIX[:12] + "i", SUFFIX, anchor="line", session=session, max_new_tokens=2)
    assert session.evaluated <= 3


def test_an_anchored_prompt_is_the_line_s(model):
    plain = model.infill(PREFIX, SUFFIX, anchor="line", max_new_tokens=3)
    assert plain.raw == model.infill(PREFIX, SUFFIX, max_new_tokens=3).raw  # nothing is typed on the line yet
    typed = model.infill(PREFIX + "    retu", SUFFIX, anchor="line", max_new_tokens=3)
    assert typed.prompt_tokens == plain.prompt_tokens + len(TOK.encode("    retu"))
    with pytest.raises(
        ValueError, match="anchor must be cursor, line or a number of lines from 0 to 100, got 'word'"
    ):
        model.infill("a", "b", anchor="word")


def test_windows_line_ends_and_long_lines_are_anchored_too(model):
    session = model.session()
    a = model.infill("a = 1\r\nb = ", "\r\nc = 3\r\n", anchor="line", session=session, max_new_tokens=3)
    b = model.infill("a = 1\nb = ", "\nc = 3\n", anchor="line", max_new_tokens=3)
    assert a.raw == b.raw
    done = model.infill("x" * 5000, "y" * 5000, anchor="line", session=session, max_new_tokens=3)
    assert done.prompt_tokens <= CONFIG.n_ctx - 3
    assert done.dropped
    assert model.infill("", "", anchor="line", session=session, max_new_tokens=3).prompt_tokens == 4


@pytest.mark.parametrize("suffix", ["", "'\n"])
def test_an_endless_line_is_not_read_to_its_end(model, suffix, monkeypatch):
    """A minified file's line of some MB would hold up everybody whom one worker serves."""
    read = []
    encode = model.tokenizer.encode
    monkeypatch.setattr(model.tokenizer, "encode", lambda text: read.append(len(text)) or encode(text))
    model.infill("x = '" + "ab " * 400_000, suffix, anchor="line", max_new_tokens=2)
    assert max(read) < 100_000


def test_the_anchor_stays_while_it_can():
    session = Session(ScriptedEngine([0]))

    def fit(before, after):
        return before, after, Dropped()

    def place(prefix, suffix="\nz"):
        anchor, typed = session.anchored(prefix, suffix, len, fit, 0, 20)
        return anchor.before, typed

    assert session.anchored("a\nb\ncc", "", len, fit, 1, 20)[1] == "b\ncc"  # one line above the cursor's
    assert session.anchored("x\n" + "y" * 9 + "\nc", "", len, fit, 2, 5)[1] == "c"  # as many as fit
    assert place("a\nb") == ("a\n", "b")
    assert place("a\nbc") == ("a\n", "bc")
    assert place("a\nbc\nd") == ("a\n", "bc\nd")  # a newline does not move it
    assert place("a\n") == ("a\n", "")
    assert place("a") == ("", "a")  # above it: the line's own
    assert place("a\nb", "\ny") == ("a\n", "b")  # another suffix: a new one
    assert place("a\nb" + "\nxxxxxxxxx" * 2, "\ny") == ("a\nb\nxxxxxxxxx\n", "xxxxxxxxx")  # too much typed
    assert place("q" * 50)[1] == "q" * 12  # half, half and half of an endless line


def test_a_session_serves_one_request_at_a_time(model):
    session = model.session()
    stream = model.stream_complete("a", session=session, max_new_tokens=9)
    next(stream)
    with pytest.raises(ValueError, match="another request is still going on"):
        model.complete("a", session=session, max_new_tokens=1)
    next(stream)  # the first one was not disturbed
    stream.close()
    text = model.complete("a", session=session, max_new_tokens=9).text
    assert text == model.complete("a", max_new_tokens=9).text


def test_a_cancelled_request_leaves_a_session_usable(model):
    session, cancel = model.session(), threading.Event()
    cancel.set()
    assert (
        model.complete("a = b\n", session=session, cancel=cancel, max_new_tokens=9).finish_reason == "cancel"
    )
    assert (
        model.complete("a = b\n", session=session, max_new_tokens=9).tokens
        == model.complete("a = b\n", max_new_tokens=9).tokens
    )


def test_cancelled_inside_a_prefill_the_session_goes_on():
    config = ModelConfig(n_ctx=1024, n_embd=256, n_layer=6, n_head=4)
    model = Model(random_engine("native", config, spread=0.05, kind="int8"), TOK)
    session, text = model.session(), "a = b + c\n" * 180
    expected = model.complete(text, max_new_tokens=4).tokens
    for delay in (0.0, 0.005, 0.02, 0.05):
        cancel = threading.Event()
        timer = threading.Timer(delay, cancel.set)
        timer.start()
        model.complete(text + "# " + str(delay), session=session, cancel=cancel, max_new_tokens=4)
        timer.join()
        assert model.complete(text, session=session, max_new_tokens=4).tokens == expected


def test_different_prompts_cannot_share_one(model):
    from codegen2.generation.generate import Row, run
    from codegen2.generation.sampling import SamplingParams

    rows = [Row([i], SamplingParams(max_new_tokens=1), TOK) for i in (1, 2)]
    with pytest.raises(ValueError, match="holds one prompt"):
        list(run(model.engine, rows, session=model.session()))
