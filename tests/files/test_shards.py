"""Token shards: what is written is read back, and a damaged file is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from codegen2.config import EOT, VOCAB_SIZE
from codegen2.files.shards import Shard, write_shard

DOCS = [[1, 2, 3], [], [51199, 7]]


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    stem = tmp_path / "train.v1"  # a dot in the name must survive
    write_shard(stem, DOCS, source_bytes=12)
    return stem


def test_round_trip(stem: Path) -> None:
    shard = Shard(stem, check_hash=True)
    assert [shard[i].tolist() for i in range(len(shard))] == DOCS
    assert shard.tokens.tolist() == [1, 2, 3, EOT, EOT, 51199, 7, EOT]
    assert shard.starts.tolist() == [0, 4, 5, 8]
    assert (shard.n_tokens, shard.source_bytes) == (8, 12)
    assert (stem.parent / "train.v1.bin").read_bytes()[:4] == b"\x01\x00\x02\x00"  # little-endian
    assert not list(stem.parent.glob("*.part"))


def test_doc_outside_the_shard(stem: Path) -> None:
    for i in (-1, 3):
        with pytest.raises(IndexError, match=f"document {i} of 3"):
            Shard(stem)[i]


def test_no_documents(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "none", [])["n_tokens"] == 0
    assert len(Shard(tmp_path / "none", check_hash=True)) == 0


@pytest.mark.parametrize("bad", [[EOT], [VOCAB_SIZE], [-1]])
def test_foreign_ids_are_refused(tmp_path: Path, bad: list[int]) -> None:
    with pytest.raises(ValueError, match="document 1"):
        write_shard(tmp_path / "bad", [[1], bad])
    with pytest.raises(ValueError, match=r"bad\.json is missing"):
        Shard(tmp_path / "bad")


def test_truncated_file_is_named(stem: Path) -> None:
    path = stem.parent / "train.v1.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train\.v1\.bin has 14 bytes, expected 16; write the shard again"):
        Shard(stem)


def test_changed_ids_fail_the_hash(stem: Path) -> None:
    path = stem.parent / "train.v1.bin"
    path.write_bytes(b"\x09" + path.read_bytes()[1:])
    assert len(Shard(stem)) == 3
    with pytest.raises(ValueError, match="sha256"):
        Shard(stem, check_hash=True)


@pytest.mark.parametrize("starts", [[0, 4, 8], [0, 5, 4, 8], [0, 4, 5, 9]])
def test_wrong_offsets_are_refused(stem: Path, starts: list[int]) -> None:
    np.save(stem.parent / "train.v1.idx.npy", np.asarray(starts, dtype=np.int64))
    with pytest.raises(ValueError, match=r"train\.v1\.idx\.npy"):
        Shard(stem)


def test_manifest_without_counts_is_refused(stem: Path) -> None:
    (stem.parent / "train.v1.json").write_text(json.dumps({"n_tokens": 8}))
    with pytest.raises(ValueError, match=r"train\.v1\.json is not a shard manifest"):
        Shard(stem)


def damages(stem: Path) -> Iterator[tuple[str, bytes | None]]:
    """Yield a part's suffix and what it holds when damaged, None where it is lost."""
    for suffix in (".json", ".idx.npy", ".bin"):
        data = stem.with_name(stem.name + suffix).read_bytes()
        yield from ((suffix, bad) for bad in (None, b"", data[:-2], data + b"\0\0", bytes(len(data))))
        flips = {".json": (4, 15, 80, len(data) - 9), ".idx.npy": (3, 20, 136), ".bin": (0, 6)}[suffix]
        yield from ((suffix, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) for at in flips)
        if suffix == ".json":
            yield suffix, data.replace(b'"source_bytes": 12', b'"source_bytes": 13')


@pytest.mark.parametrize("is_old", [False, True])
def test_every_damage_is_refused(stem: Path, is_old: bool) -> None:
    if is_old:  # as it was written before there was a digest
        path = stem.with_name(stem.name + ".json")
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "digest"}))
    tried = list(damages(stem))
    assert len(tried) == 25
    accepted = []
    for suffix, bad in tried:
        path = stem.with_name(stem.name + suffix)
        good = path.read_bytes()
        path.unlink() if bad is None else path.write_bytes(bad)
        try:
            Shard(stem, check_hash=True)
            accepted.append((suffix, bad))
        except ValueError as error:
            assert str(stem) in str(error)
            assert "write the shard again (codegen2 data tokenise)" in str(error)
        path.write_bytes(good)
    Shard(stem, check_hash=True)
    # Of an old one the size of its text, and bytes behind the index, cannot be told; neither is read in training.
    assert len(accepted) == (2 if is_old else 0), accepted


def test_an_index_that_rises_but_cuts_elsewhere_is_refused(stem: Path) -> None:
    path = stem.with_name(stem.name + ".json")
    np.save(stem.with_name(stem.name + ".idx.npy"), np.asarray([0, 3, 5, 8], dtype=np.int64))
    with pytest.raises(
        ValueError, match=r"train\.v1\.idx\.npy or the \.json beside it is not as it was written"
    ):
        Shard(stem)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "digest"}))
    with pytest.raises(ValueError, match=r"train\.v1\.idx\.npy does not begin a document behind each EOT"):
        Shard(stem, check_hash=True)
