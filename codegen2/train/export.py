"""From a run's checkpoint to a checkpoint directory with int8 rows, the form of the box.

Not here: reading it back (checkpoint/). Run: python -m codegen2.train.export RUN_DIR DST.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from ..checkpoint.convert import config_json
from ..checkpoint.int8_rows import int8_entries
from ..checkpoint.layout import QKV_NAME, expected_tensors, group_qkv
from ..checkpoint.safetensors_file import write_safetensors
from ..config import ModelConfig
from ..paths import write_atomic


def export(
    run_dir: Path, destination: Path, max_prompt_tokens: int | None = None, anchor: int | None = None
) -> None:
    """Write config.json and model.safetensors into `destination`, which may hold other files.

    max_prompt_tokens, anchor: what config.json shall recommend (see loading.load and api.Model.infill).
    """
    state = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
    config = ModelConfig(**json.loads(state["config"])["model"])
    entries = []
    for name in expected_tensors(config):
        w: np.ndarray = state["model"][name].float().numpy()
        entries += int8_entries(name, group_qkv(w, 1) if QKV_NAME.fullmatch(name) else w)
    destination.mkdir(parents=True, exist_ok=True)
    partial = destination / "model.safetensors.part"
    partial.unlink(missing_ok=True)
    write_safetensors(partial, entries)
    partial.replace(destination / "model.safetensors")
    content = config_json(config, "codegen2", "int8")
    if max_prompt_tokens is not None:
        content["max_prompt_tokens"] = max_prompt_tokens
    if anchor is not None:
        content["anchor"] = anchor
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomic(destination / "config.json", text.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m codegen2.train.export")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--max-prompt-tokens", type=int, default=None)
    parser.add_argument("--anchor", type=int, default=None)
    args = parser.parse_args()
    export(args.run_dir, args.destination, args.max_prompt_tokens, args.anchor)
