"""How soon a cancelled prefill stops: 50 cancels at random times in prompts of 2,000 tokens, synthetic weights.

    python benchmarks/cancel.py [--preset 1B] [--dtype int4] [--times 50] [--out RESULT.json]

Measured from setting the flag to the call's return; after each, a session's next request is checked for its result.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from pathlib import Path

import numpy as np

from codegen2.cli.bench import synthetic
from codegen2.config import PRESETS
from codegen2.engine.native import NativeEngine
from codegen2.engine.protocol import Cancelled, Piece


def main() -> None:
    """Cancel, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="1B")
    parser.add_argument("--dtype", default="int4", choices=["int8", "int4"])
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    config = PRESETS[args.preset]
    engine = NativeEngine(
        synthetic(config, lambda name: "int8" if "wte" in name or "lm_head" in name else args.dtype)
    )
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 2000).tolist()
    cache, first = engine.new_cache(1, 2048), Piece(0, 0, ids[:256], 0, 256)
    started = time.monotonic()
    engine.forward([first], cache)
    whole = (time.monotonic() - started) * 2000 / 256  # about how long a whole prefill takes
    then = Piece(0, 256, ids[256:258], 2, 2)
    [expected] = engine.forward([then], cache)
    rng = random.Random(0)
    delays = []
    for _ in range(args.times):
        cancel = threading.Event()
        set_at = 0.0

        def fire(event: threading.Event = cancel) -> None:
            nonlocal set_at
            set_at = time.monotonic()
            event.set()

        timer = threading.Timer(rng.uniform(0, 0.9 * whole), fire)
        timer.start()
        try:
            with engine.cancelled_by(cancel):
                engine.forward([Piece(0, 0, ids, 1, 2000)], cache)
            timer.cancel()
            continue  # it was done before
        except Cancelled:
            delays.append(time.monotonic() - set_at)
        engine.forward([first], cache)
        assert np.array_equal(engine.forward([then], cache)[0], expected), "the session was damaged"
    delays.sort()
    result = {
        "preset": args.preset,
        "dtype": args.dtype,
        "cancelled": len(delays),
        "prefill_s_estimated": whole,
        "median_ms": 1e3 * delays[len(delays) // 2],
        "p99_ms": 1e3 * delays[min(len(delays) - 1, int(0.99 * len(delays)))],
        "max_ms": 1e3 * delays[-1],
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
