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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..files.paths import check_regular
from ..files.progress import progress_bar
from ..files.sources import decode
from ..text.languages import language_of
from .measures import score
from .results import Results, Sample, Scores, SetInfo
from .sources import SourceFile, code_files

OTHER = "other"  # a file that was named, of no language we know


def collect(paths: Sequence[str], max_bytes: int = 200_000) -> tuple[list[SourceFile], Counter[str]]:
    """Read the files that are named, and those in folders that are code; return them by name, and why others are not.

    A file that is named must be UTF-8 text (ValueError) of any size; a folder has the files that files.sources.walk
    finds in it (tracked by git where it is a checkout). No file is taken twice. OSError for a path that is not there.
    """
    if max_bytes < 1:
        raise ValueError(f"--max-bytes must be at least 1, got {max_bytes}")
    found: dict[Path, SourceFile] = {}
    names: set[str] = set()
    skipped: Counter[str] = Counter()
    for top in map(Path, paths):
        files = code_files(top, skipped, max_bytes, found) if top.is_dir() else [_read(top)]
        for file in files:
            path = top / file.path if top.is_dir() else top
            if (where := path.resolve()) in found:
                continue
            if not (text := file.text.removeprefix("\ufeff")):
                skipped["empty"] += 1
                continue
            name = (
                path.as_posix() if file.path in names else file.path
            )  # two folders with a file of that name
            names.add(name)
            found[where] = SourceFile(name, file.language, text)
    return sorted(found.values(), key=lambda s: s.path), skipped


def _read(path: Path) -> SourceFile:
    """Return a file that was named."""
    data = check_regular(path).read_bytes()
    text = decode(data)
    if not text:
        why = "empty" if text == "" else "binary" if b"\0" in data else "not UTF-8"
        raise ValueError(f"{path}: {why}; bits per byte needs UTF-8 text")
    return SourceFile(path.as_posix(), language_of(path, text) or OTHER, text)


def choose(sources: Sequence[SourceFile], per_language: int | None) -> list[SourceFile]:
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


def score_files(score_text: Callable[[str], Any], sources: Iterable[SourceFile]) -> Iterator[Sample]:
    """Yield a sample a file: extra has its nats and bytes."""
    for source in sources:
        started = time.perf_counter()
        scored = score_text(source.text)
        nats = -math.fsum(scored.logprobs)
        if not math.isfinite(nats):
            raise ValueError(f"{source.path}: the model's score is {nats}; its weights or dtype are broken")
        yield Sample(
            source.path,
            tokens=len(scored.tokens),
            latency_s=time.perf_counter() - started,
            category=source.language,
            extra={"nats": nats, "bytes": len(source.text.encode())},
        )


def scores_of(samples: Sequence[Sample]) -> Scores:
    """Return bits per byte of all and of each language, the largest first; intervals by resampling whole files."""
    sizes: Counter[str] = Counter()
    for sample in samples:
        sizes[sample.category or OTHER] += sample.extra["bytes"]
    languages = sorted(sizes, key=lambda name: (-sizes[name], name))
    names = [f"bits_per_byte {name}" for name in ("all", *languages)]
    return {name: made for name in names if (made := score(samples, name))}


def files_info(everything: Sequence[SourceFile], chosen: Sequence[SourceFile], done: int) -> SetInfo:
    """Describe the files: the hash is of the chosen ones' names and texts."""
    digest = hashlib.sha256()
    for source in chosen:
        digest.update(
            f"{hashlib.sha256(source.text.encode()).hexdigest()} {source.path}\n".encode("utf-8", "replace")
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
        with progress_bar("scoring", sum(len(s.text.encode()) for s in chosen), unit="bytes") as bar:
            for sample in score_files(model.score, chosen):
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
