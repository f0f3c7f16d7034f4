"""A tiny run of the training loop that touches everything, for tests that start processes of their own."""

import hashlib
import os
import signal
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # as the first optimizer does, which takes seconds: once, before processes are forked
from torch.utils.data import ConcatDataset

from codegen2.config import ModelConfig
from codegen2.files.shards import Shard, write_shard
from codegen2.train import checkpoint, loop
from codegen2.train.config import Stage, TrainConfig
from codegen2.train.corruption import CorruptionConfig

CONFIG = TrainConfig(
    model=ModelConfig(n_ctx=64, n_embd=8, n_layer=2, n_head=1, rotary_dim=8, tie_word_embeddings=True),
    corruption=CorruptionConfig(),
    stages=(Stage(0, 64, 2),),
    grad_accum_steps=2,
    streams=4,
    max_steps=16,
    warmup_steps=2,
    cooldown_steps=4,
    head_candidates=1500,
    bfloat16=False,
    seed=5,
    checkpoint_every=2,
)


def takes(monkeypatch, now, owner, name, seconds):
    """Let a function take seconds of a clock, now[0], that nothing else moves."""
    real = getattr(owner, name)

    def slow(*args, **kwargs):
        now[0] += seconds
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)


def write_shards(folder: Path, n: int = 3) -> list[Path]:
    """Write shards of random documents."""
    rng = np.random.default_rng(0)
    stems = [folder / f"part{i}" for i in range(n)]
    for stem in stems:
        write_shard(stem, [rng.integers(0, 700, rng.integers(5, 200)) for _ in range(12)])
    return stems


def weights_hash(run_dir: Path) -> str:
    """Return the sha256 of the weights in a run's checkpoint."""
    digest = hashlib.sha256()
    for tensor in checkpoint.read_state(run_dir / checkpoint.FILE)["model"].values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def live(stems: list[Path], run_dir: Path, death: str, count: int) -> None:
    """Train until done, or die by SIGKILL: in a "write", between write and "rename", or in a "micro" step."""
    torch.set_num_threads(1)

    def strike(owner, name, when):
        real = getattr(owner, name)
        left = [count]

        def struck(*args, **kwargs):
            left[0] -= 1
            if left[0] <= 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            out = real(*args, **kwargs)
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return out

        setattr(owner, name, struck)

    if death == "write":
        strike(checkpoint._Tolerant, "write", "after")
    elif death == "rename":
        strike(os, "replace", "before" if count % 2 else "after")
    elif death.startswith("twice"):

        def twice(*args):
            for _ in range(2):
                os.kill(os.getpid(), int(death.split()[1]))

        loop.run_batch = twice
    elif death == "micro":
        strike(loop, "run_batch", "after")
    shards = ConcatDataset([Shard(stem, check_hash=True) for stem in stems])
    loop.train(CONFIG, shards, run_dir, frequent=np.arange(700))
