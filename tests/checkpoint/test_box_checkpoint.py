"""The model in the box as a checkpoint: re-laid, repaired, and run by the model card's snippets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import Tensors, one_thread, regroup, released_config, write_checkpoint  # noqa: F401
from test_convert import greedy, run_card

from codegen2.box import box_dir
from codegen2.checkpoint.convert import convert
from codegen2.checkpoint.load import load_model
from codegen2.checkpoint.weights import open_weights
from codegen2.config import ModelConfig
from codegen2.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def state() -> tuple[ModelConfig, Tensors]:
    """Return the box's shape and weights, QKV as one group Q, V, K."""
    weights = open_weights(box_dir())
    tensors = {name: torch.from_numpy(weights.read(name)) for name in weights.names()}
    for name, w in tensors.items():
        if name.endswith("qkv_proj.weight"):
            q, k, v = w.chunk(3)
            tensors[name] = torch.cat((q, v, k))
    return weights.config, tensors


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEGEN2_CACHE", str(tmp_path / "cache"))


def laid(state: tuple[ModelConfig, Tensors], directory: Path, groups: int, key_of: int) -> Path:
    """Write the box in so many groups, under a config.json that says key_of."""
    config, tensors = state
    return write_checkpoint(directory, released_config(config, key_of), regroup(tensors, 1, groups))


# 8 groups with the key head_dim stripped: by default on a trained tiny model, in test_selfcheck.py.
@pytest.mark.parametrize(("laid_in", "said"), [pytest.param(8, 4, marks=pytest.mark.slow), (4, 8)])
def test_wrong_key_is_caught(
    state: tuple[ModelConfig, Tensors], tmp_path: Path, laid_in: int, said: int
) -> None:
    """In 8 groups with the key head_dim stripped, and the other way round."""
    directory = laid(state, tmp_path / "wrong", laid_in, said)
    for _ in range(2):  # computed, then from the cache
        with pytest.raises(ValueError, match=f'in {laid_in} groups, not {said}: .* set "mp_num": {laid_in}'):
            load_model(directory)
    load_model(directory, check=False)
    load_model(laid(state, tmp_path / "right", laid_in, laid_in))


@pytest.fixture(scope="module")
def card(
    state: tuple[ModelConfig, Tensors], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    """Run the card's snippets on the repaired box, one from both groupings; return names and what infill wrote."""
    room = tmp_path_factory.mktemp("card")
    for g in (4, 8):
        convert(laid(state, room / f"in{g}", g, g), room / f"out{g}", "hf", check=False)
    for path in (room / "out4").iterdir():
        assert path.read_bytes() == (room / "out8" / path.name).read_bytes()
    scope, (_, infill) = run_card(room / "out8")
    return scope, infill


@pytest.mark.slow  # on random weights test_convert.py runs them by default, and test_readme.py on the box
def test_card_snippets_on_the_repaired_box(card: tuple[dict[str, Any], str]) -> None:
    """The infill snippet is our own greedy infill."""
    scope, infill = card
    prompt = scope["input_ids"][0].tolist()
    ours = greedy(box_dir(), prompt, 128)
    assert scope["generated_ids"][0].tolist() == ours
    tok = Tokenizer()
    assert infill == tok.decode(ours)[len(tok.decode(prompt)) :] + "\n"


@pytest.mark.slow
def test_the_infill_snippet_ends_with_eom(card: tuple[dict[str, Any], str]) -> None:
    assert card[1].rstrip("\n").endswith("<eom>")


# In every form test_convert.py compares the logits of small ones by default, and test_readme.py runs the box as hf.
@pytest.mark.parametrize(
    "to", ["codegen2", *(pytest.param(to, marks=pytest.mark.slow) for to in ("hf", "gptj"))]
)
def test_logits_of_the_converted_box(tmp_path: Path, to: str) -> None:
    ids = torch.tensor([Tokenizer().encode("def add(a, b):\n    return a + b\n")])
    convert(box_dir(), tmp_path / "out", to)
    with torch.no_grad():
        want = load_model(box_dir())(ids).numpy()
        if to == "codegen2":
            got = load_model(tmp_path / "out")(ids).numpy()
        else:
            from transformers import AutoModelForCausalLM

            got = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits.numpy()
    assert np.abs(got - want).max() < 1e-3
