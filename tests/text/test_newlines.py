"""Line ends: literal cases first, then what must hold for any text and any cursor in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen2.text.newlines import LineEnd, line_end_of, normalise, restore

_TEXT = st.text(alphabet="ab\r\n\ufeff", max_size=12)
_LF_TEXT = st.text(alphabet="ab\n", max_size=12)
_END = st.sampled_from(["\n", "\r\n", "\r"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\r\nb\rc\nd", "a\nb\nc\nd"),
        ("\ufeffa", "a"),
        ("a\ufeff", "a\ufeff"),
        ("a\r\r\nb", "a\n\nb"),
        ("a\n\rb", "a\n\nb"),
        ("", ""),
    ],
)
def test_normalise(text: str, wanted: str) -> None:
    assert normalise(text) == wanted


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (("a\r\nb\r\n", "c\n"), "\r\n"),
        (("a\r\n", "b\n"), "\n"),
        (("a\rb\r", "c\n"), "\r"),
        (("a\r", "\nb"), "\r\n"),  # the cursor between the halves of one line end
        (("",), "\n"),
        (("a\r\nb\rc",), "\n"),
    ],
)
def test_the_commonest_line_end(texts: tuple[str, ...], wanted: str) -> None:
    assert line_end_of(*texts) == wanted


@given(_TEXT)
def test_normalised_text_stays_as_it_is(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert "\r" not in once


@given(_LF_TEXT, _END)
def test_restored_text_is_normalised_to_what_it_was(text: str, end: LineEnd) -> None:
    restored = restore(text, end)
    assert normalise(restored) == text
    assert restore(restored, end) == restored
    if "\n" in text:
        assert line_end_of(restored) == end


@given(_LF_TEXT, _LF_TEXT, st.text(alphabet="ab", min_size=1), _LF_TEXT, _END)
def test_an_insertion_in_the_file_s_line_ends_is_the_insertion_of_lf_text(
    prefix: str, suffix: str, start: str, answer: str, end: LineEnd
) -> None:
    """Whatever line ends the file has, the file with the answer in it is the one that the model was shown."""
    before, after = restore(prefix, end), restore(suffix, end)
    shown = normalise(before) + start + answer + normalise(after)
    assert normalise(before + restore(start + answer, end) + after) == shown


@given(_LF_TEXT, _LF_TEXT, _LF_TEXT)
def test_an_insertion_between_cr_and_lf_stands_on_a_line_of_its_own(
    above: str, answer: str, below: str
) -> None:
    prefix, suffix = restore(above, "\r\n") + "\r", "\n" + restore(below, "\r\n")
    written = normalise(prefix + "x" + restore(answer, "\r\n") + suffix)
    assert written == normalise(prefix) + "x" + answer + normalise(suffix) == f"{above}\nx{answer}\n{below}"
