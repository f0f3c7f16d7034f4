"""What is kept of a text that is too long: whole lines nearest the cursor, and never more than the budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen2.text.context import fit, keep
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()
CODE = "".join(f"def f{i}(x):\n    y = x + {i}\n    return y * {i}\n\n\n" for i in range(200))
LINES = st.lists(st.text("ab \t(x漢", max_size=12), max_size=40).map("\n".join)


def test_a_short_text_is_untouched():
    before, after = fit(TOK, "a = 1\n", "b = 2\n", 100)
    assert (before.text, after.text) == ("a = 1\n", "b = 2\n")
    assert list(before.ids) == TOK.encode("a = 1\n")


def test_a_prefix_begins_at_a_definition():
    side = keep(TOK, CODE, 300, from_end=True)
    assert CODE.endswith(side.text)
    assert side.text.startswith("def f")
    assert 200 < len(side.ids) <= 300


def test_a_suffix_ends_with_a_line():
    side = keep(TOK, CODE, 300, from_end=False)
    assert CODE.startswith(side.text)
    assert side.text.endswith("\n")
    assert 280 < len(side.ids) <= 300


def test_what_one_side_does_not_need_goes_to_the_other():
    before, after = fit(TOK, CODE, "x\n", 400)
    assert len(before.ids) > 340
    assert after.text == "x\n"
    before, after = fit(TOK, "x\n", CODE, 400)
    assert len(after.ids) > 370
    before, after = fit(TOK, CODE, CODE, 400)
    assert 220 < len(before.ids) <= 266
    assert 120 < len(after.ids) <= 400 - len(before.ids)


@pytest.mark.parametrize("line", ["x" * 5000, "漢字🙂" * 900, "a b " * 2000, " " * 9000])
def test_one_endless_line_is_cut_at_a_character(line):
    end, start = keep(TOK, line, 50, from_end=True), keep(TOK, line, 50, from_end=False)
    assert line.endswith(end.text)
    assert line.startswith(start.text)
    for side in (end, start):
        assert 25 <= len(side.ids) <= 50
        assert list(side.ids) == TOK.encode(side.text)


def test_a_huge_file_costs_no_more():
    side = keep(TOK, CODE * 2000, 100, from_end=True)
    assert side.text == keep(TOK, CODE, 100, from_end=True).text


@given(LINES, LINES, st.integers(2, 60))
def test_never_over_budget_and_always_nearest(prefix, suffix, budget):
    before, after = fit(TOK, prefix, suffix, budget)
    assert len(before.ids) + len(after.ids) <= budget
    assert prefix.endswith(before.text)
    assert suffix.startswith(after.text)
    assert list(before.ids) == TOK.encode(before.text)
    if len(TOK.encode(prefix)) + len(TOK.encode(suffix)) <= budget:
        assert (before.text, after.text) == (prefix, suffix)


def test_no_room_is_refused():
    with pytest.raises(ValueError, match="1 tokens are left"):
        fit(TOK, "a", "b", 1)


def test_what_stands_around_a_line_is_encoded_once_while_somebody_types_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[str] = []
    real = Tokenizer.encode_batch

    def counted(self: Tokenizer, texts: list[str]) -> list[list[int]]:
        encoded.extend(texts)
        return real(self, texts)

    prefix, suffix = CODE * 3 + "# before\n", "# after\n" + CODE
    first = fit(TOK, prefix, suffix, 100)
    monkeypatch.setattr(Tokenizer, "encode_batch", counted)
    assert fit(TOK, prefix, suffix, 100) == first
    assert encoded == []
    assert fit(TOK, prefix + "# more\n", suffix, 100) != first
    assert encoded
