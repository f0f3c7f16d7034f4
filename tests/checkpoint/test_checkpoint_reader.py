"""Reading weights: equal to what torch and safetensors read, and a refusal by name for anything odd or hostile."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import GOLDENS, archive, golden
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from codegen2.checkpoint.formats.safetensors import (
    Entry,
    SafetensorsFile,
    load_json,
    split_shards,
    write_safetensors,
)
from codegen2.checkpoint.formats.tensors import DTYPES, TensorInfo, from_float32, to_float32
from codegen2.checkpoint.formats.torch_archive import MAX_PICKLE_BYTES, TorchArchive
from codegen2.checkpoint.reader import open_checkpoint

TORCH_DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


def some_tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {str(d): (torch.randn(3, 5, generator=g) * 4).to(d) for d in TORCH_DTYPES}


def same(array: np.ndarray, tensor: torch.Tensor) -> bool:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
        array = array.view(np.int16)
    return array.shape == tuple(tensor.shape) and np.array_equal(array, tensor.numpy())


def check_equal(file: Any, tensors: dict[str, torch.Tensor]) -> None:
    assert file.names() == list(tensors)
    for name, tensor in tensors.items():
        assert file.info(name) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert same(file.read(name), tensor), name
        assert not file.read(name).flags.writeable or not tensor.numel()


# Torch archives


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_archive_equals_torch(tmp_path: Path, protocol: int) -> None:
    torch.save(some_tensors(), tmp_path / "a.bin", pickle_protocol=protocol)
    check_equal(TorchArchive(tmp_path / "a.bin"), some_tensors())


def test_archive_odd_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        "transposed": base.t(), "part": base[1:3, 2:5], "whole": base, "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 7), "parameter": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    torch.save(collections.OrderedDict(tensors), tmp_path / "a.bin")
    check_equal(TorchArchive(tmp_path / "a.bin"), tensors)


def test_archive_of_module_state(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm1d(4)  # has version numbers in _metadata, and an int64 counter
    torch.save(module.state_dict(), tmp_path / "a.bin")
    check_equal(TorchArchive(tmp_path / "a.bin"), dict(module.state_dict()))


def test_goldens_equal_torch() -> None:
    for name in ("tiny-mp4", "tiny-mp8"):
        checkpoint, (_, tensors, _) = open_checkpoint(GOLDENS / name), golden(name)
        assert checkpoint.keys() == tensors.keys()
        assert all(same(checkpoint[n].read(n), t) for n, t in tensors.items())


class Reduce:
    """Pickles as a call of whatever it is given."""

    def __init__(self, *what: Any) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return self.what


def test_hostile_pickle_is_refused_by_name_and_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    bad = tmp_path / "a.bin"
    for what, name in [
        ((os.system, (f"touch {marker}",)), "system"),
        ((eval, (f"open({str(marker)!r}, 'w')",)), r"eval"),
        ((getattr, ("x", "upper")), "getattr"),
        ((subprocess.run, (["touch", str(marker)],)), r"\.run"),  # protocol 2 writes subprocess as "commands"
        ((torch.nn.Linear, (1, 1)), "torch.nn.modules.linear.Linear"),
        ((torch.load, (str(marker),)), "torch.serialization.load"),
    ]:
        for protocol in (2, 4):
            with zipfile.ZipFile(bad, "w") as z:
                z.writestr("a/data.pkl", pickle.dumps({"w": Reduce(*what)}, protocol=protocol))
            with pytest.raises(
                ValueError, match=rf"a\.bin.*refused unexecuted.*{name}.*only tensors are admitted"
            ):
                TorchArchive(bad)
    assert not marker.exists()


def test_hostile_file_written_by_torch(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    good = torch.ones(3)
    torch.save({"w": good, "x": Reduce(os.system, (f"touch {marker}",))}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"posix\.system|nt\.system"):
        open_checkpoint(tmp_path)
    assert not marker.exists()


GLOBAL_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def number(n: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", n)


def tensor_pickle(
    numel: int = 4,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    key: str = "0",
) -> bytes:
    """Write the pickle of {"w": tensor} by hand."""
    sizes = b"(" + b"".join(map(number, shape)) + b"t(" + b"".join(map(number, stride)) + b"t"
    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"
    )
    call = GLOBAL_TENSOR + b"(" + storage + number(offset) + sizes + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("w") + call + b"s."


def open_bytes(tmp_path: Path, data: bytes) -> TorchArchive:
    (tmp_path / "a.bin").write_bytes(data)
    return TorchArchive(tmp_path / "a.bin")


def test_handwritten_archive(tmp_path: Path) -> None:
    values = np.arange(4, dtype="<f4")
    file = open_bytes(tmp_path, archive(tensor_pickle(), {"0": values.tobytes()}))
    assert np.array_equal(file.read("w"), values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numel": 5}, "storage has 16 bytes, expected 20"),
        ({"shape": (5,)}, "do not fit its storage of 4 values"),
        ({"offset": 1}, "do not fit"),
        ({"offset": 2**61}, "do not fit"),
        ({"stride": (2,)}, "do not fit"),
        ({"shape": (2**40,), "stride": (0,)}, "do not fit"),
        ({"shape": (2**61, 2**61), "stride": (0, 0)}, "do not fit"),
        ({"shape": (-4,)}, "not a short tuple of whole numbers"),
        ({"offset": -1}, "in a way that tensors do not need"),
        ({"shape": (1,) * 9, "stride": (1,) * 9}, "not a short tuple"),
        ({"stride": (1, 1)}, "do not match"),
        ({"numel": -1}, "storage's key or size"),
        ({"key": "../0"}, "storage's key or size"),
        ({"key": "7"}, "'x/data/7' is missing"),
    ],
)
def test_sizes_that_lie(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_bytes(tmp_path, archive(tensor_pickle(**change), {"0": bytes(16)}))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02}r\xff\xff\xff\xff.", None),  # a memo index that would make the C unpickler take 64 GB
        (b"\x80\x02}" + b")" + b"\x86q\x00h\x00" * 3 + b"K\x01s.", "refused"),
        (b"\x80\x02}" + text("w") + b"cos\nsystem\ns.", "it names 'os.system'"),  # mentioned, not called
        (b"\x80\x02})K\x01s.", "key is tuple"),
        (b"\x80\x02}(K\x01s.", "out of step"),
        (b"\x80\x02}" + text("w") + b"K\x01s.", "'w' holds a int"),
        (b"\x80\x02}" + text("w") + b"]s.", "'w' holds a list"),
        (b"\x80\x02]K\x01a.", "holds a list, expected names to tensors"),
        (b"\x80\x02ctorch\nFloatStorage\n.", "holds a _Global"),
        (b"\x80\x02(K\x01ios\nsystem\n.", "instruction INST"),
        (b"\x80\x02K\x01K\x02b.", "sets attributes"),
        (b"\x80\x02}}" + text("a") + b"K\x01sb.", None),
        (b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.", "collections.OrderedDict"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "torch._utils._rebuild_tensor_v2"),
        (b"\x80\x02K\x01Q.", "persistent id"),
        (b"\x80\x02N)R.", "calls 'NoneType'"),
        (b"\x80\x02}" + (text("w") + b"Ns") * 2 + b".", "'w' occurs twice"),
        (b"\x80\x02}", "refused"),
        (b"\x80\x02.", "refused"),
        (b"", "refused"),
        (b"\xff\xff", "refused"),
        (b"\x80\x04]]\x93.", "no text"),
        (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", "tuple"),
    ],
)
def test_pickle_programs(tmp_path: Path, program: bytes, message: str | None) -> None:
    data = archive(program, {})
    if message is None:
        assert open_bytes(tmp_path, data).names() == []
        return
    with pytest.raises(ValueError, match=message):
        open_bytes(tmp_path, data)


def test_a_name_built_of_nested_tuples_is_not_printed(tmp_path: Path) -> None:
    bomb = b"\x80\x04)" + b"\x94h\x00\x86" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(1, 200))
    with pytest.raises(ValueError, match="no text"):
        open_bytes(tmp_path, archive(bomb + bomb[2:] + b"\x93.", {}))


def test_huge_pickle_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_PICKLE_BYTES} are read"):
        open_bytes(tmp_path, archive(b"(" * (MAX_PICKLE_BYTES + 1), {}))


def test_only_admitted_names_are_admitted() -> None:
    """The list is the whole of what a file may name; whoever adds to it must mean it."""
    from codegen2.checkpoint.formats import torch_archive

    others = {n for n in torch_archive._ADMITTED if not n.endswith("Storage")}
    assert others == {
        "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict"
    }  # fmt: skip


def test_other_archive_faults(tmp_path: Path) -> None:
    values = {"0": bytes(16)}
    for data, message in [
        (archive(tensor_pickle(), values, byteorder="big"), "byte order is b'big'"),
        (archive(tensor_pickle(), values, compression=zipfile.ZIP_DEFLATED), "compressed or encrypted"),
        (archive(tensor_pickle(), {}), "'x/data/0' is missing"),
        (b"", "cannot be read"),
        (b"PK\x03\x04", "zip directory"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r"from torch before 1\.6.*torch\.save"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_bytes(tmp_path, data)


def test_legacy_file_names_the_remedy(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"torch\.load\(FILE, weights_only=True\)"):
        TorchArchive(tmp_path / "a.bin")


def test_two_pickles_or_none(tmp_path: Path) -> None:
    for names in (["a/data.pkl", "b/data.pkl"], ["a/other"]):
        with zipfile.ZipFile(tmp_path / "a.bin", "w") as z:
            for name in names:
                z.writestr(name, b"\x80\x02}.")
        with pytest.raises(ValueError, match="expected one; not a file of torch.save"):
            TorchArchive(tmp_path / "a.bin")


# safetensors


def test_safetensors_equals_library(tmp_path: Path) -> None:
    save_file(some_tensors(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    for name, tensor in some_tensors().items():
        assert file.info(name) == (str(tensor.dtype).removeprefix("torch."), (3, 5))
        assert same(file.read(name), tensor)


def test_our_writer_is_read_by_the_library(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    patterns = from_float32(rows, "bfloat16")
    write_safetensors(
        tmp_path / "a.safetensors",
        [
            Entry("a", TensorInfo("float32", (4, 3)), lambda: [rows[:1], rows[1:]]),
            Entry("b", TensorInfo("bfloat16", (3, 4)), lambda: [patterns.T]),
            Entry("none", TensorInfo("float16", (0, 2)), list),
        ],
    )
    got = load_file(tmp_path / "a.safetensors")
    assert torch.equal(got["a"], torch.from_numpy(rows))
    assert torch.equal(got["b"], torch.from_numpy(rows.T.copy()).bfloat16())
    assert got["none"].shape == (0, 2)
    check_equal(SafetensorsFile(tmp_path / "a.safetensors"), got)


def test_writer_refuses_wrong_lengths_and_old_files(tmp_path: Path) -> None:
    short = [Entry("a", TensorInfo("float32", (4,)), lambda: [np.zeros(3, np.float32)])]
    with pytest.raises(ValueError, match="a gave 12 bytes, expected 16"):
        write_safetensors(tmp_path / "a.safetensors", short)
    with pytest.raises(FileExistsError):
        write_safetensors(tmp_path / "a.safetensors", [])
    with pytest.raises(ValueError, match="written twice"):
        write_safetensors(tmp_path / "b.safetensors", short * 2)


def test_split_shards() -> None:
    sizes = [4, 4, 100, 1, 2]
    entries = [Entry(str(n), TensorInfo("int8", (n,)), list) for n in sizes]
    assert [[e.info.nbytes for e in run] for run in split_shards(entries, 8)] == [[4, 4], [100], [1, 2]]


def header_file(header: Any, body: bytes = bytes(8)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"abc", "truncated"),
        (struct.pack("<Q", 2**63) + b"{}", "truncated"),
        (header_file(b"{"), "damaged"),
        (header_file(b"\xff{}"), "damaged"),
        (header_file(b"[" * 100_000), "damaged"),
        (header_file(b"[]"), "expected a JSON object"),
        (header_file(b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{}}'), "'a' occurs twice"),
        (header_file({"a": 3}), "tensor 'a': needs dtype"),
        (header_file({"a": ENTRY | {"shape": [-2]}}), "needs dtype"),
        (header_file({"a": ENTRY | {"shape": [2.0]}}), "needs dtype"),
        (header_file({"a": ENTRY | {"shape": [True]}}), "needs dtype"),
        (header_file({"a": ENTRY | {"shape": [10**30]}}), "needs dtype"),
        (header_file({"a": ENTRY | {"shape": [3]}}), "takes 12 bytes, the offsets span 8"),
        (header_file({"a": ENTRY | {"data_offsets": [8, 0]}}), "the offsets span -8"),
        (header_file({"a": ENTRY | {"dtype": "F8_E4M3"}}), "dtype is 'F8_E4M3'"),
        (header_file({"a": ENTRY | {"shape": [1] * 8 + [2]}}), "9 dimensions"),
        (header_file({"a": ENTRY, "b": ENTRY}), "'b' overlaps"),
        (header_file({"a": ENTRY, "b": ENTRY | {"data_offsets": [16, 24]}}, bytes(24)), "'b' leaves a hole"),
        (header_file({"a": ENTRY}, bytes(7)), "truncated: tensors take 8 bytes, the file has 7"),
        (header_file({"a": ENTRY}, bytes(9)), "belong to no tensor"),
    ],
)
def test_safetensors_faults(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=f"model.safetensors.*{message}"):
        open_checkpoint(tmp_path)


# Directories


def test_preference(tmp_path: Path) -> None:
    torch.save({"from": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert list(open_checkpoint(tmp_path)) == ["from"]
    save_file({"safe": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert list(open_checkpoint(tmp_path)) == ["safe"]


def sharded(tmp_path: Path, weight_map: Any) -> Path:
    save_file({"a": torch.zeros(1)}, tmp_path / "m-1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "m-2.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../m-1.safetensors"}, "do not trust"),
        ({"a": "/etc/passwd"}, "do not trust"),
        ({"a": "sub\\m-1.safetensors"}, "do not trust"),
        ({"a": "C:m-1.safetensors"}, "do not trust"),
        ({"a": "..safetensors"}, "do not trust"),
        ({"a": "m-1.bin"}, "plain name of a .safetensors"),
        ({"a": 3}, "do not trust"),
        ({}, "needs a weight_map"),
        (None, "needs a weight_map"),
        ({"a": "m-1.safetensors", "b": "m-3.safetensors"}, "missing m-3.safetensors of 2 shards"),
        ({"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-2.safetensors"}, "m-2.*: c is missing"),
        ({"a": "m-1.safetensors", "c": "m-2.safetensors"}, "m-2.*holds b, but .* does not know it"),
        ({"a": "m-2.safetensors", "b": "m-1.safetensors"}, "m-1.*holds a, but .* says m-2"),
    ],
)
def test_index_faults(tmp_path: Path, weight_map: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_checkpoint(sharded(tmp_path, weight_map))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "m-1.safetensors", "b": "m-2.safetensors"})
    save_file({"a": torch.zeros(1), "b": torch.zeros(2)}, tmp_path / "m-2.safetensors")
    with pytest.raises(ValueError, match="m-2.*holds a, but .* says m-1"):
        open_checkpoint(tmp_path)


def test_no_directory_no_weights_no_tensor(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a directory"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(ValueError, match="no weights; expected one of model.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 1000, 5000, -1, -22, -23, -100])
@pytest.mark.parametrize("file", ["a.bin", "a.safetensors"])
def test_truncated(tmp_path: Path, file: str, keep: int) -> None:
    tensors = some_tensors() | {"more": torch.zeros(2000)}
    torch.save(tensors, tmp_path / "a.bin")
    save_file(tensors, tmp_path / "a.safetensors")
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=file):
        (TorchArchive if file.endswith("bin") else SafetensorsFile)(tmp_path / file)


def small_files() -> dict[str, bytes]:
    out = io.BytesIO()
    tensors = {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(2).bfloat16(), "t": torch.ones(2, 4).t()}
    torch.save(tensors, out)
    with tempfile.TemporaryDirectory() as d:
        save_file({n: t.contiguous() for n, t in tensors.items()}, Path(d) / "m")
        return {"m.bin": out.getvalue(), "m.safetensors": (Path(d) / "m").read_bytes()}


SMALL = small_files()


@pytest.mark.parametrize("name", list(SMALL))
@given(data=st.data())
def test_mutated_files_give_a_value_error_or_a_right_read(name: str, data: st.DataObject) -> None:
    raw = bytearray(SMALL[name])
    places = st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255))
    for at, byte in data.draw(st.lists(places, min_size=1, max_size=4)):
        raw[at] = byte
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(raw))))
    check_mutant(name, bytes(raw[:cut]))


def check_mutant(name: str, raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / name
        path.write_bytes(raw)
        try:
            file = TorchArchive(path) if name.endswith(".bin") else SafetensorsFile(path)
            for tensor in file.names():
                info, array = file.info(tensor), file.read(tensor)
                assert array.shape == info.shape
                assert array.dtype == DTYPES[info.dtype]
                array.tobytes()  # touches every value
        except ValueError as e:
            assert name in str(e)


@pytest.mark.parametrize("name", list(SMALL))
def test_every_byte_of_the_description_mutated(name: str) -> None:
    """What chance rarely hits: each byte of the header or pickle, changed to one of two telling values."""
    raw = SMALL[name]
    start = 0 if name.endswith("safetensors") else raw.index(b"\x80\x02")
    for at in range(start, min(len(raw), start + 700)):
        byte = 0xFF if at % 2 else raw[at] ^ 1
        check_mutant(name, raw[:at] + bytes([byte]) + raw[at + 1 :])


@given(
    st.binary(max_size=60), st.lists(st.sampled_from([op.code for op in pickletools.opcodes]), max_size=12)
)
def test_random_pickle_programs(tail: bytes, ops: list[str]) -> None:
    from codegen2.checkpoint.formats import torch_archive

    program = "".join(ops).encode("latin-1") + tail
    # What TorchArchive turns into a ValueError.
    with contextlib.suppress(ValueError, LookupError, struct.error, OverflowError, TypeError):
        torch_archive._Machine().run(program)


def test_json_from_strangers() -> None:
    assert load_json(b'{"a": [1]}') == {"a": [1]}
    for text_ in (b"", b"\xff", b'{"a":1,"a":2}', b"[" * 100_000):
        with pytest.raises(ValueError, match="."):
            load_json(text_)


# Element types


def test_bfloat16_equals_torch() -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    floats = to_float32(patterns, "bfloat16")
    theirs = torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(floats, theirs, equal_nan=True)
    back = from_float32(floats, "bfloat16")
    finite = ~np.isnan(floats)
    assert np.array_equal(back[finite], patterns[finite])
    assert np.isnan(to_float32(back[~finite], "bfloat16")).all()


@example([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001])  # NaNs whose bits a carry would spill
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_rounding_equals_torch(bits: list[int]) -> None:
    floats = np.array(bits, np.uint32).view(np.float32)
    theirs = torch.from_numpy(floats.copy()).bfloat16().float().numpy()
    assert np.array_equal(to_float32(from_float32(floats, "bfloat16"), "bfloat16"), theirs, equal_nan=True)


def test_float16_refuses_what_it_cannot_hold() -> None:
    assert from_float32(np.array([1.5, np.inf], np.float32), "float16").tolist() == [1.5, np.inf]
    with pytest.raises(ValueError, match=r"70000 does not fit float16 .*choose bfloat16"):
        from_float32(np.array([7e4, np.inf], np.float32), "float16")
    with pytest.raises(ValueError, match="expected float32, bfloat16 or float16"):
        from_float32(np.zeros(1, np.float32), "int8")
    with pytest.raises(ValueError, match="weights are floating-point"):
        to_float32(np.zeros(1, np.int8), "int8")


def test_reading_and_converting_need_no_torch() -> None:
    code = (
        "import sys, codegen2.checkpoint.convert, codegen2.checkpoint.hub; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
