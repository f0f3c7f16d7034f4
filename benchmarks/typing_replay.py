"""How many tokens a keystroke costs: real lines typed again character by character in an open session.

    python benchmarks/typing_replay.py STORE [--lines 200] [--model NAME_OR_DIR] [--out RESULT.json]

STORE keeps the archives of the held-out packages (held_out.py). Files of held-out packages are cut to about 1,500
tokens around a place; four lines in a row are taken out there and typed again, newlines included, with a wrong
character and a backspace every seventh key. Every key asks for an infill with a line anchor, as an editor does, and
for no new tokens.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from held_out import read_held_out

import codegen2

FILE_TOKENS, LINES_IN_A_ROW, SEED = 1500, 4, 20261124


def places(store: Path, n_lines: int, tokenizer: codegen2.Tokenizer) -> list[tuple[str, str, str]]:
    """Return (prefix, typed, suffix) of places whose files are long enough, until they hold n_lines lines."""
    rng = random.Random(SEED)
    files = sorted(read_held_out(store), key=lambda f: (f.package, f.path))
    rng.shuffle(files)
    found: list[tuple[str, str, str]] = []
    for file in files:
        if len(found) * LINES_IN_A_ROW >= n_lines:
            break
        lines = file.text.replace("\r\n", "\n").splitlines(keepends=True)
        starts = [
            i
            for i in range(20, len(lines) - 20)
            if all(len(line.split()) > 1 for line in lines[i : i + LINES_IN_A_ROW])
        ]
        if not starts:
            continue
        at = rng.choice(starts)
        before, after = at, at + LINES_IN_A_ROW
        counts = [len(ids) for ids in tokenizer.encode_batch(lines)]
        total = sum(counts[before:after])
        while total < FILE_TOKENS and (before or after < len(lines)):
            if before and (total % 2 or after == len(lines)):
                before -= 1
                total += counts[before]
            elif after < len(lines):
                total += counts[after]
                after += 1
            else:
                before -= 1
                total += counts[before]
        if total < FILE_TOKENS * 0.9:
            continue
        middle = "".join(lines[at : at + LINES_IN_A_ROW])
        suffix = "\n" + "".join(lines[at + LINES_IN_A_ROW : after])
        found.append(("".join(lines[before:at]), middle.removesuffix("\n"), suffix))
    return found


def keys(text: str) -> list[str]:
    """Return the texts that stand before the cursor, key by key: every seventh key is wrong and taken back."""
    states, typed = [], ""
    for number, key in enumerate(text):
        if number % 7 == 6:
            states += [typed + "q", typed]
        typed += key
        states.append(typed)
    return states


def percentile(values: list[int], share: float) -> int:
    """Return the value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Type, count, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--model", default=None)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    model = codegen2.load(args.model, max_prompt_tokens=None if args.model else 2048, check=False)
    evaluated: list[int] = []
    second_prefills = opened = 0
    prompts: list[int] = []
    for prefix, middle, suffix in places(args.store, args.lines, model.tokenizer):
        session = model.session()
        first = model.infill(prefix, suffix, anchor="line", session=session, max_new_tokens=0)
        prompts.append(first.prompt_tokens)
        opened += 1
        for typed in keys(middle):
            model.infill(prefix + typed, suffix, anchor="line", session=session, max_new_tokens=0)
            evaluated.append(session.evaluated)
            second_prefills += session.evaluated > first.prompt_tokens // 4
    result = {
        "places": opened,
        "lines": opened * LINES_IN_A_ROW,
        "keys": len(evaluated),
        "prompt_tokens_median": percentile(prompts, 0.5),
        "evaluated_median": percentile(evaluated, 0.5),
        "evaluated_p99": percentile(evaluated, 0.99),
        "evaluated_max": max(evaluated),
        "second_prefills": second_prefills,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
