"""Compare the native engine with other programs: the same shapes, the same cores, one sample of each in turn.

    python benchmarks/cpu_peers.py --preset 1B --rounds 5 --out benchmarks/results/NAME.json \\
        --peer 'llama.cpp Q8_0|decode|8.5|llama-bench -m phi2-1B-q8_0.gguf -t 2 -p 0 -n 64 -d 128 -r 1 -o json' \\
        --peer 'llama.cpp Q8_0|prefill||llama-bench -m phi2-1B-q8_0.gguf -t 2 -p 1024 -n 0 -r 1 -o json'

A peer is NAME|WHAT|BITS|COMMAND: WHAT is decode (64 tokens behind a prompt of 128) or prefill (1,024 tokens), BITS how
many bits a weight it streams. The command prints JSON as its last line, or llama-bench's list: {"tok_s": x}, or
[{"samples_ts": [x]}]. benchmarks/gguf_shape.py writes the files for llama.cpp, which has no CodeGen: phi2 has the same
matrices. Everything is random weights; start it on an idle machine. Ours runs as a process of its own as well, and
measures the memory's limit in the same round.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = {"int8": ("int8", None), "int4, head int8": ("int4", "int8"), "int4, head int4": ("int4", "int4")}


@dataclass(frozen=True)
class Peer:
    """Name a program and how one sample of it is taken."""

    name: str
    what: str
    bits: str
    command: list[str]

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Read NAME|WHAT|BITS|COMMAND. Raises ValueError for another form."""
        parts = text.split("|", 3)
        if len(parts) != 4 or parts[1] not in ("decode", "prefill"):
            raise ValueError(f"--peer {text!r}: write NAME|decode or prefill|BITS|COMMAND")
        return cls(parts[0], parts[1], parts[2], shlex.split(parts[3]))


def rate(output: str) -> float:
    """Return tokens a second from what a peer printed."""
    try:
        content = json.loads(output)
    except ValueError:
        content = json.loads(output.strip().splitlines()[-1])
    if isinstance(content, list):
        return float(statistics.median(content[0]["samples_ts"]))
    return float(content["tok_s"])


def run(command: list[str], timeout: float) -> str:
    """Run a command and return its output. Raises CalledProcessError or TimeoutExpired."""
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True).stdout


def ours(
    preset: str, dtype: str, head: str | None, decode: int, prefill: bool, timeout: float
) -> dict[str, Any]:
    """Take one sample of the native engine, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "codegen2",
        "bench",
        "--preset",
        preset,
        "--dtype",
        dtype,
        "--repeats",
        "1",
    ]
    command += [
        "--decode",
        str(decode),
        "--json",
        *(["--head-dtype", head] if head and dtype == "int4" else []),
    ]
    found: dict[str, Any] = json.loads(run([*command, *([] if prefill else ["--no-prefill"])], timeout))
    return found


def main() -> None:
    """Take turns, print a line a sample, write medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="1B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--no-prefill", action="store_true")
    parser.add_argument("--ours", nargs="*", default=list(OURS), choices=list(OURS))
    parser.add_argument("--peer", action="append", default=[], type=Peer.parse)
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    samples: dict[str, list[float]] = {}
    details: dict[str, list[dict[str, Any]]] = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)
        print(f"{name}: {value:.2f}", flush=True)

    for _ in range(args.rounds):
        for form in args.ours:
            found = ours(args.preset, *OURS[form], args.decode, not args.no_prefill, args.timeout)
            details.setdefault(form, []).append(found)
            note(f"codegen2 {form} decode", found["decode_tok_s"])
            note(f"codegen2 {form} fraction", found["fraction"])
            if found["prefill_tok_s"]:
                note(f"codegen2 {form} prefill", found["prefill_tok_s"])
        for peer in args.peer:
            try:
                note(f"{peer.name} {peer.what}", rate(run(peer.command, args.timeout)))
            except (subprocess.SubprocessError, ValueError, KeyError) as error:
                print(f"{peer.name} {peer.what}: failed: {error}", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    content = {
        "preset": args.preset, "rounds": args.rounds, "date": time.strftime("%Y-%m-%d"),
        "machine": _processor(), "platform": platform.platform(),
        "instruction_set": details[args.ours[0]][0]["instruction_set"] if args.ours else None,
        "medians": medians, "samples": samples,
        "limit_gb_s": {form: [d["limit_gb_s"] for d in found] for form, found in details.items()},
        "peak_rss_gib": {form: max(d["peak_rss_gib"] for d in found) for form, found in details.items()},
        "peers": [{"name": p.name, "what": p.what, "bits": p.bits} for p in args.peer],
    }  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, value in sorted(medians.items()):
        print(f"{name:45} {value:8.2f}")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


if __name__ == "__main__":
    main()
