"""What `codegen2 train` does: a recipe with the changes asked for, shards, and the loop.

Not here: arguments (cli.py), the loop (loop.py).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from ..files.shards import Shard
from .config import Machine, TrainConfig, flops_per_token
from .data import Documents, open_shards, shard_stems
from .export import export
from .loop import train
from .meter import Report, progress, tensorboard
from .parallel import end_process
from .plot import Line
from .recipes import recipe
from .stop import Interrupted

_FREQUENT = 4096  # ids that always take part in a sampled softmax


def run_train(args: argparse.Namespace, started: float) -> int:
    """Train, going on where a run stopped, and return the exit status; started: by time.monotonic."""
    set_threads(args.threads)
    config = changed(recipe(args.recipe), args)
    shards = open_shards(args.shard, check_hash=not args.no_verify)
    docs = joined(shards)
    valid = None
    if args.valid:
        scored = open_shards(args.valid, not args.no_verify, held_out=True)
        if twice := {s.stem.resolve() for s in shards} & {s.stem.resolve() for s in scored}:
            raise ValueError(
                f"{min(twice)}: is trained on, so it is not held out; give another shard by --valid"
            )
        valid = joined(scored)
    frequent = frequent_ids(shards, config.model.vocab_size) if config.head_candidates is not None else None
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        left_out = len(shard_stems(args.shard)[1])
        last_stage, n = config.stage(config.max_steps), config.max_steps
        a_step = last_stage.seq_len * last_stage.micro_batch_size * config.grad_accum_steps
        print(
            f"{args.recipe}: {config.model.n_params:,} parameters, {n:,} steps of {a_step:,} tokens,"
            f" {flops_per_token(config.model, last_stage.seq_len) / 1e9:.3f} GFLOP a token;"
            f" {sum(s.n_tokens for s in shards):,} tokens of text"
            + (f", without {left_out} held-out shards" if left_out else ""),
            file=sys.stderr,
        )
    last: Line = {}
    with contextlib.ExitStack() as stack:
        reports: list[Report] = [last.update]
        if first:
            reports.append(stack.enter_context(progress(config.max_steps, args.recipe)))
        if args.tensorboard and first:
            reports.append(stack.enter_context(tensorboard(args.run_dir)))

        def report(line: Line) -> None:
            for one in reports:
                one(line)

        left_s = args.max_seconds - (time.monotonic() - started)
        try:
            train(
                config, docs, args.run_dir, frequent=frequent, init=args.init, max_seconds=left_s, report=report,
                machine=machine_of(args), valid=valid, valid_every=args.valid_every,
            )  # fmt: skip
        except Interrupted as e:
            end_process(128 + e.signum)
            raise
    if args.export is not None and first:
        if last.get("step", config.max_steps) < config.max_steps:
            print("not exported: steps are left; run the same command again to go on", file=sys.stderr)
        else:
            export(args.run_dir, args.export, dtype="float32")
    end_process()
    return 0


def joined(shards: list[Shard]) -> Documents:
    """Return several shards as one list of documents."""
    return ConcatDataset(shards)  # type: ignore[arg-type]


def set_threads(threads: int | None) -> None:
    """Let the CPU's work take so many cores. Raises ValueError for fewer than one."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)


def machine_of(args: argparse.Namespace) -> Machine:
    """Read the arguments of the machine."""
    return Machine(args.device, args.compile, args.workers, args.peak_tflops)


def changed(config: TrainConfig, args: argparse.Namespace) -> TrainConfig:
    """Return a recipe with what the arguments say instead."""

    def given(*names: str) -> dict[str, Any]:
        return {n: v for n in names if (v := getattr(args, n)) is not None and v is not False}

    values = given(
        "max_steps", "grad_accum_steps", "streams", "lr", "checkpoint_every", "seed", "activation_checkpointing",
        "document_mask", "qat_from_step",
    )  # fmt: skip
    if args.qat_from_step is not None:
        values["qat"] = "int4"
    objective = given("causal_probability")
    if args.uniform_lengths:
        objective["log_uniform"] = False
    lengths = given("seq_len", "micro_batch_size")
    stages = []
    for stage in config.stages:
        own = None if stage.corruption is None else replace(stage.corruption, **objective)
        stages.append(replace(stage, corruption=own, **lengths))
    return replace(config, stages=tuple(stages), corruption=replace(config.corruption, **objective), **values)


def frequent_ids(shards: list[Any], vocab_size: int, most: int = _FREQUENT) -> np.ndarray:
    """Return the ids that occur most often in shards, sorted; a shard is read a few MB at a time."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for shard in shards:
        for start in range(0, shard.n_tokens, 1 << 22):
            counts += np.bincount(shard.tokens[start : start + (1 << 22)], minlength=vocab_size)[:vocab_size]
    frequent: np.ndarray = np.sort(np.argsort(-counts, kind="stable")[:most])
    return frequent
