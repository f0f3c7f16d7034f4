"""The arguments of `codegen2 train`, `finetune` and `plot-run`; imports nothing heavy.

Not here: what they do (program.py, finetuning/, plot.py).
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_RECIPES = ("tiny", "nano", "nano_infill", "nano_functions", "1B", "3.7B", "7B", "16B")


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
    add = group.add_argument
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s); for several, start by torchrun")
    add("--threads", type=int, metavar="N", help="of a CPU (default: all cores)")
    add("--compile", action="store_true", help="by torch.compile; needs a C++ compiler, on a GPU Triton")
    add(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that prepare batches (default: %(default)s)",
    )
    add(
        "--peak-tflops",
        type=float,
        metavar="X",
        help="of the device, for MFU (default: known for H100 and some)",
    )


def _add_train(commands: Any) -> None:
    p = commands.add_parser(
        "train",
        help="train a model from nothing",
        description="Carry out a recipe on token shards; run it again to go on where it stopped.",
    )
    add = p.add_argument
    add("recipe", choices=_RECIPES, help="shape, rates and lengths of the run")
    add("--shard", type=Path, nargs="+", required=True, metavar="PATH",
        help="token shards: a folder of them, or a shard's path without suffix")  # fmt: skip
    add("--valid", type=Path, nargs="+", metavar="PATH", help="held-out shards, scored now and then")
    add("--valid-every", type=int, default=500, metavar="N", help="steps (default: %(default)s)")
    add("--run-dir", type=Path, required=True, metavar="DIR", help="for the checkpoint and the log")
    add("--init", type=Path, metavar="DIR", help="begin with the weights of this checkpoint directory")
    add(
        "--max-seconds",
        type=float,
        default=math.inf,
        metavar="S",
        help="stop in order after so long; run again to go on",
    )
    add("--export", type=Path, metavar="DIR", help="when all steps are done, write a checkpoint directory")
    add("--tensorboard", action="store_true", help="write for TensorBoard, too")
    add("--no-verify", action="store_true", help="do not read all shards once to compare their hashes")
    group = p.add_argument_group("instead of what the recipe says")
    add = group.add_argument
    for name, kind, text in (
        ("max-steps", int, "steps in all"),
        ("grad-accum-steps", int, "micro-batches a step"),
        ("micro-batch-size", int, "sequences of a micro-batch, in all stages"),
        ("seq-len", int, "tokens of a sequence, in all stages"),
        ("streams", int, "walks over the documents, a multiple of the micro-batches a step"),
        ("lr", float, "peak rate of AdamW"),
        ("checkpoint-every", int, "steps"),
        ("seed", int, "of every draw"),
        ("qat-from-step", int, "round the layers to int4 from this step on"),
    ):
        add(f"--{name}", type=kind, metavar="X", help=text)
    add("--activation-checkpointing", action="store_true", help="less memory for a third more arithmetic")
    group = p.add_argument_group("objective (ours; off by default)")
    add = group.add_argument
    add("--causal-probability", type=float, metavar="P", help="share of sequences left as plain files")
    add("--snap", choices=["none", "line", "syntax"], help="move spans to lines or syntax nodes")
    add(
        "--psm-probability",
        type=float,
        metavar="P",
        help="share of pieces with one span, prefix-suffix-middle",
    )
    add("--uniform-lengths", action="store_true", help="span lengths uniform, not log-uniform")
    add("--document-mask", action="store_true", help="no attention between documents of a sequence")
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
    add = p.add_argument
    add(
        "directory",
        type=Path,
        metavar="DIR",
        help="a git checkout (its tracked files are used) or any folder",
    )
    add(
        "--model",
        metavar="NAME_OR_DIR",
        help="a directory, a size or a hub name (default: the model in the box)",
    )
    add(
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="for the result; run again to go on after a stop",
    )
    add("--lora", type=int, metavar="R", help="train an adapter of rank R instead of all weights")
    add(
        "--max-seconds",
        type=float,
        default=math.inf,
        metavar="S",
        help="stop training in order after so long",
    )
    add("--epochs", type=float, default=3.0, metavar="E", help="passes over the files (default: %(default)s)")
    add("--lr", type=float, metavar="X", help="peak rate (default: 1e-4, for an adapter 1e-3)")
    add("--seq-len", type=int, default=1024, metavar="T", help="tokens (default: %(default)s)")
    add("--batch", type=int, default=8, metavar="B", help="sequences of a step (default: %(default)s)")
    add(
        "--held-out",
        type=float,
        default=0.15,
        metavar="P",
        help="share of files kept apart (default: %(default)s)",
    )
    add(
        "--holes",
        type=int,
        default=200,
        metavar="N",
        help="lines to fill in, before and after (default: %(default)s)",
    )
    add("--line-spans", type=float, default=0.5, metavar="P",
        help="share of corrupted pieces that hide whole lines (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0)
    add("--json", action="store_true", help="print the report as JSON, as in OUT/finetune.json")
    _add_machine(p)


def run_train(args: argparse.Namespace) -> int:
    """Run `train` and return the exit status."""
    with _needing_torch():
        from .program import run_train

    return run_train(args)


def run_finetune(args: argparse.Namespace) -> int:
    """Run `finetune` and return the exit status."""
    with _needing_torch():
        from .finetuning.program import run_finetune

    return run_finetune(args)


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
