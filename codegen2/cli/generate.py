"""codegen2 complete, infill, score and embed; arguments come from main.py, which also turns errors into sentences.

Results go to standard output, everything else (progress, notes) to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..api import HOLE, Model
from ..files.paths import replacing
from ..files.progress import progress_bar
from ..files.textfile import TextFile, offset_of, read_text
from ..generation.params import PARAMS, SamplingParams
from ..generation.results import Choice, Result
from ..loading import from_args
from ..text.languages import language_of
from ..text.windows import bits_per_byte
from ..train.stop import stop_signals


def _sampling(args: argparse.Namespace, cancel: threading.Event) -> SamplingParams:
    given = {k: v for k, v in vars(args).items() if k in PARAMS and v is not None}
    return SamplingParams(**given, stop=args.stop, cancel=cancel)


def print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, ensure_ascii=False))


def print_pairs(content: dict[str, Any]) -> None:
    """Print one line a key, those of a dictionary below it."""
    for key, value in content.items():
        if isinstance(value, dict):
            print(f"{key}:")
            print_pairs({f"  {inner}": v for inner, v in value.items()})
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{key}: {shown:.6g}" if isinstance(shown, float) else f"{key}: {shown}")


def run_complete(args: argparse.Namespace) -> int:
    """Continue a text, streaming it as it comes."""
    if args.prompt is not None and args.file is not None:
        raise ValueError(f"{args.file} and --prompt are two texts; give one of them")
    prompt = args.prompt if args.prompt is not None else read_text(args.file or "-").text
    # The first Ctrl-C cancels the generation, which keeps what is there; a second one ends the program.
    with stop_signals(signal.SIGINT, again=signal.default_int_handler) as cancel:
        params = _sampling(args, cancel)
        model = from_args(args)
        several = params.n > 1 or params.best_of is not None
        if args.echo and not args.json:
            sys.stdout.write(prompt)
        done: Result | None = None
        for chunk in model.stream_complete(prompt, params=params):
            done = chunk.result
            if not (args.json or several):
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    assert done is not None
    if args.json:
        keys = ("text", "tokens", "finish_reason")
        choices = [{key: getattr(choice, key) for key in keys} for choice in done.choices]
        content = {"model": model.name, "choices": choices, "prompt_tokens": done.prompt_tokens}
        print_json(content | {"dropped_chars": done.dropped.prefix_chars})
    elif several:
        _print_answers(done)
    else:
        print()
    _note_dropped(model, done)
    return 130 if cancel.is_set() else 0


def _print_answers(done: Result) -> None:
    for number, choice in enumerate(done.choices, start=1):
        print(f"--- answer {number} of {len(done.choices)} ({choice.finish_reason})")
        print(choice.text)


def _note_dropped(model: Model, done: Result) -> None:
    """Tell what the model did not read."""
    lost = done.dropped
    sides = [(lost.prefix_chars, "furthest before"), (lost.suffix_chars, "furthest after")]
    told = " and ".join(f"the {n} characters {where} the cursor" for n, where in sides if n)
    if told:
        name = "the bundled model" if model.name == "box" else f"model {model.name}"
        most = model.max_prompt_tokens
        print(f"codegen2: {name} reads at most {most} tokens at once: it did not see {told}", file=sys.stderr)


def _positions(args: argparse.Namespace, file: TextFile) -> list[tuple[int, int]]:
    """Return (start, end) offsets of the holes, in order."""
    text, mark = file.text, "<FILL>" if args.hole is None else args.hole
    if args.at and args.hole is not None:
        raise ValueError("--at and --hole both say where the holes are; give one of them")
    if args.at:
        offsets = []
        for at in args.at:
            line, _, column = at.partition(":")
            if not (line.isdecimal() and column.isdecimal()):
                raise ValueError(f"--at {at!r} is no position; write LINE:COL, both from 1, as in 12:5")
            offsets.append(offset_of(text, int(line), int(column)))
        return [(o, o) for o in sorted(set(offsets))]
    if not mark:
        raise ValueError("--hole must not be empty; give the text that marks a hole")
    found = [match.span() for match in re.finditer(re.escape(mark), text)]
    if not found:
        raise ValueError(f"{file.name}: no {mark} in it and no --at; say where text is wanted")
    return found


def run_infill(args: argparse.Namespace) -> int:
    """Fill the holes of a file and print or write the filled text."""
    file = read_text(args.file)
    if file.path and ".ipynb" in (path.suffix.lower() for path in (file.path, file.path.resolve())):
        raise ValueError(
            f"{file.name}: a notebook is JSON, which an answer would break; pipe a cell's text to -"
        )
    if args.mark and (args.write or args.json):
        raise ValueError("--mark is for the printed file; leave it out with --write and --json")
    if args.write:
        file.check_writable()
        if (args.n or 1) > 1:
            raise ValueError(f"--n {args.n}: --write takes one answer; leave --n out, or print the answers")
    holes = _positions(args, file)
    edges = [0, *(edge for hole in holes for edge in hole), len(file.text)]
    texts = [file.text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    if len(holes) > 1 and args.stop_at:
        raise ValueError(f"--stop-at works with one hole, here are {len(holes)}; fill one at a time")
    with stop_signals(signal.SIGINT, again=signal.default_int_handler) as cancel:
        params = _sampling(args, cancel)
        model = from_args(args)
        trim, language = not args.no_trim, language_of(file.name, file.text)
        if len(holes) == 1:
            done = model.infill(
                texts[0], texts[1], stop_at=args.stop_at, trim_overlap=trim, language=language, params=params
            )
        else:
            pieces = [piece for text in texts for piece in (text, HOLE)][:-1]
            done = model.infill_spans(pieces, trim_overlap=trim, language=language, params=params)
    middles = done.choices if len(holes) > 1 else done.choices[:1]
    filled = _join(texts, middles)
    if args.json:
        print_json(_infill_json(model, file, holes, done, filled))
    elif len(done.choices) > len(holes):
        _print_answers(done)
    elif not args.write:
        sys.stdout.buffer.write(file.encode(_join(texts, middles, *_marks()) if args.mark else filled))
        sys.stdout.flush()
    _note_dropped(model, done)
    for cut in (c for middle in middles for c in middle.cuts if c.reason.startswith("held back")):
        print(cut.reason, file=sys.stderr)
    if cancel.is_set():
        return 130
    if args.write:
        file.write(filled)
    return 0


def _marks() -> tuple[str, str]:
    return ("\x1b[1;32m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("⟦", "⟧")


def _join(texts: Sequence[str], middles: Sequence[Choice], before: str = "", after: str = "") -> str:
    out = [texts[0]]
    for middle, text in zip(middles, texts[1:], strict=True):
        if middle.unindent:
            out[-1] = out[-1][: -middle.unindent]
        out += [before + middle.text + after, text]
    return "".join(out)


def _infill_json(
    model: Model, file: TextFile, holes: list[tuple[int, int]], done: Result, filled: str
) -> dict[str, Any]:
    # One hole has n answers at one place, several holes have one answer each.
    places = holes if len(holes) > 1 else holes * len(done.choices)
    answers = [
        {
            "text": middle.text, "raw": middle.raw, "finish_reason": middle.finish_reason,
            "confidence": middle.confidence, "cuts": [{"reason": c.reason, "removed": c.removed} for c in middle.cuts],
            "line": file.text.count("\n", 0, start) + 1, "column": start - file.text.rfind("\n", 0, start),
        }
        for (start, _), middle in zip(places, done.choices, strict=True)
    ]  # fmt: skip
    return {
        "model": model.name, "text": filled, "holes": answers, "prompt_tokens": done.prompt_tokens,
        "dropped_prefix_chars": done.dropped.prefix_chars, "dropped_suffix_chars": done.dropped.suffix_chars,
    }  # fmt: skip


def run_score(args: argparse.Namespace) -> int:
    """Print bits per byte of each file and of all."""
    if args.tokens and not args.json:
        raise ValueError("--tokens goes with --json; give both")
    files = [read_text(name) for name in args.files]
    empty = next((f for f in files if not f.text), None)
    if empty is not None:
        raise ValueError(f"{empty.name}: empty, so there is nothing to score")
    model = from_args(args)
    rows: list[dict[str, Any]] = []
    with progress_bar("scoring", len(files)) as bar:
        for file in files:
            score = model.score(file.text)
            tokens = zip(score.tokens, score.logprobs, strict=True)
            each = [{"token": t, "logprob": p} for t, p in tokens] if args.tokens else len(score.tokens)
            bits, n_bytes, nats = score.bits_per_byte, score.n_bytes, -sum(score.logprobs)
            rows.append(
                {"file": file.name, "bits_per_byte": bits, "nats": nats, "bytes": n_bytes, "tokens": each}
            )
            bar.advance()
            if not args.json:
                print(f"{bits:.4f} bits per byte  {n_bytes:>9} bytes  {file.name}", flush=True)
    total = bits_per_byte(sum(r["nats"] for r in rows), sum(r["bytes"] for r in rows))
    if args.json:
        print_json({"model": model.name, "files": rows, "bits_per_byte": total})
    elif len(rows) > 1:
        print(f"{total:.4f} bits per byte  {sum(r['bytes'] for r in rows):>9} bytes  all")
    return 0


def run_embed(args: argparse.Namespace) -> int:
    """Print or write the hidden states of a text."""
    text = read_text(args.file).text
    states = from_args(args).embed(text, args.pooling)
    if args.out:
        with replacing(args.out) as part, part.open("wb") as f:
            np.save(f, states)
    else:
        values = [[round(float(x), 6) for x in row] for row in states.reshape(-1, states.shape[-1])]
        print_json({"shape": list(states.shape), "values": values})
    return 0
