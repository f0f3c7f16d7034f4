"""The arguments of `codegen2 train`, `finetune` and `plot-run`; imports nothing heavy.

Not here: what they do (program.py, finetuning/, plot.py).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files.arguments import add_option as option

_RECIPES = ("tiny", "box", "1B", "3.7B", "7B", "16B")


def add_train(commands: Any) -> None:
    """Add the three subcommands."""
    _add_train(commands)
    _add_finetune(commands)
    p = commands.add_parser(
        "plot-run", help="curves of a training run", description="Draw the curves of a run's log as PNG."
    )
    p.add_argument("directory", type=Path, metavar="DIR", help="what was given to train as --run-dir")
    p.add_argument("--out", type=Path, metavar="FILE.png", help="default: DIR/curves.png")


def _add_machine(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("machine")
    group.add_argument(
        "--device", default="cpu", help="cpu (default) or cuda; for several, start by torchrun"
    )
    option(group, "--threads", int, "N", "of a CPU (default: all cores)")
    group.add_argument(
        "--compile", action="store_true", help="by torch.compile; needs a C++ compiler, on a GPU Triton"
    )
    option(group, "--workers", int, "N", "processes that prepare batches", 0)
    option(group, "--peak-tflops", float, "X", "of the device, for MFU (default: known for H100 and some)")


def _add_train(commands: Any) -> None:
    p = commands.add_parser(
        "train",
        help="train a model from nothing",
        description="Carry out a recipe on token shards; run it again to go on where it stopped.",
    )
    p.add_argument("recipe", choices=_RECIPES, help="shape, rates and lengths of the run")
    shards = (
        "token shards: a folder, of which what is held out is passed over, or a shard's path without suffix"
    )
    option(p, "--shard", Path, "PATH", shards, nargs="+", required=True)
    option(
        p, "--valid", Path, "PATH", "held-out shards, scored now and then: may be the same folder", nargs="+"
    )
    option(p, "--valid-every", int, "N", "steps", 500)
    option(p, "--run-dir", Path, "DIR", "for the checkpoint and the log", required=True)
    option(p, "--init", Path, "DIR", "begin with the weights of this checkpoint directory")
    option(p, "--max-seconds", float, "S", "end in order after so long; run again to go on", math.inf)
    option(p, "--export", Path, "DIR", "when all steps are done, write a checkpoint directory")
    p.add_argument("--tensorboard", action="store_true", help="write for TensorBoard, too")
    p.add_argument("--no-verify", action="store_true", help="do not read all shards to compare their hashes")
    group = p.add_argument_group("instead of what the recipe says")
    option(group, "--max-steps", int, "N", "steps in all")
    option(group, "--grad-accum-steps", int, "N", "micro-batches a step")
    option(group, "--micro-batch-size", int, "B", "sequences of a micro-batch, in all stages")
    option(group, "--seq-len", int, "T", "tokens of a sequence, in all stages")
    option(group, "--streams", int, "N", "walks over the documents, a multiple of the micro-batches a step")
    option(group, "--lr", float, "X", "peak rate of AdamW")
    option(group, "--checkpoint-every", int, "N", "steps")
    option(group, "--seed", int, "N", "of every draw")
    option(group, "--qat-from-step", int, "N", "round the layers to int4 from this step on")
    group.add_argument(
        "--activation-checkpointing", action="store_true", help="less memory for a third more arithmetic"
    )
    group = p.add_argument_group("objective (ours; off by default)")
    option(group, "--causal-probability", float, "P", "share of sequences left as plain files")
    group.add_argument("--uniform-lengths", action="store_true", help="span lengths uniform, not log-uniform")
    group.add_argument(
        "--document-mask", action="store_true", help="no attention between documents of a sequence"
    )
    _add_machine(p)


def _add_finetune(commands: Any) -> None:
    p = commands.add_parser(
        "finetune",
        help="adapt a model to your repository",
        description=(
            "Continue training a model on a repository with the objective it was trained with, and say what that does"
            " to its infilling of files that it did not see."
        ),
    )
    option(p, "directory", Path, "DIR", "a git checkout (its tracked files are used) or any folder")
    option(
        p, "--model", str, "NAME_OR_DIR", "a directory, a size or a hub name (default: the model in the box)"
    )
    option(p, "--out", Path, "OUT", "for the result; run again to go on after a stop", required=True)
    option(p, "--lora", int, "R", "train an adapter of rank R instead of all weights")
    option(p, "--max-seconds", float, "S", "end in order after so long, scoring included", math.inf)
    option(p, "--epochs", float, "E", "passes over the files", 3.0)
    option(p, "--lr", float, "X", "peak rate (default: 1e-4, for an adapter 1e-3)")
    option(p, "--seq-len", int, "T", "tokens", 1024)
    option(p, "--batch", int, "B", "sequences of a step", 8)
    option(p, "--held-out", float, "P", "share of files kept apart", 0.15)
    option(p, "--holes", int, "N", "lines to fill in, before and after", 200)
    option(p, "--line-spans", float, "P", "share of corrupted pieces that hide whole lines", 0.5)
    option(p, "--seed", int, "N", "of every draw", 0)
    p.add_argument("--json", action="store_true", help="print the report as JSON, as in OUT/finetune.json")
    _add_machine(p)


def run_train(args: argparse.Namespace) -> int:
    """Run `train` and return the exit status."""
    started = time.monotonic()  # importing torch takes seconds, which count
    with _needing_torch():
        from .program import run_train

    return run_train(args, started)


def run_finetune(args: argparse.Namespace) -> int:
    """Run `finetune` and return the exit status."""
    started = time.monotonic()
    with _needing_torch():
        from .finetuning.finetune import run_finetune

    return run_finetune(args, started)


def run_plot_run(args: argparse.Namespace) -> int:
    """Run `plot-run` and return the exit status."""
    from .plot import draw

    print(draw(args.directory, args.out))
    return 0


@contextlib.contextmanager
def _needing_torch() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as e:
        if e.name != "torch":
            raise
        raise ValueError("training needs PyTorch; install codegen2[train]") from e
