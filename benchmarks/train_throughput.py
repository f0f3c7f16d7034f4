"""Training throughput: our step against transformers' CodeGen class with its Trainer; tokens/s and peak memory.

Both in bfloat16 arithmetic with float32 weights, compiled, with the same shape, length, batch and optimizer (fused
AdamW, clip 1), on random ids; each in a process of its own, in turn, at three batch sizes, of which the best counts.
Prints and writes one JSON object. On the CPU, as it was measured:

    python benchmarks/train_throughput.py --preset nano --seq-len 512 --batch 4 8 16 --steps 4 --out X.json
    python benchmarks/train_throughput.py --preset 1B --seq-len 512 --batch 1 2 4 --steps 3 --warmup 1 --out X.json

On an H100 (not run for want of one), ours alone, with MFU:

    python benchmarks/train_throughput.py --device cuda --preset 1B --seq-len 2048 --batch 4 8 16 --steps 20 --only ours
    python benchmarks/train_throughput.py --device cuda --preset nano --seq-len 2048 --batch 16 32 64 --steps 50
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPES = ("nano", "1B", "tiny")
PEAK_TFLOPS = 989.0


def shape(preset: str):
    from codegen2.config import PRESETS, ModelConfig

    if preset == "tiny":
        return ModelConfig(n_ctx=512, n_embd=64, n_layer=2, n_head=4, rotary_dim=16, tie_word_embeddings=True)
    return PRESETS[preset]


class RandomDocuments:
    """Enough random ids for any run."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> np.ndarray:
        return np.random.default_rng(i).integers(0, 50000, 8192)


def ours(args: argparse.Namespace) -> dict[str, float]:
    from codegen2.train.config import Machine, Stage, TrainConfig
    from codegen2.train.corruption import CorruptionConfig
    from codegen2.train.loop import train

    lines = []
    config = TrainConfig(
        shape(args.preset), CorruptionConfig(causal_probability=1.0), (Stage(0, args.seq_len, args.one),),
        max_steps=args.warmup + args.steps, warmup_steps=1, betas=(0.9, 0.999), z_loss=0.0, checkpoint_every=10**9,
        activation_checkpointing=args.activation_checkpointing,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as run_dir:
        train(
            config, RandomDocuments(), Path(run_dir), report=lines.append,
            machine=Machine(args.device, not args.eager, 0, PEAK_TFLOPS if args.device == "cuda" else None),
        )  # fmt: skip
    seconds = [args.one * args.seq_len / line["tok_s"] for line in lines[args.warmup :]]
    return {
        "seconds": seconds,
        "memory_gib": lines[-1]["memory_gib"],
        "mfu": lines[-1]["mfu"],
        "loss": lines[-1]["loss"],
    }


def theirs(args: argparse.Namespace) -> dict[str, float]:
    import torch
    from torch.utils.data import Dataset
    from transformers import CodeGenConfig, CodeGenForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from codegen2.train.meter import memory_gib

    model_config = shape(args.preset)
    said = {k: v for k, v in model_config.to_dict().items() if k not in ("model_type", "architectures")}
    model = CodeGenForCausalLM(CodeGenConfig(**said))
    rng = np.random.default_rng(0)
    n = (args.warmup + args.steps) * args.one

    class Ids(Dataset):
        def __len__(self) -> int:
            return n

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            ids = torch.from_numpy(rng.integers(0, 50000, args.seq_len))
            return {"input_ids": ids, "labels": ids}

    times: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.began = time.monotonic()

        def on_step_end(self, *_: object, **__: object) -> None:
            if args.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.monotonic() - self.began)

        def on_log(
            self, _args: object, _state: object, _control: object, logs: dict[str, float], **__: object
        ) -> None:
            losses.append(logs.get("loss", float("nan")))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=args.one, max_steps=args.warmup + args.steps, bf16=True,
            torch_compile=not args.eager, optim="adamw_torch_fused", learning_rate=2e-3, adam_beta2=0.999,
            weight_decay=0.1,
            max_grad_norm=1.0, save_strategy="no", report_to=[], use_cpu=args.device == "cpu", logging_steps=1,
            gradient_checkpointing=args.activation_checkpointing, disable_tqdm=True,
            dataloader_pin_memory=args.device == "cuda",
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=Ids(), callbacks=[Clock()]).train()
    return {
        "seconds": times[args.warmup :],
        "memory_gib": memory_gib(torch.device(args.device)),
        "mfu": None,
        "loss": losses[0],
    }


def one(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    result = {"ours": ours, "theirs": theirs}[args.child](args)
    print("RESULT " + json.dumps(result), flush=True)


def run_child(args: argparse.Namespace, which: str, batch: int) -> dict[str, object]:
    command = [sys.executable, __file__, "--child", which, "--one", str(batch)]
    for name in ("preset", "seq_len", "steps", "warmup", "device", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    command += ["--eager"] * args.eager + ["--activation-checkpointing"] * args.activation_checkpointing
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if said is None:
        return {"batch": batch, "error": done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]}
    found = json.loads(said.removeprefix("RESULT "))
    seconds = float(np.median(found["seconds"]))
    return {"batch": batch, "tok_s": batch * args.seq_len / seconds, "step_s": found["seconds"]} | {
        k: found[k] for k in ("memory_gib", "mfu", "loss")
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=SHAPES, default="nano")
    add("--seq-len", type=int, default=512)
    add("--batch", type=int, nargs="+", default=[4, 8, 16])
    add("--steps", type=int, default=5, help="timed steps; their median counts")
    add("--warmup", type=int, default=2, help="steps before, with compilation in them")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--threads", type=int, default=2)
    add("--eager", action="store_true", help="neither compiled")
    add("--activation-checkpointing", action="store_true")
    add("--only", choices=["ours", "theirs"])
    add("--out", type=Path)
    add("--child", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    add("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        one(args)
        return
    import torch
    import transformers

    result: dict[str, object] = {
        "shape": dataclasses.asdict(shape(args.preset)), "seq_len": args.seq_len, "device": args.device,
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "threads": args.threads, "compiled": not args.eager, "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    runs: dict[str, list[dict[str, object]]] = {
        which: [] for which in ("ours", "theirs") if args.only in (None, which)
    }
    for batch in args.batch:
        for which, rows in runs.items():  # in turn, since machines drift
            rows.append(run_child(args, which, batch))
    for which, rows in runs.items():
        done = [row for row in rows if "tok_s" in row]
        result[which] = {"runs": rows, "best": max(done, key=lambda row: row["tok_s"], default=None)}
    best = [result.get(which, {}).get("best") for which in ("ours", "theirs")]
    if all(best):
        result["ratio"] = best[0]["tok_s"] / best[1]["tok_s"]
    text = json.dumps(result, indent=1) + "\n"
    if args.out:
        args.out.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
