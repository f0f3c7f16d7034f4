"""Print how far our outputs lie from the released implementation's, on the tiny golden checkpoints.

    python benchmarks/golden_deviation.py

One JSON line a golden: largest absolute deviation of logits and last hidden states, for the PyTorch model and for the
self-check's numpy forward pass, and whether the greedy tokens are the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from codegen2.checkpoint.formats.safetensors import SafetensorsFile
from codegen2.checkpoint.load import load_model
from codegen2.checkpoint.reader import open_checkpoint
from codegen2.checkpoint.selfcheck import reference_logits
from codegen2.checkpoint.weights import open_weights

GOLDENS = Path(__file__).parents[1] / "tests" / "fixtures" / "goldens"
N_PROMPT = 20  # ids of each greedy row that are given


@torch.no_grad()
def deviation(directory: Path) -> dict[str, object]:
    """Measure one golden."""
    file = SafetensorsFile(directory / "expected.safetensors")
    expected = {name: torch.from_numpy(file.read(name).copy()) for name in file.names()}
    model, weights = load_model(directory), open_weights(directory)
    ids, greedy = expected["input_ids"], expected["greedy_ids"]
    numpy_logits = [reference_logits(weights, row.tolist(), [weights.groups])[0] for row in ids]
    tokens = greedy[:, :N_PROMPT]
    while tokens.shape[1] < greedy.shape[1]:
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), dim=1)
    return {
        "golden": directory.name,
        "qkv_groups": weights.groups,
        "files": sorted({f.path.name for f in open_checkpoint(directory).values()}),
        "logits": float((model(ids) - expected["logits"]).abs().max()),
        "last_hidden_state": float((model.hidden(ids) - expected["last_hidden_state"]).abs().max()),
        "logits_numpy": max(
            float(abs(got - want.numpy()).max())
            for got, want in zip(numpy_logits, expected["logits"], strict=True)
        ),
        "greedy_equal": bool(torch.equal(tokens, greedy)),
    }


if __name__ == "__main__":
    for directory in sorted(GOLDENS.iterdir()):
        print(json.dumps(deviation(directory)))
