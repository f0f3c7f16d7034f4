"""From a run's checkpoint to a checkpoint directory: int8 rows, the form of the box, or floats.

Not here: reading it back (checkpoint/). Run: python -m codegen2.train.export RUN_DIR DST.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint.formats.int8 import int8_entries
from ..checkpoint.formats.safetensors import Entry, write_safetensors
from ..checkpoint.formats.tensors import TensorInfo
from ..checkpoint.layout import as_stored, expected_tensors
from ..checkpoint.write import own_config
from ..config import ModelConfig
from ..files.paths import replacing, write_atomic
from .checkpoint import FILE, read_state
from .linear import round_int4


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
        if dtype == "float32":
            entries.append(float_entry(name, tensor))
        else:
            entries += int8_entries(name, as_stored(name, tensor.numpy()))
    recommended = {"max_prompt_tokens": max_prompt_tokens, "anchor": anchor}
    write_model(destination, config, entries, dtype, recommended)


def float_entry(name: str, tensor: Tensor) -> Entry:
    """Return a weight as write_model takes it: float32, the rows of QKV as one group of Q, V, K ("mp_num": 1)."""
    w = as_stored(name, tensor.detach().float().numpy())
    return Entry(name, TensorInfo("float32", w.shape), lambda: [w])


def write_model(
    out: Path, config: ModelConfig, entries: Sequence[Entry], dtype: str, recommended: Mapping[str, Any]
) -> None:
    """Write a checkpoint directory of form codegen2; recommended: more of config.json, where it is not None."""
    with replacing(out / "model.safetensors") as draft:
        write_safetensors(draft, entries)
    content = own_config(config, dtype)
    content |= {key: value for key, value in recommended.items() if value is not None}
    write_atomic(out / "config.json", (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m codegen2.train.export")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--max-prompt-tokens", type=int, default=None)
    parser.add_argument("--anchor", type=int, default=None)
    parser.add_argument("--dtype", choices=["int8", "float32"], default=None)
    args = parser.parse_args()
    export(args.run_dir, args.destination, args.max_prompt_tokens, args.anchor, args.dtype)
