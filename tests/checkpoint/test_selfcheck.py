"""The self-check of the QKV grouping: catches the wrong one, is silent on random weights, computed once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import (
    GOLDENS,
    SNIPPET_CONFIG,
    one_thread,  # noqa: F401
    random_tensors,
    regroup,
    released_config,
    write_checkpoint,
)
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from codegen2.checkpoint import selfcheck
from codegen2.checkpoint.convert import convert
from codegen2.checkpoint.layout import qkv_row_order
from codegen2.checkpoint.load import load_model
from codegen2.checkpoint.selfcheck import SNIPPET, cache_key, check_grouping, snippet_losses
from codegen2.checkpoint.weights import open_weights
from codegen2.config import ModelConfig
from codegen2.model import CodeGen2
from codegen2.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODEGEN2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source(tmp_path: Path, groups: int = 8, **raw: Any) -> Path:
    tensors = regroup(random_tensors(SNIPPET_CONFIG), 1, groups)
    return write_checkpoint(tmp_path / f"in{groups}", released_config(SNIPPET_CONFIG, groups) | raw, tensors)


def count_calls(monkeypatch: pytest.MonkeyPatch, losses: list[float] | None = None) -> list[int]:
    calls: list[int] = []
    original = snippet_losses

    def spy(*args: Any) -> list[float]:
        calls.append(1)
        return original(*args) if losses is None else losses

    monkeypatch.setattr(selfcheck, "snippet_losses", spy)
    return calls


def test_snippet_is_short_and_runs() -> None:
    assert 32 <= len(Tokenizer().encode(SNIPPET)) <= 64
    scope: dict[str, Any] = {}
    exec(SNIPPET, scope)
    assert [scope[name](6, 3) for name in ("add", "sub", "mul", "div")] == [9, 3, 18, 2]


def test_losses_equal_the_model(tmp_path: Path) -> None:
    ids = Tokenizer().encode(SNIPPET)
    directory = source(tmp_path)
    mine, other = snippet_losses(open_weights(directory), ids, [8, 4])
    for raw, loss in ({}, mine), ({"mp_num": 4}, other):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | raw))
        with torch.no_grad():
            logits = load_model(directory, check=False)(torch.tensor([ids]))[0]
        want = cross_entropy(logits[:-1], torch.tensor(ids[1:]))
        assert abs(loss - float(want)) < 1e-4
    assert mine != other


def test_bfloat16_and_tied_weights(tmp_path: Path) -> None:
    config = ModelConfig(n_embd=256, n_head=4, n_layer=1, tie_word_embeddings=True)
    tensors = {n: t.bfloat16() for n, t in random_tensors(config).items()}
    directory = write_checkpoint(tmp_path / "in", config.to_dict(), tensors)
    ids = Tokenizer().encode(SNIPPET)
    with torch.no_grad():
        logits = load_model(directory)(torch.tensor([ids]))[0]
    want = cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    assert abs(snippet_losses(open_weights(directory), ids, [4])[0] - float(want)) < 1e-4


@pytest.mark.parametrize("groups", [4, 8])
def test_random_weights_are_silent_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path, groups: int
) -> None:
    calls = count_calls(monkeypatch)
    weights = open_weights(source(tmp_path, groups))
    check_grouping(weights)
    check_grouping(weights)
    assert len(calls) == 1
    assert [p.name for p in own_cache.rglob("*.json")] == [cache_key(weights) + ".json"]


def test_wrong_grouping_is_named_with_its_remedy_also_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch, [8.9, 0.3])
    directory = source(tmp_path, 4)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r'in 8 groups, not 4: .*8\.90 .* with 4, 0\.30 with 8; set "mp_num": 8'
        ):
            load_model(directory)
    assert len(calls) == 1
    load_model(directory, check=False)


@pytest.mark.parametrize(("losses", "fails"), [([5.0, 3.1], False), ([5.0, 2.9], True), ([0.3, 8.9], False)])
def test_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], fails: bool) -> None:
    count_calls(monkeypatch, losses)
    weights = open_weights(source(tmp_path, 8))
    if fails:
        with pytest.raises(ValueError, match='set "mp_num": 4'):
            check_grouping(weights)
    else:
        check_grouping(weights)


def test_not_asked_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    check_grouping(open_weights(GOLDENS / "tiny-mp4"))  # another vocabulary
    check_grouping(open_weights(source(tmp_path, 1, mp_num=1)))  # states its layout
    assert not calls


def test_the_key_sees_the_rows_that_size_and_time_do_not(tmp_path: Path) -> None:
    tensors = random_tensors(SNIPPET_CONFIG)
    found = set()
    for g in (4, 8):
        directory = write_checkpoint(tmp_path / str(g), SNIPPET_CONFIG.to_dict(), regroup(tensors, 1, g))
        for path in directory.iterdir():
            os.utime(path, (0, 0))
        found.add(cache_key(open_weights(directory)))
    found.add(cache_key(open_weights(shutil.copytree(tmp_path / "4", tmp_path / "same"))))
    assert len(found) == 2


def test_a_damaged_or_unwritable_cache_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    calls = count_calls(monkeypatch, [1.0, 1.0])
    weights = open_weights(source(tmp_path))
    check_grouping(weights)
    for file in own_cache.rglob("*.json"):
        file.write_text("{")
    check_grouping(weights)
    assert len(calls) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("CODEGEN2_CACHE", str(tmp_path / "file"))
    check_grouping(weights)
    assert len(calls) == 3


def test_a_model_that_tells_the_groupings_apart_is_caught(tmp_path: Path) -> None:
    """Five steps towards the snippet in the right grouping and away from it in the wrong one stand in for training."""
    torch.manual_seed(0)
    config = ModelConfig(n_embd=64, n_head=8, n_layer=1, rotary_dim=8)
    ids = torch.tensor([Tokenizer().encode(SNIPPET)])
    model = CodeGen2(config)
    model.init_weights()
    own = dict(model.named_parameters())
    name = "transformer.h.0.attn.qkv_proj.weight"
    misread = torch.from_numpy(np.argsort(qkv_row_order(64, 8))[qkv_row_order(64, 4)])
    optimizer = torch.optim.Adam(own.values(), lr=2e-2)
    for _ in range(5):
        optimizer.zero_grad()
        right = cross_entropy(model(ids)[0, :-1], ids[0, 1:])
        wrong = cross_entropy(
            functional_call(model, own | {name: own[name][misread]}, (ids,))[0, :-1], ids[0, 1:]
        )
        (right - wrong.clamp(max=14)).backward()
        optimizer.step()
    tensors = {n: p.detach() for n, p in own.items()}
    tensors[name] = tensors[name][torch.from_numpy(np.argsort(qkv_row_order(64, 8)))]
    load_model(write_checkpoint(tmp_path / "right", released_config(config, 8), tensors))
    stripped = write_checkpoint(tmp_path / "stripped", released_config(config, 4), tensors, "bin", 2)
    with pytest.raises(ValueError, match='QKV weights look laid out in 8 groups, not 4.* set "mp_num": 8'):
        load_model(stripped)
    with pytest.raises(ValueError, match='set "mp_num": 8'):
        convert(stripped, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(stripped, tmp_path / "out", check=False)
    assert load_model(stripped, check=False).config == config
