"""What `codegen2 finetune` does: continue a checkpoint on a repository, and judge it on files that it did not see,
before and after.

Not here: arguments (../cli.py), files (repository.py), the loop (../loop.py).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...api import Model
from ...box import box_dir
from ...checkpoint.adapter import write_adapter
from ...checkpoint.hub import resolve
from ...checkpoint.layout import PROMPT_KEYS, load_config
from ...checkpoint.load import load_model
from ...checkpoint.reader import TOKENIZER_FILE
from ...config import ModelConfig
from ...engine.reference import ReferenceEngine
from ...files.paths import write_atomic
from ...files.progress import progress_bar
from ...model import CodeGen2
from ...problems.sets import Hole, single_line_holes
from ...problems.statistics import bootstrap, exact_match, paired_difference
from ...text.tokenizer import Tokenizer
from ...text.windows import bits_per_byte
from ..checkpoint import FILE, read_state
from ..config import Machine, Stage, TrainConfig
from ..corruption import CorruptionConfig
from ..export import float_entry, write_model
from ..heldout import document_nats
from ..loop import train
from ..meter import Report, progress
from ..program import machine_of, set_threads
from ..step import Step
from .lora import add_lora, additions, merge_lora
from .repository import RepositoryFile, TokenisedFiles, read_repository, split_files

REPORT = "finetune.json"
_BEFORE = "before.json"  # under OUT/run: what need not be judged again after a stop
_HELD_OUT_FILES = 40  # whose bits per byte are told
_MIDDLE_TOKENS = 64
_SMALL = 2e8  # parameters


@dataclass(frozen=True)
class Plan:
    """How to fine-tune; see `codegen2 finetune --help`."""

    lora: int | None = None
    epochs: float = 3.0
    lr: float | None = None
    seq_len: int = 1024
    batch: int = 8
    line_spans: float = 0.5
    seed: int = 0

    def config(self, model: ModelConfig, n_tokens: int) -> TrainConfig:
        """Return the run's configuration for a repository of so many tokens."""
        if self.epochs <= 0:
            raise ValueError(f"--epochs must be above 0, got {self.epochs}")
        if self.batch < 1:
            raise ValueError(f"--batch must be at least 1, got {self.batch}")
        seq_len = min(self.seq_len, model.n_ctx)
        if seq_len < 64:
            raise ValueError(f"--seq-len must be at least 64, got {seq_len}")
        steps = max(1, math.ceil(self.epochs * n_tokens / (seq_len * self.batch)))
        lines = CorruptionConfig(
            line_span_probability=self.line_spans, line_span_piece=(64, max(64, seq_len // 2))
        )
        # A small model's head costs more than its layers, and its gradient is as large for one sequence as for four.
        together = math.gcd(self.batch, 4) if model.n_params < _SMALL else 1
        return TrainConfig(
            model=model, corruption=lines, stages=(Stage(0, seq_len, together),), piece_tokens=1024,
            grad_accum_steps=self.batch // together, max_steps=steps, warmup_steps=max(1, min(20, steps // 10)),
            schedule="cosine", final_lr=0.1, lr=self.lr or (1e-4 if self.lora is None else 1e-3), weight_decay=0.01,
            betas=(0.9, 0.99), lora_rank=self.lora, lora_alpha=2.0 * (self.lora or 8), seed=self.seed,
            checkpoint_every=50,
        )  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """What a model does on held-out files: 1.0 for each hole filled as it was, and bits per byte."""

    matches: list[float]
    bits_per_byte: float


def choose_holes(files: Sequence[RepositoryFile], n: int, seed: int) -> list[Hole]:
    """Choose up to n lines of held-out files to fill in. Raises ValueError where there is none."""
    while n > 0:
        try:
            return single_line_holes(files, n, seed, max_per_file=max(5, n // max(1, len(files))))
        except ValueError:
            n = n * 3 // 4
    raise ValueError("the held-out files have no line of 8 characters to fill in; give a larger repository")


def judge(
    model: CodeGen2, tokenizer: Tokenizer, holes: Sequence[Hole], files: Sequence[RepositoryFile], machine: Machine,
    usage: Mapping[str, Any], tick: Callable[[int, int], None] = lambda done, total: None,
) -> Judgement:  # fmt: skip
    """Fill the holes greedily, one line each, as `usage` (the model's config.json) says to ask, and score the files."""
    engine = Model(
        ReferenceEngine(model), tokenizer, "finetuned", usage.get("max_prompt_tokens"),
        usage.get("anchor"),
    )  # fmt: skip
    matches = []
    for done, hole in enumerate(holes, 1):
        found = engine.infill(hole.prefix, hole.suffix, stop_at="line", max_new_tokens=_MIDDLE_TOKENS)
        matches.append(float(exact_match(found.text, hole.middle)))
        tick(done, len(holes))
    docs = TokenisedFiles(files[:_HELD_OUT_FILES], tokenizer)
    step = Step(model, TrainConfig(model.config, stages=(Stage(0, 1, 1),)), Machine())
    nats = document_nats(step, torch.device(machine.device), docs, list(range(len(docs))))
    return Judgement(matches, bits_per_byte(nats, docs.n_bytes))


def finetune(
    base: Path, name: str, plan: Plan, files: Sequence[RepositoryFile], out: Path, tokenizer: Tokenizer, *,
    max_seconds: float = math.inf, machine: Machine, report: Report = lambda line: None,
) -> CodeGen2:  # fmt: skip
    """Train, going on from out/run where there is one, write the result into `out`, and return the model, merged.

    Full: a checkpoint directory, form codegen2, float32. LoRA: an adapter in peft's format.
    """
    config = plan.config(load_config(base)[0], TokenisedFiles(files, tokenizer).n_tokens)
    run_dir = out / "run"
    train(
        config, TokenisedFiles(files, tokenizer), run_dir, init=base, max_seconds=max_seconds, report=report,
        machine=machine, tokenizer=tokenizer,
    )  # fmt: skip
    return write_result(base, name, run_dir, out)


def write_result(base: Path, name: str, run_dir: Path, out: Path) -> CodeGen2:
    """Write a run's weights into `out`, and return the model, merged, in evaluation mode."""
    state = read_state(run_dir / FILE)
    model = load_model(base, check=False)
    if any("lora_" in key for key in state["model"]):
        rank = next(len(v) for k, v in state["model"].items() if k.endswith("lora_A"))
        alpha = float(json.loads(state["config"])["lora_alpha"])
        add_lora(model, rank, alpha, 0)
        model.load_state_dict(state["model"], strict=False)
        write_adapter(out, additions(model), alpha, name)
        merge_lora(model)
    else:
        model.load_state_dict(state["model"])
        shape, usage = load_config(base)
        entries = [float_entry(key, p) for key, p in model.named_parameters()]
        write_model(out, shape, entries, "float32", {key: usage.get(key) for key in PROMPT_KEYS})
        if (base / TOKENIZER_FILE).is_file():
            shutil.copyfile(base / TOKENIZER_FILE, out / TOKENIZER_FILE)
    return model.eval()


def compare(before: Judgement, after: Judgement, holes: Sequence[Hole]) -> dict[str, Any]:
    """Return both judgements and their paired difference with 95 % intervals; holes of one file stand together."""
    groups = [hole.path for hole in holes]
    return {
        "exact_match_before": asdict(bootstrap(before.matches, groups, share=True)),
        "exact_match_after": asdict(bootstrap(after.matches, groups, share=True)),
        "exact_match_gain": asdict(paired_difference(before.matches, after.matches, groups)),
        "bits_per_byte_before": before.bits_per_byte,
        "bits_per_byte_after": after.bits_per_byte,
    }


def run_finetune(args: argparse.Namespace) -> int:
    """Fine-tune, going on where a run stopped, and return the exit status."""
    set_threads(args.threads)
    base = box_dir() if args.model is None else resolve(args.model)
    name = args.model or "box"
    own = base / TOKENIZER_FILE
    tokenizer = Tokenizer.from_file(own) if own.is_file() else Tokenizer()
    files, dropped = read_repository(args.directory)
    learned, held = split_files(files, args.held_out, args.seed)
    machine = machine_of(args)
    plan = Plan(args.lora, args.epochs, args.lr, args.seq_len, args.batch, args.line_spans, args.seed)
    holes = choose_holes(held, args.holes, args.seed)
    found = f"{len(learned)} files to train on, {len(held)} held out, {len(holes)} holes"
    print(f"{found}; passed over: {dict(dropped)}", file=sys.stderr, flush=True)
    run_dir = args.out / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    config, usage = load_config(base)
    asked = {key: usage.get(key) for key in PROMPT_KEYS}
    key = {
        "holes": [[h.path, h.line, h.middle] for h in holes],
        "held": [f.path for f in held],
        "asked": asked,
    }
    before = _known(run_dir / _BEFORE, key)
    if before is None:
        with progress_bar("holes before", len(holes), lines_every_s=30) as bar:
            model = load_model(base, machine.device)
            before = judge(model, tokenizer, holes, held, machine, usage, bar.update)
        write_atomic(run_dir / _BEFORE, (json.dumps(key | asdict(before)) + "\n").encode())
    max_steps = plan.config(config, TokenisedFiles(learned, tokenizer).n_tokens).max_steps
    with progress(max_steps, "finetune") as report:
        model = finetune(
            base, name, plan, learned, args.out, tokenizer, max_seconds=args.max_seconds, machine=machine,
            report=report,
        )  # fmt: skip
    with progress_bar("holes after", len(holes), lines_every_s=30) as bar:
        after = judge(model.to(machine.device), tokenizer, holes, held, machine, usage, bar.update)
    step = read_state(run_dir / FILE)["step"]
    result: dict[str, Any] = {
        "base": name, "kind": "full" if args.lora is None else f"lora {args.lora}", "steps": step,
        "of_steps": max_steps,
        "files": len(learned), "held_out_files": len(held), "passed_over": dict(dropped), "holes": len(holes),
        **compare(before, after, holes),
    }  # fmt: skip
    write_atomic(args.out / REPORT, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result) if args.json else _told(result, args.out))
    return 0


def _known(path: Path, key: dict[str, Any]) -> Judgement | None:
    try:
        found = json.loads(path.read_text("utf-8"))
        if all(found[k] == v for k, v in key.items()):
            return Judgement(found["matches"], found["bits_per_byte"])
    except (OSError, ValueError, KeyError):
        pass
    return None


def _told(result: dict[str, Any], out: Path) -> str:
    """Return the report for a person."""

    def share(key: str) -> str:
        found = result[key]
        between = "" if found["low"] is None else f" ({found['low']:.1%} to {found['high']:.1%})"
        return f"{found['value']:.1%}{between}"

    stopped = "" if result["steps"] == result["of_steps"] else "; run the same command again to go on"
    return (
        f"steps             {result['steps']} of {result['of_steps']}{stopped}\n"
        f"infill, exact     {share('exact_match_before')} before, {share('exact_match_after')} after\n"
        f"difference        {share('exact_match_gain')}\n"
        f"bits per byte     {result['bits_per_byte_before']:.3f} before, {result['bits_per_byte_after']:.3f} after\n"
        f"written to        {out}"
    )
