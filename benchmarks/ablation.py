"""Does the mixture cost, does it pay, and does the law of span lengths matter? Three recipes, same shape, tokens, seed.

causal: plain files only. mixture: half of the sequences corrupted, lengths log-uniform. uniform: the same, lengths
uniform. Each with each seed is a run under --dir; a run that is there goes on or is not made again. Judged on held-out
files by bits per byte, and on lines of them (--holes) twice, by bits per byte of the line's text and by exact match:
once filled in between both sides, once continued from the left alone, which is all that a causal model can do. Paired
bootstrap intervals of the differences to the mixture are over files; seeds are averaged per file and per hole first.

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

from codegen2.api import Model
from codegen2.config import EOT, PRESETS
from codegen2.engine.protocol import Piece
from codegen2.files import paths
from codegen2.generation.sampling import log_softmax
from codegen2.loading import load
from codegen2.problems.statistics import bootstrap, exact_match, paired_difference
from codegen2.text.infill import build_prompt
from codegen2.text.tokenizer import Tokenizer
from codegen2.train.checkpoint import FILE, read_state
from codegen2.train.config import Machine, Stage, TrainConfig
from codegen2.train.corruption import CorruptionConfig
from codegen2.train.data import Documents, open_shards
from codegen2.train.export import export
from codegen2.train.loop import train
from codegen2.train.program import frequent_ids, joined, set_threads
from codegen2.train.step import choose_documents

OBJECTIVES = {
    "mixture": CorruptionConfig(),
    "causal": CorruptionConfig(causal_probability=1.0),
    "uniform": CorruptionConfig(log_uniform=False),
}
WAYS = ("filled", "continued")
Cut = tuple[int, str, str, str]  # file, prefix, middle, suffix
Judged = dict[str, list[float]]
MAX_NEW_TOKENS = 48


def config(args: argparse.Namespace, name: str, seed: int) -> TrainConfig:
    shape = replace(
        PRESETS["nano"],
        n_ctx=args.seq_len,
        n_layer=args.n_layer,
        n_embd=args.n_embd,
        n_head=args.n_embd // 64,
    )
    steps = max(1, math.ceil(args.tokens / (args.seq_len * args.batch)))
    return TrainConfig(
        shape, OBJECTIVES[name], (Stage(0, args.seq_len, args.batch),), piece_tokens=1024, max_steps=steps,
        warmup_steps=max(1, min(100, steps // 10)), schedule="cosine", final_lr=0.05, lr=args.lr,
        matrix_lr=args.matrix_lr, head_candidates=args.head_candidates,
        seed=seed, checkpoint_every=100, bfloat16=not args.float32,
    )  # fmt: skip


def holes(valid: Documents, tokenizer: Tokenizer, n: int) -> list[Cut]:
    """Choose n lines at random, at most ten a file: (file, prefix, middle, suffix)."""
    rng = random.Random(0)
    found = []
    for number in range(len(valid)):
        lines = tokenizer.decode(valid[number].tolist()).split("\n")
        full = [i for i, line in enumerate(lines) if len("".join(line.split())) >= 8]
        for i in rng.sample(full, min(10, len(full))):
            before = "".join(f"{line}\n" for line in lines[:i])
            found.append((number, before, lines[i], "".join(f"\n{line}" for line in lines[i + 1 :])))
    rng.shuffle(found)
    return found[:n]


def line_nats(model: Model, prompt: list[int], line: list[int]) -> float:
    """Return -log p (nats) of a line's tokens after a prompt."""
    ids = [*prompt, *line[:-1]]
    [logits] = model.engine.forward(
        [Piece(0, 0, ids, len(line), len(ids))], model.engine.new_cache(1, len(ids))
    )
    logprobs = log_softmax(logits)
    return -float(logprobs[np.arange(len(line)), line].sum())


def judge(args: argparse.Namespace, run_dir: Path, valid: Documents, cut: list[Cut]) -> Judged:
    """Judge a finished run once; its results lie beside it."""
    path = run_dir / "judged.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    export(run_dir, run_dir / "model", dtype="float32")
    model = load(run_dir / "model", engine="native", dtype=args.judge_dtype, threads=args.threads)
    encode, n_ctx = model.tokenizer.encode, model.engine.config.n_ctx
    files = [
        model.score(model.tokenizer.decode(valid[i].tolist())) for i in choose_documents(valid, args.files)
    ]
    result: Judged = {
        "file_nats": [-sum(score.logprobs) for score in files],
        "file_bytes": [score.n_bytes for score in files],
        "line_bytes": [],
    }
    columns = [result.setdefault(f"{way}_{what}", []) for way in WAYS for what in ("nats", "matches")]
    for _, prefix, middle, suffix in cut:
        line = encode(middle)[: n_ctx // 2]
        result["line_bytes"].append(len(model.tokenizer.decode(line).encode()))
        pieces, _, _ = model.place(prefix, suffix, "cursor", None, max(MAX_NEW_TOKENS, len(line)))
        between = build_prompt([encode(piece) for piece in pieces])
        left = [EOT, *encode(prefix)][-(n_ctx - len(line)) :]
        filled = model.infill(prefix, suffix, stop_at="line", max_new_tokens=MAX_NEW_TOKENS).text
        went_on = model.complete(prefix, stop=["\n"], max_new_tokens=MAX_NEW_TOKENS).text
        for column, value in zip(
            columns,
            (
                line_nats(model, between, line), float(exact_match(filled, middle)),
                line_nats(model, left, line), float(exact_match(went_on, middle)),
            ), strict=True,
        ):  # fmt: skip
            column.append(value)
    paths.write_atomic(path, json.dumps(result).encode())
    return result


def compare(found: dict[str, list[Judged]], groups: list[int]) -> list[dict[str, object]]:
    """Return a row an objective: its numbers, and their differences to the mixture's."""

    def mean(name: str, what: str) -> list[float]:
        scale = math.log(2) if what.endswith("nats") else 1.0
        averaged: list[float] = (np.mean([run[what] for run in found[name]], axis=0) / scale).tolist()
        return averaged

    any_run = found["mixture"][0]
    rows = []
    for name in found:
        row: dict[str, object] = {"objective": name}
        for what in any_run:
            if what.endswith("bytes"):
                continue
            of_files = what.startswith("file")
            weights = (
                None if what.endswith("matches") else any_run["file_bytes" if of_files else "line_bytes"]
            )
            among = None if of_files else groups
            key = what.replace("nats", "bits_per_byte").replace("matches", "exact_match")
            row[key] = vars(bootstrap(mean(name, what), among, weights=weights, share=weights is None))
            if name != "mixture":
                row[f"{key}_less_mixture"] = vars(
                    paired_difference(mean("mixture", what), mean(name, what), among, weights=weights)
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
    add("--n-layer", type=int, default=PRESETS["nano"].n_layer)
    add("--n-embd", type=int, default=PRESETS["nano"].n_embd, help="a multiple of 64")
    add(
        "--head-candidates",
        type=int,
        help="rows of the head in a batch's softmax, half of them the commonest",
    )
    add("--objective", choices=[*OBJECTIVES], help="train and judge this one only, to share the work out")
    add("--threads", type=int)
    add("--seq-len", type=int, default=512)
    add("--batch", type=int, default=8)
    add("--lr", type=float, default=2e-3)
    add("--matrix-lr", type=float, default=0.02)
    add("--holes", type=int, default=2000)
    add("--files", type=int, default=150)
    add("--float32", action="store_true")
    add("--judge-dtype", default="int8", help="of the native engine that judges")
    add("--device", default="cpu")
    add("--compile", action="store_true")
    add("--workers", type=int, default=0)
    add("--max-seconds", type=float, default=math.inf, help="of training in this call; call again to go on")
    args = parser.parse_args()
    set_threads(args.threads)
    shards = open_shards(args.shard)
    docs, valid = joined(shards), joined(open_shards(args.valid, held_out=True))
    frequent = (
        frequent_ids(shards, PRESETS["nano"].vocab_size, args.head_candidates // 2)
        if args.head_candidates
        else None
    )
    cut = holes(valid, Tokenizer(), args.holes)
    left = args.max_seconds
    names = [args.objective] if args.objective else [*OBJECTIVES]
    found: dict[str, list[Judged]] = {name: [] for name in names}
    for seed in range(args.seeds):
        for name in names:
            run_dir = args.dir / f"{name}-{seed}"
            settings = config(args, name, seed)
            spent: list[float] = []
            if not (run_dir / "judged.json").is_file():
                train(
                    settings, docs, run_dir, max_seconds=left, machine=Machine(args.device, args.compile, args.workers),
                    frequent=frequent, report=lambda line, spent=spent: spent.append(line["seconds"]),
                )  # fmt: skip
                left -= spent[-1] - spent[0] if spent else 0.0
                if read_state(run_dir / FILE)["step"] < settings.max_steps:
                    print(f"{run_dir}: not done; run the same command again to go on")
                    return
            found[name].append(judge(args, run_dir, valid, cut))
    if args.objective:
        return
    result = {
        "shape": vars(config(args, "mixture", 0).model), "tokens_a_run": args.tokens, "seeds": args.seeds,
        "holes": len(cut), "objectives": {name: vars(replace(c)) for name, c in OBJECTIVES.items()},
        "rows": compare(found, [number for number, *_ in cut]),
    }  # fmt: skip
    paths.write_atomic(args.dir / "ablation.json", (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
