"""Holes as editors ask for them, in files that no training saw: how many are right, and how well the model knows which.

    python benchmarks/editor_holes.py CORPUS [--split heldout] [--n 400] [--model DIR] [--prompt-tokens 128 512]
        [--kinds line,rest,tail,bracket,lines,several] [--languages python] [--fit] [--out RESULT.json]

CORPUS is what `codegen2 data build` wrote. Holes are seeded: a package, a file of it, a line that is no comment.

    line     a whole line, the cursor at its beginning            rest     a line behind its indentation
    tail     from a word of a line to its end                     bracket  what stands between two brackets
    lines    two to eight lines                                   several  two or three of them within forty lines

An answer is right when it is the text that stood there, blanks at its end aside. Of holes of one kind the table says
how many are right; of all together, at five thresholds, how many answers are shown and how many of these are right
(several apart), the mean difference between stated and observed rates in ten bins, and what ending early saves. --fit
prints the two numbers of config.json's "confidence", each hole judged by a fit on the other packages.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import codegen2
from codegen2.api import HOLE, Model
from codegen2.generation.confidence import Confidence

KINDS = ("line", "rest", "tail", "bracket", "lines", "several")
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
_BRACKET = re.compile(r"[\(\[\{]([^\(\)\[\]\{\}\n]{1,120})[\)\]\}]")
_COMMENTS = ("#", "//", "*", "/*", "--", "<!--")
# Of this curve an answer's nats can be read off.
_PLAIN = Confidence(0.0, 1.0)


@dataclass(frozen=True)
class Place:
    """Holes [start, end) in a file's text."""

    kind: str
    package: str
    language: str
    text: str
    spans: tuple[tuple[int, int], ...]

    def texts(self) -> list[str]:
        """Return the texts before, between and after the holes."""
        edges = [0, *(e for span in self.spans for e in span), len(self.text)]
        return [self.text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def wanted(self) -> list[str]:
        """Return what stood in the holes."""
        return [self.text[a:b] for a, b in self.spans]


def read_files(corpus: Path, split: str, languages: set[str]) -> dict[str, list[tuple[str, str]]]:
    """Return (language, text) of the files of fair size, by package."""
    found: dict[str, list[tuple[str, str]]] = {}
    columns = ["package", "language", "text"]
    for path in sorted(corpus.glob(f"{split}-*.parquet")):
        for row in pq.read_table(path, columns=columns).to_pylist():
            text = row["text"].replace("\r\n", "\n")
            if 1500 <= len(text) <= 60_000 and (not languages or row["language"] in languages):
                found.setdefault(row["package"], []).append((row["language"], text))
    if not found:
        raise ValueError(f"{corpus}: no files of the split {split} in these languages")
    return found


def span_at(text: str, i: int, kind: str, rng: random.Random) -> tuple[int, int] | None:
    """Return a hole of a kind at line i; None where the line is none for it."""
    lines = text.split("\n")
    line, start = lines[i], sum(len(x) + 1 for x in lines[:i])
    prose = text.count('"""', 0, start) % 2 or text.count("'''", 0, start) % 2 or '"""' in line
    if len("".join(line.split())) < 6 or line.lstrip().startswith(_COMMENTS) or prose:
        return None
    indent, end = start + len(line) - len(line.lstrip()), start + len(line.rstrip())
    if kind == "line":
        return start, end
    if kind == "rest":
        return indent, end
    if kind == "tail":
        words = [m.start() for m in re.finditer(r"(?<=\W)\w|(?<=\w)\W", text[indent:end])]
        words = [w for w in words if end - indent - w >= 2]
        return (indent + rng.choice(words), end) if words else None
    if kind == "bracket":
        inside = [m.span(1) for m in _BRACKET.finditer(line)]
        a, b = rng.choice(inside) if inside else (0, 0)
        return (start + a, start + b) if b else None
    last = min(i + rng.randrange(2, 9), len(lines)) - 1
    while last > i and not lines[last].strip():
        last -= 1
    return (indent, sum(len(x) + 1 for x in lines[:last]) + len(lines[last].rstrip())) if last > i else None


def draw(files: dict[str, list[tuple[str, str]]], kinds: list[str], n: int, seed: str) -> list[Place]:
    """Draw n places, each kind in turn."""
    rng, packages = random.Random(seed), sorted(files)
    found: list[Place] = []
    while len(found) < n:
        package = rng.choice(packages)
        language, text = rng.choice(files[package])
        kind = kinds[len(found) % len(kinds)]
        spans: list[tuple[int, int]] = []
        first = rng.randrange(text.count("\n") + 1)
        for step in range(rng.choice((2, 3)) if kind == "several" else 1):
            one = rng.choice(KINDS[:4]) if kind == "several" else kind
            line = min(first + step * rng.randrange(1, 20), text.count("\n"))
            span = span_at(text, line, one, rng)
            if span and all(span[1] + 1 < a or b + 1 < span[0] for a, b in spans):
                spans.append(span)
        if len(spans) >= 1 + (kind == "several"):
            found.append(Place(kind, package, language, text, tuple(sorted(spans))))
    return found


def ask(model: Model, place: Place, together: bool | None, above: float = 0.0) -> dict[str, Any]:
    """Answer one place; return what is right, the nats of a single answer, and the time."""
    texts, began = place.texts(), time.process_time()
    if place.kind == "several":
        pieces = [piece for text in texts for piece in (text, HOLE)][:-1]
        done = model.infill_spans(pieces, together=together, language=place.language, max_new_tokens=48)
        choices = done.choices
        answers = [c.text.partition("\n")[0] for c in choices]
    else:
        block = place.kind == "lines"
        choices = model.infill(
            texts[0], texts[1], stop_at="block" if block else "line", language=place.language,
            max_new_tokens=96 if block else 48, suggest_above=above,
        ).choices  # fmt: skip
        answers = [c.text.strip("\n") for c in choices]
    right = [a.rstrip() == w.rstrip() for a, w in zip(answers, place.wanted(), strict=True)]
    sure = choices[0].confidence or 0.5
    return {
        "kind": place.kind, "package": place.package, "right": sum(right), "holes": len(right),
        "blank": not answers[0].strip(), "nats": 1 / sure - 1 - 0.2, "cpu_s": time.process_time() - began,
    }  # fmt: skip


def fit(nats: np.ndarray, right: np.ndarray) -> Confidence:
    """Return the likeliest curve, by Newton's method."""
    x = np.stack([np.ones(len(nats)), -np.log(np.maximum(nats, 0) + 0.2)], 1)
    w = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        w += np.linalg.solve((x.T * (p * (1 - p))) @ x + 1e-6 * np.eye(2), x.T @ (right - p))
    return Confidence(round(float(w[0]), 3), round(float(w[1]), 3))


def judged(rows: list[dict[str, Any]], curve: Confidence | None) -> dict[str, Any]:
    """Return coverage, precision and calibration, by a curve or, without one, by fits on other packages."""
    shown = [r for r in rows if r["kind"] != "several" and not r["blank"]]
    nats, right = np.array([r["nats"] for r in shown]), np.array([r["right"] for r in shown], float)
    packages, kinds = np.array([r["package"] for r in shown]), np.array([r["kind"] for r in shown])
    sure = np.zeros(len(shown))
    for package in set(packages):
        here = packages == package
        by = curve or fit(nats[~here], right[~here])
        sure[here] = [by.probability(x) for x in nats[here]]
    bins = np.array_split(np.argsort(sure), 10)
    asked = Counter(r["kind"] for r in rows if r["kind"] != "several")
    table = []
    for above in THRESHOLDS:
        on = sure >= above
        entry: dict[str, Any] = {"above": above, "coverage": on.sum() / sum(asked.values())}
        entry["right"] = right[on].mean() if on.any() else None
        for kind in asked:
            here = on & (kinds == kind)
            entry[kind] = [here.sum() / asked[kind], right[here].mean() if here.any() else None]
        table.append(entry)
    return {
        "mean_difference_in_ten_bins": np.mean([abs(sure[b].mean() - right[b].mean()) for b in bins]),
        "bins": [[sure[b].mean(), right[b].mean()] for b in bins],
        "thresholds": table,
        "fit": asdict(fit(nats, right)),
    }


def main() -> None:
    """Run, print a line a setting, and write all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--split", default="heldout")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--seed", default="editor")
    parser.add_argument("--kinds", default=",".join(KINDS[:4]))
    parser.add_argument("--languages", default="")
    parser.add_argument("--model", action="append", help="may be repeated; default: the model in the box")
    parser.add_argument("--prompt-tokens", type=int, nargs="*", default=[None])
    parser.add_argument("--together", action="store_true", default=None, help="several holes in one prompt")
    parser.add_argument("--fit", action="store_true", help="judge by fits on the other packages")
    parser.add_argument("--above", type=float, default=0.0, help="hold back, to see what ending early saves")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    files = read_files(args.corpus, args.split, set(filter(None, args.languages.split(","))))
    places = draw(files, args.kinds.split(","), args.n, args.seed)
    results = []
    for name in args.model or [None]:
        for most in args.prompt_tokens:
            loaded = codegen2.load(name, max_prompt_tokens=most, threads=1)
            own = loaded.scheduler.rules.confidence
            by = own if args.above else _PLAIN
            model = Model(
                loaded.engine, loaded.tokenizer, loaded.name, loaded.max_prompt_tokens,
                loaded.scheduler.rules.anchor, loaded.together, confidence=by,
            )  # fmt: skip
            rows = [ask(model, place, args.together, args.above) for place in places]
            kinds = {
                k: [
                    sum(r["right"] for r in rows if r["kind"] == k),
                    sum(r["holes"] for r in rows if r["kind"] == k),
                ]
                for k in dict.fromkeys(r["kind"] for r in rows)
            }
            result = {
                "model": loaded.name, "prompt_tokens": loaded.max_prompt_tokens, "packages": len(files),
                "right": sum(r["right"] for r in rows), "holes": sum(r["holes"] for r in rows), "kinds": kinds,
                "cpu_ms_a_place": 1e3 * float(np.mean([r["cpu_s"] for r in rows])),
            }  # fmt: skip
            if not args.above and any(r["kind"] != "several" for r in rows):
                result |= judged(rows, None if args.fit else own)
            results.append(result)
            print(json.dumps(result, default=lambda x: round(float(x), 4)), flush=True)
    if args.out:
        text = json.dumps(results, indent=1, default=lambda x: round(float(x), 4))
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
