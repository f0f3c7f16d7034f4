"""How well answers fit at a cursor: the same seeded holes, asked through the public API, on any commit.

    python benchmarks/cursor.py FOLDER [--parts abcdef] [--seed N] [--out RESULT.json] [--before RESULT.json]

FOLDER holds Python sources that no training saw. Answers are greedy, on one thread; similarity is difflib's ratio.

    a  rest of a line, the cursor before a blank and behind it: exact and mean similarity
    b  a word hidden between two blanks: answers that bring a second blank at either side
    c  cuts with text before and behind the cursor on its line: answers that hold a line end, by stop_at
    d  CRLF, CR and a leading U+FEFF: answers equal to those for LF without one
    e  two or three holes in one text: filled together, and one by one
    f  whole lines by max_prompt_tokens: exact and mean similarity

It imports only the package's public names, so that an old commit is measured by the same file:
`PYTHONPATH=OLD_CHECKOUT python benchmarks/cursor.py FOLDER`. --before prints that run's numbers beside this one's.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal

import codegen2

Figures = dict[str, float]
LIMITS = (64, 96, 128, 160, 192, 256, 384)


class Sources:
    """Python files with LF line ends, and seeded places in them."""

    def __init__(self, folder: Path, seed: str) -> None:
        """Read every file of a fair size below a folder."""
        paths = sorted(p for p in folder.rglob("*.py") if 2_000 <= p.stat().st_size <= 200_000)
        texts = (p.read_bytes().decode("utf-8", "replace").removeprefix("\ufeff") for p in paths)
        self.files = [t.replace("\r\n", "\n").replace("\r", "\n") for t in texts]
        self.rng = random.Random(seed)
        if not self.files:
            raise ValueError(f"{folder}: no Python file between 2,000 and 200,000 bytes below it")

    def lines(self) -> Iterator[tuple[str, str, str]]:
        """Yield (text above, line without its line end, text from that line end on), a new place each time."""
        while True:
            lines = self.rng.choice(self.files).split("\n")
            if len(lines) < 40:
                continue
            at = self.rng.randrange(15, len(lines) - 10)
            line = lines[at]
            if len(line.strip()) >= 12 and not line.lstrip().startswith("#"):
                above = "".join(f"{x}\n" for x in lines[:at])
                yield above, line, "".join(f"\n{x}" for x in lines[at + 1 :])

    def at_blanks(self, n: int, n_blanks: int) -> Iterator[tuple[str, str, list[int], str]]:
        """Yield n places (above, line, positions of n_blanks single blanks in a row of words, below)."""
        for above, line, below in self.lines():
            start = len(line) - len(line.lstrip())
            inside = range(start + 1, len(line) - 1)
            blanks = [i for i in inside if line[i] == " " and " " not in (line[i - 1], line[i + 1])]
            if len(blanks) < n_blanks:
                continue
            first = self.rng.randrange(len(blanks) - n_blanks + 1)
            yield above, line, blanks[first : first + n_blanks], below
            n -= 1
            if not n:
                return


def similarity(a: str, b: str) -> float:
    """Return how alike two texts are, from 0 to 1, blanks around them aside."""
    return SequenceMatcher(None, a.strip(), b.strip(), autojunk=False).ratio()


def first_line(model: codegen2.Model, prompt: str) -> str:
    """Return what plain continuation writes up to the next line end."""
    return model.complete(prompt, max_new_tokens=32, stop=["\n"]).text


def matches(label: str, pairs: list[tuple[str, str]]) -> Figures:
    """Return the exact answers and the mean similarity of (answer, truth)."""
    exact = sum(a.rstrip() == b.rstrip() for a, b in pairs)
    alike = sum(similarity(a, b) for a, b in pairs) / len(pairs)
    return {f"{label}: exact of {len(pairs)}": exact, f"{label}: similarity": round(alike, 3)}


def rests(model: codegen2.Model, sources: Sources, n: int = 150) -> Figures:
    """Compare the line as written with the line as it was, both from the blank on."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for above, line, (at,), below in sources.at_blanks(n, 1):
        for where, cut in (("before", at), ("behind", at + 1)):
            prefix, typed = above + line[:cut], line[at:cut]
            answer = model.infill(prefix, below, stop_at="line", max_new_tokens=32).text
            for how, text in (("infill", answer), ("complete", first_line(model, prefix))):
                pairs.setdefault(f"{how}, cursor {where} the blank", []).append((typed + text, line[at:]))
    return {k: v for label, found in sorted(pairs.items()) for k, v in matches(label, found).items()}


def blanks(model: codegen2.Model, sources: Sources, n: int = 167) -> Figures:
    """Count blanks that stand twice after an answer; the text around it ends and begins with one."""
    left = right = either = complete = 0
    for above, line, (a, b), below in sources.at_blanks(n, 2):
        prefix, suffix = above + line[: a + 1], line[b:] + below
        text = model.infill(prefix, suffix, max_new_tokens=32).text
        left += text.startswith((" ", "\t"))
        right += text.endswith((" ", "\t"))
        either += text.startswith((" ", "\t")) or text.endswith((" ", "\t"))
        complete += model.complete(prefix, max_new_tokens=8).text.startswith((" ", "\t"))
    return {
        f"infill: blank twice on the left, of {n}": left,
        f"infill: blank twice on the right, of {n}": right,
        f"infill: blank twice on either side, of {n}": either,
        f"complete: blank twice, of {n}": complete,
    }


def mid_line(model: codegen2.Model, sources: Sources, n: int = 120) -> Figures:
    """Count the answers that break the cursor's line, with some text hidden at the cursor."""
    found: dict[Literal["line", "block"] | None, int] = dict.fromkeys((None, "line", "block"), 0)
    pairs: list[tuple[str, str]] = []
    places = sources.lines()
    while len(pairs) < n:
        above, line, below = next(places)
        start = len(line) - len(line.lstrip())
        a, b = sorted(sources.rng.randrange(start + 1, len(line)) for _ in range(2))
        if not line[b:].strip():
            continue
        for stop_at in found:
            text = model.infill(above + line[:a], line[b:] + below, stop_at=stop_at, max_new_tokens=48).text
            found[stop_at] += "\n" in text
        pairs.append((text, line[a:b]))
    broken = {
        f"infill, stop_at {stop_at}: answers with a line end, of {n}": k for stop_at, k in found.items()
    }
    return broken | matches("infill, stop_at block", pairs)


def line_ends(model: codegen2.Model, sources: Sources, n: int = 56) -> Figures:
    """Count the answers equal to those for LF, and of these the ones in the file's own line ends."""
    forms: dict[str, tuple[str, str]] = {"CRLF": ("\r\n", ""), "CR": ("\r", ""), "U+FEFF": ("\n", "\ufeff")}
    ask: dict[str, Callable[[str, str], str]] = {
        "complete": lambda prefix, _: model.complete(prefix, max_new_tokens=32).text,
        "infill": lambda prefix, suffix: model.infill(prefix, suffix, max_new_tokens=32).text,
    }
    equal: Figures = {}
    places = sources.lines()
    for i in range(n):
        above, line, below = next(places)
        # Few lines, so that the byte-order mark is within what the model reads.
        above = "".join(above.splitlines(keepends=True)[-8:])
        at = len(line) if i % 2 else sources.rng.randrange(1, len(line))
        prefix, suffix = above + line[:at], below
        for how, answer in ask.items():
            plain = answer(prefix, suffix)
            for name, (end, mark) in forms.items():
                text = answer(mark + prefix.replace("\n", end), suffix.replace("\n", end))
                same = text.replace("\r\n", "\n").replace("\r", "\n") == plain
                for label, ok in (("equal", same), ("with own ends", text == plain.replace("\n", end))):
                    key = f"{how}, {name}: {label}, of {n}"
                    equal[key] = equal.get(key, 0) + ok
    return dict(sorted(equal.items()))


def several(model: codegen2.Model, sources: Sources, n: int = 120) -> Figures:
    """Hide the ends of two or three lines that stand near each other, and fill them in three ways."""
    can_choose = "together" in inspect.signature(model.infill_spans).parameters
    options: dict[str, Any] = {"together": True} if can_choose else {}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for i in range(n):
        texts, truths = _with_holes(sources, 2 + i % 2)
        pieces: list[Any] = [texts[0]]
        for text in texts[1:]:
            pieces += [codegen2.HOLE, text]
        together = model.infill_spans(pieces, max_new_tokens=32, **options).choices
        ways = {"together": [m.text for m in together]}
        for label, later in (
            ("one by one, later ones left out", True),
            ("one by one, text up to them", False),
        ):
            prefix, ways[label] = texts[0], []
            for at in range(1, len(texts)):
                suffix = "".join(texts[at:]) if later else texts[at]
                ways[label].append(model.infill(prefix, suffix, max_new_tokens=32).text)
                prefix += ways[label][-1] + texts[at]
        for label, answers in ways.items():
            pairs.setdefault(label, []).extend(zip(answers, truths, strict=True))
    return {k: v for label, found in pairs.items() for k, v in matches(label, found).items()}


def _with_holes(sources: Sources, n: int) -> tuple[list[str], list[str]]:
    """Return the texts around n holes and what the holes held: ends of lines, two to five lines apart."""
    while True:
        lines = sources.rng.choice(sources.files).split("\n")
        if len(lines) < 60:
            continue
        ats = [sources.rng.randrange(15, len(lines) - 30)]
        while len(ats) < n:
            ats.append(ats[-1] + sources.rng.randrange(2, 6))
        blank = [line.find(" ", len(line) - len(line.lstrip()) + 4) for line in lines]
        if any(blank[at] < 0 or len(lines[at]) - blank[at] < 4 for at in ats):
            continue
        texts, truths, done = [], [], 0
        for at in ats:
            texts.append("".join(f"{x}\n" for x in lines[done:at]) + lines[at][: blank[at]])
            truths.append(lines[at][blank[at] :])
            lines[at], done = "", at  # the next text begins with this line's end
        return [*texts, "\n".join(lines[done:])], truths


def limits(model: codegen2.Model, sources: Sources, n: int = 300) -> Figures:
    """Ask for whole lines, the cursor behind their indentation, under each limit of the prompt."""
    places = sources.lines()
    holes = [next(places) for _ in range(n)]
    found: Figures = {}
    for limit in LIMITS:
        model = codegen2.load(threads=1, max_prompt_tokens=limit)
        pairs = []
        for above, line, below in holes:
            at = len(line) - len(line.lstrip())
            answer = model.infill(above + line[:at], below, stop_at="line", max_new_tokens=48)
            pairs.append((answer.text, line[at:]))
        found |= matches(f"max_prompt_tokens {limit:3}", pairs)
    return found


PARTS = {"a": rests, "b": blanks, "c": mid_line, "d": line_ends, "e": several, "f": limits}


def main() -> None:
    """Run the parts asked for, print one table and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of Python sources that no training saw")
    parser.add_argument("--parts", default="abcdef")
    parser.add_argument("--seed", type=int, default=20261201)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--before", type=Path, help="an earlier run's JSON, printed beside this one")
    args = parser.parse_args()
    before = json.loads(args.before.read_text())["figures"] if args.before else {}
    model = codegen2.load(threads=1)
    figures: Figures = {}
    print(f"| {'answers at a cursor':66} | {'before':>7} | {'now':>7} |\n|{'-' * 68}|--------:|--------:|")
    for part in args.parts:
        for label, value in PARTS[part](model, Sources(args.folder, f"{args.seed}{part}")).items():
            key = f"{part}. {label}"
            figures[key] = value
            print(f"| {key:66} | {before.get(key, ''):>7} | {value:>7} |", flush=True)
    if args.out:
        result = {"version": codegen2.__version__, "seed": args.seed, "figures": figures}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
