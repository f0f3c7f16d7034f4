"""The model and its cache: sizes, and that every way of running it gives the same numbers."""

import dataclasses
import itertools

import pytest
import torch

from codegen2.cache import KVCache
from codegen2.config import PRESETS, ModelConfig
from codegen2.model import CodeGen2, rotary_tables, rotate

CONFIG = ModelConfig(vocab_size=97, n_ctx=64, n_embd=48, n_layer=3, n_head=4, rotary_dim=8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = CodeGen2(CONFIG).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.2)
    return model


def ids(*shape, seed=1):
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def read(model, tokens, cache, start=0, rows=None):
    """Return the logits of tokens (B, T) read into rows of a cache behind their first `start` tokens."""
    B, T = tokens.shape
    positions = torch.arange(start, start + T).expand(B, T)
    return model(tokens, cache.slots(list(range(B)) if rows is None else rows, positions))


@pytest.mark.parametrize(
    ("name", "n_params"),
    [("1B", 1_015_306_240), ("3.7B", 3_641_174_016), ("7B", 6_862_858_240), ("16B", 16_032_155_648)],
)
def test_presets_have_the_released_sizes(name, n_params):
    config = PRESETS[name]
    with torch.device("meta"):  # of all layers one or two, as the others have the same shapes
        one, two = (
            sum(p.numel() for p in CodeGen2(dataclasses.replace(config, n_layer=n)).parameters())
            for n in (1, 2)
        )
    assert one + (config.n_layer - 1) * (two - one) == n_params == config.n_params


def test_nano_is_tied_and_counted():
    with torch.device("meta"):
        model = CodeGen2(PRESETS["nano"])
    assert sum(p.numel() for p in model.parameters()) == PRESETS["nano"].n_params
    assert PRESETS["nano"].n_head % 4 == 0
    assert PRESETS["nano"].head_dim >= 64


def test_rotation_by_hand():
    # Position 1, one pair: (1, 0) turns by one radian; the channel behind the rotary ones stays.
    cos, sin = rotary_tables(torch.tensor([[1]]), 2)
    turned = rotate(torch.tensor([[[[1.0, 0.0, 5.0]]]]), cos, sin)
    torch.testing.assert_close(turned, torch.tensor([[[[0.540302, 0.841471, 5.0]]]]))


def test_no_token_sees_what_follows(model):
    x = model.transformer.wte(ids(1, 10)).detach().requires_grad_()
    model.transformer.wte.register_forward_hook(hook := lambda *_: x)
    try:
        model.hidden(ids(1, 10))[0, 4].sum().backward()
    finally:
        model.transformer.wte._forward_hooks.clear()
        del hook
    norms = x.grad[0].norm(dim=-1)
    assert (norms[5:] == 0).all()
    assert (norms[:5] > 0).all()


@torch.inference_mode()
def test_prefill_and_steps_equal_the_whole(model):
    tokens = ids(2, 20)
    whole = model(tokens)
    cache = KVCache(CONFIG, 2, 32)
    cuts = [0, 7, *range(12, 21)]
    parts = [read(model, tokens[:, a:b], cache, a) for a, b in itertools.pairwise(cuts)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_reading_again_from_an_earlier_position_equals_cold(model):
    tokens, other = ids(1, 16), ids(1, 8, seed=2)
    cache = KVCache(CONFIG, 1, 64)
    read(model, tokens, cache)
    again = read(model, other, cache, 9)
    cold = model(torch.cat([tokens[:, :9], other], 1))[:, 9:]
    torch.testing.assert_close(again, cold, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_at_different_positions_equal_each_row_alone(model):
    lengths, cache = (12, 5, 9), KVCache(CONFIG, 4, 64)
    rows = [ids(1, n + 3, seed=n) for n in lengths]
    for b, row in enumerate(rows):
        read(model, row[:, : lengths[b]], cache, rows=[3 - b])
    step = torch.cat([row[:, -3:] for row in rows])
    positions = torch.tensor(lengths)[:, None] + torch.arange(3)
    got = model(step, cache.slots([3, 2, 1], positions))
    for b, row in enumerate(rows):
        torch.testing.assert_close(got[b], model(row)[0, -3:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_bfloat16_keeps_positions_and_softmax_in_float32(model):
    tables = rotary_tables(torch.arange(2048)[None], 64)
    assert tables[0].dtype == torch.float32
    low = CodeGen2(CONFIG).to(torch.bfloat16)
    low.load_state_dict(model.state_dict())
    tokens = ids(1, 40)
    got, exact = low(tokens), model(tokens)
    assert got.dtype == torch.float32
    # 8 bits of mantissa through three layers; positions in bfloat16 would be off by whole tokens from 256 on.
    assert (got - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_a_full_context_is_refused(model):
    with pytest.raises(ValueError, match="65 tokens do not fit 64"):
        model(ids(1, 65))
    cache = KVCache(CONFIG, 1, 4)
    with pytest.raises(ValueError, match="do not fit 4"):
        read(model, ids(1, 5), cache)
    with pytest.raises(ValueError, match="capacity 65"):
        KVCache(CONFIG, 1, 65)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 5}, "not a multiple"),
        ({"rotary_dim": 7}, "rotary_dim"),
        ({"n_layer": 0}, "n_layer"),
        ({"n_embd": "48"}, "n_embd"),
        ({"layer_norm_epsilon": 0}, "epsilon"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**({"n_embd": 48, "n_head": 4, "rotary_dim": 8} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gptj"}, "model_type"),
        ({"activation_function": "relu"}, "activation_function"),
        ({"n_layer": None}, "n_layer"),
        ({"head_dim": 13}, "head_dim"),
        ({"n_inner": 99}, "n_inner"),
    ],
)
def test_another_architecture_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(CONFIG.to_dict() | change)


def test_config_round_trip():
    assert ModelConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert ModelConfig.from_dict(CONFIG.to_dict() | {"n_inner": 4 * 48}) == CONFIG
