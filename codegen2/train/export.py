"""From a run's checkpoint to a checkpoint directory: int8 rows, the form of the box, or floats.

Not here: reading it back (checkpoint/). Run: python -m codegen2.train.export RUN_DIR DST.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from ..checkpoint.convert import config_json
from ..checkpoint.formats.int8 import int8_entries
from ..checkpoint.formats.safetensors import Entry, write_safetensors
from ..checkpoint.formats.tensors import TensorInfo
from ..checkpoint.layout import QKV_NAME, expected_tensors, group_qkv
from ..config import ModelConfig
from ..files.paths import write_atomic
from .checkpoint import FILE, read_state
from .quantised import round_int4


def export(
    run_dir: Path,
    destination: Path,
    max_prompt_tokens: int | None = None,
    anchor: int | None = None,
    dtype: str | None = None,
) -> None:
    """Write config.json and model.safetensors into `destination`, which may hold other files.

    max_prompt_tokens, anchor: what config.json shall recommend (see loading.load and api.Model.infill).
    dtype: "int8" rows or "float32"; None: int8, but for a run that rounded its layers to int4: those are written on
    their grid, from which packing them to int4 loses nothing, and the grid needs float32.
    Raises ValueError for a run without a checkpoint of all weights.
    """
    path = run_dir / FILE
    if not path.is_file():
        raise ValueError(f"{path}: not found; train first")
    state = read_state(path)
    said = json.loads(state["config"])
    if said.get("lora_rank") is not None:
        raise ValueError(f"{path}: holds an adapter, not a model; codegen2 finetune writes both its forms")
    config = ModelConfig(**said["model"])
    on_grid = said.get("qat") == "int4" and state["step"] > said["qat_from_step"]
    dtype = dtype or ("float32" if on_grid else "int8")
    if dtype not in ("int8", "float32") or (on_grid and dtype == "int8"):
        wanted = "float32, since int8 would leave the int4 grid" if on_grid else "int8 or float32"
        raise ValueError(f"dtype is {dtype!r}, expected {wanted}")
    entries: list[Entry] = []
    for name in expected_tensors(config):
        tensor = state["model"][name].float()
        if on_grid and ".h." in name and tensor.ndim == 2:
            tensor = round_int4(tensor)
        w: np.ndarray = group_qkv(tensor.numpy(), 1) if QKV_NAME.fullmatch(name) else tensor.numpy()
        entries += int8_entries(name, w) if dtype == "int8" else [_plain(name, w)]
    destination.mkdir(parents=True, exist_ok=True)
    partial = destination / "model.safetensors.part"
    partial.unlink(missing_ok=True)
    write_safetensors(partial, entries)
    partial.replace(destination / "model.safetensors")
    content = config_json(config, "codegen2", dtype)
    if max_prompt_tokens is not None:
        content["max_prompt_tokens"] = max_prompt_tokens
    if anchor is not None:
        content["anchor"] = anchor
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomic(destination / "config.json", text.encode())


def _plain(name: str, w: np.ndarray) -> Entry:
    return Entry(name, TensorInfo("float32", w.shape), lambda: [w])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m codegen2.train.export")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--max-prompt-tokens", type=int, default=None)
    parser.add_argument("--anchor", type=int, default=None)
    parser.add_argument("--dtype", choices=["int8", "float32"], default=None)
    args = parser.parse_args()
    export(args.run_dir, args.destination, args.max_prompt_tokens, args.anchor, args.dtype)
