"""Two programs on the same cores: each one's decoding speed beside the other, against its speed alone.

python benchmarks/two_processes.py [--preset 1B] [--dtype int8] [--rounds 3] [--out RESULT.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CODE = """
import sys, time
from codegen2.cli.bench import synthetic
from codegen2.config import PRESETS
from codegen2.engine.native import NativeEngine
from codegen2.engine.protocol import Piece
dtype, preset, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
engine = NativeEngine(synthetic(PRESETS[preset], lambda name: "int8" if "wte" in name or "head" in name else dtype))
cache, at = engine.new_cache(1, 2048), 64
[logits] = engine.forward([Piece(0, 0, list(range(64)), 1, 64)], cache)
print("ready", flush=True)
sys.stdin.readline()
n, began = 0, time.monotonic()
while time.monotonic() - began < seconds:
    [logits] = engine.forward([Piece(0, at, [int(logits.argmax())], 1, 0)], cache)
    at = 64 if at > 1000 else at + 1
    n += 1
print(n / (time.monotonic() - began), flush=True)
"""


def together(n: int, dtype: str, preset: str, seconds: float) -> list[float]:
    """Start n processes, let them begin at once, and return tokens a second of each."""
    command = [sys.executable, "-c", CODE, dtype, preset, str(seconds)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(n)
    ]
    for process in started:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    return [float(process.communicate(timeout=600)[0]) for process in started]


def main() -> None:
    """Alternate one process and two; print the medians and the worst share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="1B")
    parser.add_argument("--dtype", default="int8", choices=["int8", "int4"])
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    alone, beside = [], []
    for _ in range(args.rounds):
        alone += together(1, args.dtype, args.preset, args.seconds)
        beside.append(sorted(together(2, args.dtype, args.preset, args.seconds)))
    one = statistics.median(alone)
    result = {
        "preset": args.preset,
        "dtype": args.dtype,
        "alone_tok_s": one,
        "beside_tok_s": beside,
        "share_of_the_slower": statistics.median(pair[0] for pair in beside) / one,
        "share_of_the_faster": statistics.median(pair[1] for pair in beside) / one,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
