"""The native form: what is packed comes back, on odd shapes; damaged files are refused; the cache converts once.

Free of torch. Packing itself is done by the twin in numpy, so that all of this holds where nothing is compiled; the
compiled library is held to the twin where it is there.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import native_twin
import numpy as np
import pytest
from few import few

from codegen2 import native
from codegen2.checkpoint import digests, reader
from codegen2.checkpoint.convert import convert
from codegen2.checkpoint.digests import damaged_file
from codegen2.checkpoint.formats.safetensors import Entry, SafetensorsFile, write_safetensors
from codegen2.checkpoint.formats.tensors import TensorInfo
from codegen2.checkpoint.layout import expected_tensors, qkv_row_order
from codegen2.checkpoint.native import cache
from codegen2.checkpoint.native import form as native_form
from codegen2.checkpoint.native.cache import native_cache_dir, native_directory, source_hash, sources
from codegen2.checkpoint.native.form import Kinds, NativeWeights, is_native, open_native
from codegen2.checkpoint.native.pack import native_entries
from codegen2.checkpoint.weights import open_weights
from codegen2.cli import main as cli
from codegen2.config import ModelConfig
from codegen2.files import paths

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
KINDS = [
    ("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "int8"), ("int4", "int8"), ("int4", "int4"),
]  # fmt: skip
BY_THE_LIBRARY = native.pack
ODD = ModelConfig(vocab_size=101, n_ctx=32, n_embd=72, n_layer=2, n_head=3, rotary_dim=8)  # nothing divides
TINY = ModelConfig(vocab_size=20, n_ctx=16, n_embd=8, n_layer=1, n_head=2, rotary_dim=2)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack by the twin, and keep caches of this test's own."""
    monkeypatch.setattr(native, "pack", native_twin.pack)
    monkeypatch.setenv("CODEGEN2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def write_source(directory: Path, config: ModelConfig, seed: int = 0, groups: int = 1, **more: Any) -> Path:
    """Write a checkpoint of random float32 weights, with numpy alone."""
    rng = np.random.default_rng(seed)
    entries = []
    for name, shape in expected_tensors(config).items():
        w = (rng.standard_normal(shape) * 0.1).astype(np.float32)
        if name.endswith("qkv_proj.weight"):
            w = w[np.argsort(qkv_row_order(config.n_embd, groups))]
        entries.append(Entry(name, TensorInfo("float32", shape), lambda w=w: [w]))
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", entries)
    (directory / "config.json").write_text(json.dumps(config.to_dict() | {"mp_num": groups} | more))
    return directory


def dequantised(model: NativeWeights) -> dict[str, np.ndarray]:
    return {n: native_twin.unpack(m.kind, m.data, m.scale, m.n, m.k) for n, m in model.matrices.items()}


# Packing


def hard_rows() -> np.ndarray:
    """Return rows (37, 200) with what rounding and scales stumble over."""
    w = np.random.default_rng(1).standard_normal((37, 200)).astype(np.float32)
    w[1] = 0
    w[2, :32], w[2, 32:64] = 0, 1e-9  # no scale for float16
    w[3] = 1e30  # above every float16 scale
    w[4, 0::2], w[4, 1::2] = 3, -3  # ties
    w[5] *= 1e-6
    w[6, 70] = -500
    return w


@pytest.mark.parametrize(
    ("kind", "worst"), [("float32", 0), ("bfloat16", 2**-8), ("int8", 0.02), ("int4", 0.2)]
)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 64), (17, 65), (37, 200)])
def test_the_twin_comes_back(kind: str, worst: float, n: int, k: int) -> None:
    w = np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)
    data, scale = native_twin.pack(kind, w)
    assert data.dtype == np.uint8
    assert data.nbytes == native.packed_bytes(kind, n, k)
    assert (scale is None) == (kind != "int8")
    back = native_twin.unpack(kind, data, scale, n, k)
    assert np.abs(back - w).max() <= worst * np.abs(w).max()
    # A run of whole panels by itself gives the same bytes.
    parts = [native_twin.pack(kind, w[at : at + 16]) for at in range(0, n, 16)]
    assert np.array_equal(np.concatenate([p[0] for p in parts]), data)


def test_the_twin_by_hand() -> None:
    """The drawing: where a value of row 1, columns 4, 5 and 33, goes."""
    w = np.zeros((2, 64), np.float32)
    w[1, 4], w[1, 5], w[1, 33] = -8, 7, -4
    data, _ = native_twin.pack("int4", w)
    assert data[:64].view(np.float16).tolist() == [0, 1] + [0] * 14 + [0, 0.5] + [0] * 14
    assert data[64 + 4] == 0x08  # columns 0 (low) and 4 (high) of row 1
    assert data[64 + 5] == 0xF8  # columns 1 and 5
    assert data[64 + 4 * 64 + 5] == 0x80  # columns 33 and 37: pair 4, byte 1 of row 1
    data, scale = native_twin.pack("int8", w)
    assert scale is not None
    assert scale[2:].tolist() == [0] * 14
    assert data[1 * 64 + 4 : 1 * 64 + 8].tolist() == [1, 239, 128, 128]  # quad 1, row 1: columns 4 to 7
    floats = native_twin.pack("float32", w)[0].view(np.float32)
    assert (floats[4 * 16 + 1], floats[5 * 16 + 1]) == (-8, 7)
    halves = native_twin.pack("bfloat16", w)[0].view(np.uint16)
    assert (halves[2 * 32 + 2], halves[2 * 32 + 3]) == (0xC100, 0x40E0)


def test_a_narrower_or_wider_scale_never_loses() -> None:
    w = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    back = native_twin.unpack("int4", *native_twin.pack("int4", w), 64, 256)
    groups = w.reshape(-1, 32)
    widest = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
    s = (widest / -8).astype(np.float16).astype(np.float32)
    plain = np.clip(np.rint(groups / s), -8, 7) * s
    assert ((back - w) ** 2).sum() < 0.95 * ((plain - groups) ** 2).sum()


@pytest.mark.parametrize("kind", native.KINDS)
@pytest.mark.parametrize(
    "make", [hard_rows, lambda: np.random.default_rng(2).standard_normal((256, 1024)).astype("f4")]
)
def test_the_library_packs_as_the_twin(
    kind: str, make: Callable[[], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the library itself
    if not native.library_path().is_file():
        pytest.skip("the native library is not built here")
    w = make()
    data, scale = native.pack(kind, w)
    expected, expected_scale = native_twin.pack(kind, w)
    assert data.shape == expected.shape
    if kind in ("float32", "bfloat16"):
        assert np.array_equal(data, expected)
        return
    # Two scales may tie within rounding, so bytes may differ here and there; the error may not.
    assert (data == expected).mean() >= 0.999
    group = 32 if kind == "int4" else w.shape[1]
    errors = []
    for d, s in ((data, scale), (expected, expected_scale)):
        off = (
            native_twin.padded(native_twin.unpack(kind, d, s, *w.shape) - w)
            if group == 32
            else (native_twin.unpack(kind, d, s, *w.shape) - w)
        )
        errors.append((off.astype(np.float64).reshape(-1, group) ** 2).sum(1))
    assert (errors[0] <= errors[1] * (1 + 1e-6) + 1e-30).all()
    if scale is not None and expected_scale is not None:
        assert (scale[len(w) :] == 0).all()
    with pytest.raises(ValueError, match="not finite"):
        native.pack(kind, np.array([[1, np.nan]], np.float32))


# Conversion


@pytest.mark.parametrize(
    ("dtype", "head_dtype", "tied"), few(((*kinds, tied) for kinds in KINDS for tied in (False, True)), 3)
)
def test_round_trip(
    tmp_path: Path, dtype: str, head_dtype: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "codegen2.checkpoint.formats.tensors.BLOCK_BYTES", 72 * 4 * 23
    )  # blocks end inside panels
    config = replace(ODD, tie_word_embeddings=tied)
    source = write_source(tmp_path / "in", config, groups=4)
    heard: list[tuple[int, int]] = []
    assert convert(
        source, tmp_path / "out", "native", dtype=dtype, head_dtype=head_dtype, progress=lambda *x: heard.append(x)
    ) == []  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "digests.json",
        "model.safetensors",
    ]
    model = open_native(tmp_path / "out")
    assert (model.config, model.kinds) == (config, Kinds(dtype, head_dtype))
    weights = open_weights(source)
    first = [] if tied else ["transformer.wte.weight"]
    assert list(model.matrices) == [
        *first,
        *(f"transformer.h.{i}.{name}.weight" for i in range(2)
          for name in ("attn.qkv_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out")),
        "lm_head.weight",
    ]  # fmt: skip
    for name, matrix in model.matrices.items():
        w = weights.read("transformer.wte.weight" if tied and name == "lm_head.weight" else name)
        special = {
            "lm_head.weight": head_dtype,
            "transformer.wte.weight": "int8" if dtype == "int4" else dtype,
        }
        assert matrix.kind == special.get(name, dtype)
        assert (matrix.n, matrix.k) == w.shape
        assert matrix.data.ctypes.data % 64 == 0
        data, scale = native_twin.pack(matrix.kind, w)
        assert np.array_equal(matrix.data.reshape(-1), data), name
        assert (scale is None) == (matrix.scale is None)
        if scale is not None and matrix.scale is not None:
            assert np.array_equal(matrix.scale, scale)
            assert matrix.scale.ctypes.data % 64 == 0
        if dtype == "float32":
            assert np.array_equal(dequantised(model)[name], w)
    assert {n: v.tolist() for n, v in model.vectors.items()} == {
        n: weights.read(n).tolist() for n, s in expected_tensors(config).items() if len(s) == 1
    }
    total = sum(e.info.nbytes for e in native_entries(weights, model.kinds))
    assert heard[-1] == (total, total)
    names = SafetensorsFile(tmp_path / "out" / "model.safetensors").names()
    assert names[-len(model.vectors) :] == list(model.vectors)


@pytest.mark.parametrize("name", ["tiny-mp4", "tiny-mp8"])
def test_torch_archives_in_both_groupings(tmp_path: Path, name: str) -> None:
    convert(GOLDENS / name, tmp_path / "out", "native", dtype="float32")
    weights = open_weights(GOLDENS / name)
    for matrix, w in dequantised(open_native(tmp_path / "out")).items():
        assert np.array_equal(w, weights.read(matrix))


def test_by_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "in", ODD)
    convert(source, tmp_path / "twin", "native", dtype="int4")
    monkeypatch.undo()
    if not native.library_path().is_file():
        pytest.skip("the native library is not built here")
    convert(source, tmp_path / "library", "native", dtype="int4")
    ours, theirs = (dequantised(open_native(tmp_path / d)) for d in ("library", "twin"))
    for name, w in ours.items():
        assert (w != theirs[name]).mean() < 0.01, name


def test_config_and_companions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from codegen2.checkpoint.convert import tokenizer_json
    from codegen2.text.tokenizer import Tokenizer

    config = replace(TINY, vocab_size=51200)
    source = write_source(tmp_path / "in", config, max_prompt_tokens=16, together=False)
    own = json.dumps(tokenizer_json(Tokenizer()))
    (source / "tokenizer.json").write_text(own)
    if native.library_path().is_file():
        monkeypatch.setattr(native, "pack", BY_THE_LIBRARY)  # 51,200 rows take the twin two seconds
    convert(source, tmp_path / "out", "native", dtype="int4", head_dtype="int4")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == own
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["native"] == {"format": 1, "dtype": "int4", "head_dtype": "int4"}
    assert (raw["torch_dtype"], raw["mp_num"], raw["max_prompt_tokens"]) == ("int4", 1, 16)
    assert raw["together"] is False  # how the model is best asked goes along
    assert open_native(tmp_path / "out").raw == raw
    assert is_native(tmp_path / "out")
    assert not is_native(source)
    assert not is_native(tmp_path / "nowhere")
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert (8 + int.from_bytes(content[:8], "little")) % 64 == 0
    assert content[8:].startswith(b'{"__metadata__"')  # as the format wants: no blanks in front


def test_only_blocks_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    def spy(kind: str, w: np.ndarray) -> Any:
        nonlocal largest
        largest = max(largest, w.nbytes)
        return native_twin.pack(kind, w)

    monkeypatch.setattr(native, "pack", spy)
    monkeypatch.setattr("codegen2.checkpoint.formats.tensors.BLOCK_BYTES", 72 * 4 * 48)
    convert(write_source(tmp_path / "in", ODD), tmp_path / "out", "native")
    assert 0 < largest <= 72 * 4 * 64  # a block and the rest of the one before


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "in", TINY)
    for dtype, head, message in [
        ("float16", None, "dtype is 'float16', expected one of float32, bfloat16, int8, int4"),
        ("int8", "int4", "head_dtype is 'int4', expected int8 beside int8; leave it out"),
        ("float32", "int8", "expected float32 beside float32"),
        ("int4", "bfloat16", "expected int8 or int4 beside int4"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / "out", "native", dtype=dtype, head_dtype=head)
    with pytest.raises(ValueError, match="--head-dtype is 'int8', which --to native knows and hf does not"):
        convert(source, tmp_path / "out", "hf", head_dtype="int8")
    convert(source, tmp_path / "out", "native")
    for to in ("native", "hf"):
        with pytest.raises(
            ValueError, match="out: is a native directory made by convert --to native.*made from"
        ):
            convert(tmp_path / "out", tmp_path / "again", to)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match=r"1\.0 MB free; convert to int4, which takes 0\.0 MB, or choose another"
    ):
        convert(source, tmp_path / "x", "native")
    with pytest.raises(ValueError, match="choose another disk, or convert a smaller model"):
        convert(source, tmp_path / "x", "native", dtype="int4")
    with pytest.raises(ValueError, match=r"1\.0 MB free; set CODEGEN2_CACHE to a folder on another disk"):
        native_directory(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "in", "out"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("transformer.h.0.mlp.fc_in.weight", np.nan, "holds values that are not finite"),
        ("transformer.h.0.mlp.fc_in.bias", -np.inf, "holds values that are not finite"),
        (
            "transformer.h.0.mlp.fc_in.weight",
            -6e5,
            r"value 600000 does not fit int4 \(at most 524032\); choose int8",
        ),
    ],
)
def test_values_that_cannot_be_packed(tmp_path: Path, name: str, value: float, message: str) -> None:
    source = write_source(tmp_path / "in", TINY)
    path = source / "model.safetensors"
    content = bytearray(path.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    at = 8 + int.from_bytes(content[:8], "little") + header[name]["data_offsets"][0]
    content[at : at + 4] = np.float32(value).tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors: {name}: {message}"):
        convert(source, tmp_path / "out", "native", dtype="int4")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


# Damage


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a native directory that nobody changes."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "pack", native_twin.pack)
        convert(write_source(folder / "in", TINY), folder / "made", "native", dtype="int4")
    return folder / "made"


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Path:
    """Return a native directory."""
    return shutil.copytree(made_once, tmp_path / "made")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"native": None}, "native is None, expected format 1; convert the checkpoint again"),
        ({"native": {"format": 2, "dtype": "int4", "head_dtype": "int8"}}, "expected format 1"),
        ({"native": {"format": True, "dtype": "int4", "head_dtype": "int8"}}, "expected format 1"),
        ({"native": {"format": 1, "dtype": "int4"}}, "expected texts for dtype and head_dtype"),
        ({"native": {"format": 1, "dtype": "int3", "head_dtype": "int8"}}, "expected one of float32"),
        ({"native": {"format": 1, "dtype": "int8", "head_dtype": "int8"}}, r"h.0.*int8 is missing"),
        ({"mp_num": 4}, "mp_num is 4, expected 1"),
        ({"n_layer": 2}, "transformer.h.1.* is missing"),
        ({"n_layer": 10**9}, "n_layer is 1000000000, at most 1024 is read"),
        ({"vocab_size": 2**20 + 1}, "vocab_size is 1048577, at most"),
        ({"n_embd": 2**17, "n_head": 2**16}, "n_embd is 131072, at most"),
        ({"n_ctx": 2**18}, "n_ctx is 262144, at most"),
        ({"vocab_size": 40}, r"wte.weight.int8 is uint8 \(2, 1024\), expected uint8 \(3, 1024\)"),
        ({"vocab_size": 21}, r"lm_head.bias is float32 \(20,\), expected float32 \(21,\)"),
        ({"tie_word_embeddings": True}, "'transformer.wte.weight.int8' is no tensor of this native model"),
        ({"tie_word_embeddings": "yes"}, "expected true or false"),
        ({"n_head": 3}, "not a multiple of n_head 3"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit(made: Path, changes: dict[str, Any], message: str) -> None:
    path = made / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        open_native(made)


def entries_of(model: Path) -> list[Entry]:
    file = SafetensorsFile(model / "model.safetensors")
    copies = {n: file.read(n).copy() for n in file.names()}
    return [Entry(n, file.info(n), lambda n=n: [copies[n]]) for n in file.names()]


def test_files_that_do_not_fit(made: Path) -> None:
    path, entries = made / "model.safetensors", entries_of(made)

    def write(entries: list[Entry], align: int = 64) -> None:
        path.unlink()
        write_safetensors(path, entries, align=align)

    write(entries[::-1])  # vectors first: their 4 * 8 bytes shift what follows
    with pytest.raises(
        ValueError, match="does not start at a multiple of 64 bytes; convert the checkpoint again"
    ):
        open_native(made)
    write(entries[1:])
    with pytest.raises(ValueError, match=r"wte.weight.int8 is missing \(1 of 15 tensors\)"):
        open_native(made)
    write([*entries, Entry("more", TensorInfo("uint8", (4,)), lambda: [np.zeros(4, np.uint8)])])
    with pytest.raises(ValueError, match="'more' is no tensor of this native model"):
        open_native(made)
    write(entries)
    open_native(made)
    path.unlink()
    with pytest.raises(ValueError, match="model.safetensors: cannot be read"):
        open_native(made)
    (made / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json: not found"):
        open_native(made)


TELLING: list[Any] = [
    -1, 0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 20, 32, 63, 64, 65, 2**16, 2**31 - 1, 2**31, 2**32, 2**61, 2**62, 2**63,
    2**64, 10**30, 0.5, 1e-5, -0.0, 1e308, float("inf"), float("nan"), True, False, None, "", "x", "int8", "int4",
    "float32", "bfloat16", "U8", "F32", "BF16", [], [1], [0, 0], {}, {"format": 1}, "codegen", [[[]]],
]  # fmt: skip


class Mutator:
    """Damages of one native directory, drawn at random: bytes, ends, and values of its two JSON texts."""

    def __init__(self, model: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.config = (model / "config.json").read_bytes()
        content = (model / "model.safetensors").read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        self.head, self.values = content[:start], content[start:]

    def draw(self) -> tuple[bytes, bytes]:
        """Return config.json and model.safetensors, at least one of them damaged."""
        config, head, values = self.config, self.head, self.values
        way = self.rng.randrange(7)
        if way == 0:
            head = self._bytes(head)
        elif way == 1:
            head = self._with_header(self._json(json.loads(head[8:])))
        elif way == 2:
            return config, (head + values)[
                : self.rng.choice([0, 7, 8, self.rng.randrange(len(head + values))])
            ]
        elif way == 3:
            values = values[: -self.rng.randrange(1, 200)] if self.rng.random() < 0.5 else values + b"\0" * 4
        elif way == 4:
            config = self._bytes(config)
        else:
            config = json.dumps(self._json(json.loads(config))).encode()
            if way == 6:
                head = self._with_header(self._json(json.loads(head[8:])))
        return config, head + values

    def _bytes(self, text: bytes) -> bytes:
        out = bytearray(text)
        for _ in range(self.rng.randrange(1, 4)):
            out[self.rng.randrange(len(out))] = self.rng.choice(
                [self.rng.randrange(256), *b'0123456789"[]{},:']
            )
        return bytes(out)

    def _json(self, content: Any) -> Any:
        """Change, drop, rename or swap something, anywhere inside."""
        for _ in range(self.rng.randrange(1, 3)):
            at = content
            while True:
                keys = list(at) if isinstance(at, dict) else list(range(len(at)))
                if not keys:
                    break
                key = self.rng.choice(keys)
                if isinstance(at[key], dict | list) and self.rng.random() < 0.8:
                    at = at[key]
                    continue
                what = self.rng.randrange(5)
                if what == 0 and isinstance(at, dict):
                    at[f"{key}x"] = at.pop(key)
                elif what == 1:
                    del at[key]
                elif what == 2:
                    other = self.rng.choice(keys)
                    at[key], at[other] = at[other], at[key]
                elif what == 3 and isinstance(at[key], int):
                    at[key] += self.rng.choice([-64, -16, -4, -1, 1, 4, 16, 64])
                else:
                    at[key] = self.rng.choice(TELLING)
                break
        return content

    def _with_header(self, header: Any) -> bytes:
        text = json.dumps(header).encode()
        text += b" " * self.rng.choice([0, -(8 + len(text)) % 64])
        return len(text).to_bytes(8, "little") + text


def touch(model: NativeWeights) -> None:
    """Read every byte, and hold shapes to the config."""
    for matrix in model.matrices.values():
        assert matrix.data.nbytes == native.packed_bytes(matrix.kind, matrix.n, matrix.k)
        assert matrix.data.ctypes.data % 64 == 0
        matrix.data.tobytes()
        if matrix.scale is not None:
            assert matrix.scale.shape == (matrix.data.shape[0] * 16,)
            matrix.scale.tobytes()
    for vector in model.vectors.values():
        vector.tobytes()


def mutate(made: Path, rounds: int, seed: int) -> int:
    """Open `rounds` damaged copies; give how many opened all the same."""
    mutator = Mutator(made, seed)
    opened = 0
    for _ in range(rounds):
        config, content = mutator.draw()
        for name, data in (("config.json", config), ("model.safetensors", content)):
            (made / name).unlink()  # a mapped file is never shortened under its reader
            (made / name).write_bytes(data)
        try:
            model = open_native(made)
        except ValueError as e:
            assert str(made) in str(e)
            assert len(str(e)) < 2000
        else:
            touch(model)
            opened += 1
    return opened


def test_mutants(made: Path) -> None:
    assert 0 < mutate(made, 400, seed=0) < 160


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_many_mutants(made: Path, seed: int) -> None:
    mutate(made, 25_000, seed)


# The cache


def test_made_once_and_found_again(tmp_path: Path) -> None:
    source = write_source(tmp_path / "my model", TINY)
    heard: list[tuple[int, int]] = []
    first = native_directory(source, progress=lambda *x: heard.append(x))
    assert first.parent == native_cache_dir() == tmp_path / "cache" / "native"
    assert first.name == f"my_model-int8-{source_hash(source, Kinds('int8', 'int8'))}"
    assert open_native(first).kinds == Kinds("int8", "int8")
    assert heard
    heard.clear()
    assert native_directory(source, "int8", "int8", lambda *x: heard.append(x)) == first
    assert heard == []
    assert sorted(p.name for p in first.parent.iterdir()) == [first.name]  # no lock, no part
    others = {native_directory(source, d, h).name.rsplit("-", 1)[0] for d, h in KINDS if d != "int8"}
    assert others == {"my_model-float32", "my_model-bfloat16", "my_model-int4", "my_model-int4-head4"}
    # A native directory is its own.
    assert native_directory(first) == native_directory(first, "int8") == first
    with pytest.raises(
        ValueError, match="is packed as int8 with a head of int8, asked for was int4 with int8; leave"
    ):
        native_directory(first, "int4")


def test_the_hash_sees_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = Kinds("int8", "int8")
    source = write_source(tmp_path / "in", TINY)
    path = source / "model.safetensors"
    content, stat = path.read_bytes(), path.stat()
    seen = {source_hash(source, kinds), source_hash(source, Kinds("int4", "int8"))}
    assert source_hash(source, kinds) in seen
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    seen.add(source_hash(source, kinds))
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert source_hash(source, kinds) in seen  # a copy with its time kept is the same
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert source_hash(source, kinds) in seen  # small files are read whole
    monkeypatch.setattr(reader, "_WHOLE_BYTES", 0)
    seen.add(source_hash(source, kinds))
    (source / "tokenizer.json").write_text("{}")
    seen.add(source_hash(source, kinds))
    (source / "config.json").write_text((source / "config.json").read_text() + "\n")
    seen.add(source_hash(source, kinds))
    assert len(seen) == 6
    (source / "config.json").unlink()
    path.unlink()
    with pytest.raises(ValueError, match="in: no weights"):
        source_hash(source, kinds)


def test_the_hash_reads_the_checksums_of_a_torch_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change between all samples, size and time kept, moves a tensor's checksum in the zip's directory."""
    monkeypatch.setattr(reader, "_SAMPLE_BYTES", 16)
    monkeypatch.setattr(reader, "_WHOLE_BYTES", 0)
    for name in ("a", "b"):
        shutil.copytree(GOLDENS / "tiny-mp8", tmp_path / name)
    assert source_hash(tmp_path / "a", Kinds("int8", "int8")) == source_hash(
        tmp_path / "b", Kinds("int8", "int8")
    )
    path = max((tmp_path / "b").glob("*.bin"), key=lambda p: p.stat().st_size)
    stat, content = path.stat(), bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # the last entry of the zip's directory
    content[at + 16] ^= 1  # its checksum
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert source_hash(tmp_path / "a", Kinds("int8", "int8")) != source_hash(
        tmp_path / "b", Kinds("int8", "int8")
    )


def damages(directory: Path) -> Iterator[tuple[Path, bytes | None]]:
    """Yield files of a directory and what they hold when damaged, None where they are lost."""
    for name in ("config.json", "digests.json", "model.safetensors"):
        data = (directory / name).read_bytes()
        yield from ((directory / name, bad) for bad in (None, b"", data[:-9]))
    weights = directory / "model.safetensors"
    flipped = [data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] for at in (3, 200, len(data) - 9)]
    zeroed = data[:-64] + bytes(64)
    yield from ((weights, bad) for bad in (*flipped, zeroed, data + b"more"))
    config = directory / "config.json"
    yield config, config.read_bytes().replace(b'"rotary_dim": 2', b'"rotary_dim": 4')


def test_a_damaged_entry_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_source(tmp_path / "in", TINY)
    entry = native_directory(source)
    good = (entry / "model.safetensors").read_bytes()
    tried = list(damages(entry))
    assert len(tried) == 15
    for path, bad in tried:
        path.unlink() if bad is None else path.write_bytes(bad)
        remains = entry.with_name(f".{entry.name}.99999.0123abcd.part")
        remains.mkdir()
        caplog.clear()
        assert native_directory(source) == entry
        assert f"{path}: is not as it was written; it is computed anew" in caplog.text
        assert (entry / "model.safetensors").read_bytes() == good
        assert damaged_file(entry, thorough=True) is None
        assert [p.name for p in entry.parent.iterdir()] == [entry.name]


def test_only_what_was_touched_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = native_directory(write_source(tmp_path / "in", TINY))
    read: list[str] = []
    monkeypatch.setattr(digests, "file_hash", lambda path: read.append(path.name) or paths.file_hash(path))
    assert damaged_file(entry) is None
    assert read == []
    copy = shutil.copytree(entry, tmp_path / "copy", copy_function=shutil.copyfile)
    for _ in range(2):  # the second time finds the new times written down
        assert damaged_file(copy) is None
        assert sorted(read) == ["config.json", "model.safetensors"]
    read.clear()
    assert damaged_file(copy, thorough=True) is None
    assert len(read) == 2


def test_a_directory_of_ones_own_is_refused_when_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    convert(write_source(tmp_path / "in", TINY), out, "native")
    path = out / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    with pytest.raises(
        ValueError, match="model.safetensors: is not as it was written; convert the checkpoint again"
    ):
        native_directory(out)
    (out / "digests.json").unlink()  # as older versions wrote it
    assert native_directory(out) == out
    assert "without digests.json to verify it by" in caplog.text


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "in", TINY)
    (tmp_path / "file").touch()
    monkeypatch.setenv("CODEGEN2_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="cannot be written .*; set CODEGEN2_CACHE to a folder that can"):
        native_directory(source)
    monkeypatch.setenv("CODEGEN2_CACHE", str(tmp_path / "cache"))
    entry = native_directory(source)

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(entry))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert native_directory(source) == entry  # what is there is read, though nothing can be written
    with pytest.raises(
        ValueError, match=r"native: cannot be written \(Permission denied\); set CODEGEN2_CACHE"
    ):
        native_directory(source, "int4")


ASK = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import native_twin
from codegen2 import native
from codegen2.checkpoint.native.cache import native_directory

native.pack = native_twin.pack
heard = []

def progress(done, total):
    heard.append(done)
    time.sleep(0.02)

open(sys.argv[3], "w").close()
while not all(os.path.exists(p) for p in sys.argv[3:]):
    time.sleep(0.001)
print(native_directory(sys.argv[2], progress=progress), bool(heard))
"""


def test_two_processes_convert_once(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", TINY)
    marks = [str(tmp_path / "ready-1"), str(tmp_path / "ready-2")]
    asked = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, str(Path(__file__).parents[1]), str(source), *order],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )
        for order in (marks, marks[::-1])
    ]  # fmt: skip
    answers = [p.communicate(timeout=300)[0].split() for p in asked]
    assert [p.returncode for p in asked] == [0, 0]
    assert answers[0][0] == answers[1][0]
    assert sorted(a[1] for a in answers) == ["False", "True"]
    assert [str(p) for p in native_cache_dir().iterdir()] == [answers[0][0]]


def test_threads_convert_once(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", TINY)
    found: list[Path] = []
    heard: set[int] = set()

    def ask() -> None:
        path = native_directory(source, progress=lambda done, total: heard.add(threading.get_ident()))
        open_native(path)
        found.append(path)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == len(threads)
    assert len(set(found)) == 1
    assert len(heard) == 1
    assert list(native_cache_dir().iterdir()) == found[:1]


def test_installations_and_copies_share_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the path nor the time counts, but the contents; in the hub's cache, where a file's name is its hash, that."""
    first = native_directory(write_source(tmp_path / "venv1" / "box", TINY))
    again = tmp_path / "venv2" / "model"
    shutil.copytree(tmp_path / "venv1" / "box", again)
    os.utime(again / "model.safetensors", (1, 1))
    assert native_directory(again) == first
    assert sources(first) == [[str(tmp_path / "venv1" / "box")], [str(again)]]
    native_directory(again)
    assert len(sources(first)) == 2
    monkeypatch.setattr(reader, "_WHOLE_BYTES", 0)
    seen = set()
    for hub, blob in (("a", "0" * 64), ("b", "0" * 64), ("c", "1" * 64)):
        folder = tmp_path / hub / "blobs"
        folder.mkdir(parents=True)
        shutil.copy(again / "model.safetensors", folder / blob)
        os.utime(folder / blob, (len(seen), len(seen)))
        snapshot = tmp_path / hub / "models--who--m" / "snapshots" / "1"
        snapshot.mkdir(parents=True)
        shutil.copy(again / "config.json", snapshot)
        (snapshot / "model.safetensors").symlink_to(folder / blob)
        seen.add(source_hash(snapshot, Kinds("int8", "int8")))
    assert len(seen) == 2


def test_packing_a_large_model_is_said_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_source(tmp_path / "in", TINY)
    native_directory(source)
    assert caplog.messages == []  # a small one is there at once
    monkeypatch.setattr(cache, "_SAID_ABOVE", 1000)
    heard: list[int] = []
    entry = native_directory(source, "int4", progress=lambda done, total: heard.append(len(caplog.messages)))
    [said] = caplog.messages
    assert said.startswith(f"codegen2: packing {source} once, into {entry} (") and said.endswith(
        "MB, about 1 min)"
    )
    assert heard[0] == 1
    native_directory(source, "int4")
    assert len(caplog.messages) == 1


def test_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def prune(*argv: object) -> list[str]:
        assert cli.main(["cache", "prune", "--json", *map(str, argv)]) == 0
        rows = json.loads(capsys.readouterr().out)["entries"]
        return [f"{row['name'].split('-')[0]}: {row['why']}" for row in rows]

    entries = {}
    for days, name in enumerate(("new", "old", "gone")):
        entries[name] = native_directory(write_source(tmp_path / name, TINY, seed=days))
        note = entries[name] / "source.json"
        os.utime(note, (note.stat().st_mtime - 10 * 86_400 * days,) * 2)
    killed = native_cache_dir() / ".x-int8-0.1.2.part"
    killed.mkdir()
    assert prune() == []
    shutil.rmtree(tmp_path / "gone")
    gone = "gone: its source is gone"
    assert prune("--dry-run") == [gone] and entries["gone"].exists()
    assert prune("--dry-run", "--unused-days", 9) == ["old: not used for 10 days", gone]
    size = sum(f.stat().st_size for f in entries["new"].iterdir()) / 1e9
    assert prune("--dry-run", "--max-gb", size * 1.5) == [f"old: more than {size * 1.5:g} GB", gone]
    assert len(prune("--dry-run", "--max-gb", 0)) == 3
    native_directory(tmp_path / "old")  # used again
    os.utime(killed, (1, 1))
    assert sorted(prune("--unused-days", 9)) == [".x: left by a run that was killed", gone]
    assert sorted(native_cache_dir().iterdir()) == sorted([entries["new"], entries["old"]])
    for argv in (["prune", "x"], ["prune", "--max-gb", "-1"], ["rm", "all", "--dry-run"], ["ls", "x"]):
        assert cli.main(["cache", *argv]) == 2
    assert cli.main(["cache", "ls"]) == 0
    assert f"{entries['old']}  of {tmp_path / 'old'}" in capsys.readouterr().out


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path / "in", TINY)
    out = tmp_path / "out"

    def run(*argv: object) -> str:
        assert cli.main([str(a) for a in argv]) == 0
        return capsys.readouterr().out

    assert (
        run("convert", source, out, "--to", "native", "--dtype", "int4", "--head-dtype", "int4") == f"{out}\n"
    )
    assert open_native(out).kinds == Kinds("int4", "int4")
    assert cli.main(["convert", str(out), str(tmp_path / "x"), "--to", "hf"]) == 2
    assert "is a native directory" in capsys.readouterr().err
    entries = [native_directory(source, dtype) for dtype in ("int4", "int8")]
    killed = native_cache_dir() / ".in-int8-0123.1.2.part"
    killed.mkdir()
    (native_cache_dir() / ".in-int8-0123.lock").touch()
    listed = [e for e in json.loads(run("cache", "ls", "--json"))["entries"] if e["kind"] == "native"]
    assert [e["path"] for e in listed] == [str(p) for p in (killed, *entries)]
    assert listed[1]["bytes"] == sum(f.stat().st_size for f in entries[0].iterdir())
    assert run("cache", "verify") == "whole: 2\n"
    path = entries[0] / "model.safetensors"
    data, stat = path.read_bytes(), path.stat()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a disk's fault leaves the time as it was
    assert run("cache", "verify", entries[1].name) == "whole: 1\n"
    assert cli.main(["cache", "verify"]) == 2
    assert (
        f"{path}: not as written; codegen2 cache rm {entries[0].name} removes it" in capsys.readouterr().err
    )
    run("cache", "rm", entries[0].name, killed.name)
    assert [p for p in native_cache_dir().iterdir() if p.is_dir()] == [entries[1]]
    assert entries[1].name in run("cache", "ls")
    run("cache", "rm", "all")
    assert not entries[1].exists()


@pytest.mark.slow  # the default run's first half is without PyTorch throughout
def test_no_torch() -> None:
    code = "import sys, codegen2.checkpoint.native.cache; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert native_form.FORMAT == 1
