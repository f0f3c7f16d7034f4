"""Judge the model in the box on held-out packages: bits per byte against xz, and single-line infill.

    python benchmarks/box_card.py STORE [--model CHECKPOINT] [--out benchmarks/results/NAME.json]

STORE keeps the archives of the held-out packages, 9 MB, which are fetched where they are missing (held_out.py).

Bits per byte: a fixed random sample of the held-out files, each on its own, as xz gets them too (and once more all of
them in one xz stream, which lets xz learn from file to file). Infill: 1,000 lines chosen before training; the answer
counts when the line that an editor would show is the line, indentation included. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import random
import time
from collections.abc import Iterable
from pathlib import Path

from held_out import HOLES_SHA256, HeldOutFile, frozen_holes, read_held_out

import codegen2
from codegen2.api import Model
from codegen2.problems.sets import Hole
from codegen2.problems.statistics import wilson
from codegen2.text.windows import bits_per_byte

SAMPLE_SEED = 20261123
# Of the 19,508 files that the box was trained on first, among lines of at least 8 non-blank characters.
MOST_COMMON_LINE = "    @property"


def compression(model: codegen2.Model, files: list[HeldOutFile]) -> dict[str, float]:
    """Return bits per byte of the model and of xz -9."""
    nats, n_bytes, packed = 0.0, 0, 0
    for done, file in enumerate(files, start=1):
        score = model.score(file.text)
        nats -= sum(score.logprobs)
        n_bytes += score.n_bytes
        packed += len(lzma.compress(file.text.encode(), preset=9))
        if done % 20 == 0:
            print(f"{done}/{len(files)} files, {bits_per_byte(nats, n_bytes):.3f} bits per byte", flush=True)
    solid = len(lzma.compress(b"".join(f.text.encode() for f in files), preset=9))
    return {
        "files": len(files),
        "bytes": n_bytes,
        "model_bpb": bits_per_byte(nats, n_bytes),
        "xz_bpb": 8 * packed / n_bytes,
        "xz_one_stream_bpb": 8 * solid / n_bytes,
    }


def previous_line(hole: Hole) -> str:
    """Return the last non-blank line before the hole."""
    return next((line for line in reversed(hole.prefix.split("\n")) if line.strip()), "")


def infill(model: codegen2.Model, holes: list[Hole]) -> tuple[int, int]:
    """Count the lines that are exactly right, as an editor shows them and in the raw text's first line."""
    shown, raw = 0, 0
    for done, hole in enumerate(holes, start=1):
        answer = model.infill(hole.prefix, hole.suffix, stop_at="line", max_new_tokens=64)
        shown += answer.text.strip("\n") == hole.middle
        raw += answer.raw.split("\n")[0] == hole.middle
        if done % 50 == 0:
            print(f"{done}/{len(holes)} holes, {shown} right ({raw} raw)", flush=True)
    return shown, raw


def holes_hash(holes: Iterable[Hole]) -> str:
    """Return the sha256 of the holes' (package, path, line, middle) as JSON lines, in their order."""
    digest = hashlib.sha256()
    for hole in holes:
        record = [hole.package, hole.path, hole.line, hole.middle]
        digest.update((json.dumps(record, ensure_ascii=True, separators=(",", ":")) + "\n").encode())
    return digest.hexdigest()


def share(hits: int, n: int) -> dict[str, object]:
    """Return a proportion as the card wants it."""
    return {"hits": hits, "n": n, "share": hits / n, "interval_95": [round(x, 4) for x in wilson(hits, n)]}


def main() -> None:
    """Run both and print the numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument(
        "--max-prompt-tokens", type=int, default=None, help="default: what the model's config says"
    )
    parser.add_argument("--holes", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    started = time.monotonic()
    held_out = read_held_out(args.store)
    holes = frozen_holes(held_out)
    assert holes_hash(holes) == HOLES_SHA256
    model = codegen2.load(args.model, max_prompt_tokens=args.max_prompt_tokens)
    sample = random.Random(SAMPLE_SEED).sample(held_out, min(args.files, len(held_out)))
    chosen = holes[: args.holes]
    shown, raw = infill(model, chosen)
    at_cursor = Model(model.engine, model.tokenizer, model.name, model.max_prompt_tokens)
    plain, _ = infill(at_cursor, chosen) if model.anchor != "cursor" else (shown, raw)
    result = {
        "compression": compression(model, sample),
        "holes_hash": HOLES_SHA256,
        "infill": share(shown, len(chosen)),
        "infill_raw_first_line": share(raw, len(chosen)),
        "infill_hole_at_the_cursor": share(plain, len(chosen)),
        "anchor": model.anchor,
        "max_prompt_tokens": model.max_prompt_tokens,
        "baseline_previous_line": share(sum(previous_line(h) == h.middle for h in chosen), len(chosen)),
        "baseline_most_common_line": share(sum(h.middle == MOST_COMMON_LINE for h in chosen), len(chosen)),
        "most_common_line": MOST_COMMON_LINE,
        "engine": type(model.engine).__name__,
        "seconds": round(time.monotonic() - started, 1),
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
