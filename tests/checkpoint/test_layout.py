"""Names, shapes, QKV order: the rule of the grouping, and errors that name file, key, expectation and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import GOLDENS, golden, regroup, write_checkpoint

from codegen2.checkpoint import room
from codegen2.checkpoint.layout import (
    expected_tensors,
    group_qkv,
    load_config,
    qkv_groups,
    qkv_row_order,
    ungroup_qkv,
)
from codegen2.checkpoint.load import load_model
from codegen2.checkpoint.weights import open_weights
from codegen2.config import PRESETS, ModelConfig


def test_toy_order_by_hand() -> None:
    stored = np.array(["q0", "q1", "v0", "v1", "k0", "k1", "q2", "q3", "v2", "v3", "k2", "k3"])
    ours = ["q0", "q1", "q2", "q3", "k0", "k1", "k2", "k3", "v0", "v1", "v2", "v3"]
    assert ungroup_qkv(stored, 2).tolist() == ours
    assert group_qkv(np.array(ours), 2).tolist() == stored.tolist()
    one = ["q0", "q1", "q2", "q3", "v0", "v1", "v2", "v3", "k0", "k1", "k2", "k3"]
    assert group_qkv(np.array(ours), 1).tolist() == one


@pytest.mark.parametrize("g", [1, 2, 4, 8, 16])
def test_order_is_the_view_and_swap_of_the_facts(g: int) -> None:
    w = np.random.default_rng(0).normal(size=(3 * 16, 5))
    q, v, k = w.reshape(g, 3, 16 // g, 5).swapaxes(0, 1)
    assert np.array_equal(ungroup_qkv(w, g), np.concatenate([a.reshape(16, 5) for a in (q, k, v)]))
    assert np.array_equal(group_qkv(ungroup_qkv(w, g), g), w)
    assert sorted(qkv_row_order(16, g)) == list(range(48))


@pytest.mark.parametrize(
    ("raw", "g"),
    [
        ({}, 4),
        ({"head_dim": 16}, 8),
        ({"mp_num": 1}, 1),
        ({"mp_num": 4, "head_dim": 16}, 4),
        ({"mp_num": 8}, 8),
    ],
)
def test_rule(raw: dict[str, Any], g: int) -> None:
    assert qkv_groups({"n_embd": 64} | raw) == g


@pytest.mark.parametrize("mp_num", [0, -4, 3, "8", 4.0, None, True, 128])
def test_bad_mp_num(tmp_path: Path, mp_num: Any) -> None:
    raw, tensors, _ = golden("tiny-mp4")
    write_checkpoint(tmp_path, raw | {"mp_num": mp_num, "n_embd": 128}, tensors)
    if mp_num == 128:
        assert open_weights(tmp_path).groups == 128
        return
    with pytest.raises(ValueError, match=r"config\.json: .* QKV groups, expected .* correct mp_num"):
        open_weights(tmp_path)


def test_names_and_shapes_are_the_models() -> None:
    from codegen2.model import CodeGen2

    for tied in (False, True):
        config = ModelConfig(
            vocab_size=64, n_embd=32, n_head=2, n_layer=2, rotary_dim=8, tie_word_embeddings=tied
        )
        own = {n: tuple(p.shape) for n, p in CodeGen2(config).named_parameters()}
        assert expected_tensors(config) == own


def test_parameters_count() -> None:
    for config in PRESETS.values():
        assert sum(int(np.prod(s)) for s in expected_tensors(config).values()) == config.n_params


Change = dict[str, torch.Tensor | None]


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.ln_f.bias": None}, r"transformer\.ln_f\.bias is missing \(1 of 21 weights\)"),
        ({"lm_head.weight": None, "lm_head.bias": None}, r"lm_head\.weight is missing \(2 of 21 weights\)"),
        (
            {"transformer.wpe.weight": torch.zeros(2)},
            r"wpe\.weight is not a weight of a CodeGen2 model with 2 layers",
        ),
        ({"transformer.h.2.ln_1.bias": torch.zeros(128)}, r"h\.2\.ln_1\.bias is not a weight"),
        ({"transformer.ln_f.bias": torch.zeros(127)}, r"ln_f\.bias has shape \(127,\), expected \(128,\)"),
        ({"transformer.ln_f.bias": torch.zeros(128, 1)}, r"shape \(128, 1\), expected \(128,\)"),
        (
            {"transformer.ln_f.bias": torch.zeros(128, dtype=torch.int8)},
            r"ln_f\.bias is int8, expected one of float32",
        ),
    ],
)
def test_wrong_tensors(tmp_path: Path, change: Change, message: str, form: str) -> None:
    raw, tensors, _ = golden("tiny-mp4")
    changed = {n: t for n, t in (tensors | change).items() if t is not None}
    write_checkpoint(tmp_path, raw, changed, form)
    with pytest.raises(ValueError, match=message) as caught:
        open_weights(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_buffers_are_passed_over(tmp_path: Path) -> None:
    raw, tensors, expected = golden("tiny-mp4")
    more = {f"transformer.h.0.attn.{n}": torch.ones(3, 3) for n in ("bias", "masked_bias")}
    write_checkpoint(tmp_path, raw, tensors | more)
    with torch.no_grad():
        got = load_model(tmp_path)(expected["input_ids"])
    assert torch.allclose(got, expected["logits"], atol=1e-4)


def test_tied_head_may_be_absent_or_equal_but_not_different(tmp_path: Path) -> None:
    raw, tensors, _ = golden("tiny-mp4")
    raw |= {"tie_word_embeddings": True}
    head = tensors.pop("lm_head.weight")
    wte = tensors["transformer.wte.weight"]
    model = load_model(write_checkpoint(tmp_path / "absent", raw, tensors))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, wte)
    open_weights(write_checkpoint(tmp_path / "equal", raw, tensors | {"lm_head.weight": wte.clone()}))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from transformer\.wte\.weight"):
        open_weights(write_checkpoint(tmp_path / "different", raw, tensors | {"lm_head.weight": head}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "holds a list, expected a JSON object"),
        ("{}", "model_type is None, expected 'codegen'"),
        ('{"model_type": "codegen"}', "missing vocab_size"),
        ('{"model_type": "llama"}', "'llama'"),
        ('{"model_type": "codegen", "model_type": "codegen"}', "occurs twice"),
    ],
)
def test_config_faults(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        load_config(tmp_path)


def test_config_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: not found; give a checkpoint's directory"):
        load_config(tmp_path)


def test_config_read() -> None:
    config, raw = load_config(GOLDENS / "tiny-mp8")
    assert (config.n_embd, config.n_head, config.n_ctx, config.rotary_dim, config.vocab_size) == (
        128,
        8,
        256,
        8,
        512,
    )
    assert raw == json.loads((GOLDENS / "tiny-mp8" / "config.json").read_text())


def test_weights_come_in_our_order_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "transformer.h.1.attn.qkv_proj.weight"
    _, tensors, _ = golden("tiny-mp8")
    plain = ungroup_qkv(tensors[name].numpy(), 8)
    weights = open_weights(GOLDENS / "tiny-mp8")
    assert np.array_equal(weights.read(name), plain)
    monkeypatch.setattr("codegen2.checkpoint.formats.tensors.BLOCK_BYTES", 1000)
    blocks = list(weights.rows(name))
    assert len(blocks) > 100
    assert np.array_equal(np.concatenate(blocks), plain)
    assert np.array_equal(regroup(tensors, 8, 1)[name][:128].numpy(), plain[:128])


# Room


def test_memory_error_names_need_have_and_the_smaller_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    n = PRESETS["1B"].n_params
    room.check_memory("x", n, 4, 4 * n)
    room.check_memory("x", n, 4, None)
    with pytest.raises(
        ValueError, match=r"x takes 4\.1 GB, 3\.0 GB are free; load it in bfloat16, .* 2\.0 GB"
    ):
        room.check_memory("x", n, 4, 3 * 10**9)
    big = PRESETS["16B"].n_params
    with pytest.raises(ValueError, match=r"32\.1 GB, 8\.0 GB are free; take the smaller model 3\.7B"):
        room.check_memory("x", big, 2, 8 * 10**9)
    with pytest.raises(ValueError, match="free some"):
        room.check_memory("x", n, 4, 1000)
    monkeypatch.setattr("codegen2.checkpoint.load.available_memory", lambda: 1_300_000)
    with pytest.raises(ValueError, match=r"memory: .*tiny-mp4 in float32 takes .* load it in bfloat16"):
        load_model(GOLDENS / "tiny-mp4")
    load_model(GOLDENS / "tiny-mp4", dtype=torch.bfloat16)


def test_available_memory_is_plausible() -> None:
    have = room.available_memory()
    assert have is None or 2**24 < have < 2**50


def test_disk(tmp_path: Path) -> None:
    room.check_disk(tmp_path / "not" / "there", 1, "x", "y")
    with pytest.raises(ValueError, match=r"disk: x takes 1000000000\.0 GB, .* GB free; y"):
        room.check_disk(tmp_path / "not" / "there", 10**18, "x", "y")


def test_load_refuses_other_types() -> None:
    with pytest.raises(ValueError, match=r"dtype is torch\.int8, expected one of torch\.float32"):
        load_model(GOLDENS / "tiny-mp4", dtype=torch.int8)
