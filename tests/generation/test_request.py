"""Prompts: a pure function of the request; where a hole begins, what is handed to the answer, what is left out."""

import dataclasses

import pytest
from tiny import CONFIG, random_model

from codegen2.config import EOT
from codegen2.generation.params import SamplingParams
from codegen2.generation.request import PromptRules, Request, build_prompt
from codegen2.text.infill import SEP, mask
from codegen2.text.infill import build_prompt as with_mask
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()
FEW = SamplingParams(max_new_tokens=4)
RULES = PromptRules(CONFIG, CONFIG.n_ctx)


def prompt(prefix, suffix=None, rules=RULES, **fields):
    return build_prompt(Request(prefix, suffix, params=FEW, **fields), TOK, rules)


@pytest.mark.parametrize(
    ("text", "read", "word"),
    [
        ("x = foo.retu", "x = foo.", "retu"),
        ("return ", "return", " "),
        ("a +", "a", " +"),
        ("f(", "f", "("),
        ("if x:\n    ", "if x:\n", "    "),
        ("x  y", "x  ", "y"),  # a run of blanks is a token: the word behind it has none of its own
        ("x = 1\n", "x = 1\n", ""),
        ("x = '漢", "x = '", "漢"),
    ],
)
def test_the_word_before_the_cursor_is_spelled_again(text, read, word):
    found = prompt(text)
    assert (TOK.decode(found.tokens), TOK.decode(found.words[0])) == (read, word)
    plain = prompt(text, heal=False)
    assert (plain.tokens, plain.words) == (tuple(TOK.encode(text)), ((),))


def test_a_hole_begins_with_the_cursors_line():
    found = prompt("a = 1\nb = fo", "\nc\n")
    assert found.tokens == (*with_mask([TOK.encode("a = 1\n"), TOK.encode("\nc\n")]), *TOK.encode("b ="))
    assert TOK.decode(found.words[0]) == " fo"
    above = prompt("a = 1\nb = fo", "\nc\n", anchor=1)
    assert above.tokens[: above.tokens.index(SEP)] == (mask(1), *TOK.encode("\nc\n"), EOT)
    cursor = prompt("a = 1\nb = fo", "\nc\n", anchor="cursor")
    assert cursor.tokens == tuple(with_mask([TOK.encode("a = 1\nb ="), TOK.encode("\nc\n")]))
    assert cursor.words == found.words


def test_typing_keeps_what_stands_before_the_hole():
    """The prompt before the hole changes where a token more may not fit, in steps: seldom while somebody types."""
    rules = PromptRules(CONFIG, 128)
    before = "".join(f"value_{i} = {i}\n" for i in range(60))
    heads = []
    for n in range(40):
        found = prompt(before + "x = a" + "b" * n, "\nz = 1\n", rules)
        heads.append(found.tokens[: found.tokens.index(SEP)])
        assert len(found.tokens) + len(found.words[0]) <= 128 + 4  # what is typed counts, the format does not
    assert len(set(heads)) <= 3


def test_an_endless_line_begins_at_a_place_that_typing_keeps():
    line = "x = [" + "1, " * 500
    starts = {
        prompt(line + "2" * n, "]\n").tokens[: prompt(line + "2" * n, "]\n").tokens.index(SEP)]
        for n in range(12)
    }
    assert len(starts) <= 2


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_and_the_mark_change_no_prompt(line_end):
    texts = ("a = 1\nb = fo", "\nc = 2\n")
    other = ["\ufeff" + texts[0].replace("\n", line_end), texts[1].replace("\n", line_end)]
    plain = prompt(*texts)
    found = prompt(*other)
    assert found.line_end == line_end
    assert dataclasses.replace(found, line_end="\n") == plain
    assert prompt(other[0]).tokens == prompt(texts[0]).tokens
    inside = prompt("a = 1\r", "\nb\r\n")  # the cursor is between CR and LF: before the line end
    assert inside.texts == ("a = 1", "\nb\n")


def test_several_holes_hand_over_their_words_too():
    found = prompt("x = ", "\n", between=("\ny = f(", "1"))
    assert [TOK.decode(w) for w in found.words] == [" ", "(", "1"]
    assert [t for t in found.tokens if t >= EOT] == [mask(1), mask(2), mask(3), EOT, SEP, mask(1)]


def test_what_is_read_as_it_is_is_not_touched():
    text = "\ufeffa\r\nb = fo"
    found = build_prompt(Request(text, echo=True, params=FEW), TOK, RULES)
    assert (found.tokens, found.words) == (tuple(TOK.encode(text)), ((),))
    assert build_prompt(Request(tokens=(5, 6), params=FEW), TOK, RULES).tokens == (5, 6)
    assert build_prompt(Request(tokens=(), params=FEW), TOK, RULES).tokens == (EOT,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"between": ("a",)}, "needs a suffix"),
        ({"suffix": "", "between": ("a",) * 899}, "at most 899 at once, got 900"),
        ({"suffix": "", "echo": True}, "echo must be false with a suffix"),
        ({"suffix": "", "stop_at": "page"}, "stop_at must be 'line', 'block' or None, got 'page'"),
        (
            {"suffix": "", "anchor": "word"},
            "anchor must be cursor, line or a number of lines from 0 to 100, got 'word'",
        ),
        ({"suffix": "", "anchor": True}, "got True"),
        ({"suffix": b"x"}, "text must be str, got bytes"),
    ],
)
def test_what_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Request("x", **fields)


def test_a_tokenizer_without_masks_does_not_infill(monkeypatch):
    model = random_model("native")
    monkeypatch.setattr(Tokenizer, "can_infill", False)
    with pytest.raises(ValueError, match="it cannot infill; use complete"):
        model.infill("a", "b", max_new_tokens=1)
    assert model.complete("a", max_new_tokens=1).finish_reason == "length"


@pytest.mark.parametrize("options", [{"echo": True}, {"suffix": "b", "between": ("x = 1\n" * 50_000,)}])
def test_text_that_cannot_fit_is_refused_before_it_is_encoded(options, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("encoded"))
    request = Request("x = 1\n" * 50_000, **options)
    with pytest.raises(ValueError, match=r"300000 characters do not fit the context of \d+ tokens"):
        build_prompt(request, TOK, RULES)
