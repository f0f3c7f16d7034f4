"""What packing costs at a released shape: random weights of 1B in int8 and int4 against float32.

    python benchmarks/shape_logits.py [--preset 1B] [--tokens 256] [--out RESULT.json]

The float32 side is the native engine with float32 weights and activations. Weights are drawn from a normal distribution
with the released models' spread at initialisation (0.02, the narrow matrices less by the square root of twice the
layers), so logits are flat and top-1 agreement says little: a trained model is measured by benchmarks/quantization.py.
Divergence: the mean over tokens of KL(float32 || packed), nats; with it, how far logits move against their own spread.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from codegen2.checkpoint.convert import convert
from codegen2.checkpoint.formats.safetensors import Entry, write_safetensors
from codegen2.checkpoint.formats.tensors import TensorInfo
from codegen2.checkpoint.layout import expected_tensors
from codegen2.checkpoint.native.form import open_native
from codegen2.config import PRESETS, ModelConfig
from codegen2.engine.native import NativeEngine
from codegen2.engine.protocol import Piece
from codegen2.generation.sampling import log_softmax

FORMS = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "int4": "int4"}


def write_random(directory: Path, config: ModelConfig) -> None:
    """Write a checkpoint of random weights, float32, in our form."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config.to_dict() | {"mp_num": 1}))

    def blocks(number: int, name: str, shape: tuple[int, ...]) -> list[np.ndarray]:
        if len(shape) == 1:
            return [np.full(shape, float("ln" in name and name.endswith("weight")), np.float32)]
        spread = 0.02 / (2 * config.n_layer) ** 0.5 if "out" in name else 0.02
        return [spread * np.random.default_rng(number).standard_normal(shape, dtype=np.float32)]

    entries = [
        Entry(name, TensorInfo("float32", shape), lambda i=i, n=name, s=shape: blocks(i, n, s))
        for i, (name, shape) in enumerate(expected_tensors(config).items())
    ]
    write_safetensors(directory / "model.safetensors", entries)


def main() -> None:
    """Pack the same random checkpoint in every form, one at a time, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="1B")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    config = PRESETS[args.preset]
    ids = np.random.default_rng(1).integers(0, 50_000, args.tokens).tolist()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        write_random(source, config)
        exact = np.zeros(0)
        for name, dtype in FORMS.items():
            packed = Path(temporary) / dtype
            convert(source, packed, "native", dtype=dtype, check=False, calibrate=())
            engine = NativeEngine(open_native(packed))
            [logits] = engine.forward([Piece(0, 0, ids, len(ids), len(ids))], engine.new_cache(1, len(ids)))
            gc.collect()
            if name == "float32":
                exact = logits
                continue
            near, right = log_softmax(logits), log_softmax(exact)
            found[name] = {
                "mean_kl": float((np.exp(right) * (right - near)).sum(-1).mean()),
                "top1_agreement": float((near.argmax(-1) == right.argmax(-1)).mean()),
                "moved": float((logits - exact).std() / exact.std()),
            }
            print(name, found[name], flush=True)
    if args.out:
        content = {"preset": args.preset, "tokens": args.tokens, "forms": found}
        args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
