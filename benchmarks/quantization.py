"""What packing costs in quality: bits per byte, divergence and agreement of the box against float32.

    python benchmarks/quantization.py STORE [--files 60] [--model NAME_OR_DIR] [--out RESULT.json]

The float32 side is the native engine with float32 weights and activations, which tests hold to the reference. Held-out
files are those of benchmarks/box_card.py. Divergence: the mean over tokens of KL(float32 || packed), nats.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from held_out import read_held_out

import codegen2
from codegen2.config import EOT
from codegen2.engine.protocol import Piece
from codegen2.generation.sampling import log_softmax
from codegen2.text.windows import bits_per_byte

SAMPLE_SEED = 20261123
FORMS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "int4, head int8": {"dtype": "int4"},
    "int4, head int4": {"dtype": "int4", "head_dtype": "int4"},
}


def logits_of(model: codegen2.Model, ids: list[int]) -> np.ndarray:
    """Return the logits (T, V) after each of ids, read as a prompt."""
    n = len(ids)
    return model.engine.forward([Piece(0, 0, ids, n, n)], model.engine.new_cache(1, n))[0]


def main() -> None:
    """Compare all forms on the same files and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--model", default=None)
    parser.add_argument("--tokens", type=int, default=20_000, help="compared one by one for KL and agreement")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    held_out = read_held_out(args.store)
    files = random.Random(SAMPLE_SEED).sample(held_out, min(args.files, len(held_out)))
    models = {
        name: codegen2.load(args.model, engine="native", check=False, **form) for name, form in FORMS.items()
    }
    tokenizer = models["float32"].tokenizer
    found: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        scores = [model.score(f.text) for f in files]
        nats = -sum(sum(s.logprobs) for s in scores)
        found[name] = {"bits_per_byte": bits_per_byte(nats, sum(s.n_bytes for s in scores))}
    sums = {name: np.zeros(2) for name in FORMS}
    seen = 0
    for file in files:
        if seen >= args.tokens:
            break
        ids = [EOT, *tokenizer.encode(file.text)][:512]
        exact = log_softmax(logits_of(models["float32"], ids))
        p = np.exp(exact)
        for name, model in models.items():
            near = log_softmax(logits_of(model, ids))
            same = (near.argmax(-1) == exact.argmax(-1)).sum()
            sums[name] += [float((p * (exact - near)).sum()), float(same)]
        seen += len(ids)
    base = found["float32"]["bits_per_byte"]
    for name, (divergence, same) in sums.items():
        found[name] |= {
            "more_bits_percent": 100 * (found[name]["bits_per_byte"] / base - 1),
            "mean_kl": divergence / seen,
            "top1_agreement": same / seen,
        }
        print(name, {k: round(v, 6) for k, v in found[name].items()})
    if args.out:
        content = {"files": len(files), "tokens_compared": seen, "forms": found}
        args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
