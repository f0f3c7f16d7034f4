"""The tokenizer against literal ids, the released files where they exist, and what must never happen."""

import json
import random
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen2.config import EOT
from codegen2.text.tokenizer import Tokenizer, control_tokens

CASES = json.loads((Path(__file__).parents[1] / "fixtures" / "tokenizer-cases.json").read_text("utf-8"))
RELEASED = Path(__file__).parents[3] / "shared" / "tokenizer" / "tokenizer.json"
TOK = Tokenizer()

# Pieces that meet at awkward places: control strings, their beginnings, runs of white space, half characters.
PIECES = [*"<>|_ \t\n\r1a'", "<mask_1>", "<mask_", "mask_12>", "<|endoftext|>", "<|endof", "<sep>", "<eom>", "<eom",
          "<dummy_3>", "<mask_900>", "  ", " " * 31, " " * 40, "\t\t", "\t" * 10, "\r\n", "é", "漢字", "🙂", "\u00a0",
          "\u2003", "'ll", "Ġ", "def ", "12345"]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


def is_control(i: int) -> bool:
    return i == EOT or i >= 50295


@pytest.mark.parametrize("case", CASES, ids=lambda c: repr(c["text"][:20]))
def test_released_ids(case):
    assert TOK.encode(case["text"], allow_control=True) == case["ids"]


def test_whitespace_runs_are_matched_longest_first():
    assert TOK.encode(" " * 40 + "x") == [50257, 50279, 87]
    assert TOK.encode(" " * 63) == [50257, 50257, 220]
    assert TOK.encode("\t\tx") == [50294, 87]


def test_control_rules():
    tokens = control_tokens()
    assert (tokens["<dummy_0>"], tokens["<dummy_3>"], tokens["<mask_899>"], tokens["<mask_1>"]) == (
        50295, 50298, 50301, 51199,
    )  # fmt: skip
    assert len(tokens) == 1 + 4 + 2 + 899
    assert TOK.vocab_size == 51200


@given(TEXTS)
def test_text_never_becomes_a_control_token_and_comes_back(text):
    ids = TOK.encode(text)
    assert not any(map(is_control, ids))
    assert TOK.decode(ids) == text
    assert TOK.decode_bytes(ids) == text.encode()


@given(TEXTS)
def test_allowing_control_changes_nothing_else(text):
    ids = TOK.encode(text, allow_control=True)
    assert TOK.decode(ids) == text
    if not any(control in text for control in control_tokens()):
        assert ids == TOK.encode(text)


@given(st.lists(st.integers(0, 51199), max_size=20))
def test_any_ids_decode(ids):
    assert isinstance(TOK.decode(ids), str)


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="51200 is not in the vocabulary"):
        TOK.decode([51200])
    with pytest.raises(ValueError, match="character 1 is a lone surrogate"):
        TOK.encode("a\ud800b")


def test_a_megabyte_of_one_line():
    text = "x" * 300_000 + "(" * 300_000 + " " * 400_000
    assert TOK.decode(TOK.encode(text)) == text


def test_batch_is_one_by_one():
    texts = [c["text"] for c in CASES]
    assert TOK.encode_batch(texts) == [TOK.encode(t) for t in texts]


def _tokenizer_json(**changes):
    return {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<end>": 3}, "merges": ["a b"]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "decoder": {"type": "ByteLevel"},
        "normalizer": None,
        "added_tokens": [{"id": 3, "content": "<end>"}, {"id": 4, "content": "  "}],
    } | changes


def test_a_checkpoints_own_file_is_honoured(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_tokenizer_json()))
    own = Tokenizer.from_file(path)
    assert own.encode("aab  b") == [0, 2, 4, 1]
    assert own.encode("ab<end>", allow_control=True) == [2, 3]
    assert own.decode([2, 3, 4]) == "ab<end>  "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": {}, "merges": []}}, "byte-level BPE"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"normalizer": {"type": "NFC"}}, "normalizer"),
        ({"model": None}, "not a tokenizer.json"),
        ({"model": {"type": "BPE", "vocab": {"\u4e00": 0}, "merges": []}}, "byte alphabet"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, changes, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_tokenizer_json(**changes)))
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_file(path)


@pytest.mark.shared
@pytest.mark.parametrize("every", [15, pytest.param(1, marks=pytest.mark.slow)])
def test_equals_the_released_tokenizer(every):
    import tokenizers

    released = tokenizers.Tokenizer.from_file(str(RELEASED))
    own = Tokenizer.from_file(RELEASED)
    rng = random.Random(1)
    texts = ["".join(rng.choice(PIECES) for _ in range(rng.randrange(15))) for _ in range(3000)]
    texts += ["".join(chr(rng.randrange(32, 0x2FFF)) for _ in range(rng.randrange(40))) for _ in range(500)]
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts += [p.read_text("utf-8", errors="replace") for p in library]
    assert len(library) > 100
    for text in texts[::every]:
        expected = released.encode(text, add_special_tokens=False).ids
        assert TOK.encode(text, allow_control=True) == expected
        assert own.encode(text, allow_control=True) == expected
