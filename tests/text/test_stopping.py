"""Stopping: literal traps first, then streamed == whole for any stop strings, text and chunking."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen2.text.stopping import StopMatcher, truncate_completion


def whole(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow twin: read on character by character until the text ends in a stop string."""
    for n in range(len(text) + 1):
        ended = [s for s in stops if text[:n].endswith(s)]
        if ended:
            longest = max(ended, key=len)
            return text[: n - len(longest)], longest
    return text, None


def stream(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    text = "".join(matcher.feed(piece) for piece in pieces)
    return text + matcher.finish(), matcher.matched


@pytest.mark.parametrize(
    ("stops", "text", "kept", "matched"),
    [
        (["xy"], "xxyz", "x", "xy"),  # the first x is no start of the stop string, the second is
        (["aab"], "aaaab", "aa", "aab"),
        (["abab"], "abaabab", "aba", "abab"),
        (["\n\n"], "a\n b\n\nc", "a\n b", "\n\n"),
        (["ab", "abc"], "xabc", "x", "ab"),  # on equal starts the shorter is complete first
        (["abcd", "bc"], "abcd", "a", "bc"),  # complete first, though it starts later
        (["bcd", "cd"], "abcd", "a", "bcd"),  # complete with the same character: the longer
        (["b", "a"], "ab", "", "a"),
        (["xyz"], "axy", "axy", None),  # the end of the text gives back what was held
        ([], "abc", "abc", None),
        (["é漢"], "aé漢b", "a", "é漢"),
    ],
)
def test_where_a_stop_string_cuts(stops: list[str], text: str, kept: str, matched: str | None) -> None:
    assert whole(text, stops) == (kept, matched)
    assert stream(list(text), stops) == (kept, matched)
    assert stream([text], stops) == (kept, matched)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    matcher = StopMatcher(["\ndef"])
    assert [matcher.feed(p) for p in ("a\n", "  b", "\nd", "ef f", "more")] == ["a", "\n  b", "", "", ""]
    assert StopMatcher(["aaaaab"]).feed("abab") == "abab"
    assert (matcher.matched, matcher.finish()) == ("\ndef", "")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("    return x\n\ndef g():\n", "    return x\n\n"),
        ("    return x\nprint(f(1))\n", "    return x\n"),
        ("    return x\nprinter = 1\n", "    return x\nprinter = 1\n"),
        ("    if x:\n        return\n", "    if x:\n        return\n"),
        ("    a\nif __name__ == '__main__':\n", "    a\n"),
        ("    a\n#define\n", "    a\n"),
        ("class A:\n", ""),
        ("    a\n\nx = 1\nclass A:\ndef b", "    a\n\nx = 1\n"),
    ],
)
def test_truncation_ends_a_body(text: str, kept: str) -> None:
    assert truncate_completion(text) == kept


def test_truncation_patterns_of_ones_own() -> None:
    assert truncate_completion("a\nb\nc", [r"^c", r"^b"]) == "a\n"
    assert truncate_completion("abc", []) == "abc"
    with pytest.raises(ValueError, match=r"truncation pattern '\(' is no regular expression"):
        truncate_completion("a", ["("])


_TEXT = st.text(alphabet="ab\n", max_size=30)
_STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


def chunked(text: str, cuts: list[int]) -> list[str]:
    at = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(at)]


@given(_TEXT, _STOPS, st.lists(st.integers(0, 30), max_size=10))
def test_streamed_equals_whole(text: str, stops: list[str], cuts: list[int]) -> None:
    assert stream(chunked(text, cuts), stops) == whole(text, stops)


@given(_TEXT, _STOPS)
def test_what_was_given_out_stands(text: str, stops: list[str]) -> None:
    """The text out is always a beginning of the answer, and what is held back starts a stop string."""
    matcher, out = StopMatcher(stops), ""
    for n, c in enumerate(text, start=1):
        out += matcher.feed(c)
        assert whole(text, stops)[0].startswith(out)
        if matcher.matched is None:
            held = text[len(out) : n]
            assert not held or any(stop.startswith(held) and stop != held for stop in stops)
