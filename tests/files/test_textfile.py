"""Positions in text, and files that are no text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen2.files.textfile import offset_of, read_text


def test_positions():
    text = "ab\r\n漢字c\n\nx"
    assert [text[offset_of(text, *at) :] for at in ((1, 1), (1, 3), (2, 2), (3, 1), (4, 2))] == [
        text, "\r\n漢字c\n\nx", "字c\n\nx", "\nx", "",
    ]  # fmt: skip
    assert offset_of("", 1, 1) == 0
    assert offset_of("a\n", 2, 1) == 2


@given(st.text("ab\r\n漢", max_size=30), st.integers(0, 30))
def test_positions_are_undone(text, at):
    at = min(at, len(text))
    if at and text[at - 1 : at + 1] == "\r\n":
        return  # between the two halves of a line end there is no position
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    assert offset_of(text, line, column) == at


@pytest.mark.parametrize(
    ("at", "message"), [((0, 1), "line 0"), ((3, 1), "lines 1 to 2"), ((1, 4), "columns 1 to 3")]
)
def test_positions_outside(at, message):
    with pytest.raises(ValueError, match=message):
        offset_of("ab\nc", *at)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("f") / "x"
    path.write_bytes(data)
    try:
        file = read_text(str(path))
    except ValueError as e:
        assert "convert the file to UTF-8" in str(e)
        return
    assert file.encode(file.text) == data
    file.write(file.text + "é")
    assert path.read_bytes() == data + "é".encode(file.encoding)
