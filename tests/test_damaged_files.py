"""Files that claim more than they hold, or hold what nobody expects: one sentence, and no work on a claim."""

from __future__ import annotations

import gzip
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoint_files import GOLDENS, archive

from codegen2.checkpoint.adapter import read_adapter
from codegen2.checkpoint.formats.int8 import Int8Rows
from codegen2.checkpoint.formats.torch_archive import TorchArchive
from codegen2.checkpoint.reader import fingerprint, open_checkpoint, read_json
from codegen2.config import ModelConfig
from codegen2.data.archives import Limits, members
from codegen2.data.benchmark import benchmark_of
from codegen2.data.fetch import Fetcher, FetchError
from codegen2.data.functions import body_keys
from codegen2.data.items import Reading
from codegen2.data.licence_gate import declared_by
from codegen2.data.manifest import Item, local_items, read_manifest
from codegen2.data.prepare import Config, prepare, task_of
from codegen2.eval.bpb import collect
from codegen2.eval.results import read_results
from codegen2.files import paths
from codegen2.files.paths import write_atomic
from codegen2.files.shards import Shard
from codegen2.loading import load
from codegen2.problems.sets import read_problems
from codegen2.serve.run import _keys
from codegen2.text.languages import LANGUAGES
from codegen2.text.tokenizer import Tokenizer

PROBLEM = {
    "task_id": "a/0", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n",
    "test": "def check(candidate):\n    pass\n",
}  # fmt: skip
MBPP = {"task_id": 1, "text": "Add.", "code": "def f(x):\n  return x", "test_list": ["assert f(1) == 1"]}
END = bytes(1024)


def gz(data: bytes) -> bytes:
    """Pack without the time, so that a test's name is always the same."""
    return gzip.compress(data, mtime=0)


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def pax(**said: str) -> bytes:
    entry = tarfile.TarInfo("a.py")
    entry.pax_headers = {key.replace("_", "."): value for key, value in said.items()}
    return entry.tobuf(tarfile.PAX_FORMAT)


def old_sparse() -> bytes:
    """Make a header of GNU's old sparse files that names a further one, which is not there."""
    block = bytearray(header("a.py", 0, b"S"))
    block[482] = 1
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return bytes(block)


def overlapping(method: int, packed: bytes, n: int = 1) -> bytes:
    """Make a zip of n entries that all are the same packed megabyte."""
    fields = (20, 0, method, 0, 33, zlib.crc32(bytes(1_000_000)), len(packed), 1_000_000, 4, 0)
    local = struct.pack("<4s5H3I2H", b"PK\3\4", *fields) + b"a.py" + packed
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, *fields, 0, 0, 0, 0, 0) + b"a.py"
    return local + entry * n + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, len(entry) * n, len(local), 0)


DEFLATED = zlib.compress(bytes(1_000_000))[2:-4]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p-1.tar", header("a.bin", 10**9) + END, "claims more than there is"),
        ("p-1.tgz", gz(header("a.bin", 10**9) + END), "claims more than there is"),
        ("p-1.tar", pax(size=str(10**9)) + END, "claims more than there is"),
        ("p-1.tar", old_sparse(), "cannot be read as an archive .IndexError"),
        ("p-1.tgz", gz((header("x", 600_064, b"x") + bytes(600_064)) * 2), "holds a header of 600064 bytes"),
        ("p-1.tgz", gz(header("a.py", 0) * 5_200), "bytes or 5[0-9]{3} files"),
        ("p-1.tgz", gz(header("a.bin", 20_000_000) + bytes(20_000_000)), "more than 10000000 bytes"),
        ("p-1.zip", overlapping(8, DEFLATED, 11), "more than 10000000 bytes"),
        ("p-1.zip", overlapping(12, DEFLATED), "neither stored nor deflated"),
    ],
)  # fmt: skip
def test_archives(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        list(members(tmp_path / name, lambda path: path.endswith(".py"), Limits()))


def parquet(path: Path, **columns: Any) -> None:
    n = max(len(column) for column in columns.values())
    filled = {"text": ["x = 1\n"] * n, "path": ["a.py"] * n, "package": ["p"] * n} | columns
    pq.write_table(pa.table(filled), path, compression="zstd")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["x = 1\n" * 100_000] * 20}, "unpacks to more than 10000000 bytes"),
        ({"text": ["x"] * 5_200}, "files; leave it out"),
        ({"text": [["x"]]}, "cannot be read as a Parquet file"),
    ],
)
def test_parquet(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    parquet(tmp_path / "p.parquet", **columns)
    (item,) = local_items(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=rf"p\.parquet: .*{message}"):
        list(Reading(item, [tmp_path / "p.parquet"], set(LANGUAGES), Limits()).tables())


def test_an_item_that_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = {"content": ["x = 1\n"], "max_stars_repo_path": ["a.py"], "max_stars_repo_name": ["p"]}
    stack["max_stars_repo_licenses"] = [[None, "MIT"]]  # type: ignore[list-item]
    pq.write_table(pa.table(stack), tmp_path / "p.parquet")
    (item,) = local_items(tmp_path / "p.parquet")
    task = task_of(item, [tmp_path / "p.parquet"], Config(decontaminate=False), tmp_path)
    out = task[-1]
    assert "error" not in prepare(*task)
    out.with_name(out.name + ".json").write_text("[" * 10)  # its note is damaged: prepared again
    assert "error" not in prepare(*task)
    out.with_name(out.name + ".json").unlink()
    monkeypatch.setattr("codegen2.data.prepare._write_parts", lambda task, tables: 1 // 0)
    assert prepare(*task)["error"].startswith("ZeroDivisionError")


@pytest.mark.parametrize(
    "answer", [b'{"files": [1]}', b'{"files": [{"filename": 1}]}', b"[" * 100_000, b"<a " * 99]
)
def test_a_registry_may_answer_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(Fetcher, "_read", lambda *_: (answer, "https://x.y"))
    with pytest.raises(FetchError, match="pypi/a 1"):
        Fetcher(tmp_path).fetch(Item("pypi", "a", "1"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tsv", b"registry\tname\tversion\npypi\t" + b"a" * 200_000 + b"\t1\n", "row 2 is no row of a table"),
        ("a.tsv", b"registry\tname\n\xff", "no UTF-8 text"),
        ("a.jsonl", b"[" * 100_000, "line 1: no package of a lock"),
        ("a.jsonl", json.dumps({"registry": "npm", "name": "a", "version": "1", "archives": [
            {"name": "a" * 300, "hash": "sha256:" + "0" * 64}]}).encode(), "is no plain file name"),
        ("a.jsonl", json.dumps({"registry": "npm", "name": "a", "version": "1", "archives": [
            {"name": "a", "hash": "sha256:" + "0" * 64, "path": 5}]}).encode(), "path as text"),
    ],
)  # fmt: skip
def test_lists(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gz(b"\n" * 120_000), "unpacks to more than 100000 bytes"),
        (gz(b"x" * 99)[:20] + b"\xff" * 20, "no whole gzip file"),
        (json.dumps(PROBLEM | {"prompt": "\ud800"}).encode(), "surrogates"),
        (json.dumps(MBPP | {"test_list": ["assert f(0x" + "f" * 5000 + ")"]}).encode(), "line 1: .*digits"),
        (json.dumps(MBPP | {"test_list": ["assert f(1)"] * 10_000}).encode(), "characters"),
    ],
)
def test_problems(tmp_path: Path, data: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_LEAST_UNPACKED", 100_000)
    (tmp_path / "p.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=rf"p\.jsonl.*{message}"):
        read_problems(tmp_path / "p.jsonl")


def test_a_deep_or_long_program_is_known_again() -> None:
    text = "def f(x):\n    return " + "-" * 700 + "1\n"
    assert (
        body_keys(text, "f")
        == body_keys(text.replace("x", "y"), "f")
        != body_keys(text.replace("1", "2"), "f")
    )
    assert body_keys(f"def f():\n    return 0x{'f' * 5000}\n", "f")


def test_a_long_key_of_a_pyproject_is_not_followed() -> None:
    assert declared_by({"pyproject.toml": "a" + ".a" * 1000 + " = 1"}) == "unreadable pyproject.toml"
    assert declared_by({"pyproject.toml": '[project]\nlicense = "MIT"\n'}) == "MIT"


def test_a_problems_signatures_are_looked_at_once(tmp_path: Path) -> None:
    lines = "".join(f"def f(a{i}):\n{'w' * 30}{i}\n" for i in range(400))
    (tmp_path / "p.jsonl").write_text(json.dumps(PROBLEM | {"prompt": lines}))
    documented = benchmark_of(read_problems(tmp_path / "p.jsonl").problems).documented
    assert sum(map(len, documented.values())) < 10 * 400 + 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("anchor", "start", "anchor must be"),
        ("max_prompt_tokens", 1, "max_prompt_tokens must be from 16"),
        ("together", "no", "together must be true or false"),
        ("suggest_above", 2, "suggest_above must be"),
        ("confidence", {"bias": 1}, "confidence must hold"),
    ],
)
def test_what_a_config_recommends_wrongly_is_refused_by_its_name(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    for path in (GOLDENS / "tiny-mp8").iterdir():
        (tmp_path / path.name).symlink_to(path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text("utf-8")) | {key: value}
    path.unlink()
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        load(tmp_path, dtype="float32")


def safetensors(content: str) -> bytes:
    return len(content).to_bytes(8, "little") + content.encode()


@pytest.mark.parametrize("shape", ["[0,2305843009213693952]", "[1099511627776,1099511627776,0]"])
def test_safetensors_shapes(tmp_path: Path, shape: str) -> None:
    entry = f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}'
    (tmp_path / "m.safetensors").write_bytes(safetensors(entry))
    with pytest.raises(ValueError, match=r"m\.safetensors: tensor 'a': shape .* is beyond"):
        Int8Rows(tmp_path / "m.safetensors")


def tensor(shape: list[int], stride: list[int]) -> bytes:
    def number(n: int) -> bytes:
        return b"\x8a\x09" + n.to_bytes(9, "little")

    return (
        b"\x80\x02}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
        b"X\1\0\0\x000X\3\0\0\0cpu" + number(4) + b"tQ" + number(0)
        + b"(" + b"".join(map(number, shape)) + b"t(" + b"".join(map(number, stride)) + b"t\x89NtRs."
    )  # fmt: skip


def test_torch_strides(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(archive(tensor([1, 4], [2**61, 1]), {"0": np.arange(4, dtype="<f4").tobytes()}))
    assert TorchArchive(path).read("a").tolist() == [[0, 1, 2, 3]]  # along an axis of one no step is made
    path.write_bytes(archive(tensor([0, 2**61], [1, 1]), {"0": bytes(16)}))
    with pytest.raises(ValueError, match=r"a\.bin: tensor 'a': shape .* is beyond"):
        TorchArchive(path)
    path.write_bytes(archive(b"\x80\x02" + b"N" * 360_000 + b".", {}))
    with pytest.raises(ValueError, match="more instructions than tensors need"):
        TorchArchive(path)


@pytest.mark.parametrize("file", ["s" * 300 + ".safetensors", "\ud800.safetensors", "\0.safetensors"])
def test_shard_names(tmp_path: Path, file: str) -> None:
    index = {"weight_map": {"a": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected the plain name"):
        open_checkpoint(tmp_path)


def test_the_rank_of_an_adapter(tmp_path: Path) -> None:
    said = {"peft_type": "LORA", "r": 10**400, "lora_alpha": 16}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"adapter_config\.json: r is 1000+ and"):
        read_adapter(tmp_path, ModelConfig(n_layer=1))


def test_a_long_name_makes_no_long_sentence(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(safetensors(json.dumps({"a" * 100_000: 1})))
    with pytest.raises(ValueError, match="needs dtype") as raised:
        Int8Rows(tmp_path / "m.safetensors")
    assert len(str(raised.value)) < 3000


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"vocab": {"a": 1e400}, "merges": []}}, {"model": {"vocab": {"a": -1}, "merges": []}},
        {"model": {"vocab": {"a": 0}, "merges": ["a b"]}}, {"model": {"vocab": {"a": 0}, "merges": [["a", "\xff"]]}},
        {"added_tokens": [{"content": "\ud800", "id": 1}]}, {"added_tokens": [{"content": "", "id": 1}]},
        {"added_tokens": [{"content": "x", "id": 2**40}]}, {"added_tokens": [{"content": "x" * 300_000, "id": 1}]},
        {"added_tokens": None}, {"pre_tokenizer": 5},
    ],
)  # fmt: skip
def test_tokenizers(tmp_path: Path, change: dict[str, Any]) -> None:
    content = {
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"},
        "decoder": {"type": "ByteLevel"},
    }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    assert Tokenizer.from_file(path).encode("a") == [0]
    path.write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json"):
        Tokenizer.from_file(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="RecursionError"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    "shape", ["(1000000000000,)", "(9223372036854775808,)", "(" * 200, "(1,", "(True, 2, 3.5)"]
)
def test_shard_indexes(tmp_path: Path, shape: str) -> None:
    said = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}".encode()
    (tmp_path / "s.idx.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(said)) + said + bytes(8))
    (tmp_path / "s.bin").write_bytes(b"")
    manifest = {"n_tokens": 0, "n_docs": 0, "sha256": "", "source_bytes": None}
    (tmp_path / "s.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"s\.idx\.npy is"):
        Shard(tmp_path / "s")
    for bad in ('{"n_tokens": 1e400}', "[" * 100_000):
        (tmp_path / "s.json").write_text(bad)
        with pytest.raises(ValueError, match=r"s\.json is not a shard manifest"):
            Shard(tmp_path / "s")


READERS: dict[str, Callable[[Path], object]] = {
    "a.zip": lambda path: list(members(path, lambda name: True, Limits())),
    "a.tsv": read_manifest,
    "problems.jsonl": read_problems,
    "config.json": read_json,
    "tokenizer.json": Tokenizer.from_file,
    "model.safetensors": lambda path: open_checkpoint(path.parent),
    "pytorch_model.bin": lambda path: fingerprint(path.parent, ""),
    "model.safetensors.index.json": lambda path: open_checkpoint(path.parent),
    "result.json": read_results,
    "a.py": lambda path: collect([str(path)]),
    "keys": lambda path: _keys(str(path)),
    "out.json": lambda path: write_atomic(path, b""),
}


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    if (name, kind) == ("a.py", "folder"):
        pytest.skip("a folder is looked through")
    with pytest.raises(ValueError, match=rf"{name}.* no regular file"):
        READERS[name](path)
