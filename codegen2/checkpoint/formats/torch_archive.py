"""Read tensors from a file that torch.save wrote, without torch and without executing its pickle.

Such a file is a zip: PREFIX/data.pkl describes the tensors, PREFIX/data/KEY holds the raw bytes of one storage,
uncompressed. A pickle is a program that may call anything. Here a small machine interprets the few instructions that
tensors need and has none that imports or calls: names become plain text, "call" is understood for three of them,
everything else is refused by name. (A pickle.Unpickler with find_class overridden was the alternative: it still runs
REDUCE and BUILD on real objects, and a hostile memo index makes its C core allocate gigabytes.)

Not here: the tar format of torch < 0.4 and the plain pickle stream of torch < 1.6; refused with a remedy.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .tensors import DTYPES, Array, TensorInfo, check_shape, damaged, is_size, map_file

MAX_PICKLE_BYTES = 4 * 2**20  # a tensor takes some 300 bytes of it, so this admits over 10,000

_STORAGES = {
    "torch DoubleStorage": "float64", "torch FloatStorage": "float32", "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16", "torch LongStorage": "int64", "torch IntStorage": "int32",
    "torch ShortStorage": "int16", "torch CharStorage": "int8", "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}  # fmt: skip
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
_ADMITTED = {*_STORAGES, _REBUILD_TENSOR, _REBUILD_PARAMETER, _ORDERED_DICT}

# Instructions whose argument, as decoded by pickletools, is the value to push.
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_MARK = object()
# Instructions that push something new.
_MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "MARK": lambda: _MARK,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
}  # fmt: skip


@dataclass(frozen=True)
class _Global:
    """A name the pickle mentions; never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # elements


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 8 or not all(map(is_size, value)):
        raise ValueError("a shape or stride is not a short tuple of whole numbers")
    return value


def _storage(pid: Any) -> _Storage:
    if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
        raise ValueError("a persistent id is not that of a storage")
    _, kind, key, _, numel = pid
    if not isinstance(kind, _Global) or kind.name not in _STORAGES:
        raise ValueError(f"storage type {getattr(kind, 'name', type(kind).__name__)!r} is not known")
    if not isinstance(key, str) or not key.isalnum() or not is_size(numel):
        raise ValueError("a storage's key or size is damaged")
    return _Storage(_STORAGES[kind.name], key, numel)


def _admit(name: str) -> _Global:
    if name not in _ADMITTED:
        raise ValueError(f"it names {name[:200].replace(' ', '.', 1)!r}, which is no part of a tensor")
    return _Global(name)


def _call(function: Any, args: Any) -> Any:
    """Do what the three admitted names stand for. Raises ValueError for any other use."""
    name = function.name if isinstance(function, _Global) else type(function).__name__
    args = args if isinstance(args, tuple) else (None,)
    if name == _ORDERED_DICT and args == ():
        return {}
    if name == _REBUILD_PARAMETER and args and isinstance(args[0], _Tensor):
        return args[0]
    if name == _REBUILD_TENSOR and len(args) >= 4 and isinstance(args[0], _Storage) and is_size(args[1]):
        return _Tensor(args[0], args[1], _sizes(args[2]), _sizes(args[3]))
    raise ValueError(f"it calls {name.replace(' ', '.')!r} in a way that tensors do not need")


class _Machine:
    """Interpret a pickle that holds tensors, and nothing else."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}  # a dict, so that a huge index costs nothing

    def run(self, program: bytes) -> Any:
        """Return what the pickle describes, tensors as _Tensor. Raises ValueError."""
        for number, (opcode, arg, _) in enumerate(pickletools.genops(program)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if number > 200_000 + len(program) // 8:  # a tensor takes forty, and 300 bytes
                raise ValueError("it has more instructions than tensors need")
            self._step(opcode.name, arg)
        raise ValueError("the pickle has no end")

    def _step(self, op: str, arg: Any) -> None:
        push = self.stack.append
        if op in _LITERALS:
            push(arg)
        elif op in _MAKERS:
            push(_MAKERS[op]())
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            push(tuple(self._pop() for _ in range(int(op[-1])))[::-1])
        elif op == "TUPLE":
            push(tuple(self._pop_to_mark()))
        elif op in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if op == "MEMOIZE" else arg] = self.stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            push(self.memo[arg])
        elif op == "GLOBAL":
            push(_admit(arg))
        elif op == "STACK_GLOBAL":
            name, module = self._pop(), self._pop()
            if not isinstance(name, str) or not isinstance(module, str):
                raise ValueError("it names something that is no text")
            push(_admit(f"{module} {name}"))
        elif op == "BINPERSID":
            push(_storage(self._pop()))
        elif op == "REDUCE":
            args, function = self._pop(), self._pop()
            push(_call(function, args))
        elif op in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop_to_mark() if op == "SETITEMS" else [self._pop(), self._pop()][::-1])
        elif op in ("APPEND", "APPENDS"):
            items = self._pop_to_mark() if op == "APPENDS" else [self._pop()]
            if not isinstance(self.stack[-1], list):
                raise ValueError("it appends to something that is no list")
            self.stack[-1].extend(items)
        elif op == "BUILD":
            # An OrderedDict's attributes: torch keeps version numbers there (_metadata), nothing we need.
            if not isinstance(self._pop(), dict) or not isinstance(self.stack[-1], dict):
                raise ValueError("it sets attributes of something that is no dictionary")
        elif op not in ("PROTO", "FRAME"):
            raise ValueError(f"it uses the pickle instruction {op}, which tensors do not need")

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("it sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only text: hashing a nested tuple as a key can be made to take for ever.
            if type(key) is not str:
                raise ValueError(f"a dictionary key is {type(key).__name__}, expected text")
            if key in target:
                raise ValueError(f"key {key!r} occurs twice")
            target[key] = value

    def _pop(self) -> Any:
        if (value := self.stack.pop()) is _MARK:
            raise ValueError("its stack is out of step")
        return value

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]


class TorchArchive:
    """A file of torch.save, its description and all sizes checked before any tensor is touched.

    Raises ValueError naming file and tensor; what is no tensor is refused by name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = map_file(path)
        self._zip = self._directory()
        pickles = [n for n in self._zip if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(pickles) != 1:
            what = f"has {len(pickles)} entries PREFIX/data.pkl, expected one"
            raise damaged(path, what, "not a file of torch.save")
        self._prefix = pickles[0].removesuffix("data.pkl")
        order = self._prefix + "byteorder"
        if order in self._zip and (found := self._bytes(order, 16)) != b"little":
            what = f"byte order is {found!r}, expected b'little'"
            raise damaged(path, what, "save it again on a common machine")
        self._tensors = self._described(self._bytes(pickles[0], MAX_PICKLE_BYTES))
        self._storages: dict[str, tuple[str, Array]] = {}
        for name, tensor in self._tensors.items():
            self._check(name, tensor)

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        if self._raw[:4].tobytes() != b"PK\x03\x04":
            remedy = (
                "where you trust it, save it again: torch.save(torch.load(FILE, weights_only=True), FILE)"
            )
            raise damaged(self.path, "no zip archive: truncated, or from torch before 1.6", remedy)
        try:
            with zipfile.ZipFile(self.path) as z:
                entries = z.infolist()
        except (
            zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, OSError, ValueError, RuntimeError, EOFError,
            LookupError, OverflowError,
        ) as e:  # fmt: skip
            raise damaged(self.path, f"the zip directory is damaged or truncated ({e})") from e
        out = {e.filename: e for e in entries}
        if len(out) != len(entries):
            raise damaged(self.path, "the zip directory names an entry twice")
        return out

    def _span(self, name: str) -> Array:
        """Return the bytes of a zip entry as a view, after checking that it lies inside, stored plainly."""
        what, entry = f"entry {name!r} ", self._zip.get(name)
        if entry is None:
            raise damaged(self.path, what + "is missing")
        at, size = entry.header_offset, entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != size:
            raise damaged(self.path, what + "is compressed or encrypted", "torch.save stores entries plainly")
        head = self._raw[at : at + 30].tobytes() if at >= 0 else b""
        if len(head) < 30 or head[:4] != b"PK\x03\x04":
            raise damaged(self.path, what + "has no header")
        start = at + 30 + sum(struct.unpack("<HH", head[26:30]))
        if start + size > self._raw.size:
            raise damaged(self.path, what + "is truncated")
        return self._raw[start : start + size]

    def _bytes(self, name: str, limit: int) -> bytes:
        what, span = f"entry {name!r} ", self._span(name)
        if span.size > limit:
            raise ValueError(f"{self.path}: {what}has {span.size} bytes, at most {limit} are read")
        data = span.tobytes()
        if zlib.crc32(data) != self._zip[name].CRC:
            raise damaged(self.path, what + "has a wrong checksum")
        return data

    def _described(self, program: bytes) -> dict[str, _Tensor]:
        remedy = "only tensors are admitted; use a safetensors file, or one saved from model.state_dict()"
        try:
            described: dict[str, _Tensor] = _Machine().run(program)
        except (ValueError, LookupError, struct.error, OverflowError, RecursionError, TypeError) as e:
            raise damaged(self.path, f"the pickle is refused unexecuted: {e}", remedy) from e
        if type(described) is not dict:
            what = f"holds a {type(described).__name__}, expected names to tensors"
            raise damaged(self.path, what, remedy)
        for name, value in described.items():
            if type(value) is not _Tensor:
                raise damaged(self.path, f"{name!r} holds a {type(value).__name__.strip('_')}", remedy)
        return described

    def _check(self, name: str, t: _Tensor) -> None:
        here = f"{self.path}: tensor {name!r}"
        key, dtype = t.storage.key, t.storage.dtype
        if key not in self._storages:
            span = self._span(f"{self._prefix}data/{key}")
            if span.size != (need := t.storage.numel * DTYPES[dtype].itemsize):
                raise damaged(here, f"its storage has {span.size} bytes, expected {need}")
            self._storages[key] = (dtype, span.view(DTYPES[dtype]))
        seen_dtype, values = self._storages[key]
        if seen_dtype != dtype or values.size != t.storage.numel:
            raise damaged(here, f"shares storage {key} under another type or size")
        if len(t.shape) != len(t.stride):
            raise damaged(here, f"shape {t.shape} and stride {t.stride} do not match")
        numel = math.prod(t.shape)
        last = t.offset + sum((n - 1) * s for n, s in zip(t.shape, t.stride, strict=True)) if numel else 0
        # A stride of 0 could describe terabytes in four bytes; no weight is stored so.
        if last >= max(values.size, 1) or numel > values.size:
            what = f"shape {t.shape}, stride {t.stride}, offset {t.offset} do not fit its storage"
            raise damaged(here, f"{what} of {values.size} values")
        check_shape(here, t.shape)

    def names(self) -> list[str]:
        """List the tensors in the order they were saved."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Return dtype and shape of a tensor."""
        t = self._tensors[name]
        return TensorInfo(t.storage.dtype, t.shape)

    def read(self, name: str) -> Array:
        """Return a tensor as a read-only view into the mapped file, strided where it was saved so."""
        t = self._tensors[name]
        values = self._storages[t.storage.key][1]
        if not math.prod(t.shape):
            return np.empty(t.shape, values.dtype)
        # Along an axis of one value no step is made, and its stride may be any number.
        strides = tuple(s * values.itemsize if n > 1 else 0 for n, s in zip(t.shape, t.stride, strict=True))
        return np.lib.stride_tricks.as_strided(values[t.offset :], t.shape, strides, writeable=False)
