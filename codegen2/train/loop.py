"""The training loop: steps, a JSONL log, and checkpoints from which a run goes on bit by bit as if never stopped.

Not here: what a sequence is (data.py), which process reads it (loader.py), the loss (step.py, optim.py), which numbers
a run uses (recipes.py). The same state always gives the same next state, because every draw depends on (seed, number)
and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.load import load_model
from ..checkpoint.weights import open_weights
from ..files.lock import only_one
from ..files.paths import remove_parts
from ..model import CodeGen2
from ..text.tokenizer import Tokenizer
from ..text.windows import bits_per_byte
from .checkpoint import FILE, read_state, write_state
from .config import Machine, Stage, TrainConfig, flops_per_token
from .data import Documents, Pieces, State, fingerprint
from .linear import add_lora, quantise_layers
from .loader import MicroBatch, Source, micro_batches
from .meter import Report, memory_gib, open_log, peak_tflops
from .mixture import MixedDocuments, mixed
from .optim import draw_candidates, learning_rate_scale, make_optimizers
from .parallel import (
    World,
    by_first,
    fill,
    gather,
    gather_optimizer,
    join_world,
    put,
    scatter_optimizer,
    shard,
    sum_over,
)
from .plot import LOG_FILE, Line, read_log
from .step import Step, choose_documents, document_nats, run_batch
from .stop import Interrupted, stop_signals
from .tables import Tables

__all__ = ["Machine", "Stage", "TrainConfig", "train"]
_HEARD = b"\ncodegen2: ends when this step is done and saved; the same again ends at once\n"
_MOST_HELD_OUT = 200  # documents whose bits per byte are watched


@dataclass
class _Run:
    """A run, and what changes while it goes on."""

    config: TrainConfig
    world: World
    tables: Tables
    step_module: Step
    optimizers: list[torch.optim.Optimizer]
    states: list[State | None]
    documents: str  # fingerprint of what is read
    mixed: MixedDocuments | None = None  # what is read, if by a mixture
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    saved_step: int | None = None
    save_s: float = 0.0  # what the last checkpoint took

    @property
    def model(self) -> CodeGen2:
        return self.step_module.model


def _build(config: TrainConfig, world: World, machine: Machine, init: Path | None) -> Step:
    """Make the model with its first weights, on its device, cut between processes."""
    weights = None if init is None else open_weights(init)
    if weights is not None and weights.config != config.model:
        raise ValueError(
            f"{init} is a model of another shape than the recipe's; choose a recipe that fits it"
        )
    # A model that fits no memory but all together is made without any and filled weight by weight. Tied weights and
    # adapters would come apart on that way, and their models are small.
    sparse = world.mesh is not None and config.lora_rank is None and not config.model.tie_word_embeddings
    generator = torch.Generator().manual_seed(config.seed)
    if sparse:
        with torch.device("meta"):
            model = CodeGen2(config.model)
    elif init is not None:
        model = load_model(init)
    else:
        model = CodeGen2(config.model)
        model.init_weights(generator)
    if config.lora_rank is not None:
        add_lora(model, config.lora_rank, config.lora_alpha, config.seed)
    step = Step(model, config, machine).train()
    shard(step, model, world, config.bfloat16)
    if sparse:
        model.to_empty(device=world.device)
        if weights is None:
            fill(model, lambda name, whole: model.init_weight(name, whole, generator))
        else:
            fill(model, lambda name, whole: weights.fill(name, whole.numpy()))
    return step.to(world.device)


def _trained(model: CodeGen2) -> dict[str, Tensor]:
    """Return the weights that a checkpoint holds: all, or with an adapter the adapter's."""
    some = any(not p.requires_grad for p in model.parameters())
    return {n: p.data for n, p in model.named_parameters() if p.requires_grad or not some}


def _start(
    config: TrainConfig, world: World, tables: Tables, machine: Machine, path: Path, init: Path | None, documents: str
) -> _Run:  # fmt: skip
    state = read_state(path) if path.exists() else None
    logged = max((line["step"] for line in read_log(path.with_name(LOG_FILE))), default=0)
    if state is None and logged > config.checkpoint_every:
        what = f"is missing, though step {logged} is in the log beside it"
        raise ValueError(f"{path}: {what}; put it back, or remove the log to begin again")
    if state is not None:
        config.check_same(state["config"], str(path))
        if state.get("documents", documents) != documents:
            raise ValueError(
                f"{path} was made with other documents, so its place in them means nothing here; give the same ones in"
                " the same order, or another directory"
            )
    # The weights that an adapter rests on are not in its checkpoint.
    step = _build(config, world, machine, init if state is None or config.lora_rank is not None else None)
    optimizers = make_optimizers(step.model, config)
    if world.mesh is not None and config.matrix_lr is not None:
        raise ValueError(
            "matrix_lr: Muon needs whole matrices, so one process only; set it to None for several"
        )
    run = _Run(config, world, tables, step, optimizers, [None] * config.n_streams, documents)
    if state is not None:
        for name, p in _trained(step.model).items():
            put(p, state["model"][name])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            scatter_optimizer(optimizer, saved)
        run.step, run.states, run.tokens = state["step"], state["data_states"], state["tokens"]
        run.seconds, run.saved_step = state["seconds"], state["step"]
    return run


def _save(run: _Run, path: Path, clock: Callable[[], float]) -> None:
    """Write the checkpoint; all processes take part, the first one writes."""
    config, world, began = run.config, run.world, clock()
    mine = [i for i in range(config.n_streams) if i % config.grad_accum_steps % world.size == world.rank]
    # 0 where another process reads the stream, so that the sum is what each process knows.
    places = np.zeros((config.n_streams, 3))
    for i in mine:
        if (state := run.states[i]) is not None:
            places[i] = state["sequence"], state["position"], state["offset"]
    places = np.reshape(sum_over(world, places.ravel().tolist()), places.shape).astype(int)
    states = [{"sequence": s, "position": p, "offset": o} for s, p, o in places.tolist()]
    weights: dict[str, Tensor] = {}
    for name, p in _trained(run.model).items():
        whole = gather(p)
        if world.is_first:
            weights[name] = whole
    if "transformer.wte.weight" in weights and config.model.tie_word_embeddings:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    content = {
        "config": config.to_json(), "model": weights,
        "optimizers": [gather_optimizer(o, world.is_first) for o in run.optimizers], "step": run.step,
        "data_states": states, "documents": run.documents, "tokens": run.tokens, "seconds": run.seconds,
    }  # fmt: skip
    what = f"{path}: the first process could not write the checkpoint"
    by_first(world, lambda: write_state(path, content, run.saved_step), what)
    run.saved_step, run.save_s = run.step, clock() - began


def _micro_steps(run: _Run, source: Iterator[MicroBatch], frequent: np.ndarray) -> list[float]:
    """Run this process's share of a step's micro-batches; return sums: loss, nats, targets, their bytes, all places,
    and with a mixture the tokens of text by label."""
    config, world, n_bytes = run.config, run.world, run.tables.n_bytes
    share = config.grad_accum_steps // world.size
    full = config.full_head_from_step is not None and run.step >= config.full_head_from_step
    losses, nats, sums = [], [], [0, 0, 0]
    by_label = np.zeros(len(run.mixed.labels) if run.mixed else 0, dtype=np.int64)
    for i in range(share):
        batch = next(source)
        number = run.step * config.grad_accum_steps + world.rank + i * world.size
        candidates = None
        if config.head_candidates is not None and not full:
            rng = np.random.default_rng([config.seed, number, 3])
            candidates = draw_candidates(
                batch.targets, frequent, config.model.vocab_size, config.head_candidates, rng
            )
        loss, nat = run_batch(run.step_module, batch, world.device, candidates)
        (loss / share).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        nats.append(nat)
        if run.mixed:
            stream = (batch.stream, config.n_streams)
            by_label += run.mixed.tokens_read(run.states[batch.stream], batch.state, stream)
        run.states[batch.stream] = batch.state
        counted = batch.targets[batch.targets >= 0]
        sums = [sums[0] + len(counted), sums[1] + int(n_bytes[counted].sum()), sums[2] + batch.targets.size]
    # One wait for the device a step, not one a micro-batch.
    found = torch.stack([torch.stack(losses).double().sum(), torch.stack(nats).double().sum()]).tolist()
    return sum_over(world, [*found, *map(float, sums), *map(float, by_label)])


def _optimizer_step(run: _Run) -> tuple[float, float]:
    scale = learning_rate_scale(run.step, run.config)
    learning = [p for p in run.model.parameters() if p.requires_grad]
    norm = gather(torch.nn.utils.clip_grad_norm_(learning, run.config.clip))
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return scale, float(norm)


def _valid(run: _Run, valid: Documents, numbers: list[int]) -> float:
    """Return the bits per byte of held-out documents; every process does the same, as shards ask for it."""
    nats = document_nats(run.step_module, run.world.device, valid, numbers)
    return bits_per_byte(nats, sum(int(run.tables.n_bytes[valid[i]].sum()) for i in numbers))


def train(
    config: TrainConfig,
    docs: Documents,
    run_dir: Path,
    *,
    frequent: np.ndarray | None = None,
    init: Path | None = None,
    max_seconds: float = math.inf,
    report: Report = lambda line: None,
    machine: Machine | None = None,
    valid: Documents | None = None,
    valid_every: int = 500,
    tokenizer: Tokenizer | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> CodeGen2:
    """Train to config.max_steps, or for max_seconds, going on from run_dir's checkpoint where there is one.

    frequent: ids that always take part in the sampled softmax (needed with head_candidates). init: begin with the
    weights of this checkpoint directory, not with fresh ones. valid: held-out documents, of which up to 200 are scored
    each valid_every steps and at the end. A checkpoint is written every checkpoint_every steps and at the end, which
    comes early by SIGINT, SIGTERM or max_seconds (by `clock`; loading and the last checkpoint count). Under torchrun
    all processes call this alike; the first one writes and reports. Raises ValueError where run_dir belongs to another
    configuration or other documents, is in use or damaged, or init is a model of another shape; OSError where the disk
    is full; Interrupted, a KeyboardInterrupt, when a signal's checkpoint is written.
    """
    machine, started = machine or Machine(), clock()
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(stop_signals(signal.SIGINT, signal.SIGTERM, heard=_HEARD))
        world = stack.enter_context(join_world(machine.device))
        lock = only_one(run_dir, "give another --run-dir")
        in_use = f"{run_dir}: is in use; the first process says by whom"
        by_first(world, lambda: stack.enter_context(lock), in_use)
        tables = Tables.of(tokenizer or Tokenizer(), config.model.vocab_size)
        if config.piece_tokens is not None:
            docs = Pieces(docs, config.piece_tokens, tables.ends_line)
        if config.mixture is not None:
            docs = mixed(docs, config.mixture, config.seed, tables.ends_line, run_dir, world.is_first)
        path = run_dir / FILE
        run = _start(config, world, tables, machine, path, init, fingerprint(docs))
        run.mixed = docs if isinstance(docs, MixedDocuments) else None
        frequent = np.empty(0, dtype=np.int64) if frequent is None else frequent
        chosen = [] if valid is None else choose_documents(valid, _MOST_HELD_OUT)
        peak = peak_tflops(world.device, machine.peak_tflops)
        run.save_s = clock() - started  # a guess until one was written: as long as the loading
        first_step, looped, took = run.step, clock(), 0.0
        source: Iterator[MicroBatch] | None = None
        stage: Stage | None = None
        if world.is_first:
            remove_parts(run_dir)  # of a run that was killed
            if config.bfloat16 and not run.step_module.in_bfloat16:
                print("computing in float32: this processor only emulates bfloat16", file=sys.stderr)
        log = stack.enter_context(open_log(run_dir / LOG_FILE, run.step)) if world.is_first else None
        while True:
            is_up = clock() - started + took + run.save_s >= max_seconds
            signum, is_up = _agree(world, asked.signum, is_up)
            if signum or is_up or run.step >= config.max_steps:
                break
            began = clock()
            if source is None or stage != config.stage(run.step):
                stage = config.stage(run.step)
                reading = Source(docs, config, stage, tables, list(run.states))
                first = run.step * config.grad_accum_steps
                source = micro_batches(reading, first, world.rank, world.size, machine.workers)
            if config.quantised(run.step):
                quantise_layers(run.model)
            sums = _micro_steps(run, source, frequent)
            scale, norm = _optimizer_step(run)
            run.step += 1
            run.tokens += int(sums[2])
            took = max(clock() - began, 1e-9)
            run.seconds += took
            line = _line(run, sums, scale, norm, took)
            line["mfu"] = None
            if peak is not None:
                flops = flops_per_token(config.model, stage.seq_len) * line["tok_s"]
                line["mfu"] = round(flops / (peak * 1e12 * world.size), 4)
            if valid is not None and (run.step % valid_every == 0 or run.step == config.max_steps):
                line["valid_bits_per_byte"] = _valid(run, valid, chosen)
            a_step = (clock() - looped) / (run.step - first_step)
            left_s = min(a_step * (config.max_steps - run.step), max_seconds - (clock() - started))
            line["left_s"] = round(max(0.0, left_s), 1)
            _tell(log, line, report, run)
            if run.step % config.checkpoint_every == 0:
                _save(run, path, clock)
        if run.step != run.saved_step:
            _save(run, path, clock)
        if signum := signum or asked.signum:
            what = f"step {run.step} of {config.max_steps} is saved in {run_dir}; run the same again to go on"
            raise Interrupted(signum, what)
        return run.model


def _agree(world: World, signum: int, is_up: bool) -> tuple[int, bool]:
    """Return what any process was asked (a signal, SIGTERM before SIGINT, or 0) and whether any one's time is up."""
    asked = [float(is_up), float(signum == signal.SIGINT), float(signum == signal.SIGTERM)]
    up, interrupted, terminated = sum_over(world, asked)
    return (signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0), up > 0


def _line(run: _Run, sums: list[float], scale: float, norm: float, took: float) -> Line:
    loss, nats, targets, n_bytes, places, *by_label = sums
    by_language = (
        {"tokens_read": dict(zip(run.mixed.labels, map(int, by_label), strict=True))} if run.mixed else {}
    )
    return {
        "step": run.step,
        "loss": loss / run.config.grad_accum_steps,
        "bits_per_byte": nats / math.log(2) / max(1.0, n_bytes),
        "lr_scale": round(scale, 6),
        "grad_norm": norm,
        "tokens": run.tokens,
        "padding": round(1 - targets / places, 5),
        "tok_s": places / took,
        "seconds": round(run.seconds, 2),
        "memory_gib": round(memory_gib(run.world.device), 3),
        **by_language,
    }


def _tell(log: IO[bytes] | None, line: Line, report: Callable[[dict[str, Any]], None], run: _Run) -> None:
    if log is None:
        return
    try:
        log.write((json.dumps(line) + "\n").encode())
    except OSError as e:
        left = (
            f"the checkpoint of step {run.saved_step} is whole"
            if run.saved_step
            else "there is no checkpoint yet"
        )
        raise OSError(f"{log.name}: step {run.step} could not be logged ({e.strerror or e}); {left}") from e
    report(line)
