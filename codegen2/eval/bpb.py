"""`codegen2 eval bpb FILES`: how well a model predicts code, in bits per UTF-8 byte, by language, with intervals.

Not here: the score of one text (Model.score), which language a file is (languages.py). Lower is better; numbers of two
models compare only over the same files, whatever their tokenizers.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..files.progress import progress_bar
from ..problems.statistics import bootstrap
from ..text.languages import language_of
from .results import Results, Sample, Scores, SetInfo

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


def add_bpb_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `eval bpb` takes, without the model's arguments."""
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="files, and folders to look through")
    add(
        "--per-language",
        type=int,
        metavar="N",
        help="at most N files of a language, chosen at random, always the same",
    )
    add(
        "--max-bytes",
        type=int,
        default=200_000,
        metavar="N",
        help="skip larger files in folders (default: %(default)s)",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", help="write result.json and report.html here")
    group.add_argument("--html", metavar="FILE", help="write the report here, too")
    group.add_argument("--json", action="store_true", help="print the result file instead of a table")


def collect(paths: Sequence[str], max_bytes: int = 200_000) -> tuple[list[Source], Counter[str]]:
    """Read the files that are named, and those in folders that are code; give them by name, and why others are not.

    A file that is named must be UTF-8 text (ValueError) of any size; in folders what is hidden, a link, too large,
    binary, empty or of no known language is counted. No file is taken twice. OSError for a path that is not there.
    """
    if max_bytes < 1:
        raise ValueError(f"--max-bytes must be at least 1, got {max_bytes}")
    found: dict[Path, Source] = {}
    names: set[str] = set()
    skipped: Counter[str] = Counter()
    for given in paths:
        top = Path(given)
        for path in _walk(top, skipped) if top.is_dir() else [top]:
            where = path.resolve()
            if where in found:
                continue
            source = _read(path, top, max_bytes)
            if isinstance(source, Source):
                if source.name in names:  # two folders with a file of that name
                    source = dataclasses.replace(source, name=path.as_posix())
                names.add(source.name)
                found[where] = source
            elif path == top:
                raise ValueError(f"{path}: {source}; bits per byte needs UTF-8 text")
            else:
                skipped[source] += 1
    return sorted(found.values(), key=lambda s: s.name), skipped


def _walk(top: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Yield files under a folder; hidden ones and links are counted, whole folders as one."""

    def refuse(error: OSError) -> None:
        skipped["not readable"] += 1

    for folder, folders, names in os.walk(top, onerror=refuse):
        here = Path(folder)
        hidden = [name for name in folders if name.startswith(".")]
        skipped["hidden"] += len(hidden)
        # os.walk goes on with what is left in this list, in its order.
        folders[:] = sorted(set(folders) - set(hidden))
        for name in sorted(names):
            path = here / name
            if name.startswith("."):
                skipped["hidden"] += 1
            elif path.is_symlink() or not path.is_file():
                skipped["links and devices"] += 1
            else:
                yield path


def _read(path: Path, top: Path, max_bytes: int) -> Source | str:
    """Return a file's text, or in a few words why it is left out."""
    named = path == top
    if not named:
        if path.suffix and language_of(path) is None:
            return "no known language"
        try:
            if path.stat().st_size > max_bytes:
                return "too large"
        except OSError:
            return "not readable"
    try:
        data = path.read_bytes()
    except OSError:
        if named:
            raise
        return "not readable"
    if not data:
        return "empty"
    if b"\0" in data:
        return "binary"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "not UTF-8"
    language = language_of(path, text)
    if language is None and not named:
        return "no known language"
    name = path.as_posix() if named else path.relative_to(top).as_posix()
    return Source(name, language or OTHER, text, len(text.encode())) if text else "empty"


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
    of: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        of[sample.category or OTHER].append(sample)
    languages = sorted(of, key=lambda name: (-sum(s.extra["bytes"] for s in of[name]), name))
    groups = {"all": list(samples)} | {name: of[name] for name in languages}
    return {
        f"bits_per_byte {name}": bootstrap(
            [s.extra["nats"] / math.log(2) for s in members], weights=[s.extra["bytes"] for s in members]
        )
        for name, members in groups.items()
    }


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
