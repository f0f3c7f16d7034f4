"""The forward pass on ragged rows, of both engines: rows beside each other, cut anywhere, copied and read again."""

import threading

import numpy as np
import pytest
from tiny import random_engine

from codegen2.config import ModelConfig
from codegen2.engine.protocol import Cancelled, Piece

CONFIG = ModelConfig(vocab_size=300, n_ctx=128, n_embd=64, n_layer=2, n_head=2, rotary_dim=8)


@pytest.fixture(scope="module", params=["native", pytest.param("reference", marks=pytest.mark.torch)])
def engine(request):
    return random_engine(request.param, CONFIG, spread=0.1)


def tokens(n, seed=0):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, n).tolist()


def alone(engine, ids):
    """Return the logits (T, V) after each of the ids, read at once into a cache of one row."""
    n = len(ids)
    return engine.forward([Piece(0, 0, ids, n, n)], engine.new_cache(1, n))[0]


def same(engine, got, right):
    """Assert that logits are the same bits, or near where the engine promises no more."""
    if engine.exact_rows:
        np.testing.assert_array_equal(got, right)
    else:
        np.testing.assert_allclose(got, right, atol=2e-5)


@pytest.mark.parametrize("cuts", [[60], [1, 2, 5, 60], [30, *range(31, 61)]])
def test_pieces_of_a_row_equal_the_whole(engine, cuts):
    ids = tokens(60)
    cache, start, got = engine.new_cache(1, 60), 0, []
    for end in cuts:
        got += engine.forward([Piece(0, start, ids[start:end], end - start, 0)], cache)
        start = end
    same(engine, np.concatenate(got), alone(engine, ids))


def test_a_row_of_a_ragged_batch_equals_the_row_alone(engine):
    """Prompts of all lengths beside decode steps, then a decode step of each row."""
    lengths = [1, 2, 3, 7, 8, 9, 16, 40, 70, 90]
    rows = [tokens(n + 1, seed=n) for n in lengths]
    cache = engine.new_cache(len(rows) + 1, 100)
    order = np.random.default_rng(0).permutation(len(rows))
    pieces = [Piece(int(b) + 1, 0, rows[b][:-1], min(3, lengths[b]), lengths[b]) for b in order]
    for piece, logits in zip(pieces, engine.forward(pieces, cache), strict=True):
        right = alone(engine, rows[piece.row - 1][:-1])
        assert logits.shape == (piece.n_logits, CONFIG.vocab_size)
        same(engine, logits, right[-piece.n_logits :])
    steps = [Piece(b + 1, lengths[b], rows[b][-1:], 1, 0) for b in range(len(rows))]
    for piece, logits in zip(steps, engine.forward(steps, cache), strict=True):
        same(engine, logits[0], alone(engine, rows[piece.row - 1])[-1])


def test_a_piece_without_logits(engine):
    ids, cache = tokens(9), engine.new_cache(2, 9)
    none, one = engine.forward([Piece(1, 0, ids[:8], 0, 8), Piece(0, 0, ids, 1, 9)], cache)
    assert none.shape == (0, CONFIG.vocab_size)
    same(engine, one[0], alone(engine, ids)[-1])
    assert engine.forward([], cache) == []


def test_reading_from_an_earlier_start_forgets_the_rest(engine):
    ids, other = tokens(50), tokens(4, seed=1)
    cache = engine.new_cache(2, 50)
    engine.forward([Piece(1, 0, ids, 0, 50)], cache)
    # A short piece beside a longer one: what fills the batch up writes over nothing.
    got = engine.forward([Piece(1, 20, other[:3], 3, 3), Piece(0, 0, other, 4, 4)], cache)
    same(engine, got[0], alone(engine, ids[:20] + other[:3])[20:])
    same(
        engine,
        engine.forward([Piece(1, 23, ids[:1], 1, 0)], cache)[0],
        alone(engine, ids[:20] + other[:3] + ids[:1])[-1:],
    )
    engine.forward([Piece(0, 4, tokens(46, 2), 0, 46)], cache)
    # Tokens 0..19 of row 1 are untouched by all of it.
    same(engine, engine.forward([Piece(1, 20, ids[20:21], 1, 1)], cache)[0], alone(engine, ids[:21])[-1:])


def test_a_row_filled_to_its_end_beside_a_longer_piece(engine):
    ids, cache = tokens(30), engine.new_cache(2, 30)
    engine.forward([Piece(0, 0, ids[:27], 0, 27)], cache)
    got = engine.forward([Piece(0, 27, ids[27:], 3, 0), Piece(1, 0, ids[:4], 1, 4)], cache)
    same(engine, got[0], alone(engine, ids)[27:])


@pytest.mark.parametrize(("source", "target"), [(0, 2), (2, 0)])
def test_a_copied_row_goes_on_like_the_first(engine, source, target):
    ids = tokens(40)
    cache = engine.new_cache(3, 50)
    rest = tokens(45, seed=3)
    engine.forward(
        [Piece(source, 0, ids, 0, 40), Piece(1, 0, rest, 0, 45), Piece(target, 0, rest, 0, 45)], cache
    )
    engine.copy_row(cache, source, target, 33)
    got = engine.forward(
        [Piece(target, 33, ids[33:], 7, 7), Piece(source, 40, ids[:1], 1, 0), Piece(1, 45, ids[:1], 1, 0)],
        cache,
    )
    same(engine, got[0], alone(engine, ids)[33:])
    same(engine, got[1], alone(engine, ids + ids[:1])[-1:])
    same(engine, got[2], alone(engine, rest + ids[:1])[-1:])


def test_hidden_and_logprobs_are_of_the_same_pass(engine):
    ids = tokens(40)
    logits = alone(engine, ids).astype(np.float64)
    lse = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    right = logits[np.arange(39), ids[1:]] - lse[:-1]
    np.testing.assert_allclose(engine.token_logprobs(np.array([ids]))[0], right, atol=1e-4)
    assert engine.hidden(np.array([ids, ids])).shape == (2, 40, CONFIG.n_embd)
    assert engine.token_logprobs(np.array([ids[:1]])).shape == (1, 0)


def test_what_is_out_of_range_is_refused(engine):
    cache = engine.new_cache(1, 8)
    for ids, message in (
        ([3, 300], r"token id 300 is outside this model's vocabulary 0\.\.299"),
        ([-1], "token id -1 is outside"),
        ([0] * 9, "0 tokens cached and 9 new do not fit 8; shorten"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.forward([Piece(0, 0, ids, 1, 0)], cache)
    with pytest.raises(ValueError, match="8 tokens cached and 1 new do not fit 8"):
        engine.forward([Piece(0, 8, [1], 1, 0)], cache)
    with pytest.raises(ValueError, match="129 tokens do not fit 128"):
        engine.hidden(np.zeros((1, 129), np.int64))
    with pytest.raises(ValueError, match=r"capacity 129 is outside 1\.\.128"):
        engine.new_cache(1, 129)


def test_a_cancelled_call_leaves_the_cache_as_it_was(engine):
    ids, cancel = tokens(60), threading.Event()
    cache = engine.new_cache(1, 128)
    engine.forward([Piece(0, 0, ids[:30], 0, 30)], cache)
    cancel.set()
    with pytest.raises(Cancelled), engine.cancelled_by(cancel):
        while True:  # the flag may be seen a moment later
            engine.forward([Piece(0, 30, ids[30:], 1, 30)], cache)
    same(engine, engine.forward([Piece(0, 30, ids[30:], 30, 30)], cache)[0], alone(engine, ids)[30:])


def test_bytes_of_a_token(engine):
    assert engine.bytes_per_token == 2 * CONFIG.n_layer * CONFIG.n_embd * 4
    narrow = random_engine("native", CONFIG, kind="int8")
    assert narrow.bytes_per_token == 2 * CONFIG.n_layer * CONFIG.n_embd * 2
