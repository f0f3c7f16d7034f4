"""checkpoint/calibration.py: rounding to int4 by text, its bytes, and what convert makes of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from native_twin import quantize_int4, unpack
from tiny import logits_of, random_weights

import codegen2
from codegen2.box import box_dir
from codegen2.checkpoint.convert import convert
from codegen2.checkpoint.formats.safetensors import Entry, write_safetensors
from codegen2.checkpoint.formats.tensors import TensorInfo
from codegen2.checkpoint.layout import QKV_NAME, expected_tensors, group_qkv
from codegen2.checkpoint.native import calibration
from codegen2.checkpoint.native.calibration import (
    own_texts,
    pack_codes,
    quantized,
    round_with_gram,
    sequences,
)
from codegen2.checkpoint.native.form import native_shapes, open_native
from codegen2.checkpoint.weights import open_weights
from codegen2.config import ModelConfig
from codegen2.text.tokenizer import Tokenizer

RNG = np.random.default_rng(5)


def dequantized(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return (codes.astype(np.float32) - 8) * np.repeat(scales.astype(np.float32), 32, axis=1)


def weights_and_inputs(n: int, k: int, tokens: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Return a weight and inputs of which many move together, as a model's do."""
    mixing = RNG.normal(size=(k // 8, k))
    x = RNG.normal(size=(tokens, k // 8)) @ mixing + 0.1 * RNG.normal(size=(tokens, k))
    return RNG.normal(size=(n, k)).astype(np.float32), x.astype(np.float32)


@pytest.mark.parametrize(("n", "k"), [(16, 32), (40, 96), (17, 256)])
def test_outputs_are_nearer_than_with_plain_rounding(n: int, k: int) -> None:
    w, x = weights_and_inputs(n, k)
    codes, scales = round_with_gram(w, x.T @ x)
    assert codes.max() <= 15
    plain, plain_scales = quantize_int4(w)
    by_itself = plain[:n, :k].astype(np.float32) * np.repeat(
        plain_scales[:n, : k // 32].astype(np.float32), 32, 1
    )
    error = np.square(x @ (dequantized(codes, scales) - w).T).sum()
    assert error < 0.5 * np.square(x @ (by_itself - w).T).sum()


def test_inputs_that_know_nothing_of_each_other_are_rounded_one_by_one() -> None:
    w = RNG.normal(size=(16, 64)).astype(np.float32)
    codes, scales = round_with_gram(w, np.eye(64, dtype=np.float32))
    plain, plain_scales = quantize_int4(w)
    np.testing.assert_array_equal(codes.astype(int) - 8, plain)
    np.testing.assert_array_equal(scales, plain_scales)


def test_silent_inputs_and_empty_rows_stay_finite() -> None:
    w, x = weights_and_inputs(16, 64)
    x[:, :40] = 0
    w[3] = 0
    codes, scales = round_with_gram(w, x.T @ x)
    assert np.isfinite(scales).all()
    assert (dequantized(codes, scales)[3] == 0).all()
    assert np.abs(dequantized(codes, scales) - w).max() < 1.0
    codes, scales = round_with_gram(w, np.zeros((64, 64), np.float32))
    assert np.isfinite(scales).all()


@pytest.mark.parametrize(("n", "k"), [(16, 64), (20, 96), (5, 32)])
def test_packed_codes_are_what_the_engine_reads(n: int, k: int) -> None:
    codes = RNG.integers(0, 16, (n, k)).astype(np.uint8)
    scales = RNG.normal(size=(n, k // 32)).astype(np.float16)
    np.testing.assert_array_equal(
        unpack("int4", pack_codes(codes, scales), None, n, k), dequantized(codes, scales)
    )


def test_sequences_cover_all_texts_evenly() -> None:
    tokenizer = Tokenizer()
    found = sequences(["a b c d\n" * 9_000, "x = 1\n" * 9_000], tokenizer)
    assert len(found) == calibration.MOST_SEQUENCES
    assert {len(s) for s in found} == {512}
    a, x = tokenizer.encode(" b")[0], tokenizer.encode("x")[0]
    assert sum(a in s for s in found) > 20
    assert sum(x in s for s in found) > 20
    with pytest.raises(ValueError, match="hold 3 tokens, at least 512 are wanted; give more"):
        sequences(["a b"], tokenizer)


def test_own_sources_are_there_and_enough() -> None:
    texts = own_texts()
    assert len(texts) > 100 and len(sequences(texts[::4], Tokenizer())) >= 64


CONFIG = ModelConfig(n_ctx=512, n_embd=64, n_layer=2, n_head=1)


def write(directory: Path, config: ModelConfig, weights: dict[str, np.ndarray]) -> Path:
    """Write a checkpoint in our own form."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config.to_dict() | {"mp_num": 1}))
    laid = {n: group_qkv(w, 1) if QKV_NAME.fullmatch(n) else w for n, w in weights.items()}
    entries = [Entry(n, TensorInfo("float32", w.shape), lambda w=w: [w]) for n, w in laid.items()]
    write_safetensors(directory / "model.safetensors", entries)
    return directory


def checkpoint(directory: Path, config: ModelConfig = CONFIG) -> Path:
    return write(directory, config, random_weights(config, spread=0.1))


def test_matrices_come_in_the_order_of_a_file(tmp_path: Path) -> None:
    tokens = sequences(["def f(x):\n    return x + 1\n\n\n" * 300], Tokenizer())
    weights = open_weights(checkpoint(tmp_path / "c"))
    first, again = list(quantized(weights, tokens)), list(quantized(weights, tokens))
    assert [name for name, _, _ in first] == [n for n in native_shapes(CONFIG)[0] if ".h." in n]
    for (_, codes, scales), (_, codes_again, scales_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(codes, codes_again)
        np.testing.assert_array_equal(scales, scales_again)
    assert not np.array_equal(first[0][1], first[4][1])


def box_of(n_layer: int, directory: Path) -> Path:
    """Write a checkpoint of the first layers of the model in the box."""
    weights = open_weights(box_dir())
    config = dataclasses.replace(weights.config, n_layer=n_layer)
    return write(directory, config, {name: weights.read(name) for name in expected_tensors(config)})


def test_text_changes_what_is_written(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in")
    for name, texts in (("text", ["def f(x):\n    return x + 1\n\n\n" * 100]), ("plain", ())):
        convert(source, tmp_path / name, "native", dtype="int4", calibrate=texts)
    with_text, plain = (open_native(tmp_path / name).matrices for name in ("text", "plain"))
    same = {name for name, matrix in plain.items() if np.array_equal(matrix.data, with_text[name].data)}
    assert same == {"transformer.wte.weight", "lm_head.weight"}


@pytest.mark.slow
@pytest.mark.parametrize("n_layer", [1, 6])
def test_the_box_is_nearer_to_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_layer: int) -> None:
    monkeypatch.setattr(calibration, "MOST_SEQUENCES", 8)
    exact = box_of(n_layer, tmp_path / "exact")
    convert(exact, tmp_path / "text", "native", dtype="int4", calibrate=own_texts()[:20])
    convert(exact, tmp_path / "plain", "native", dtype="int4", calibrate=())
    convert(exact, tmp_path / "float32", "native", dtype="float32")
    text = Path(__file__).read_text("utf-8")
    log_p = {}
    for name in ("float32", "text", "plain"):
        model = codegen2.load(tmp_path / name, engine="native")
        x = logits_of(model.engine, [model.tokenizer.encode(text)[:64]])[0].astype(np.float64)
        log_p[name] = x - np.logaddexp.reduce(x, -1, keepdims=True)
    p = np.exp(log_p["float32"])
    divergence = {name: float((p * (log_p["float32"] - near)).sum(-1).mean()) for name, near in log_p.items()}
    assert divergence["text"] < 0.6 * divergence["plain"]


def test_a_value_too_large_for_int4_is_refused_here_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_MAX_INT4", 0.01)  # random weights of spread 0.1 are larger
    tokens = sequences(["def f(x):\n    return x + 1\n\n\n" * 100], Tokenizer())
    with pytest.raises(
        ValueError, match=r"qkv_proj.weight: value 0\.\d+ does not fit int4 \(at most 0.01\); choose int8"
    ):
        next(quantized(open_weights(checkpoint(tmp_path / "c")), tokens))


def test_what_cannot_be_calibrated_says_so(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "c")
    with pytest.raises(ValueError, match="--calibrate is for --to native --dtype int4; leave it out"):
        convert(source, tmp_path / "d", "native", dtype="int8", calibrate=["text"])
    with pytest.raises(ValueError, match="hold 2 tokens"):
        convert(source, tmp_path / "d", "native", dtype="int4", calibrate=["text"])
    odd = checkpoint(tmp_path / "short", dataclasses.replace(CONFIG, n_ctx=256))
    with pytest.raises(ValueError, match="cannot be calibrated: .* leave --calibrate out"):
        convert(odd, tmp_path / "d", "native", dtype="int4", calibrate=["text"])
    assert not (tmp_path / "d").exists()
    convert(odd, tmp_path / "d", "native", dtype="int4", check=False)  # unasked it is left out
    assert open_native(tmp_path / "d").kinds.dtype == "int4"
