"""Token shards: a flat file of uint16 ids and the offsets of its documents, written once, memory-mapped.

Not here: where the ids come from (data/tokens.py) or how they become batches (train/data.py).

A shard named NAME is three files: NAME.bin (little-endian uint16, each document followed by one EOT),
NAME.idx.npy (int64, N + 1 starts for N documents) and NAME.json (counts, the hash of NAME.bin, and a digest of the
index and these):

    bin  d0 d0 d0 EOT d1 EOT d2 d2 EOT        idx  0 4 6 9
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import EOT, VOCAB_SIZE
from .paths import file_hash, replacing

_DTYPE = np.dtype("<u2")
SAID = ("n_tokens", "n_docs", "sha256", "source_bytes")  # of every shard, by its manifest and by Shard
_TOGETHER = 1 << 24  # tokens that are looked at in one go


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # not Path.with_suffix: a name may hold a dot


def write_shard(
    stem: Path, docs: Iterable[Sequence[int] | npt.NDArray[np.uint16]], source_bytes: int | None = None,
    languages: Sequence[tuple[str, int]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write documents of ids as the shard at `stem` (its path without suffix) and return its manifest.

    `source_bytes` is the size of the text that became these ids, UTF-8 bytes, for bits per byte later; `languages` are
    runs of documents of one language, (language, how many), for mixtures of languages (train/mixture.py).
    Raises ValueError when an id is outside the vocabulary or a document already holds EOT.
    """
    # The manifest is removed first and replaced last: a shard without one was never finished, and Shard says so.
    with (
        replacing(_with_suffix(stem, ".json")) as note,
        replacing(_with_suffix(stem, ".idx.npy")) as index,
        replacing(_with_suffix(stem, ".bin")) as flat,
    ):
        digest, starts, n_tokens = hashlib.sha256(), [0], 0
        with flat.open("wb") as out:
            for number, doc in enumerate(docs):
                ids = _with_eot(number, doc).tobytes()
                out.write(ids)
                digest.update(ids)
                n_tokens += len(ids) // _DTYPE.itemsize
                starts.append(n_tokens)
        with index.open("wb") as out:
            np.save(out, np.asarray(starts, dtype=np.int64))
        manifest: dict[str, Any] = {
            "n_tokens": n_tokens, "n_docs": len(starts) - 1, "sha256": digest.hexdigest(), "source_bytes": source_bytes,
        }  # fmt: skip
        if languages is not None:
            manifest["languages"] = languages
        manifest["digest"] = _digest(manifest, index.read_bytes())
        note.write_text(json.dumps(manifest) + "\n", encoding="utf-8")
        _with_suffix(stem, ".json").unlink(missing_ok=True)
    return manifest


def _digest(manifest: Mapping[str, Any], index: bytes) -> str:
    said = json.dumps([manifest[key] for key in (*SAID, "languages") if key in manifest])
    return hashlib.sha256(said.encode() + index).hexdigest()


def _with_eot(number: int, doc: Sequence[int] | npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Return a document's ids and the EOT behind them, (T + 1,)."""
    wide = np.asarray(doc, dtype=np.int64)
    if wide.size and (wide.min() < 0 or wide.max() >= VOCAB_SIZE):
        what = f"ids must be in 0..{VOCAB_SIZE - 1}; encode it with our tokenizer"
        raise ValueError(f"document {number}: {what}")
    if (wide == EOT).any():
        what = f"holds EOT ({EOT}); give documents without it, one is added here"
        raise ValueError(f"document {number}: {what}")
    return np.append(wide, EOT).astype(_DTYPE)


class Shard:
    """Read a shard through a memory map.

    The index and the manifest are always verified, the ids with check_hash. A shard without a digest, of an earlier
    version, is read all the same: check_hash compares its index with the places of EOT.
    Raises ValueError naming the file, the expectation and the remedy when a part is missing or differs.
    """

    def __init__(self, stem: Path, check_hash: bool = False) -> None:
        self.stem = stem
        for suffix in (".json", ".bin", ".idx.npy"):
            if not _with_suffix(stem, suffix).is_file():
                raise self._wrong(suffix, "is missing")
        try:
            manifest = json.loads(_with_suffix(stem, ".json").read_text(encoding="utf-8"))
            self.n_tokens, self.n_docs = int(manifest["n_tokens"]), int(manifest["n_docs"])
            self.sha256, n_bytes = str(manifest["sha256"]), manifest["source_bytes"]
            self.source_bytes = None if n_bytes is None else int(n_bytes)
            if unknown := manifest.keys() - {*SAID, "languages", "digest"}:
                raise ValueError(f"unknown key {min(unknown)!r:.100}")
            runs = manifest.get("languages")
            self.languages = None if runs is None else [(str(name), int(count)) for name, count in runs]
            if self.languages is not None and sum(count for _, count in self.languages) != self.n_docs:
                raise ValueError("its languages are not those of its documents")
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise self._wrong(".json", f"is not a shard manifest ({error!r})") from error
        index = _with_suffix(stem, ".idx.npy").read_bytes()
        if "digest" in manifest and manifest["digest"] != _digest(manifest, index):
            raise self._wrong(".idx.npy", "or the .json beside it is not as it was written")
        size = _with_suffix(stem, ".bin").stat().st_size
        if size != self.n_tokens * _DTYPE.itemsize:
            raise self._wrong(".bin", f"has {size} bytes, expected {self.n_tokens * _DTYPE.itemsize}")
        try:
            # Mapped first: what a header claims must be there before it is read.
            starts = np.array(np.lib.format.open_memmap(_with_suffix(stem, ".idx.npy"), mode="r"))
        except Exception as error:  # the header is Python, so SyntaxError, TokenError, MemoryError
            raise self._wrong(".idx.npy", f"is not an array file ({error!s:.200})") from error
        if starts.dtype != np.int64 or starts.shape != (self.n_docs + 1,):
            what = f"is {starts.dtype} {starts.shape}, expected int64 ({self.n_docs + 1},)"
            raise self._wrong(".idx.npy", what)
        if starts[0] != 0 or starts[-1] != self.n_tokens or (np.diff(starts) < 1).any():
            raise self._wrong(".idx.npy", f"does not rise from 0 to {self.n_tokens}")
        self.starts: npt.NDArray[np.int64] = starts
        # An empty file cannot be mapped.
        self.tokens: npt.NDArray[np.uint16] = (
            np.memmap(_with_suffix(stem, ".bin"), dtype=_DTYPE, mode="r") if size else np.zeros(0, _DTYPE)
        )
        if check_hash:
            self.verify()

    def _wrong(self, suffix: str, what: str) -> ValueError:
        return ValueError(
            f"{_with_suffix(self.stem, suffix)} {what}; write the shard again (codegen2 data tokenise)"
        )

    def verify(self) -> None:
        """Compare the ids with their sha256, and the index with the ids; raise ValueError when they differ."""
        found = file_hash(_with_suffix(self.stem, ".bin"))
        if found != self.sha256:
            raise self._wrong(".bin", f"has sha256 {found}, expected {self.sha256}")
        places = range(0, self.n_tokens, _TOGETHER)
        ends = [at + 1 + np.flatnonzero(self.tokens[at : at + _TOGETHER] == EOT) for at in places]
        if not np.array_equal(np.concatenate(ends or [self.starts[1:]]), self.starts[1:]):
            raise self._wrong(".idx.npy", "does not begin a document behind each EOT")

    def __len__(self) -> int:
        """Return the number of documents."""
        return self.n_docs

    def __getitem__(self, i: int) -> npt.NDArray[np.uint16]:
        """Return the ids of document i, (T,), without the EOT after it; raise IndexError outside 0..len - 1."""
        if not 0 <= i < self.n_docs:
            raise IndexError(f"{self.stem}: document {i} of {self.n_docs}")
        return self.tokens[self.starts[i] : self.starts[i + 1] - 1]
