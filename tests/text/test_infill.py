"""The infill format by literal ids."""

import pytest
from documents import read_document
from hypothesis import given
from hypothesis import strategies as st

from codegen2.text import infill
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()
IDS = st.lists(st.integers(0, 50255), max_size=8)


def test_the_cards_prompt():
    prefix, suffix = "def hello_world():\n    ", "    return name"
    ids = infill.build_prompt([TOK.encode(prefix), TOK.encode(suffix)])
    assert ids == [4299, 23748, 62, 6894, 33529, 198, 50284, 51199, 50284, 7783, 1438, 50256, 50299, 51199]
    text = prefix + "<mask_1>" + suffix + "<|endoftext|>" + "<sep>" + "<mask_1>"
    assert ids == TOK.encode(text, allow_control=True)


def test_several_holes():
    assert infill.build_prompt([[1], [2], [3]]) == [1, 51199, 2, 51198, 3, 50256, 50299, 51199]


def test_empty_sides():
    assert infill.build_prompt([[], []]) == [51199, 50256, 50299, 51199]


def test_the_worked_documents():
    assert infill.build_document([[11, 12], [15, 16, 17], [19, 20]], [[13, 14], [18]]) == [
        11, 12, 51199, 15, 16, 17, 51198, 19, 20, 50256, 50299, 51199, 13, 14, 50300, 51198, 18, 50300, 50256,
    ]  # fmt: skip


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=5), IDS)
def test_reading_undoes_building(pairs, last):
    pieces, spans = [p for p, _ in pairs] + [last], [s for _, s in pairs]
    whole = [i for piece, span in pairs for i in piece + span] + last
    assert read_document(infill.build_document(pieces, spans)) == whole


def test_masks_have_limits():
    with pytest.raises(ValueError, match="<mask_900>"):
        infill.mask(900)
    with pytest.raises(ValueError, match="1 piece"):
        infill.build_prompt([[1]])
