"""`codegen2 eval bpb FILES`: how well a model predicts code, in bits per UTF-8 byte, by language, with intervals.

Not here: the score of one text (Model.score), which language a file is (languages.py). Lower is better; numbers of two
models compare only over the same files, whatever their tokenizers.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..files.paths import check_regular
from ..files.progress import progress_bar
from ..files.sources import decode
from ..text.languages import language_of
from .measures import score
from .results import Results, Sample, Scores, SetInfo
from .sources import code_files

OTHER = "other"  # a file that was named, of no language we know


class Scorer(Protocol):
    """Name what is asked of a model."""

    def score(self, text: str) -> Any: ...


@dataclass(frozen=True)
class Source:
    """A file to score; name is as it was given, or as it was found under the folder that was given."""

    name: str
    language: str
    text: str
    n_bytes: int


def collect(paths: Sequence[str], max_bytes: int = 200_000) -> tuple[list[Source], Counter[str]]:
    """Read the files that are named, and those in folders that are code; return them by name, and why others are not.

    A file that is named must be UTF-8 text (ValueError) of any size; a folder has the files that files.sources.walk
    finds in it (tracked by git where it is a checkout). No file is taken twice. OSError for a path that is not there.
    """
    if max_bytes < 1:
        raise ValueError(f"--max-bytes must be at least 1, got {max_bytes}")
    found: dict[Path, Source] = {}
    names: set[str] = set()
    skipped: Counter[str] = Counter()
    for top in map(Path, paths):
        files = code_files(top, skipped, max_bytes, found) if top.is_dir() else [_read(top)]
        for name, language, text in files:
            path = top / name if top.is_dir() else top
            if (where := path.resolve()) in found:
                continue
            if not (text := text.removeprefix("\ufeff")):
                skipped["empty"] += 1
                continue
            if name in names:  # two folders with a file of that name
                name = path.as_posix()
            names.add(name)
            found[where] = Source(name, language, text, len(text.encode()))
    return sorted(found.values(), key=lambda s: s.name), skipped


def _read(path: Path) -> tuple[str, str, str]:
    """Return the name, language and text of a file that was named."""
    data = check_regular(path).read_bytes()
    text = decode(data)
    if not text:
        why = "empty" if text == "" else "binary" if b"\0" in data else "not UTF-8"
        raise ValueError(f"{path}: {why}; bits per byte needs UTF-8 text")
    return path.as_posix(), language_of(path, text) or OTHER, text


def choose(sources: Sequence[Source], per_language: int | None) -> list[Source]:
    """Return at most so many of each language, drawn by the hashes of their texts: always the same ones."""
    if per_language is None:
        return list(sources)
    if per_language < 1:
        raise ValueError(f"--per-language must be at least 1, got {per_language}; leave it out for all files")
    drawn = sorted(sources, key=lambda s: hashlib.sha256(s.text.encode()).digest())
    taken: Counter[str] = Counter()
    kept = set()
    for source in drawn:
        if taken[source.language] < per_language:
            taken[source.language] += 1
            kept.add(id(source))
    return [s for s in sources if id(s) in kept]


def score_files(model: Scorer, sources: Iterable[Source]) -> Iterator[Sample]:
    """Yield a sample a file: extra has its nats and bytes."""
    for source in sources:
        started = time.perf_counter()
        score = model.score(source.text)
        nats = -math.fsum(score.logprobs)
        if not math.isfinite(nats):
            raise ValueError(f"{source.name}: the model's score is {nats}; its weights or dtype are broken")
        yield Sample(
            source.name,
            tokens=len(score.tokens),
            latency_s=time.perf_counter() - started,
            category=source.language,
            extra={"nats": nats, "bytes": source.n_bytes},
        )


def scores_of(samples: Sequence[Sample]) -> Scores:
    """Return bits per byte of all and of each language, the largest first; intervals by resampling whole files."""
    sizes: Counter[str] = Counter()
    for sample in samples:
        sizes[sample.category or OTHER] += sample.extra["bytes"]
    languages = sorted(sizes, key=lambda name: (-sizes[name], name))
    names = [f"bits_per_byte {name}" for name in ("all", *languages)]
    return {name: made for name in names if (made := score(samples, name))}


def files_info(everything: Sequence[Source], chosen: Sequence[Source], done: int) -> SetInfo:
    """Describe the files: the hash is of the chosen ones' names and texts."""
    digest = hashlib.sha256()
    for source in chosen:
        digest.update(
            f"{hashlib.sha256(source.text.encode()).hexdigest()} {source.name}\n".encode("utf-8", "replace")
        )
    return SetInfo("files", digest.hexdigest(), len(everything), done, done < len(everything))


def run_bpb(args: argparse.Namespace) -> int:
    """Score files and write the results; 130 where it was interrupted, with what was done until then."""
    from .generators import load_own
    from .run import finish, now
    from .scores import hardware, versions

    everything, skipped = collect(args.paths, args.max_bytes)
    if skipped := +skipped:
        said = ", ".join(f"{n} {why}" for why, n in skipped.most_common())
        print(f"codegen2: left out: {said}", file=sys.stderr)
    if not everything:
        raise ValueError("no file of a known language in these folders; name files, or other folders")
    chosen = choose(everything, args.per_language)
    started, clock = now(), time.monotonic()
    model, runs_on = load_own(args, args.threads)
    samples: list[Sample] = []
    interrupted = False
    try:
        with progress_bar("scoring", sum(s.n_bytes for s in chosen), unit="bytes") as bar:
            for sample in score_files(model, chosen):
                samples.append(sample)
                bar.advance(sample.extra["bytes"])
    except KeyboardInterrupt:
        if not samples:
            raise
        interrupted = True
    about = {"name": model.name, "engine": runs_on["engine"], "dtype": runs_on["dtype"],
             "parameters": model.engine.config.n_params}  # fmt: skip
    settings = {
        "paths": [str(p) for p in args.paths],
        "max_bytes": args.max_bytes,
        "per_language": args.per_language,
        "left_out": dict(skipped),
    }
    results = Results(
        "bpb", about, settings, versions(), hardware(), started, round(time.monotonic() - clock, 3),
        files_info(everything, chosen, len(samples)), None, scores_of(samples), {}, samples,
    )  # fmt: skip
    finish(results, args)
    return 130 if interrupted else 0
