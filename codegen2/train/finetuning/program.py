"""What `codegen2 finetune` does: files, judgement before, training, judgement after, and the report.

Not here: arguments (cli.py), how (finetune.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ...checkpoint.hub import resolve
from ...checkpoint.layout import PROMPT_KEYS, load_config
from ...checkpoint.load import load_model
from ...checkpoint.reader import TOKENIZER_FILE
from ...files.paths import write_atomic
from ...files.progress import progress_bar
from ...text.tokenizer import Tokenizer
from ..checkpoint import FILE, read_state
from ..meter import progress
from ..program import machine_of, set_threads
from .finetune import Judgement, Plan, choose_holes, compare, finetune, judge
from .repository import TokenisedFiles, read_repository, split_files

REPORT = "finetune.json"
_BEFORE = "before.json"  # under OUT/run: what need not be judged again after a stop


def run_finetune(args: argparse.Namespace) -> int:
    """Fine-tune, going on where a run stopped, and return the exit status."""
    set_threads(args.threads)
    base = _base(args.model)
    name = args.model or "box"
    own = base / TOKENIZER_FILE
    tokenizer = Tokenizer.from_file(own) if own.is_file() else Tokenizer()
    files, dropped = read_repository(args.directory)
    learned, held = split_files(files, args.held_out, args.seed)
    machine = machine_of(args)
    plan = Plan(args.lora, args.epochs, args.lr, args.seq_len, args.batch, args.line_spans, args.seed)
    holes = choose_holes(held, args.holes, args.seed)
    _say(
        f"{len(learned)} files to train on, {len(held)} held out, {len(holes)} holes; passed over: {dict(dropped)}"
    )
    run_dir = args.out / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    config, usage = load_config(base)
    asked = {key: usage.get(key) for key in PROMPT_KEYS}
    asked_holes = [[h.path, h.line, h.middle] for h in holes]
    key = {"holes": asked_holes, "held": [f.path for f in held], "asked": asked}
    before = _known(run_dir / _BEFORE, key)
    if before is None:
        with progress_bar("holes before", len(holes), lines_every_s=30) as bar:
            model = load_model(base, machine.device)
            before = judge(model, tokenizer, holes, held, machine, usage, bar.update)
        found = key | {"matches": before.matches, "bits_per_byte": before.bits_per_byte}
        write_atomic(run_dir / _BEFORE, (json.dumps(found) + "\n").encode())
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


def _base(model: str | None) -> Path:
    if model is not None:
        return resolve(model)
    from ...box import box_dir

    return box_dir()


def _known(path: Path, key: dict[str, Any]) -> Judgement | None:
    try:
        found = json.loads(path.read_text("utf-8"))
        if all(found[k] == v for k, v in key.items()):
            return Judgement(found["matches"], found["bits_per_byte"])
    except (OSError, ValueError, KeyError):
        pass
    return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
