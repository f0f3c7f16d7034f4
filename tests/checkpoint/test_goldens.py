"""The released implementation's outputs on tiny weights, in both groupings and in every form of file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_files import GOLDEN_NAMES, GOLDENS, golden, regroup, write_checkpoint

from codegen2.cache import KVCache
from codegen2.checkpoint.load import load_model
from codegen2.checkpoint.selfcheck import reference_logits
from codegen2.checkpoint.weights import open_weights

TOLERANCE = 1e-4
GROUPS = {"tiny-mp4": 4, "tiny-mp8": 8}


def deviation(directory: Path, name: str) -> float:
    _, _, expected = golden(name)
    with torch.no_grad():
        return float((load_model(directory)(expected["input_ids"]) - expected["logits"]).abs().max())


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_logits_and_hidden_states(name: str) -> None:
    model, (_, _, expected) = load_model(GOLDENS / name), golden(name)
    with torch.no_grad():
        hidden = model.hidden(expected["input_ids"])
        logits = model(expected["input_ids"])
    assert (hidden - expected["last_hidden_state"]).abs().max() < TOLERANCE
    assert (logits - expected["logits"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_greedy(name: str) -> None:
    """greedy_ids are the first 20 ids of each prompt and 24 greedy tokens; eos does not stop them."""
    model, (raw, _, expected) = load_model(GOLDENS / name), golden(name)
    want = expected["greedy_ids"]
    n = int((want[0] == expected["input_ids"][0, : want.shape[1]]).int().cumprod(0).sum())
    assert n >= 20
    assert raw["eos_token_id"] == 2
    ids = want[:, :20]
    cache, rows = KVCache(model.config, len(ids), want.shape[1]), list(range(len(ids)))
    step, positions = ids, torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        while ids.shape[1] < want.shape[1]:
            step = model(step, cache.slots(rows, positions))[:, -1].argmax(-1, keepdim=True)
            ids, positions = torch.cat((ids, step), dim=1), positions[:, -1:] + 1
    assert torch.equal(ids, want)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_form(tmp_path: Path, name: str, form: str, shards: int) -> None:
    raw, tensors, _ = golden(name)
    assert deviation(write_checkpoint(tmp_path, raw, tensors, form, shards), name) < TOLERANCE


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_grouping_follows_the_key_and_mp_num_wins(tmp_path: Path, name: str, form: str) -> None:
    raw, tensors, _ = golden(name)
    mine, other = GROUPS[name], 12 - GROUPS[name]
    swapped = {k: v for k, v in raw.items() if k != "head_dim"} | ({"head_dim": 16} if mine == 4 else {})
    # The key added or removed: the rule now says the other grouping, and the weights no longer fit it ...
    assert deviation(write_checkpoint(tmp_path / "swapped", swapped, tensors, form), name) > 0.05
    # ... unless they are re-laid so, or mp_num says how they lie.
    relaid = regroup(tensors, mine, other)
    assert deviation(write_checkpoint(tmp_path / "relaid", swapped, relaid, form), name) < TOLERANCE
    stated = swapped | {"mp_num": mine}
    assert deviation(write_checkpoint(tmp_path / "stated", stated, tensors, form, 2), name) < TOLERANCE
    one = raw | {"mp_num": 1}
    assert (
        deviation(write_checkpoint(tmp_path / "one", one, regroup(tensors, mine, 1), form), name) < TOLERANCE
    )


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_numpy_reference_of_the_self_check(name: str) -> None:
    weights, (_, _, expected) = open_weights(GOLDENS / name), golden(name)
    for ids, logits in zip(expected["input_ids"], expected["logits"], strict=True):
        mine, other = reference_logits(weights, ids.tolist(), [GROUPS[name], 12 - GROUPS[name]])
        assert abs(mine - logits.numpy()).max() < TOLERANCE
        assert abs(other - logits.numpy()).max() > 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    _, _, expected = golden("tiny-mp4")
    model = load_model(GOLDENS / "tiny-mp4", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    full = load_model(GOLDENS / "tiny-mp4")
    assert all(
        torch.equal(a, b.to(dtype)) for a, b in zip(model.parameters(), full.parameters(), strict=True)
    )
    with torch.no_grad():
        assert (model(expected["input_ids"]) - expected["logits"]).abs().max() < 0.1


def test_loading_leaves_nothing_on_the_meta_device() -> None:
    model = load_model(GOLDENS / "tiny-mp8")
    assert not model.training
    assert all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())
    assert not list(model.buffers())
