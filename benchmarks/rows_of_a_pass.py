"""What a pass of 1 to 16 rows costs, ms: a step, a check of guesses, a batch of steps.

    python benchmarks/rows_of_a_pass.py NATIVE_DIR... [--behind 100] [--times 9] [--prompt]

NATIVE_DIR: what `codegen2 convert --to native` writes. Rows are tokens of one text behind `behind` others; medians and,
in brackets, the fastest. CODEGEN2_NATIVE_LIBRARY chooses a library to compare with.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from codegen2.checkpoint.native.form import open_native
from codegen2.engine.native import NativeEngine
from codegen2.engine.protocol import Piece

ROWS = (1, 2, 4, 6, 7, 8, 12, 16)


def main() -> None:
    """Time passes of each width in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--behind", type=int, default=100)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--prompt", action="store_true", help="rows are prompt tokens, as typed keys are")
    args = parser.parse_args()
    for path in args.models:
        engine = NativeEngine(open_native(path))
        behind = args.behind
        ids = np.random.default_rng(1).integers(0, engine.config.vocab_size, behind + max(ROWS)).tolist()
        cache = engine.new_cache(1, len(ids))
        engine.forward([Piece(0, 0, ids[:behind], 0, behind)], cache)
        found: dict[int, list[float]] = {m: [] for m in ROWS}
        for _ in range(args.times):
            for m in ROWS:
                piece = Piece(0, behind, ids[behind : behind + m], m, m * args.prompt)
                began = time.perf_counter()
                engine.forward([piece], cache)
                found[m].append(1e3 * (time.perf_counter() - began))
        print(path.name, *(f"{m}: {statistics.median(t):.2f} ({min(t):.2f})" for m, t in found.items()))


if __name__ == "__main__":
    main()
