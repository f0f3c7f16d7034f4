"""What an editor sees: literal cases as editors send them first, then properties that hold for any text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codegen2.text.cursor import Place
from codegen2.text.newlines import normalise
from codegen2.text.overlap import may_repeat_above, trim_prefix_overlap, trim_suffix_overlap
from codegen2.text.postprocess import (
    Cut,
    Processed,
    cut_block,
    cut_dedent,
    cut_line,
    fix_indentation,
    postprocess,
    process,
    trim_trailing_space,
    unindent,
)

# (name, prefix, suffix, middle, wanted): the suffix stands after the cursor and must not be repeated.
OVERLAP = [
    ("python, bracket closed by the editor", "print(", ")\n", '"hi")', '"hi"'),
    ("python, a bracket of the middle's own", "foo(", ")\n", "bar()", "bar()"),
    ("python, own bracket and one too many", "foo(", ")\n", "bar())", "bar()"),
    ("python, the inner bracket is still missing", "f(g(", ")\n", "x)", "x)"),
    ("python, both brackets are there", "f(g(", "))\n", "x))", "x"),
    ("python, a signature's end and body", "def f(", "):\n    return a\n", "a, b):\n    return a\n", "a, b"),
    ("python, arguments over lines", "foo(", ")\nbar()\n", "\n    a,\n    b,\n)", ""),
    ("python, a string closed by the editor", 'print("', '")\n', 'hello")\nprint("x")\n', "hello"),
    ("python, strings inside a list", "x = [", ', "c"]\n', '"a", "b"', '"a", "b"'),
    ("python, an escaped quote", 'x = "', '"\n', 'say \\"hi\\"', 'say \\"hi\\"'),
    ("python, bracket in a comment", "foo(", ")\n", "a,  # (or b))\n", "a,  # (or b))"),
    ("python, next line", "def f(x):\n    ", "\n    return y\n", "y = x + 1\n    return y\n", "y = x + 1"),
    ("python, next line but blanks", "def f(x):\n    ", "\n    return  y\n", "y = x\n    return y", "y = x"),
    (
        "python, an early return further right is no repetition",
        "def f(x):\n    ",
        "\n    return None\n",
        "if not x:\n        return None\n    print(x)",
        "if not x:\n        return None\n    print(x)",
    ),
    (
        "python, the model card's hole",
        "def hello():\n    ",
        "    return name",
        "name = input()\n    return name",
        "name = input()\n",
    ),
    ("python, a private name", "def f(self):\n    ", "\n    _x = self.y\n", "a()\n    _x = self.y\n", "a()"),
    ("python, nothing new", "x = 1\n", "\ny = 2\nz = 3\n", "y = 2\nz = 3\n", ""),
    ("python, the rest of the line", "return ", "name + 1\n", "self.x * name + 1", "self.x * "),
    ("python, half a name is no repetition", "y = ", "x\n", "max", "max"),
    ("python, a lone newline stays", "x = 1\n", "\ny = 2\n", "z = 3\n", "z = 3\n"),
    ("javascript, semicolon", "let x = ", ";\n", "1;", "1"),
    ("javascript, callback closed already", "on(() => {\n  ", "\n});\n", "go();\n});\nend();", "go();"),
    ("ruby, end", "def f\n  ", "\nend\n", "g\nend\n", "g"),
    ("javascript, autoclosed before more", "foo(", ")", "a) + bar", "a"),
    ("javascript, closed and opened again", "foo(", ")", "a) + bar(b", "a) + bar(b"),
    ("python, closed and opened again below", "x = f(", ")\n", "a)\ny = g(b", "a"),
    ("python, string closed and opened again", 'x = ("a', ' "d")\n', '", "b",', '", "b",'),
    ("python, string opened again below", 'x = ["a', '": 1]\n', '",\n    "b', ""),
    ("python, a word of the next line", "x = 1\n", "path = y\n", "# the path\n", "# the path\n"),
    ("c, one #endif after another", "#if A\n#if B\n", "\n#endif\nint x;\n", "a\n#endif", "a\n#endif"),
    ("python, a quote in other quotes", "f(", '"b")\n', "'\"', ", "'\"', "),
    ("python, half a ruler", "####", "####\n", "######", "######"),
    ("javascript, template", "let a = `", "`;\n", "x ${y}`;", "x ${y}"),
    (
        "c, next two short lines",
        "int f() {\n  ",
        "\n  i++;\n  j--;\n}\n",
        "k = 0;\n  i++;\n  j--;\n}",
        "k = 0;",
    ),
    ("c, for's semicolon", "for (int i = 0", "; i++)\n", "; i < n;", "; i < n"),
    ("go, tabs", "func f() {\n\t", "\n\treturn x\n}\n", "x := 1\n\treturn x\n}\n", "x := 1"),
    ("rust, a lifetime is no string", "fn f<'a>(x: &'a str", ") {}\n", ", y: &'a str)", ", y: &'a str"),
    ("crlf, next line", "a = 1\r\n", "\r\nb = 2222\r\n", "c = 3\nb = 2222\n", "c = 3"),
]


@pytest.mark.parametrize(
    ("prefix", "suffix", "middle", "wanted"), [c[1:] for c in OVERLAP], ids=[c[0] for c in OVERLAP]
)
def test_text_after_the_cursor_is_not_repeated(prefix: str, suffix: str, middle: str, wanted: str) -> None:
    done = postprocess(middle, prefix, suffix)
    assert done.text == wanted
    assert {cut.reason for cut in done.cuts} <= {"line", "suffix_overlap"}
    assert bool(done.cuts) == (middle != wanted)


@pytest.mark.parametrize(
    ("prefix", "suffix", "middle"), [c[1:4] for c in OVERLAP], ids=[c[0] for c in OVERLAP]
)
def test_overlap_stays_when_told_so(prefix: str, suffix: str, middle: str) -> None:
    kept = middle.partition("\n")[0] if Place.of(prefix, suffix).within_line else middle
    assert postprocess(middle, prefix, suffix, trim_overlap=False).text.replace("\r\n", "\n") == kept


# (name, prefix, suffix, middle, wanted): text follows on the cursor's line, so the answer stays on it.
WITHIN_LINE = [
    ("code on both sides", "x = f(", " + 1)\n", "a,\n    b", "a,"),
    ("a string is not cut in two", 'raise E("no ', ' here")\n', "file\n    return 1\n", "file"),
    ("nothing before the line end", "foo(", ")\nbar()\n", "\n    a,\n    b,\n)", ""),
    ("a closed bracket and a newline", "f(", ")\n", "a,  # (or b)\n", "a,  # (or b)"),
    ("the indentation alone", "def f():\n    ", "return x\n", "if y:\n        z\n    ", "if y:"),
    ("at column 0 whole lines come in", "a = 1\n", "d = 4\n", "b = 2\nc = 3\n", "b = 2\nc = 3\n"),
    (
        "the line behind brings its indentation",
        "def f():\n    ",
        "    c()\n",
        "a()\n    b()\n",
        "a()\n    b()\n",
    ),
    ("at the end of the line", "x = [", "\n]\n", "\n    1,\n", "\n    1,\n"),
    ("blanks are no text", "x = [", "  \n]\n", "\n    1,", "\n    1,"),
    ("crlf", "x = f(\r\n  a, ", " c)\r\n", "b,\r\n  d", "b,"),
]


@pytest.mark.parametrize("stop_at", [None, "line", "block"])
@pytest.mark.parametrize(
    ("prefix", "suffix", "middle", "wanted"), [c[1:] for c in WITHIN_LINE], ids=[c[0] for c in WITHIN_LINE]
)
def test_an_answer_stays_on_a_line_that_goes_on(
    prefix: str, suffix: str, middle: str, wanted: str, stop_at: str | None
) -> None:
    place = Place.of(prefix.replace("\r", ""), suffix.replace("\r", ""))
    done = postprocess(middle, prefix, suffix, stop_at=stop_at, trim_overlap=False)  # type: ignore[arg-type]
    if place.within_line:
        assert (done.text, done.cuts[0].reason) == (wanted, "line")
    elif stop_at is None:
        assert done == Processed(wanted)


BEFORE = [
    ("the line so far", "    x = foo(", ")\n", "x = foo(1", "1"),
    ("with its indentation", "    x = foo(", "\n", "    x = foo(1)", "1)"),
    ("and the blank at its end", "    return ", "\n", "return x", "x"),
    ("half a name goes on", "    self.na", "\n", "self.name = 1", "me = 1"),
    ("more than once", "x = y.", "\n", "x = y.x = y.z", "z"),
    ("too short", "ab(", ")\n", "ab(1)", "ab(1)"),
    ("a ruler", "# ---", "\n", "# --- # ---", "# --- # ---"),
    ("a longer name", "try:\n    a\nexcept", "\n", " exceptions.Error:", " exceptions.Error:"),
    ("a call of a call", "f(g(", "))\n", "g(x", "g(x"),
    (
        "a long line above",
        "def f():\n    total = []\n    ",
        "\n",
        "total = []\n    for x in y:",
        "for x in y:",
    ),
    ("a line above, written twice", "values = 1\n", "", "values = 1\nvalues = 1\nb = 2", "b = 2"),
    ("two short lines above", "a = 1\nb = 2\n", "", "a = 1\nb = 2\nc = 3\n", "c = 3\n"),
    ("blank lines aside", "a = 1\n\nb = 2\n\n", "", "\na = 1\nb  = 2\n\nc", "c"),
    ("nothing new", "def f(x):\n    return x + 1\n", "", "def f(x):\n    return x + 1\n", ""),
    ("one short line", "    i += 1\n    ", "\n", "i += 1\n    j", "i += 1\n    j"),
    ("two rulers", "------\n======\n", "", "------\n======\na", "------\n======\na"),
    ("closing brackets", "  }\n}\n", "\n", "}\n}\n", "}\n}\n"),
    ("further right", "def f():\n    total = 0\n", "", "        total = 0\n", "        total = 0\n"),
    ("not the last line above", "value = 1\nb = 2\n", "", "value = 1\nc = 3", "value = 1\nc = 3"),
]


@pytest.mark.parametrize(
    ("prefix", "suffix", "middle", "wanted"), [c[1:] for c in BEFORE], ids=[c[0] for c in BEFORE]
)
def test_text_before_the_cursor_is_not_repeated(prefix: str, suffix: str, middle: str, wanted: str) -> None:
    done = postprocess(middle, prefix, suffix)
    assert done.text == wanted
    assert ("prefix_overlap" in {cut.reason for cut in done.cuts}) == (middle != wanted)
    assert not {"prefix_overlap"} & {
        cut.reason for cut in postprocess(middle, prefix, suffix, trim_overlap=False).cuts
    }


LINE = [
    ("whole line before a line", "x = 1\n", "z = 3\n", "y = 2\nw = 4\n", "y = 2\n"),
    ("the suffix starts with the line's end", "x = 1\n", "\nz = 3\n", "y = 2\nw = 4\n", "y = 2"),
    ("leading newline kept", "def f():", "\n", "\n    return 1\n    return 2\n", "\n    return 1"),
    ("blank lines kept", "x = 1\n", "", "\n\ny = 2\nz = 3\n", "\n\ny = 2"),
    ("one line stays", "x = ", "\n", "1", "1"),
    ("only blanks stay", "x = 1\n", "y", "\n\n", "\n\n"),
    ("brackets finish the line", "foo(", ")\nbar()\n", "a,\n    b", "a,"),
    ("mid-line before another line", "x = ", "    return x\n", "1\n", "1"),
]


@pytest.mark.parametrize(
    ("prefix", "suffix", "middle", "wanted"), [c[1:] for c in LINE], ids=[c[0] for c in LINE]
)
def test_line(prefix: str, suffix: str, middle: str, wanted: str) -> None:
    assert cut_line(middle, Place.of(prefix, suffix)) == wanted
    assert postprocess(middle, prefix, suffix, stop_at="line").text == wanted


# (name, language, prefix, suffix, middle, wanted)
BLOCK = [
    (
        "python, body",
        "python",
        "def f(x):\n    ",
        "\n\ndef h(): pass\n",
        "if x:\n        y()\n    return 1\n\ndef g():\n    pass\n",
        "if x:\n        y()\n    return 1",
    ),
    (
        "python, after the colon",
        "python",
        "def f(x):",
        "\n",
        "\n    return x\n\ndef g():\n    pass",
        "\n    return x",
    ),
    (
        "python, else of the cursor's if",
        "python",
        "    if x:",
        "\n",
        "\n        a()\n    else:\n        b()\n    c()",
        "\n        a()\n    else:\n        b()",
    ),
    ("python, else of a line above", "python", "if x:\n    ", "\n", "a()\nelse:\n    b()", "a()"),
    (
        "python, top level",
        "python",
        "import os\n\n",
        "",
        "def f():\n    return 1\n\n\ndef g():\n    pass\n",
        "def f():\n    return 1",
    ),
    (
        "python, top level with else",
        "python",
        "",
        "",
        "if a:\n    b\nelse:\n    c\nd = 1",
        "if a:\n    b\nelse:\n    c",
    ),
    ("python, plain lines at column 0", "python", "", "", "a = 1\nb = 2\n", "a = 1\nb = 2\n"),
    (
        "python, keeps its newline before a line",
        "python",
        "def f(x):\n",
        "def g():\n",
        "    return x\n\nprint(f(1))\n",
        "    return x\n",
    ),
    (
        "javascript, own bracket kept",
        "javascript",
        "function f() {\n  ",
        "\n",
        "return 1;\n}\n\nfunction g() {\n}",
        "return 1;\n}",
    ),
    (
        "javascript, bracket in the suffix",
        "javascript",
        "function f() {\n  ",
        "\n}\n",
        "return 1;\n}\n\nfunction g() {\n}",
        "return 1;",
    ),
    (
        "javascript, else of the cursor's if",
        "javascript",
        "if (x) {",
        "\n",
        "\n  a();\n} else {\n  b();\n}\nc();",
        "\n  a();\n} else {\n  b();\n}",
    ),
    (
        "java, the suffix closes the class only",
        "java",
        "class A {\n  void f() {\n    ",
        "\n}\n",
        "x();\n  }\n\n  void g() {}\n",
        "x();\n  }",
    ),
    (
        "java, file cut off before the class",
        "java",
        "  void f() {\n    ",
        "\n\n  void g() {}\n}\n",
        "x();\n  }\n  int y;",
        "x();\n  }",
    ),
    (
        "c, directives at column 0",
        "c",
        "int f() {\n    ",
        "\n}\n",
        "a();\n#ifdef B\n    b();\n#endif\n    c();\n}\nint g;",
        "a();\n#ifdef B\n    b();\n#endif\n    c();",
    ),
    (
        "go, tabs",
        "go",
        "func f() {\n\t",
        "\n}\n",
        "if x {\n\t\ty()\n\t}\n\treturn\n}\n\nfunc g() {}\n",
        "if x {\n\t\ty()\n\t}\n\treturn",
    ),
    ("ruby, end in the suffix", "ruby", "def f\n  ", "\nend\n", "g\nend\n\ndef h", "g"),
    ("ruby, own end kept", "ruby", "def f\n  ", "\n", "g\nend\n\ndef h", "g\nend"),
    ("one line, surplus bracket", "c", "if (x) {", " }\n", " a(); } b();", " a();"),
]


@pytest.mark.parametrize(
    ("language", "prefix", "suffix", "middle", "wanted"), [c[1:] for c in BLOCK], ids=[c[0] for c in BLOCK]
)
def test_block(language: str, prefix: str, suffix: str, middle: str, wanted: str) -> None:
    assert postprocess(middle, prefix, suffix, stop_at="block", language=language).text == wanted
    guessed = postprocess(middle, prefix, suffix, stop_at="block").text
    assert guessed == wanted  # the comments' style is guessed right for all of these


def test_the_two_reasons_a_block_ends() -> None:
    dedent = postprocess("x()\ny()", "if a:\n    ", "\n", stop_at="block")
    assert dedent == Processed("x()", (Cut("dedent", "\ny()"),))
    bracket = postprocess("a, b) + c", "f(", " )\n", stop_at="block", trim_overlap=False)
    assert bracket == Processed("a, b", (Cut("block", ") + c"),))


INDENTATION = [
    ("repeats the indentation", "def f():\n    ", "    return 1\n    x", "return 1\n    x"),
    ("room for one level below an if", "    if x:\n    ", "    y()", "    y()"),
    ("room for one level only", "    if x:\n    ", "        y()", "    y()"),
    ("no room below a statement", "    x = 1\n    ", "    y = 2", "y = 2"),
    ("first level from column 0", "def f():\n", "    return 1", "    return 1"),
    ("two of four blanks typed", "class A:\n    def f(self):\n        x = 1\n  ", "  y = 2", "  y = 2"),
    ("aligned arguments", "    foobar(a,\n    ", "       b)", "       b)"),
    ("json member", '{\n  "a": 1,\n  ', '  "b": 2', '"b": 2'),
    ("star of a comment", "/**\n * a\n ", " * b", "* b"),
    ("mid-line blanks stay blanks", "func f() {\n\tx =", "    1", "    1"),
    ("mid-line blanks are not indentation", "x =", "  1", "  1"),
    ("lua, an opener without a mark", "    if x then\n    ", "    y()", "    y()"),
    ("spaces into tabs", "func f() {\n\t", "if x {\n        y()\n    }", "if x {\n\t\ty()\n\t}"),
    ("two spaces into tabs", "func f() {\n\t", "a()\n  b {\n      c\n  }", "a()\n\tb {\n\t\t\tc\n\t}"),
    ("odd spaces are left alone", "func f() {\n\t", "a(\n   b)", "a(\n   b)"),
    ("repeated, in the other kind", "func f() {\n\t", "    a()\n    b()", "a()\n\tb()"),
    ("tabs into two spaces", "if (a) {\n  if (b) {\n    ", "c();\n\t\td();", "c();\n    d();"),
    ("no indentation to go by", "x\n", "if a:\n\tb", "if a:\n\tb"),
]


@pytest.mark.parametrize(
    ("prefix", "middle", "wanted"), [c[1:] for c in INDENTATION], ids=[c[0] for c in INDENTATION]
)
def test_indentation(prefix: str, middle: str, wanted: str) -> None:
    assert fix_indentation(middle, Place.of(prefix, "")) == wanted
    assert postprocess(middle, prefix, "").text == wanted


UNINDENT = [
    ("else", "if a:\n    x()\n    ", "else:\n    y()", 4),
    ("elif of an outer if", "    if a:\n        for b in c:\n            x()\n        ", "elif d:", 4),
    ("except", "try:\n    x()\n    ", "except (A, B):", 4),
    ("finally after except", "try:\n    x()\nexcept A:\n    ", "finally:", 4),
    ("a sibling case", "switch (x) {\n  case 1:\n    a();\n    ", "case 2:", 2),
    ("closing brace", "func f() {\n\tx()\n\t", "}", 1),
    ("closing bracket of a call", "    foo(\n        a,\n        ", ")\n", 4),
    ("ruby end", "def f\n  x\n  ", "end", 2),
    ("shell fi", "if true; then\n    x\n    ", "fi", 4),
    ("right already", "if a:\n    x()\n", "else:", 0),
    ("an if on one line", "    if a: x()\n    ", "else: y()", 0),
    ("the if is closed already", "if a:\n    x()\ny = 1\nwhile b:\n    z()\n    ", "elif c:", 0),
    ("a name, not a word", "if a:\n    x()\n    ", "end = 5", 0),
    ("a name with a dot", "switch (x) {\n  case 1:\n    ", "default.run()", 0),
    ("mid-line", "if a:\n    x = b if c ", "else d", 0),
    ("nothing above", "    ", "else:", 0),
]


@pytest.mark.parametrize(
    ("prefix", "middle", "wanted"), [c[1:] for c in UNINDENT], ids=[c[0] for c in UNINDENT]
)
def test_unindent(prefix: str, middle: str, wanted: int) -> None:
    assert unindent(middle, Place.of(prefix, "")) == wanted
    assert postprocess(middle, prefix, "").unindent == wanted


def test_a_line_that_goes_left_loses_its_own_indentation() -> None:
    assert postprocess("    else:\n        y()", "    if a:\n        x()\n        ", "") == Processed(
        "else:\n        y()", (Cut("indentation", "    "),), 4
    )


def test_newlines() -> None:
    assert postprocess("x\n  y\r\nz", "a\r\nb\r\n", "\r\n") == Processed("x\r\n  y\r\nz")
    assert postprocess("x\r\ny\r\n", "a\r\n", "b\r\n") == Processed("x\r\ny\r\n")
    assert postprocess("x\r\ny\rz\r", "a\n", "b\n").text == "x\ny\nz\n"
    assert postprocess("x\ny", "a\r", "b", language="python").text == "x\ry"
    assert postprocess("\nx\n", "a\r\nb\r", "\n").text == "\r\nx\r\n"  # between CR and LF


def test_trailing_space() -> None:
    assert trim_trailing_space("x  \ty \t", Place.of("", "\nz")) == "x  \ty"
    assert trim_trailing_space("x ", Place.of("", "z")) == "x "
    assert postprocess("return x  ", "def f():\n    ", "\r\n") == Processed(
        "return x", (Cut("trailing_space", "  "),)
    )


def test_the_order_of_cuts_is_told() -> None:
    done = postprocess("    a()\n    b()\n    close()\n", "def f():\n    ", "\n    close()\n", stop_at="line")
    assert done.text == "a()"
    assert done.cuts == (
        Cut("indentation", "    "),
        Cut("suffix_overlap", "\n    close()\n"),
        Cut("line", "\n    b()"),
    )


def test_an_unknown_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="stop_at must be 'line', 'block' or None, got 'word'"):
        postprocess("", "", "", stop_at="word")  # type: ignore[arg-type]


def test_a_huge_file_costs_no_more_than_its_neighbourhood() -> None:
    line = '    x = foo("\\"(", [1, 2], \'don\\\'t)\n'
    assert postprocess("y)", "(" + line * 200_000 + "    f(", ")" + "\n" + line * 200_000).text == "y"


# Small alphabets: what makes a heuristic stumble is structure, not letters.
_PIECES = r"""
a|bc| |  |    |\t|\n|\r\n|\r|(|)|[|]|{|}|"|'|`|\"\"\"|:|;|,|=|#|//|/*|*/|\\|else:|end|if x:|} else {|\x0b
"""
_PIECE = st.sampled_from(
    [piece.encode("latin-1").decode("unicode_escape") for piece in _PIECES.strip().split("|")]
    + ["\n    ", "\n\t", "\n        return y", "\n}\n", "def f():\n    ", "case 1:", "#if"]
)
_TEXT = st.lists(_PIECE, max_size=14).map("".join)
_STOP = st.sampled_from([None, "line", "block"])


@given(_TEXT | st.text(), _TEXT | st.text(), _TEXT | st.text(), _STOP, st.booleans())
def test_a_processed_text_passes_untouched(
    middle: str, prefix: str, suffix: str, stop_at: str, trim: bool
) -> None:
    once = postprocess(middle, prefix, suffix, stop_at=stop_at, trim_overlap=trim)  # type: ignore[arg-type]
    again = postprocess(once.text, prefix, suffix, stop_at=stop_at, trim_overlap=trim)  # type: ignore[arg-type]
    assert again == Processed(once.text, (), once.unindent)


@given(_TEXT, _TEXT, _TEXT)
def test_each_step_alone_is_idempotent(middle: str, prefix: str, suffix: str) -> None:
    place = Place.of(prefix, suffix)
    for step in (cut_line, cut_dedent, cut_block, trim_trailing_space):
        once = step(middle, place)
        assert step(once, place) == once, step.__name__


@given(_TEXT, _TEXT, _TEXT)
def test_cuts_only_take_from_the_end(middle: str, prefix: str, suffix: str) -> None:
    place = Place.of(prefix, suffix)
    middle = middle.replace("\r", "")
    for step in (trim_suffix_overlap, cut_line, cut_dedent, cut_block, trim_trailing_space):
        kept = step(middle, place)
        assert middle.startswith(kept) or kept.endswith("\n"), step.__name__
        assert middle.startswith(kept.rstrip("\n")), step.__name__


@example(")", "(\n\x0b", "")  # a vertical tab is no indentation
@given(_TEXT, _TEXT, _TEXT)
def test_what_is_reported_gone_was_there(middle: str, prefix: str, suffix: str) -> None:
    done = postprocess(middle, prefix, suffix, stop_at="block")
    assert 0 <= done.unindent <= len(prefix)
    assert not prefix[len(prefix) - done.unindent :].strip(" \t")
    if not done.cuts:
        assert normalise(done.text) == normalise(middle)


@given(st.text(alphabet="abc xyz\n", max_size=40))
def test_an_empty_file_changes_nothing(middle: str) -> None:
    assert postprocess(middle, "", "").text == middle


@given(_TEXT, st.lists(st.sampled_from(["a = 1", "b = f(2)", "    c", ""]), min_size=1, max_size=5))
def test_line_ends_are_the_file_s(middle: str, lines: list[str]) -> None:
    crlf = "\r\n".join([*lines, ""])
    text = postprocess(middle, crlf, "\r\n" + crlf).text
    assert "\r\r\n" not in text
    assert text.count("\n") == text.count("\r\n")


@given(_TEXT, _TEXT)
def test_an_overlap_that_was_appended_is_found(middle: str, prefix: str) -> None:
    """Whatever stands before it, a line of the suffix repeated at its depth is where a middle ends."""
    suffix = "\n    unmistakable(line)\n    second(line)\n"
    text = postprocess(middle + suffix, prefix, suffix).text
    assert "unmistakable" not in text


@given(_TEXT, _TEXT, _TEXT, _STOP, st.booleans())
def test_both_seams_hold_for_any_text(
    middle: str, prefix: str, suffix: str, stop_at: str, trim: bool
) -> None:
    place = Place.of(normalise(prefix), normalise(suffix))
    text = process(middle, place, stop_at=stop_at, trim_overlap=trim).text  # type: ignore[arg-type]
    if place.within_line:
        assert "\n" not in text
    if place.head.strip() and place.head[-1] in " \t":
        assert text[:1] not in (" ", "\t")
    if place.suffix[:1] in (" ", "\t", "\n"):
        assert text[-1:] not in (" ", "\t")


@pytest.mark.parametrize(
    ("prefix", "suffix", "middle", "wanted", "reason"),
    [
        ("x = ", "\n", " 1", "1", "leading_space"),
        ("x =\t", "\n", " \t1", "1", "leading_space"),
        ("x =", "\n", " 1", " 1", None),
        ("a ", " c\n", "b ", "b", "trailing_space"),
        ("a ", "c\n", "b ", "b ", None),
        ("if x:\n    y\n    ", "    z\n", "a\n    ", "a\n", "trailing_space"),
        ("", "  x\n", "\n  ", "\n", "trailing_space"),
    ],
)
def test_no_blank_stands_twice(
    prefix: str, suffix: str, middle: str, wanted: str, reason: str | None
) -> None:
    done = postprocess(middle, prefix, suffix)
    assert (done.text, [cut.reason for cut in done.cuts]) == (wanted, [reason] if reason else [])


@given(_TEXT, _TEXT, st.integers(0, 60))
def test_a_beginning_that_goes_was_uncertain(middle: str, prefix: str, n: int) -> None:
    """Where an answer's beginning is repetition, every shorter answer says that it may be."""
    place = Place.of(normalise(prefix), "")
    middle = normalise(middle)
    kept = trim_prefix_overlap(middle, place)
    repeated = middle[: len(middle) - len(kept)].rstrip() if middle.endswith(kept) else ""
    assert not repeated or may_repeat_above(repeated[:n], place)


@given(
    st.lists(st.sampled_from(["alpha = 1", "b", "", "beta = f(2)"]), max_size=6),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_lines_from_above_are_uncertain_until_they_are_all_there(above: list[str], n: int, cut: int) -> None:
    place = Place.of("".join(f"{line}\n" for line in above), "")
    repeated = "".join(f"{line}\n" for line in place.above[-n:])
    assert may_repeat_above(repeated[: cut % (len(repeated) + 1)], place) or not place.above


def test_a_text_that_repeats_its_surroundings_without_end_is_dropped() -> None:
    """Each round takes one quote away, so the rounds would grow with the text, and the time with its square."""
    middle = "''' '''" * 500
    done = postprocess(middle, "def f(x):\n    ", middle, stop_at="block")
    assert done.text == ""
    assert len(done.cuts) < 50
    assert postprocess(done.text, "def f(x):\n    ", middle, stop_at="block").text == ""
