"""Decode beside llama.cpp, both weight files laid out anew each time, with the limit of the pages that each reads.

    python benchmarks/same_memory.py LLAMA_BENCH Q8_0.gguf Q4_0.gguf [--rounds 4] [--out RESULT.json]

On some virtual machines the cores are moved together or apart while one measures, and memory is read at nearly twice
the rate when they are apart (benchmarks/core_pair.cpp). So each round measures how fast the GGUF's pages can be read
before and after llama-bench reads them, and our weights' own pages beside our samples; both files are fresh each round.
1B shapes, two threads, two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from codegen2 import native
from codegen2.cli import bench
from codegen2.config import PRESETS

PAIRS = (("llama.cpp Q8_0", "int8", None), ("llama.cpp Q4_0", "int4", "int4"))


def limit(path: Path) -> float:
    """Return GB/s of the best pattern over a mapped file."""
    pages = np.memmap(path, np.uint8, mode="r")
    pages[::4096].sum()  # all in memory first
    return max(bench.read_limit(pages, 2).values())


def main() -> None:
    """Take turns and print a line a pair."""
    parser = argparse.ArgumentParser()
    parser.add_argument("llama_bench")
    parser.add_argument("files", type=Path, nargs=2, metavar="GGUF", help="Q8_0, then Q4_0")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    native.library().cg2_set_threads(2)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.files[0].parent) as room:
        ours = Path(room) / "ours"

        def fresh(n_bytes: int) -> np.ndarray:
            ours.unlink(missing_ok=True)
            with ours.open("wb") as f:
                f.truncate(n_bytes)
            return np.memmap(ours, np.uint8, mode="r+")

        bench._like_a_file = fresh
        for _ in range(args.rounds):
            for source, (name, dtype, head) in zip(args.files, PAIRS, strict=True):
                copy = Path(room) / "theirs.gguf"
                copy.unlink(missing_ok=True)
                shutil.copyfile(source, copy)
                before = limit(copy)
                command = [args.llama_bench, "-m", str(copy), "-t", "2", "-p", "0", "-n", "64", "-d", "128"]
                done = subprocess.run(
                    [*command, "-r", "1", "-o", "json"], capture_output=True, text=True, check=True
                )
                found = bench.measure(
                    PRESETS["1B"], dtype, head, repeats=2, n_decode=48, prefill=False, threads=2
                )
                rows.append(
                    {
                        "peer": name, "peer_tok_s": json.loads(done.stdout)[0]["samples_ts"][0],
                        "peer_limit_gb_s": max(before, limit(copy)), "dtype": dtype, "head_dtype": head,
                        "tok_s": found["decode_tok_s"], "limit_gb_s": found["limit_gb_s"],
                        "fraction": found["fraction"],
                    }
                )  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
