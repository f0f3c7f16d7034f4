"""What is known of a place: brackets outside comments in all languages, and when an answer keeps its line."""

from __future__ import annotations

import time

import pytest

from codegen2.text.cursor import Place, unmatched
from codegen2.text.languages import LANGUAGES
from codegen2.text.postprocess import postprocess

_SLASHES = ["// (\n", "/* (\n( */"]
COMMENTS = {
    "python": ["# (\n"],
    "ruby": ["# (\n"],
    "shell": ["# (\n"],
    "lua": ["-- (\n", "--[[ (\n( ]]"],
    "sql": ["-- (\n", "/* (\n( */"],
    "php": ["# (\n", *_SLASHES],
    "vue": ["<!-- (\n( -->", *_SLASHES],
    "css": ["/* (\n( */"],
    "html": ["<!-- (\n( -->"],
}


@pytest.mark.parametrize("language", [*LANGUAGES, "css", "html", "csharp", "shellscript", ".lua"])
def test_brackets_in_comments_do_not_count(language: str) -> None:
    name = {"csharp": "c-sharp", "shellscript": "shell", ".lua": "lua"}.get(language, language)
    for comment in COMMENTS.get(name, _SLASHES):
        place = Place.of(f"f(\n{comment}", "", language)
        assert unmatched(place.prefix, place.comments) == ((1,), ()), comment
        assert place.code(f"x {comment}".partition("\n")[0]) == "x"


@pytest.mark.parametrize(
    ("text", "language", "opened"),
    [
        ('f("(")', "python", ()),
        ("f(it's (", "python", (1, 7)),  # an apostrophe without a partner hides nothing
        ("x = '''(\n(", "python", ()),
        ("${#list[@]} (", "shell", (12,)),
        ("$# (", "shell", (3,)),
        ("#[Route(", "php", (1, 7)),
        ("a # (", "c", (4,)),
        ("a // (", "python", (5,)),
        ("a -- (", "c", (5,)),
        (r"\"(\"", "shell", (2,)),  # a quote after a backslash begins no string
    ],
)
def test_what_opens(text: str, language: str, opened: tuple[int, ...]) -> None:
    assert unmatched(text, Place.of("", "", language).comments)[0] == opened


@pytest.mark.parametrize(
    ("prefix", "suffix", "within"),
    [
        ("x = f(", ")\n", True),
        ("    x", " = 1", True),
        ("    ", "return x\n", True),
        ("", "return x\n", False),
        ("a = 1\n", "b = 2\n", False),
        ("    ", "    return x\n", False),
        ("x = ", "", False),
        ("x = ", " \t\ny\n", False),
    ],
)
def test_when_an_answer_stays_on_its_line(prefix: str, suffix: str, within: bool) -> None:
    assert Place.of(prefix, suffix).within_line is within


# (unit, end, prefix, suffix): shapes whose cost once grew with the square of their length; 32 KB took up to a minute.
SHAPES = [
    ("x\n", "", "    ", "\n    x\n"),  # equal lines
    ("\t", "x", "\t", ""),  # indentation
    ('"\\', "", "x = ", "\n"),  # quotes without a partner
    (";", "", "x = ", "; x\n"),  # repeated rests
    ("; ", "", "x = ", " ;\n"),
    ("+ 1 ", "", "x", " + 1 + 1\n"),
    ("\n", "x", "", "y"),  # line ends without text
    ("(]", "", "f(", ")\n"),
    ("a = 1\nb = 2\n", "", "a = 1\nb = 2\n", ""),  # repeated lines above
]


@pytest.mark.parametrize(("unit", "end", "prefix", "suffix"), SHAPES, ids=[repr(s[0]) for s in SHAPES])
def test_no_shape_of_a_text_is_slow(unit: str, end: str, prefix: str, suffix: str) -> None:
    text = (unit * 32_768)[:32_768] + end
    start = time.process_time()  # a busy machine does not lengthen it; linear steps take a tenth of a second
    postprocess(text, prefix, suffix, stop_at="block")
    postprocess("x", text, text, stop_at="block")
    assert time.process_time() - start < 3
