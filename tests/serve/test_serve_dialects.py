"""Other models' infill formats: what a client rendered is read back; code that mentions markers stays as it is."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen2.serve.fim_markers import FAMILIES, LLAMA, Markers, translate, with_extras

PLAIN = st.text(st.characters(exclude_characters="<[", exclude_categories=["Cs"]), max_size=60)
PIECES = [
    "<",
    ">",
    "\n",
    " ",
    "a",
    "[SUFFIX]",
    "[PREFIX]",
    "<mask_1>",
    "<mask_2>",
    "<|endoftext|><sep><mask_1>",
]
PIECES += [m for f in (*FAMILIES, LLAMA) for m in (f.begin, f.hole, f.end)] + ["<|file_sep|>x\n", "<s>"]
HOSTILE = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
family = pytest.mark.parametrize("markers", FAMILIES, ids=lambda m: m.begin)


@family
@given(prefix=PLAIN, suffix=PLAIN)
def test_prefix_first(markers: Markers, prefix: str, suffix: str) -> None:
    assert translate(f"{markers.begin}{prefix}{markers.hole}{suffix}{markers.end}") == (prefix, suffix)


@family
@given(prefix=PLAIN.filter(str.strip), suffix=PLAIN)
def test_suffix_first(markers: Markers, prefix: str, suffix: str) -> None:
    assert translate(f"{markers.begin}{markers.hole}{suffix}{markers.end}{prefix}") == (prefix, suffix)
    assert translate(f"{markers.hole}{suffix}{markers.begin}{prefix}{markers.end}") == (prefix, suffix)


@given(prefix=PLAIN, suffix=PLAIN.filter(lambda s: not s.startswith((" \n", " \r\n"))))
def test_codellama(prefix: str, suffix: str) -> None:
    assert translate(f"<PRE> {prefix} <SUF>{suffix} <MID>") == (prefix, suffix)
    if prefix.strip():
        assert translate(f"<PRE> <SUF>{suffix} <MID> {prefix}") == (prefix, suffix)


@given(prefix=PLAIN, suffix=PLAIN)
def test_codestral_and_our_own(prefix: str, suffix: str) -> None:
    assert translate(f"[SUFFIX]{suffix}[PREFIX]{prefix}") == (prefix, suffix)
    assert translate(f"<s>[SUFFIX]{suffix}[PREFIX]{prefix}") == (prefix, suffix)
    assert translate(f"{prefix}<mask_1>{suffix}<|endoftext|><sep><mask_1>") == (prefix, suffix)


@given(PLAIN)
def test_code_without_markers_is_left_alone(text: str) -> None:
    assert translate(text) is None


@given(HOSTILE)
def test_never_fails_and_makes_nothing_up(prompt: str) -> None:
    found = translate(prompt)
    assert found is None or not Counter("".join(found)) - Counter(prompt + "\n")


@family
@given(prefix=HOSTILE, suffix=HOSTILE)
def test_nothing_of_a_marked_text_is_lost(markers: Markers, prefix: str, suffix: str) -> None:
    """Code that mentions markers may be split at another place, but all of it is there."""
    inside = f"x{prefix}{markers.hole}{suffix}"
    found = translate(f"{markers.begin}{inside}{markers.end}")
    assert found is not None and f"{found[0]}{markers.hole}{found[1]}" == inside


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "<fim_prefix>",
        "print('<fim_prefix>a<fim_suffix>b<fim_middle>')\n",  # ends with something else
        "<fim_prefix>a<fim_middle>",  # no hole
        "<fim_prefix>a<fim_suffix>b",  # no end
        "<PRE> a <SUF>b",
        "[SUFFIX]a",
        "a [SUFFIX]b[PREFIX]c",
        "a<mask_1>b",
        "a<mask_1>b<mask_2>c<|endoftext|><sep><mask_1>",  # two holes are another matter
        "a<mask_1>b<|endoftext|><sep><mask_1>c\nd",  # a text about the format
        "<|endoftext|><sep><mask_1>",
        "<fim_prefix>a<|fim_suffix|>b<fim-middle>",  # of three families
    ],
)
def test_what_is_no_such_format(prompt: str) -> None:
    assert translate(prompt) is None


def test_other_files_stay_before_the_prefix_without_their_names() -> None:
    files = "<|repo_name|>r\n<|file_sep|>a.py\nimport os\n<|file_sep|>b.py\n"
    qwen = files + "<|fim_prefix|>x = <|fim_suffix|>\n<|fim_middle|>"
    assert translate(qwen) == ("import os\nx = ", "\n")
    starcoder = "<repo_name>r\n<file_sep>a.py\nimport os\n<fim_prefix>x<fim_suffix>y<fim_middle>"
    assert translate(starcoder) == ("import os\nx", "y")


def test_a_file_that_runs_into_the_marker_gets_its_line_end() -> None:
    """minuet's recipe joins them without one, and llama.vscode writes its context before <PRE>."""
    assert translate("<|file_sep|>a.py\nimport os<|fim_prefix|>x<|fim_suffix|>y<|fim_middle|>") == (
        "import os\nx",
        "y",
    )
    assert translate("Context:\n\na = 1<PRE> x <SUF>y <MID>") == ("Context:\n\na = 1\nx", "y")


def test_what_templates_add_is_not_code() -> None:
    assert translate("<fim_prefix>a<fim_suffix>b<fim_middle>\n") == ("a", "b")
    assert translate("<｜begin▁of▁sentence｜><｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>") == ("a", "b")  # noqa: RUF001
    assert translate("<PRE> a <SUF> \nb <MID>") == ("a", "\nb")  # twinny's blank after <SUF>
    assert translate("<PRE> a <SUF> b <MID>") == ("a", " b")  # may be code: kept


def test_the_line_typed_so_far_goes_to_the_prefix() -> None:
    assert translate("def f():\n<mask_1>\n<|endoftext|><sep><mask_1>    ret") == ("def f():\n    ret", "\n")


def test_extras_never_take_the_files_own_room() -> None:
    extras = ["o" * 30, "n" * 10]
    assert with_extras("x", "y", extras, 400) == "o" * 30 + "\n\n" + "n" * 10 + "\n\nx"
    assert (
        with_extras("x", "y", extras, 60) == "n" * 10 + "\n\nx"
    )  # the last fits a quarter, the first does not
    assert with_extras("x" * 30, "y" * 30, extras, 60) == "x" * 30
    assert with_extras("x", "", [" \n"], 400) == "x"


def test_extras_stay_the_same_while_somebody_types() -> None:
    """So what has been read of them need not be read again."""
    extras = ["a" * 20, "b" * 20]
    heads = {with_extras("x" * n, "", extras, 120)[:-n] for n in range(1, 60)}
    assert len(heads) == 1 and heads != {""}
