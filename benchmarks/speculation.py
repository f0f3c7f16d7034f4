"""What drafting from the text at hand is worth: acceptance on real middles, times the cost of checking on a 1B model.

    python benchmarks/speculation.py acceptance STORE [--holes 300] [--out RESULT.json]
    python benchmarks/speculation.py cost [--preset 1B] [--dtype int4] [--out RESULT.json]
    python benchmarks/speculation.py both STORE ...

acceptance: the real text of held-out holes is what "the model" writes, so the number of passes does not depend on a
model; the passes are priced by the measured cost of 1 to 7 rows, with the same rules that run when generating.
Middles are of two kinds: single lines, and runs of lines of 32 tokens and more.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from held_out import read_held_out

from codegen2.cli.bench import synthetic
from codegen2.config import PRESETS
from codegen2.engine.native import NativeEngine
from codegen2.engine.protocol import Piece
from codegen2.generation.speculate import MOST_DRAFT, Drafter
from codegen2.problems.sets import single_line_holes
from codegen2.text import infill
from codegen2.text.tokenizer import Tokenizer

PROMPT_TOKENS, SEED = 1500, 20261124


def middles(store: Path, n: int) -> list[tuple[str, str, str, str]]:
    """Return (kind, prefix, middle, suffix): n single lines, and n runs of lines that begin at the same places."""
    found = []
    rng = random.Random(SEED)
    for hole in single_line_holes(read_held_out(store), n=n, seed=SEED):
        found.append(("line", hole.prefix, hole.middle, hole.suffix))
        rest = hole.suffix.split("\n")
        take = rng.randint(4, 12)
        if len(rest) > take + 1:
            middle = hole.middle + "\n".join(rest[:take])
            found.append(("lines", hole.prefix, middle, "\n" + "\n".join(rest[take:])))
    return found


def replay(
    prompt: list[int], target: list[int], drafter: Drafter, cost: dict[int, float]
) -> tuple[float, int, int]:
    """Write target after prompt with drafts; return seconds, passes, tokens."""
    answer = object()
    seconds, passes, at = 0.0, 0, 0
    while at < len(target):
        at += 1  # drawn from the pass before
        draft = drafter.draft(answer, [*prompt, *target[:at]], MOST_DRAFT)
        right = 0
        while right < len(draft) and at < len(target) and draft[right] == target[at]:
            at += 1
            right += 1
        seconds += cost[1 + len(draft)]
        drafter.policy.note_cost(1 + len(draft), cost[1 + len(draft)])
        drafter.note(answer, right)
        passes += 1
    return seconds, passes, len(target)


def acceptance(store: Path, n: int, cost: dict[int, float]) -> dict[str, Any]:
    """Replay all middles and return the gain of each kind: time without drafts over time with them."""
    tokenizer = Tokenizer()
    drafter = Drafter()
    for rows, seconds in cost.items():
        drafter.policy.note_cost(rows, seconds)
    gains: dict[str, list[float]] = {"line": [], "lines": []}
    totals = {"line": np.zeros(3), "lines": np.zeros(3)}
    for kind, prefix, middle, suffix in middles(store, n):
        target = [*tokenizer.encode(middle), infill.EOM]
        if kind == "lines" and len(target) < 33:
            continue
        before = tokenizer.encode(prefix[-6000:])[-1000:]
        after = tokenizer.encode(suffix[:3000])[: PROMPT_TOKENS - len(before)]
        seconds, passes, tokens = replay(infill.build_prompt([before, after]), target, drafter, cost)
        gains[kind].append(tokens * cost[1] / seconds)
        totals[kind] += (seconds, passes, tokens)
    return {
        kind: {
            "middles": len(gains[kind]),
            "tokens": int(total[2]),
            "passes": int(total[1]),
            "gain": float(total[2] * cost[1] / total[0]),
            "gain_median": statistics.median(gains[kind]),
            "gain_worst": min(gains[kind]),
        }
        for kind, total in totals.items()
    }


def cost_of_rows(preset: str, dtype: str, repeats: int = 9) -> dict[int, float]:
    """Measure a pass of 1 to 7 rows behind 1,500 cached tokens, interleaved; medians, seconds."""
    config = PRESETS[preset]
    engine = NativeEngine(
        synthetic(config, lambda name: "int8" if "wte" in name or "head" in name else dtype)
    )
    ids = np.random.default_rng(0).integers(0, config.vocab_size, PROMPT_TOKENS).tolist()
    cache = engine.new_cache(1, 2048)
    engine.forward([Piece(0, 0, ids, 0, PROMPT_TOKENS)], cache)
    taken: dict[int, list[float]] = {rows: [] for rows in range(1, 8)}
    for turn in range(repeats + 1):
        for rows, times in taken.items():
            began = time.perf_counter()
            engine.forward([Piece(0, PROMPT_TOKENS, ids[:rows], rows, 0)], cache)
            if turn:
                times.append(time.perf_counter() - began)
    return {rows: statistics.median(times) for rows, times in taken.items()}


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["acceptance", "cost", "both"])
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--holes", type=int, default=300)
    parser.add_argument("--preset", default="1B")
    parser.add_argument("--dtype", default="int4", choices=["int8", "int4"])
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if args.what != "cost" and args.store is None:
        parser.error("acceptance needs a folder for the held-out packages")
    result: dict[str, Any] = {"preset": args.preset, "dtype": args.dtype}
    cost = {rows: 1.0 + 0.04 * (rows - 1) for rows in range(1, 8)}  # assumed where it is not measured
    if args.what != "acceptance":
        cost = cost_of_rows(args.preset, args.dtype)
        result["pass_ms"] = {rows: 1e3 * s for rows, s in cost.items()}
    if args.what != "cost":
        result["acceptance"] = acceptance(args.store, args.holes, cost)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
