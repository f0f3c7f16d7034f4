"""Tokenise a corpus: a token shard (shards.py) for each text shard, which training maps into memory.

Not here: the tokenizer, and how ids become sequences (train/data.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from ..files.paths import file_hash, write_atomic
from ..files.shards import SAID, Shard, write_shard
from ..text.tokenizer import Tokenizer
from .build import Say, read_manifest_of, silent
from .engines import Engine


def encode_shard(
    source: Path, sha256: str, out: Path, tokenizer: Tokenizer, functions: bool
) -> dict[str, Any]:
    """Turn a text shard of this hash into the token shard of the stem `out` and return its manifest.

    One that is there for the same text is kept. functions: documents are labelled so, not by their language.
    """
    mark = out.with_name(out.name + ".source")
    if mark.is_file() and mark.read_text(encoding="utf-8").strip() == sha256:
        try:
            shard = Shard(out, check_hash=True)
            if shard.languages is not None:  # those of earlier versions say none
                return {key: getattr(shard, key) for key in SAID}
        except ValueError:
            pass  # a part was lost or damaged: written again below
    if file_hash(source) != sha256:
        raise ValueError(f"{source} is not what the manifest says; build the corpus again")
    mark.unlink(missing_ok=True)
    with pq.ParquetFile(source) as file:
        columns = file.read(columns=["bytes", "language"])
        of_files = ("functions" if functions else name for name in columns["language"].to_pylist())
        languages = [(name, len(list(run))) for name, run in itertools.groupby(of_files)]

        def documents() -> Iterator[npt.NDArray[np.uint16]]:
            for batch in file.iter_batches(batch_size=256, columns=["text"]):
                for text in batch["text"].to_pylist():
                    yield np.asarray(tokenizer.encode(text), dtype=np.uint16)

        note = write_shard(out, documents(), int(columns["bytes"].to_numpy().sum()), languages)
    write_atomic(mark, f"{sha256}\n".encode())
    return {key: note[key] for key in SAID}


def tokenise(out: Path, tokenizer: Tokenizer, engine: Engine, say: Say = silent) -> dict[str, dict[str, Any]]:
    """Encode every shard of the corpus in `out` into out/tokens/NAME and return the manifests by name."""
    manifest = read_manifest_of(out)
    shards, functions = manifest["shards"], manifest["config"]["functions"] is not None
    folder = out / "tokens"
    folder.mkdir(exist_ok=True)
    names = [str(shard["file"]).removesuffix(".parquet") for shard in shards]
    for old in folder.glob("*.source"):
        if old.stem not in names:
            for suffix in (".source", ".json", ".bin", ".idx.npy"):
                old.with_name(old.stem + suffix).unlink(missing_ok=True)
    tasks = [
        (out / shard["file"], shard["sha256"], folder / name, tokenizer, functions)
        for name, shard in zip(names, shards, strict=True)
    ]
    found = {}
    for number, note in enumerate(engine.run(encode_shard, tasks), 1):
        say("tokenise", number, len(tasks), names[number - 1])
        found[names[number - 1]] = note
    return found
