"""The training loop: steps, a JSONL log, and checkpoints from which a run goes on bit by bit as if never stopped.

Not here: what a sequence is (data.py), the loss (optim.py), which numbers a run uses (recipes.py). On one process; the
same state always gives the same next state, because every draw depends on (seed, number) and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint.load import load_model
from ..config import ModelConfig
from ..model import CodeGen2
from ..tokenizer import Tokenizer
from .corruption import CorruptionConfig
from .data import Documents, Pieces, State, batches, line_end_table, sequences, span_weights
from .optim import draw_candidates, head_loss, learning_rate_scale, make_optimizers

_MAY_CHANGE_ON_RESUME = ("max_steps", "cooldown_steps", "stages", "full_head_from_step", "checkpoint_every")


@dataclass(frozen=True)
class Stage:
    """From this step on: sequences of seq_len tokens, micro_batch_size at a time.

    corruption: None keeps the run's. span_weight: how much a token of a hidden span counts in the loss, others 1.
    """

    from_step: int
    seq_len: int
    micro_batch_size: int
    corruption: CorruptionConfig | None = None
    span_weight: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """Hold everything that decides the outcome of a run; rates are peaks, lengths are tokens."""

    model: ModelConfig
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    stages: tuple[Stage, ...] = (Stage(0, 2048, 8),)
    piece_tokens: int | None = None  # documents are shuffled in pieces of at most so many; None: whole
    grad_accum_steps: int = 1
    max_steps: int = 1000
    warmup_steps: int = 50
    cooldown_steps: int = 400
    lr: float = 2e-3  # AdamW: embeddings, biases, LayerNorm, and the matrices where matrix_lr is None
    matrix_lr: float | None = None  # Muon on the blocks' matrices
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    z_loss: float = 1e-4
    head_candidates: int | None = None  # rows of the head in a batch's softmax; None: all
    full_head_from_step: int | None = None  # from this step on all rows, so that rare ones are calibrated
    bfloat16: bool = True
    seed: int = 0
    checkpoint_every: int = 200  # steps

    def __post_init__(self) -> None:
        steps = [s.from_step for s in self.stages]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            raise ValueError(f"stages must start at step 0 and rise, got {steps}")
        if max(s.seq_len for s in self.stages) > self.model.n_ctx:
            raise ValueError(f"a stage's seq_len is beyond the model's context of {self.model.n_ctx} tokens")
        for name in ("max_steps", "warmup_steps", "cooldown_steps", "grad_accum_steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def stage(self, step: int) -> Stage:
        """Give the stage that a step belongs to."""
        return [s for s in self.stages if s.from_step <= step][-1]


@dataclass
class _Run:
    """What changes while a run goes on."""

    model: CodeGen2
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    data_state: State | None = None
    tokens: int = 0
    seconds: float = 0.0


def _new_run(config: TrainConfig, init: Path | None = None) -> _Run:
    if init is None:
        model = CodeGen2(config.model)
        model.init_weights(torch.Generator().manual_seed(config.seed))
    else:
        model = load_model(init).train()
        if model.config != config.model:
            raise ValueError(
                f"{init} is a model of another shape than the recipe's; choose a recipe that fits it"
            )
    optimizers = make_optimizers(
        model, lr=config.lr, matrix_lr=config.matrix_lr, weight_decay=config.weight_decay, betas=config.betas
    )
    return _Run(model, optimizers)


def save_checkpoint(path: Path, config: TrainConfig, run: _Run) -> None:
    """Write everything that resuming needs, atomically: the old checkpoint stays until the new one is on disk."""
    partial = path.with_name(path.name + ".partial")
    state = {
        "config": json.dumps(dataclasses.asdict(config)),
        "model": run.model.state_dict(),
        "optimizers": [o.state_dict() for o in run.optimizers],
        "step": run.step,
        "data_state": run.data_state,
        "tokens": run.tokens,
        "seconds": run.seconds,
    }
    with partial.open("wb") as out:
        torch.save(state, out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, path)


def load_checkpoint(path: Path, config: TrainConfig) -> _Run:
    """Give the run as it was saved. Raises ValueError when it was made with another configuration."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    saved, wanted = json.loads(state["config"]), json.loads(json.dumps(dataclasses.asdict(config)))
    differing = [k for k in wanted if saved.get(k) != wanted[k] and k not in _MAY_CHANGE_ON_RESUME]
    if differing:
        raise ValueError(
            f"{path} was made with another {', '.join(differing)}; use the same recipe or another run directory"
        )
    run = _new_run(config)
    run.model.load_state_dict(state["model"])
    for optimizer, saved_optimizer in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved_optimizer)
    run.step, run.data_state = state["step"], state["data_state"]
    run.tokens, run.seconds = state["tokens"], state["seconds"]
    return run


def _micro_step(
    config: TrainConfig, run: _Run, inputs: np.ndarray, targets: np.ndarray, frequent: np.ndarray, number: int
) -> float:
    candidates = None
    full = config.full_head_from_step is not None and run.step >= config.full_head_from_step
    if config.head_candidates is not None and not full:
        rng = np.random.default_rng([config.seed, number, 3])
        candidates = draw_candidates(targets, frequent, config.model.vocab_size, config.head_candidates, rng)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
        h = run.model.hidden(torch.from_numpy(inputs))
    if config.bfloat16:
        h = h.to(torch.bfloat16)
    flat = torch.from_numpy(targets.reshape(-1).copy())
    weights = torch.from_numpy(span_weights(targets, config.stage(run.step).span_weight).reshape(-1))
    loss = head_loss(h.flatten(0, 1), run.model.lm_head, flat, candidates, config.z_loss, weights)
    (loss / config.grad_accum_steps).backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def _optimizer_step(config: TrainConfig, run: _Run) -> tuple[float, float]:
    scale = learning_rate_scale(
        run.step,
        warmup_steps=config.warmup_steps,
        cooldown_steps=config.cooldown_steps,
        max_steps=config.max_steps,
    )
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return scale, float(norm)


def _open_log(path: Path, step: int) -> Any:
    """Open the log for appending, without lines of steps that a crash will make happen again."""
    kept = []
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # the last line of a killed run
    path.write_text("".join(f"{line}\n" for line in kept), "utf-8")
    return path.open("a", encoding="utf-8")


def train(
    config: TrainConfig,
    docs: Documents,
    run_dir: Path,
    *,
    frequent: np.ndarray | None = None,
    init: Path | None = None,
    max_seconds: float = math.inf,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
) -> CodeGen2:
    """Train to config.max_steps, or for max_seconds, going on from run_dir's checkpoint where there is one.

    frequent: ids that always take part in the sampled softmax (needed with head_candidates). init: begin with the
    weights of this checkpoint directory, not with fresh ones. A checkpoint is written every checkpoint_every steps and
    at the end. Raises ValueError where run_dir belongs to another configuration, or init is a model of another shape.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "checkpoint.pt"
    run = load_checkpoint(path, config) if path.exists() else _new_run(config, init)
    ends_line = line_end_table(Tokenizer())[: config.model.vocab_size]
    if config.piece_tokens is not None:
        docs = Pieces(docs, config.piece_tokens, ends_line)
    frequent = np.empty(0, dtype=np.int64) if frequent is None else frequent
    started, saved_at = time.monotonic(), run.step
    source: Iterator[tuple[np.ndarray, np.ndarray, State]] | None = None
    stage: Stage | None = None
    with _open_log(run_dir / "log.jsonl", run.step) as log:
        while run.step < config.max_steps and time.monotonic() - started < max_seconds:
            step_started = time.monotonic()
            if source is None or stage != config.stage(run.step):
                stage = config.stage(run.step)
                corruption = stage.corruption or config.corruption
                rows = sequences(docs, stage.seq_len, corruption, config.seed, ends_line, run.data_state)
                source = batches(rows, stage.micro_batch_size)
            losses = []
            for micro in range(config.grad_accum_steps):
                inputs, targets, run.data_state = next(source)
                run.tokens += int((targets >= 0).sum())
                number = run.step * config.grad_accum_steps + micro
                losses.append(_micro_step(config, run, inputs, targets, frequent, number))
            scale, norm = _optimizer_step(config, run)
            run.step += 1
            took = time.monotonic() - step_started
            run.seconds += took
            line = {
                "step": run.step,
                "loss": sum(losses) / len(losses),
                "lr_scale": round(scale, 6),
                "grad_norm": norm,
                "tokens": run.tokens,
                "tok_s": inputs.size * config.grad_accum_steps / took,
                "seconds": round(run.seconds, 2),
            }
            log.write(json.dumps(line) + "\n")
            report(line)
            if run.step % config.checkpoint_every == 0:
                log.flush()
                save_checkpoint(path, config, run)
                saved_at = run.step
    if run.step != saved_at:
        save_checkpoint(path, config, run)
    return run.model
