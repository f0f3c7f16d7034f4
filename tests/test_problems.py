"""The holes: what is cut out, how many of a file, and that the choice never changes by itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from codegen2.problems import holes_hash, single_line_holes


@dataclass(frozen=True)
class Text:
    package: str
    path: str
    text: str


LONG = Text("a", "long.py", "".join(f"value_{i} = compute({i})\n" for i in range(40)))
ENDLESS = Text("b", "end.py", "x = 1\n\n    return x + total")  # no newline at the end, one eligible line
CRLF = Text("c", "crlf.py", "first_value = 1\r\nsecond_value = 2\r\n")


def test_hole_puts_the_file_together_again() -> None:
    for hole in single_line_holes([LONG, ENDLESS], n=6):
        source = LONG if hole.package == "a" else ENDLESS
        assert hole.prefix + hole.middle + hole.suffix == source.text
        assert hole.prefix.endswith("\n") or hole.line == 0
        assert hole.prefix.count("\n") == hole.line
        assert "\n" not in hole.middle
        assert hole.suffix.startswith("\n") or source is ENDLESS


def test_last_line_without_newline_has_an_empty_suffix() -> None:
    [hole] = single_line_holes([ENDLESS], n=1)
    assert (hole.line, hole.prefix, hole.middle, hole.suffix) == (2, "x = 1\n\n", "    return x + total", "")


def test_at_most_max_per_file_and_short_lines_never() -> None:
    holes = single_line_holes([LONG, ENDLESS], n=4, max_per_file=3)
    assert sorted(h.package for h in holes) == ["a", "a", "a", "b"]
    assert all(len("".join(h.middle.split())) >= 8 for h in holes)


def test_too_few_lines_and_carriage_returns_are_refused_aloud() -> None:
    with pytest.raises(ValueError, match="only 5 holes at 5 a file, 6 wanted"):
        single_line_holes([LONG, CRLF], n=6)


def test_choice_depends_on_the_seed_and_not_on_the_order_of_files() -> None:
    one = single_line_holes([LONG, ENDLESS], n=5)
    assert one == single_line_holes([ENDLESS, LONG], n=5)
    assert one != single_line_holes([LONG, ENDLESS], n=5, seed=1)


def test_hash_is_pinned() -> None:
    holes = single_line_holes([LONG, ENDLESS], n=5)
    assert holes_hash(holes) == "a73b92895908b290e865c8366f807298f98d7b7f5c98d162f3433799e14be05b"
    assert holes_hash(holes[::-1]) != holes_hash(holes)
