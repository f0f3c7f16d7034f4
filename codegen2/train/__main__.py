"""Run a recipe: python -m codegen2.train nano --shard DIR/train --run-dir RUN [--max-seconds S]."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..shards import Shard
from . import recipes
from .loop import train


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m codegen2.train")
    parser.add_argument("recipe", choices=["nano", "nano_infill"])
    parser.add_argument("--shard", type=Path, required=True, help="token shard, its path without suffix")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="begin with the weights of this checkpoint directory")
    parser.add_argument("--max-seconds", type=float, default=math.inf)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    shard = Shard(args.shard)
    counts = np.bincount(shard.tokens, minlength=51200)
    frequent = np.sort(np.argsort(-counts, kind="stable")[:4096])

    def report(line: dict[str, Any]) -> None:
        if line["step"] % 20 == 0:
            print(
                f"step {line['step']} loss {line['loss']:.3f} {line['tok_s']:.0f} tok/s",
                file=sys.stderr,
                flush=True,
            )

    train(
        getattr(recipes, args.recipe)(),
        shard,
        args.run_dir,
        frequent=frequent,
        init=args.init,
        max_seconds=args.max_seconds,
        report=report,
    )


if __name__ == "__main__":
    main()
