"""convert: equal logits in every form, here and in transformers; atomic; streamed; refusals that help."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import (
    GOLDEN_NAMES,
    GOLDENS,
    SNIPPET_CONFIG,
    golden,
    one_thread,  # noqa: F401
    random_tensors,
    regroup,
    released_config,
    write_checkpoint,
)
from few import few
from safetensors.torch import load_file

from codegen2.cache import KVCache
from codegen2.checkpoint.convert import convert, tokenizer_json
from codegen2.checkpoint.load import load_model
from codegen2.checkpoint.reader import open_checkpoint
from codegen2.checkpoint.weights import Weights
from codegen2.config import ModelConfig
from codegen2.text.tokenizer import Tokenizer

TOLERANCE = 1e-4
SHARED = Path(__file__).parents[3] / "shared" / "tokenizer"


def logits_of(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a converted directory, by transformers unless it is in our own form."""
    with torch.no_grad():
        if "mp_num" in json.loads((directory / "config.json").read_text()):
            return load_model(directory)(ids)
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(directory)
        logits: torch.Tensor = model(ids).logits
        return logits


@pytest.mark.parametrize(
    ("to", "name", "shard_bytes"),
    few(itertools.product(("codegen2", "hf", "gptj"), GOLDEN_NAMES, (10**9, 400_000)), 5),
)
def test_logits_stay(tmp_path: Path, name: str, to: str, shard_bytes: int) -> None:
    _, _, expected = golden(name)
    notes = convert(GOLDENS / name, tmp_path / "out", to, max_shard_bytes=shard_bytes)
    assert (logits_of(tmp_path / "out", expected["input_ids"]) - expected["logits"]).abs().max() < TOLERANCE
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert bool(shards) == (shard_bytes < 10**6)
    assert all(s.stat().st_size < 400_000 + 5000 for s in shards)
    assert bool(notes) == (to != "codegen2")
    if notes:
        assert "no tokenizer written: CodeGen2's has 51200 tokens, this model 512" in notes[0]


@pytest.mark.parametrize("to", ["codegen2", "hf", "gptj"])
def test_classes_and_configs(tmp_path: Path, to: str) -> None:
    convert(GOLDENS / "tiny-mp8", tmp_path / "out", to)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "head_dim" not in raw
    assert "auto_map" not in raw
    assert raw.get("mp_num") == (1 if to == "codegen2" else None)
    assert raw["n_positions"] == 256
    assert raw["torch_dtype"] == "float32"
    assert raw["architectures"] == ["GPTJForCausalLM" if to == "gptj" else "CodeGenForCausalLM"]
    if to == "gptj":
        got = set(open_checkpoint(tmp_path / "out"))
        want = {"q_proj", "k_proj", "v_proj", "out_proj"}
        assert {n.split(".")[4] for n in got if ".h.0.attn." in n} == want


def test_there_and_back_is_the_same_file(tmp_path: Path) -> None:
    convert(GOLDENS / "tiny-mp8", tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "hf", "hf")
    convert(tmp_path / "hf", tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()
    _, tensors, _ = golden("tiny-mp8")
    relaid, stored = regroup(tensors, 8, 4), load_file(tmp_path / "hf" / "model.safetensors")
    assert all(torch.equal(relaid[n], t) for n, t in stored.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_round_as_torch_does(tmp_path: Path, dtype: str) -> None:
    convert(GOLDENS / "tiny-mp4", tmp_path / "out", "hf", dtype=dtype)
    _, tensors, _ = golden("tiny-mp4")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.equal(tensor, tensors[name].to(tensor.dtype)), name
    back = load_model(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(back.lm_head.weight, tensors["lm_head.weight"].to(getattr(torch, dtype)).float())
    # A bfloat16 file converted without --dtype stays as it is.
    convert(tmp_path / "out", tmp_path / "again", "hf")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "out/model.safetensors"
    ).read_bytes()


def test_tied_weights(tmp_path: Path) -> None:
    raw, tensors, expected = golden("tiny-mp4")
    del tensors["lm_head.weight"]
    source = write_checkpoint(tmp_path / "tied", raw | {"tie_word_embeddings": True}, tensors)
    want = logits_of(write_checkpoint(tmp_path / "x", raw | {"tie_word_embeddings": True, "mp_num": 4}, tensors),
                     expected["input_ids"])  # fmt: skip
    for to in ("codegen2", "hf", "gptj"):
        convert(source, tmp_path / to, to)
        assert (logits_of(tmp_path / to, expected["input_ids"]) - want).abs().max() < TOLERANCE
        assert ("lm_head.weight" in open_checkpoint(tmp_path / to)) == (to == "gptj")


def test_only_a_block_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of 10 kB no array larger than that is ever written."""
    largest = 0
    original = Weights.converted

    def spy(*args: Any) -> Any:
        nonlocal largest
        for block in original(*args):
            largest = max(largest, block.nbytes)
            yield block

    monkeypatch.setattr("codegen2.checkpoint.formats.tensors.BLOCK_BYTES", 10_000)
    monkeypatch.setattr(Weights, "converted", spy)
    convert(GOLDENS / "tiny-mp8", tmp_path / "out", "hf", dtype="bfloat16")
    assert 0 < largest <= 10_000


# Atomic


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr("codegen2.checkpoint.write.sync_folder", fail)
    with pytest.raises(OSError, match="on fire"):
        convert(GOLDENS / "tiny-mp4", tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_the_old_directory_survives_a_failing_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    rename, calls = os.rename, itertools.count(1)

    def second_fails(a: Any, b: Any) -> None:
        if next(calls) == 2:
            raise OSError("no")
        rename(a, b)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="no"):
        convert(GOLDENS / "tiny-mp4", tmp_path / "out", overwrite=True)
    assert leftovers(tmp_path) == ["out"]
    assert leftovers(tmp_path / "out") == ["precious"]


def test_destination(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    convert(GOLDENS / "tiny-mp4", out)  # empty: taken
    before = (out / "model.safetensors").stat().st_ino
    with pytest.raises(ValueError, match="is not empty; choose another directory, or ask to overwrite"):
        convert(GOLDENS / "tiny-mp4", out)
    (out / "junk").touch()
    convert(GOLDENS / "tiny-mp4", out, overwrite=True)
    assert (out / "model.safetensors").stat().st_ino != before
    assert leftovers(out) == ["config.json", "model.safetensors"]
    assert leftovers(out.parent) == ["out"]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="exists and is no directory"):
        convert(GOLDENS / "tiny-mp4", tmp_path / "file")
    for inside in (out, out / "sub", out.parent):
        with pytest.raises(ValueError, match="lies in or around the source"):
            convert(out, inside, overwrite=True)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = GOLDENS / "tiny-mp4"
    with pytest.raises(ValueError, match="--to is 'gguf', expected one of codegen2, hf, gptj, native"):
        convert(source, tmp_path / "out", "gguf")
    with pytest.raises(ValueError, match="--dtype is 'int4', expected float32"):
        convert(source, tmp_path / "out", dtype="int4")
    with pytest.raises(ValueError, match="--dtype is 'int8', expected float32"):
        convert(source, tmp_path / "out", "hf", dtype="int8")
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        convert(source, tmp_path / "out", max_shard_bytes=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match=r"takes 10\.1 MB, .* has 1\.0 MB free; convert to bfloat16, which takes 1\.1 MB"
    ):
        convert(source, tmp_path / "out")
    with pytest.raises(ValueError, match="choose another disk, or convert a smaller model"):
        convert(source, tmp_path / "out", dtype="bfloat16")
    assert leftovers(tmp_path) == []


def test_hf_needs_heads_in_fours(tmp_path: Path) -> None:
    config = ModelConfig(vocab_size=64, n_embd=96, n_head=6, n_layer=1, rotary_dim=16)
    source = write_checkpoint(tmp_path / "in", config.to_dict(), random_tensors(config))
    with pytest.raises(ValueError, match=r"n_head is 6, expected a multiple of 4; use codegen2 or gptj"):
        convert(source, tmp_path / "hf", "hf")
    ids = torch.arange(20)[None]
    convert(source, tmp_path / "gptj", "gptj")
    with torch.no_grad():
        assert (logits_of(tmp_path / "gptj", ids) - load_model(source)(ids)).abs().max() < TOLERANCE


def test_float16_overflow_names_the_tensor(tmp_path: Path) -> None:
    raw, tensors, _ = golden("tiny-mp4")
    tensors["transformer.h.1.mlp.fc_in.weight"][3, 3] = 1e5
    write_checkpoint(tmp_path / "in", raw, tensors)
    with pytest.raises(
        ValueError, match=r"model\.safetensors: transformer\.h\.1\.mlp\.fc_in\.weight: value 100000 "
    ):
        convert(tmp_path / "in", tmp_path / "out", dtype="float16")
    assert leftovers(tmp_path) == ["in"]


# The model card's snippets, on repaired directories, under the installed transformers


# From either grouping come the same bytes, as test_other_grouping_gives_the_same_directory holds.
@pytest.fixture(scope="module", params=[8, pytest.param(4, marks=pytest.mark.slow)])
def repaired(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory repaired from a released-like one of random weights, in either grouping."""
    folder = tmp_path_factory.mktemp("repaired")
    tensors = random_tensors(SNIPPET_CONFIG)
    source = write_checkpoint(
        folder / "in",
        released_config(SNIPPET_CONFIG, request.param),
        regroup(tensors, 1, request.param),
        "bin",
        2,
    )
    assert convert(source, folder / "out", "hf") == []
    return folder / "out"


CARD_CAUSAL = """
from transformers import AutoTokenizer, AutoModelForCausalLM
tokenizer = AutoTokenizer.from_pretrained(NAME)
model = AutoModelForCausalLM.from_pretrained(NAME, trust_remote_code=True, revision="main")

text = "def hello_world():"
input_ids = tokenizer(text, return_tensors="pt").input_ids
generated_ids = model.generate(input_ids, max_length=48)
print(tokenizer.decode(generated_ids[0], skip_special_tokens=True))
"""

CARD_INFILL = """
def format(prefix, suffix):
  return prefix + "<mask_1>" + suffix + "<|endoftext|>" + "<sep>" + "<mask_1>"


prefix = "def hello_world():\\n    "
suffix = "    return name"
text = format(prefix, suffix)
input_ids = tokenizer(text, return_tensors="pt").input_ids
generated_ids = model.generate(input_ids, max_length=48)
print(tokenizer.decode(generated_ids[0], skip_special_tokens=False)[len(text):])
"""


def run_card(directory: Path) -> tuple[dict[str, Any], list[str]]:
    scope: dict[str, Any] = {"NAME": str(directory)}
    printed = []
    for snippet in (CARD_CAUSAL, CARD_INFILL):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(snippet, scope)
        printed.append(out.getvalue())
    return scope, printed


def greedy(directory: Path, prompt: list[int], max_length: int) -> list[int]:
    """Return prompt and greedy continuation, up to <|endoftext|> or <eom>, by our own model."""
    model = load_model(directory)
    cache = KVCache(model.config, 1, max_length)
    ids, step = list(prompt), list(prompt)
    with torch.no_grad():
        while len(ids) < max_length:
            positions = torch.arange(len(ids) - len(step), len(ids))[None]
            step = [int(model(torch.tensor([step]), cache.slots([0], positions))[0, -1].argmax())]
            ids += step
            if step[0] in (50256, 50300):
                break
    return ids


def test_card_snippets(repaired: Path) -> None:
    scope, (causal, infill) = run_card(repaired)
    tok = Tokenizer()
    assert scope["input_ids"].tolist() == [
        [4299, 23748, 62, 6894, 33529, 198, 50284, 51199, 50284, 7783, 1438, 50256, 50299, 51199]
    ]
    ours = greedy(repaired, tok.encode("def hello_world():"), 48)
    assert causal == tok.decode(ours).replace("<|endoftext|>", "") + "\n"
    prompt = scope["input_ids"][0].tolist()
    assert scope["generated_ids"][0].tolist() == greedy(repaired, prompt, 48)
    assert infill == tok.decode(scope["generated_ids"][0].tolist())[len(tok.decode(prompt)) :] + "\n"
    assert type(scope["model"]).__name__ == "CodeGenForCausalLM"
    assert scope["tokenizer"].model_max_length == 2048
    assert scope["model"].config.eos_token_id == 50256


def test_generation_stops_at_eom(tmp_path: Path) -> None:
    tensors = random_tensors(SNIPPET_CONFIG)
    tensors["lm_head.bias"][50300] = 1000.0
    source = write_checkpoint(tmp_path / "in", released_config(SNIPPET_CONFIG, 4), tensors)
    convert(source, tmp_path / "out", "hf", dtype="bfloat16")
    scope, (_, infill) = run_card(tmp_path / "out")
    assert infill == "<eom>\n"
    assert scope["model"].generation_config.eos_token_id == [50256, 50300]
    assert scope["model"].generation_config.pad_token_id == 50256
    assert scope["model"].dtype == torch.bfloat16


def test_fast_tokenizer_equals_ours(repaired: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(repaired), Tokenizer()
    config = json.loads((repaired / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # GPT2Tokenizer may be the slow one
    assert theirs.is_fast
    assert theirs.clean_up_tokenization_spaces is False
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (50256, 50256, 51200)
    for text in [
        "def f(x):\n\treturn x  # \u6f22 \U0001f600\n", " " * 63, " " * 40 + "x", "\t" * 12 + "y",
        "a  <mask_1>  b <eom> . ,", "<|endoftext|><sep> <mask_899> <dummy_3><mask_900>", "x , y . don 't", "",
        "\r\n \u00a0\u3000 \x00", "e\u0301 \u00e9",
    ]:  # fmt: skip
        ids = ours.encode(text, allow_control=True)
        assert theirs(text).input_ids == ids, text
        assert theirs.decode(ids) == text


@pytest.mark.shared
def test_tokenizer_equals_the_released_files(repaired: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(repaired)
    for case in json.loads((SHARED / "tokenizer-cases.json").read_text("utf-8")):
        assert theirs(case["text"]).input_ids == case["ids"]
    released, ours = json.loads((SHARED / "tokenizer.json").read_text("utf-8")), tokenizer_json(Tokenizer())
    assert ours["added_tokens"] == released["added_tokens"]
    assert ours["model"] == released["model"]


def test_tokenizer_file_is_read_back_by_us(repaired: Path) -> None:
    again = Tokenizer.from_file(repaired / "tokenizer.json")
    assert again.control == Tokenizer().control
    assert again.vocab_size == 51200
    text = "if x:\n        return  # <mask_1>\n"
    assert again.encode(text) == Tokenizer().encode(text)
    content = tokenizer_json(Tokenizer())
    ids = [t["id"] for t in content["added_tokens"]]
    assert ids == list(range(50256, 51200))
    assert [t["content"] for t in content["added_tokens"] if t["special"]] == ["<|endoftext|>"]
    assert len(content["model"]["vocab"]) == 50257
    assert len(content["model"]["merges"]) == 50000


@pytest.mark.parametrize("to", ["hf", pytest.param("codegen2", marks=pytest.mark.slow)])
def test_own_tokenizer_is_honoured(to: str, tmp_path: Path) -> None:
    own = json.dumps(tokenizer_json(Tokenizer()) | {"padding": None})
    source = write_checkpoint(tmp_path / "in", SNIPPET_CONFIG.to_dict(), random_tensors(SNIPPET_CONFIG))
    (source / "tokenizer.json").write_text(own)
    convert(source, tmp_path / to, to)
    assert (tmp_path / to / "tokenizer.json").read_text() == own
    raw, tensors, _ = golden("tiny-mp4")
    small = write_checkpoint(tmp_path / "small", raw, tensors)
    (small / "tokenizer.json").write_text(own)
    with pytest.raises(ValueError, match="has ids up to 51199, the model 512 rows"):
        convert(small, tmp_path / "out", "hf")


def test_other_grouping_gives_the_same_directory(tmp_path: Path) -> None:
    """Repaired from 4 or from 8 groups, the weights are the same bytes."""
    tensors = random_tensors(ModelConfig(vocab_size=64, n_embd=64, n_head=4, n_layer=2, rotary_dim=8))
    config = ModelConfig(vocab_size=64, n_embd=64, n_head=4, n_layer=2, rotary_dim=8)
    files = []
    for g in (4, 8):
        source = write_checkpoint(tmp_path / f"in{g}", released_config(config, g), regroup(tensors, 1, g))
        convert(source, tmp_path / f"out{g}", "hf")
        files.append((tmp_path / f"out{g}" / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert np.frombuffer(files[0], np.uint8).any()
