"""Checkpoints for tests: the golden ones in every form, and small ones of random weights with the real vocabulary."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from codegen2.checkpoint.layout import expected_tensors, qkv_row_order
from codegen2.config import ModelConfig

GOLDENS = Path(__file__).parent / "fixtures" / "goldens"
GOLDEN_NAMES = ("tiny-mp4", "tiny-mp8")
Tensors = dict[str, torch.Tensor]

SNIPPET_CONFIG = ModelConfig(n_embd=64, n_head=4, n_layer=1, rotary_dim=16)  # the real vocabulary, else tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one core: on matrices this small threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def golden(name: str) -> tuple[dict[str, Any], Tensors, Tensors]:
    """Return a golden's config.json, its weights as torch itself reads them, and the expected outputs."""
    raw = json.loads((GOLDENS / name / "config.json").read_text())
    tensors: Tensors = {}
    for path in sorted((GOLDENS / name).glob("*.bin")):
        tensors |= torch.load(path, weights_only=True)
    return raw, tensors, load_file(GOLDENS / name / "expected.safetensors")


def write_checkpoint(
    directory: Path, raw: dict[str, Any], tensors: Tensors, form: str = "safetensors", shards: int = 1
) -> Path:
    """Write a checkpoint as others would: by torch.save or the safetensors library, whole or in shards."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{i + 1:05d}-of-{shards:05d}.{suffix}"
        part = {n: tensors[n].contiguous() for n in names[i::shards]}
        if form == "safetensors":
            save_file(part, directory / file)
        else:
            torch.save(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def regroup(tensors: Tensors, old: int, new: int) -> Tensors:
    """Return the same model with its QKV rows laid in other groups."""
    out = dict(tensors)
    for name, w in tensors.items():
        if name.endswith("qkv_proj.weight"):
            plain = w[torch.from_numpy(qkv_row_order(w.shape[1], old))]
            out[name] = plain[torch.from_numpy(np.argsort(qkv_row_order(w.shape[1], new)))]
    return out


def random_tensors(config: ModelConfig, seed: int = 0) -> Tensors:
    """Draw weights, large enough that their logits differ visibly."""
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=g) * 0.05 for n, s in expected_tensors(config).items()}


def released_config(config: ModelConfig, groups: int) -> dict[str, Any]:
    """Return a config.json as released: the wrong end of text, and the key that tells the grouping."""
    raw = config.to_dict() | {"bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}
    raw |= {"auto_map": {"AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM"}}
    return raw | ({"head_dim": config.head_dim} if groups == 8 else {})


def archive(
    pickle: bytes, storages: dict[str, bytes], byteorder: str = "little", **zip_options: Any
) -> bytes:
    """Build a torch archive around any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **zip_options) as z:
        z.writestr("x/data.pkl", pickle)
        z.writestr("x/byteorder", byteorder)
        for key, data in storages.items():
            z.writestr(f"x/data/{key}", data)
    return out.getvalue()
