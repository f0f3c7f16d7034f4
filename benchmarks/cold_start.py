"""From a cold process to the first generated text, with the model in the box (packed before, as after its first use).

python benchmarks/cold_start.py [--rounds 9] [--out RESULT.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "def read_json(path):\n    with open(path) as f:\n        "


def first_text() -> float:
    """Start the command line and return the seconds until its first character."""
    command = [sys.executable, "-m", "codegen2", "complete", "--prompt", PROMPT, "--max-new-tokens", "8"]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.read(1)
    seconds = time.monotonic() - began
    process.stdout.read()
    process.wait()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    first_text()  # packs the box if that was never done, and fills the disk's cache
    seconds = sorted(first_text() for _ in range(args.rounds))
    result = {"median_s": statistics.median(seconds), "best_s": seconds[0], "worst_s": seconds[-1]}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
