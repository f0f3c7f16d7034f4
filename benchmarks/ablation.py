"""Does the mixture cost, does it pay, and does the law of span lengths matter? Three recipes, same shape, tokens, seed.

causal: plain files only. mixture: half of the sequences corrupted, lengths log-uniform. uniform: the same, lengths
uniform. Each with each seed is a run under --dir; a run that is there goes on or is not made again. Judged by held-out
bits per byte and exact match on lines to fill in (HOLES of the held-out files), with paired bootstrap intervals of the
differences to the mixture, over files and over holes; seeds are averaged per file and per hole first. Example:

    python benchmarks/ablation.py --shard corpus/train --valid corpus/valid --dir runs/ablation --tokens 20e6 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from codegen2 import paths
from codegen2.api import Model
from codegen2.config import PRESETS, ModelConfig
from codegen2.engine.reference import ReferenceEngine
from codegen2.metrics import bootstrap, exact_match, paired_difference
from codegen2.model import CodeGen2
from codegen2.tokenizer import Tokenizer
from codegen2.train.checkpoint import FILE, read_state
from codegen2.train.config import Machine, Stage, TrainConfig
from codegen2.train.corruption import CorruptionConfig
from codegen2.train.data import JoinedDocuments, open_shards
from codegen2.train.heldout import choose_documents, document_nats
from codegen2.train.loop import train
from codegen2.train.step import Step, plain_nats

OBJECTIVES = {
    "mixture": CorruptionConfig(),
    "causal": CorruptionConfig(causal_probability=1.0),
    "uniform": CorruptionConfig(log_uniform=False),
}


def config(args: argparse.Namespace, name: str, seed: int) -> TrainConfig:
    shape = (
        PRESETS["nano"]
        if args.preset == "nano"
        else ModelConfig(n_ctx=512, n_embd=64, n_layer=2, n_head=1, tie_word_embeddings=True)
    )
    steps = max(1, math.ceil(args.tokens / (args.seq_len * args.batch)))
    return TrainConfig(
        shape, OBJECTIVES[name], (Stage(0, args.seq_len, args.batch),), piece_tokens=1024, max_steps=steps,
        warmup_steps=max(1, min(100, steps // 10)), schedule="cosine", final_lr=0.05, lr=args.lr,
        matrix_lr=args.matrix_lr,
        seed=seed, checkpoint_every=100, bfloat16=not args.float32,
    )  # fmt: skip


def holes(valid: JoinedDocuments, tokenizer: Tokenizer, n: int) -> list[tuple[int, str, str, str]]:
    """Choose n lines at random, at most ten a file: (file, prefix, middle, suffix)."""
    rng = random.Random(0)
    found = []
    for number in range(len(valid)):
        lines = tokenizer.decode(valid.doc(number).tolist()).split("\n")
        full = [i for i, line in enumerate(lines) if len("".join(line.split())) >= 8]
        for i in rng.sample(full, min(10, len(full))):
            before = "".join(f"{line}\n" for line in lines[:i])
            found.append((number, before, lines[i], "".join(f"\n{line}" for line in lines[i + 1 :])))
    rng.shuffle(found)
    return found[:n]


def judge(
    args: argparse.Namespace, run_dir: Path, model: CodeGen2, valid: JoinedDocuments, cut: list
) -> dict:
    """Judge a finished run once; its results lie beside it."""
    path = run_dir / "judged.json"
    if path.is_file():
        return json.loads(path.read_text())
    tokenizer = Tokenizer()
    device = torch.device(args.device)
    model = model.to(device).eval()
    numbers = choose_documents(valid, args.files)
    step = Step(model, TrainConfig(model.config, stages=(Stage(0, 1, 1),), bfloat16=False), Machine())
    nats = list(
        document_nats(valid, numbers, model.config.n_ctx, lambda i, t: plain_nats(step, device, i, t))
    )
    engine = Model(
        ReferenceEngine(model, args.device), tokenizer, "ablation", min(512, model.config.n_ctx - 80)
    )
    matches = [
        float(exact_match(engine.infill(p, s, stop_at="line", max_new_tokens=48).text, m))
        for _, p, m, s in cut
    ]
    sizes = [len(tokenizer.decode(valid.doc(i).tolist()).encode()) for i in numbers]
    result = {"nats": nats, "bytes": sizes, "matches": matches}
    paths.write_atomic(path, json.dumps(result).encode())
    return result


def load_run(settings: TrainConfig, run_dir: Path) -> CodeGen2:
    model = CodeGen2(settings.model)
    model.load_state_dict(read_state(run_dir / FILE)["model"])
    return model


def compare(found: dict[str, list[dict]], groups: list[int]) -> list[dict]:
    """Give a row an objective: both numbers, and their differences to the mixture's."""

    def nats(name: str) -> np.ndarray:
        return np.mean([run["nats"] for run in found[name]], axis=0) / math.log(2)

    def matches(name: str) -> np.ndarray:
        return np.mean([run["matches"] for run in found[name]], axis=0)

    sizes = found["mixture"][0]["bytes"]
    rows = []
    for name in found:
        row = {
            "objective": name,
            "bits_per_byte": vars(bootstrap(nats(name).tolist(), weights=sizes)),
            "exact_match": vars(bootstrap(matches(name).tolist(), groups, share=True)),
        }
        if name != "mixture":
            row["bits_per_byte_less_mixture"] = vars(
                paired_difference(nats("mixture").tolist(), nats(name).tolist(), weights=sizes)
            )
            row["exact_match_less_mixture"] = vars(
                paired_difference(matches("mixture").tolist(), matches(name).tolist(), groups)
            )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shard", type=Path, nargs="+", required=True)
    add("--valid", type=Path, nargs="+", required=True)
    add("--dir", type=Path, required=True)
    add("--tokens", type=float, default=20e6, help="a run")
    add("--seeds", type=int, default=1)
    add("--preset", choices=["nano", "tiny"], default="nano")
    add("--seq-len", type=int, default=512)
    add("--batch", type=int, default=8)
    add("--lr", type=float, default=2e-3)
    add("--matrix-lr", type=float, default=0.02)
    add("--holes", type=int, default=2000)
    add("--files", type=int, default=300)
    add("--float32", action="store_true")
    add("--device", default="cpu")
    add("--compile", action="store_true")
    add("--workers", type=int, default=0)
    add("--max-seconds", type=float, default=math.inf, help="of training in this call; call again to go on")
    args = parser.parse_args()
    docs, valid = JoinedDocuments(open_shards(args.shard)), JoinedDocuments(open_shards(args.valid))
    cut = holes(valid, Tokenizer(), args.holes)
    left = args.max_seconds
    found: dict[str, list[dict]] = {name: [] for name in OBJECTIVES}
    for seed in range(args.seeds):
        for name in OBJECTIVES:
            run_dir = args.dir / f"{name}-{seed}"
            settings = config(args, name, seed)
            spent: list[float] = []
            done = (run_dir / "judged.json").is_file()
            if not done:
                train(
                    settings, docs, run_dir, max_seconds=left, machine=Machine(args.device, args.compile, args.workers),
                    report=lambda line, spent=spent: spent.append(line["seconds"]),
                )  # fmt: skip
                left -= spent[-1] - spent[0] if spent else 0.0
                if read_state(run_dir / FILE)["step"] < settings.max_steps:
                    print(f"{run_dir}: not done; run the same command again to go on")
                    return
            found[name].append(judge(args, run_dir, load_run(settings, run_dir), valid, cut))
    result = {
        "shape": args.preset, "tokens_a_run": args.tokens, "seeds": args.seeds, "holes": len(cut),
        "objectives": {name: vars(replace(c)) for name, c in OBJECTIVES.items()},
        "rows": compare(found, [number for number, *_ in cut]),
    }  # fmt: skip
    paths.write_atomic(args.dir / "ablation.json", (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
