"""What `codegen2 finetune` does: continue a checkpoint on a repository, and judge it on files that it did not see,
before and after.

Not here: arguments (../cli.py), files (repository.py), the loop (../loop.py).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...api import Model
from ...box import box_dir
from ...checkpoint.adapter import write_adapter
from ...checkpoint.hub import resolve
from ...checkpoint.layout import PROMPT_KEYS, load_config
from ...checkpoint.load import load_model
from ...checkpoint.reader import TOKENIZER_FILE, fingerprint
from ...config import ModelConfig
from ...engine.reference import ReferenceEngine
from ...files.lock import only_one
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
from ..data import Documents
from ..export import float_entry, write_model
from ..linear import add_lora, additions, merge_lora
from ..loop import train
from ..meter import progress
from ..program import machine_of, set_threads
from ..step import Step, document_nats
from .repository import RepositoryFile, encode_files, read_repository, split_files

REPORT = "finetune.json"
_BEFORE = "before.json"  # under OUT/run: what need not be judged again after a stop
_HELD_OUT_FILES = 40  # whose bits per byte are told
_SCORING = 0.25  # of --max-seconds, at most, before the run; after it as long
_MIDDLE_TOKENS = 64
_SMALL = 2e8  # parameters


def recipe_of(args: argparse.Namespace, model: ModelConfig, n_tokens: int) -> TrainConfig:
    """Return the run's configuration for a repository of so many tokens; see `codegen2 finetune --help`."""
    if args.epochs <= 0:
        raise ValueError(f"--epochs must be above 0, got {args.epochs}")
    if args.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {args.batch}")
    seq_len = min(args.seq_len, model.n_ctx)
    if seq_len < 64:
        raise ValueError(f"--seq-len must be at least 64, got {seq_len}")
    steps = max(1, math.ceil(args.epochs * n_tokens / (seq_len * args.batch)))
    piece = (64, max(64, seq_len // 2))
    # A small model's head costs more than its layers, and its gradient is as large for one sequence as for four.
    together = math.gcd(args.batch, 4) if model.n_params < _SMALL else 1
    return TrainConfig(
        model, CorruptionConfig(line_span_probability=args.line_spans, line_span_piece=piece),
        (Stage(0, seq_len, together),), piece_tokens=1024, grad_accum_steps=args.batch // together, max_steps=steps,
        warmup_steps=max(1, min(20, steps // 10)), schedule="cosine", final_lr=0.1,
        lr=args.lr or (1e-4 if args.lora is None else 1e-3), weight_decay=0.01, betas=(0.9, 0.99),
        lora_rank=args.lora, lora_alpha=2.0 * (args.lora or 8), seed=args.seed, checkpoint_every=50,
    )  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """What a model does on held-out files: 1.0 for each hole filled as it was, and the nats of each file.

    Either may be of the first ones alone, where time was short.
    """

    matches: list[float] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)


def choose_holes(files: Sequence[RepositoryFile], n: int, seed: int) -> list[Hole]:
    """Choose up to n lines of held-out files to fill in. Raises ValueError where there is none."""
    while n > 0:
        try:
            return single_line_holes(files, n, seed, max_per_file=max(5, n // max(1, len(files))))
        except ValueError:
            n = n * 3 // 4
    raise ValueError("the held-out files have no line of 8 characters to fill in; give a larger repository")


def judge(
    model: CodeGen2, tokenizer: Tokenizer, holes: Sequence[Hole], docs: Documents, machine: Machine,
    usage: Mapping[str, Any], known: Judgement, title: str, is_up: Callable[[], bool] = lambda: False,
) -> Judgement:  # fmt: skip
    """Fill the holes greedily, one line each, as `usage` (the model's config.json) says to ask, and score the files.

    Holes and files take turns, from where `known` ends, until is_up; at least one more is judged.
    """
    engine = Model(
        ReferenceEngine(model), tokenizer, "finetuned", usage.get("max_prompt_tokens"),
        usage.get("anchor"),
    )  # fmt: skip
    step = Step(model, TrainConfig(model.config, stages=(Stage(0, 1, 1),)), Machine())
    matches, nats, total = list(known.matches), list(known.nats), len(holes) + len(docs)
    with progress_bar(title, total, lines_every_s=30) as bar:
        for i in range(max(len(matches), len(nats)), max(len(holes), len(docs))):
            if i < len(holes):
                hole = holes[i]
                found = engine.infill(hole.prefix, hole.suffix, stop_at="line", max_new_tokens=_MIDDLE_TOKENS)
                matches.append(float(exact_match(found.text, hole.middle)))
            if i < len(docs):
                nats.append(document_nats(step, torch.device(machine.device), docs, [i]))
            bar.update(len(matches) + len(nats))
            if is_up():
                break
    return Judgement(matches, nats)


def write_result(base: Path, name: str, run_dir: Path, out: Path) -> CodeGen2:
    """Write a run's weights into `out`, and return the model, merged, in evaluation mode.

    Full: a checkpoint directory, form codegen2, float32. LoRA: an adapter in peft's format, for the model `name`.
    """
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


def compare(
    before: Judgement, after: Judgement, holes: Sequence[Hole], n_bytes: Sequence[int]
) -> dict[str, Any]:
    """Return both judgements and their paired difference with 95 % intervals; holes of one file stand together.

    n_bytes: of each scored file. What only one of them had time for is left out.
    """
    n, n_files = (
        min(len(b), len(a)) for b, a in ((before.matches, after.matches), (before.nats, after.nats))
    )
    groups = [hole.path for hole in holes[:n]]
    return {
        "holes": n,
        "exact_match_before": asdict(bootstrap(before.matches[:n], groups, share=True)),
        "exact_match_after": asdict(bootstrap(after.matches[:n], groups, share=True)),
        "exact_match_gain": asdict(paired_difference(before.matches[:n], after.matches[:n], groups)),
        "bits_per_byte_before": bits_per_byte(sum(before.nats[:n_files]), sum(n_bytes[:n_files])),
        "bits_per_byte_after": bits_per_byte(sum(after.nats[:n_files]), sum(n_bytes[:n_files])),
    }


def run_finetune(
    args: argparse.Namespace, started: float, clock: Callable[[], float] = time.monotonic
) -> int:
    """Fine-tune, going on where a run stopped, and return the exit status; started: by `clock`."""
    set_threads(args.threads)
    base = box_dir() if args.model is None else resolve(args.model)
    own = base / TOKENIZER_FILE
    tokenizer = Tokenizer.from_file(own) if own.is_file() else Tokenizer()
    files, dropped = read_repository(args.directory)
    learned, held = split_files(files, args.held_out, args.seed)
    machine, name, run_dir = machine_of(args), args.model or "box", args.out / "run"
    holes = choose_holes(held, args.holes, args.seed)
    scored = held[:_HELD_OUT_FILES]
    docs = encode_files(scored, tokenizer)
    found = f"{len(learned)} files to train on, {len(held)} held out, {len(holes)} holes"
    print(f"{found}; passed over: {dict(dropped)}", file=sys.stderr, flush=True)
    shape, usage = load_config(base)
    text = encode_files(learned, tokenizer)
    config = recipe_of(args, shape, sum(len(ids) + 1 for ids in text))

    def left_s() -> float:
        return float(args.max_seconds - (clock() - started))

    with only_one(args.out, "give another --out"):
        asked = {key: usage.get(key) for key in PROMPT_KEYS}
        of = json.dumps([fingerprint(base, ""), [asdict(h) for h in holes], [f.text for f in scored], asked])
        note = run_dir / _BEFORE
        before, took_s = _known(note, of)
        if len(before.matches) < len(holes) or len(before.nats) < len(docs):
            began = clock()
            model = load_model(base, machine.device)
            loading_s, until = clock() - began, clock() + _SCORING * args.max_seconds
            before = judge(
                model, tokenizer, holes, docs, machine, usage, before, "scoring before", lambda: clock() >= until
            )  # fmt: skip
            # What follows the run takes as long; its weights are read, merged and written, three times the loading.
            took_s = (took_s or 3 * loading_s) + clock() - began - loading_s
            _keep(note, of, before, took_s)
        with progress(config.max_steps, "finetune") as report:
            train(
                config, text, run_dir, init=base, max_seconds=left_s() - took_s, report=report, machine=machine,
                tokenizer=tokenizer, clock=clock,
            )  # fmt: skip
        model = write_result(base, name, run_dir, args.out)
        after = judge(
            model.to(machine.device), tokenizer, holes, docs, machine, usage, Judgement(), "scoring after",
            lambda: left_s() <= 0,
        )  # fmt: skip
        result: dict[str, Any] = {
            "base": name, "kind": "full" if args.lora is None else f"lora {args.lora}",
            "steps": read_state(run_dir / FILE)["step"], "of_steps": config.max_steps, "files": len(learned),
            "held_out_files": len(held), "passed_over": dict(dropped),
            **compare(before, after, holes, [len(f.text.encode()) for f in scored]),
        }  # fmt: skip
        write_atomic(args.out / REPORT, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result) if args.json else _told(result, args.out))
    return 0


def _keep(path: Path, of: str, judgement: Judgement, took_s: float) -> None:
    """Write down a judgement `of` a model and files, and the seconds it took, with a digest of all that."""
    said = {**asdict(judgement), "took_s": took_s}
    said["digest"] = hashlib.sha256(json.dumps([of, said]).encode()).hexdigest()
    write_atomic(path, (json.dumps(said) + "\n").encode())


def _known(path: Path, of: str) -> tuple[Judgement, float]:
    """Return what _keep wrote; nothing, so that it is judged again, where that is damaged or of something else."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        said = json.loads(path.read_text("utf-8"))
        if said.pop("digest") == hashlib.sha256(json.dumps([of, said]).encode()).hexdigest():
            return Judgement(said["matches"], said["nats"]), said["took_s"]
    return Judgement(), 0.0


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
