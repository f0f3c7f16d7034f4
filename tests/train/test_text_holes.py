"""Holes cut in the text: the sequences of the script that the box was trained by, and nothing lost."""

import hashlib
import itertools

import numpy as np
import pytest
from documents import read_document
from hypothesis import given
from hypothesis import strategies as st

from codegen2.text.infill import MAX_HOLES, SEP
from codegen2.text.tokenizer import Tokenizer
from codegen2.train.corruption import CorruptionConfig
from codegen2.train.data import sequences
from codegen2.train.tables import Tables
from codegen2.train.text_holes import KINDS, choose_hole, choose_holes, corrupt_text_to_fit, cut_holes

TABLES = Tables.of(Tokenizer(), 51200)
CONFIG = CorruptionConfig(causal_probability=0.25, line_span_piece=(48, 400), text_hole_probability=0.95)
TEXT = 'def f(a, b):\n    """Über.\n    Prose.\n    """\n    return g(a[0], {"é": b})\n\n# note\nx = 1\n'
PATTERNS = {
    "\n": [
        'def {0}({1}, {2}=None):\n    """Return {1} of {0}, naïve."""\n    # größer {2}\n    return {1}[{2}] + 7\n\n\n'
    ],
    "\r\n": [
        "int {0}(char *{1}, int {2}) {{\n  // größer {2}\n  if ({1}[{2}] == 'é') return {2};\n  return 0;\n}}\n\n",
        "function {0}({1}) {{\n  const {2} = [{1}, `ñ`];\n  return {2}.map((x) => x + {1});\n}}\n",
    ],
    "\n\n": ["select {0}, count({1}) from {2}\nwhere {1} > 3 -- Größe\ngroup by {0};\n"],
}


class Corpus:
    """Texts of a few languages with both line ends; each letter is one token, since of one cut in two the script lost
    a half."""

    def __init__(self):
        rng, names = np.random.default_rng(1), ["total", "n", "value_of", "idx", "größe", "camelCase", "row"]
        texts = []
        for newline, patterns in itertools.islice(itertools.cycle(PATTERNS.items()), 60):
            parts = [
                patterns[i].format(*rng.choice(names, 3))
                for i in rng.integers(0, len(patterns), rng.integers(1, 40))
            ]
            texts.append("".join(parts).replace("\n", newline))
        self.docs = [np.array(ids, dtype=np.uint16) for ids in TABLES.encode(texts)]

    def __len__(self):
        return len(self.docs)

    def __getitem__(self, i):
        return self.docs[i]


def test_sequences_are_those_of_the_script_that_the_box_was_trained_by():
    found = itertools.islice(sequences(Corpus(), 512, CONFIG, 20261127, TABLES, shuffle=False), 50)
    digests = [hashlib.sha256(row.astype("<i8").tobytes()).hexdigest()[:8] for row, _ in found]
    assert " ".join(digests) == DIGESTS


def in_pieces(data):
    return TABLES.encode([data.decode("utf-8", "surrogateescape")])[0]


@given(
    st.lists(
        st.sampled_from(
            [
                *TEXT.encode().splitlines(keepends=True),
                b"\r\n",
                b"\xff",
                b"\xe6\xbc",
                "漢字 (x)\r\n".encode(),
                b"  y = [1, 2]",
            ]
        ),
        max_size=40,
    ),
    st.integers(0, 99),
    st.integers(32, 300),
)
def test_a_filled_document_is_the_text_byte_by_byte(parts, seed, room):
    data = b"".join(parts)
    tokens = np.array(in_pieces(data), dtype=np.uint16)
    document, used = corrupt_text_to_fit(tokens, room, CONFIG, np.random.default_rng(seed), [seed], TABLES)
    assert len(document) <= room and used <= len(tokens)
    if document:
        decode = TABLES.tokenizer.decode_bytes
        assert decode(read_document(document)) == decode(tokens[:used].tolist())
        assert SEP in document
    else:
        assert used == 0


@given(st.text(alphabet="ab_ \t\n\r(){}[]#\"'é漢\udcff", max_size=120) | st.just(TEXT), st.integers(0, 999))
def test_holes_lie_inside_and_never_touch(text, seed):
    holes = choose_holes(text, np.random.default_rng(seed))
    edges = [edge for hole in holes for edge in hole]
    assert edges == sorted(set(edges)) and all(0 <= edge <= len(text) for edge in edges)
    document = cut_holes(text, holes, TABLES)
    masks = sum(i >= 51200 - MAX_HOLES for i in document)
    assert masks == 2 * len(holes)


def test_kinds_are_what_they_are_called():
    rng = np.random.default_rng(0)
    for kind in KINDS:
        holes = {TEXT[a:b] for a, b in filter(None, (choose_hole(TEXT, kind, rng) for _ in range(300)))}
        assert holes, kind
        assert kind != "line" or holes <= set(TEXT.splitlines(keepends=True))
        assert kind != "rest" or holes <= {line.lstrip() for line in TEXT.splitlines()}
        assert kind != "bracket" or holes == {"a, b", "0", '"é": b'}
        assert kind != "tail" or all(
            any(line.endswith(h) and line != h for line in TEXT.splitlines()) for h in holes
        )
        assert kind != "lines" or max(h.count("\n") for h in holes) > 3
        assert max(map(len, holes)) <= 200


def test_prose_is_asked_for_seldom():
    rng = np.random.default_rng(0)
    lines = [TEXT[slice(*choose_hole(TEXT, "line", rng))] for _ in range(1000)]
    prose = sum("Prose" in line or "note" in line or line == '    """\n' for line in lines) / 1000
    assert 0.02 < prose < 0.25  # of six lines that count three are prose


def test_tables_without_a_tokenizer_and_odd_shares_are_refused():
    with pytest.raises(AssertionError, match="without a tokenizer"):
        Tables([b"a"]).encode(["a"])
    with pytest.raises(ValueError, match=r"text_hole_probability must be in 0\.\.1, got 2"):
        CorruptionConfig(text_hole_probability=2)


DIGESTS = (
    "69db4dc3 73b95da6 eab42346 5ab64c2d 64f24959 8a66c952 09603528 4846d6ce 778ccee3 42347e79 d572668a cccd3506 "
    "10cf5369 d6955c53 1dc84e21 0cc014c9 17fb254a 3151adef aab9f410 35006c9f deb25e6a c2a39b2e 7a38d454 31e86357 "
    "341143bc 8963418d bf1a1317 e753be08 38f154cd 9f9b4e41 500b3c99 c3fa58a1 1f10de22 85d7fc07 2e9c501a f156686f "
    "5b7db416 a7a0d18d 704194c5 5d758c8c 6b4f86f0 8a79a7bd 026b8547 1e4f604f 67b3f1b4 bb455003 1a653bb5 ee8b997f "
    "b70e90d8 bbec4aa5"
)
