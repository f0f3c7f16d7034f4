"""The native form: a model's weights packed for the compiled engine, in one file that it maps as it stands.

    config.json        as in form codegen2, and "native": {"format": 1, "dtype": "int4", "head_dtype": "int8"}
    model.safetensors  a matrix NAME (N, K) as NAME.KIND, uint8 (Np / 16, bytes of a panel); for int8 also NAME.scale,
                       float32 (Np,); vectors float32 under their own names; QKV rows in our order
    tokenizer.json     where the source has its own

Not here: packing (pack.py; native/src/layout.h draws the bytes) and where such directories are kept (cache.py).
With tied embeddings there is one matrix for both ends, lm_head.weight. Letters: N out, K in, Np and Kp both rounded up
to panels of 16 rows and blocks of 64 columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import native
from ...config import ModelConfig
from ..formats.safetensors import SafetensorsFile
from ..formats.tensors import Array, TensorInfo, damaged
from ..layout import NATIVE_KEY, expected_tensors, load_config
from ..reader import read_json

# Raised with every change of the bytes, so that older files are refused, and cached ones made anew.
FORMAT = 1
ALIGN = 64  # bytes: a cache line, and the widest register; the size of every matrix is a multiple, too
WEIGHT_FILE = "model.safetensors"
SCALE = ".scale"
AGAIN = "convert the checkpoint again"

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"


@dataclass(frozen=True)
class Kinds:
    """What a file's matrices are packed as; int4 may keep its head, the most delicate matrix, in int8.

    >>> Kinds.choose("int4")
    Kinds(dtype='int4', head_dtype='int8')

    Raises ValueError for kinds that do not go together.
    """

    dtype: str
    head_dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in native.KINDS:
            raise ValueError(f"dtype is {self.dtype!r}, expected one of {', '.join(native.KINDS)} for native")
        heads = ("int8", "int4") if self.dtype == "int4" else (self.dtype,)
        if self.head_dtype not in heads:
            what = f"expected {' or '.join(heads)} beside {self.dtype}"
            raise ValueError(f"head_dtype is {self.head_dtype!r}, {what}; leave it out")

    @classmethod
    def choose(cls, dtype: str | None = None, head_dtype: str | None = None) -> Kinds:
        """Return the kinds that a user asked for; None is int8, for the head of float models their own type."""
        dtype = "int8" if dtype is None else dtype
        return cls(dtype, head_dtype or ("int8" if dtype == "int4" else dtype))

    def of(self, name: str) -> str:
        """Return the kind of one matrix: the embedding beside int4 is int8, as rows of it are looked up singly."""
        if name == HEAD:
            return self.head_dtype
        return "int8" if name == EMBEDDING and self.dtype == "int4" else self.dtype


@dataclass(frozen=True)
class NativeWeights:
    """An opened native directory; the arrays are read-only views that keep the file mapped.

    matrices and vectors are named as in the released checkpoints; a tied model has no transformer.wte.weight, its
    lm_head.weight serves both ends.
    """

    directory: Path
    config: ModelConfig
    raw: dict[str, Any]  # config.json as it stands
    kinds: Kinds
    matrices: dict[str, native.Packed]
    vectors: dict[str, NDArray[np.float32]]


def native_shapes(config: ModelConfig) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Return the (N, K) of every matrix and the length of every vector, in the order of the forward pass."""
    shapes = expected_tensors(config)
    matrices = {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}
    if config.tie_word_embeddings:
        matrices[HEAD] = matrices.pop(EMBEDDING)
    return matrices, {name: shape[0] for name, shape in shapes.items() if len(shape) == 1}


def native_infos(name: str, kind: str, n: int, k: int) -> dict[str, TensorInfo]:
    """Return the tensors of one matrix: values, for int8 its scales behind them."""
    rows, _ = native.padded(n, k)
    panels = rows // native.PANEL_ROWS
    panel_bytes = native.packed_bytes(kind, native.PANEL_ROWS, k)
    out = {f"{name}.{kind}": TensorInfo("uint8", (panels, panel_bytes))}
    if kind == "int8":
        out[name + SCALE] = TensorInfo("float32", (rows,))
    return out


def is_native(directory: str | Path) -> bool:
    """Return whether a directory says of itself that it is in this form; False too where config.json cannot be read."""
    try:
        return NATIVE_KEY in read_json(Path(directory) / "config.json")
    except ValueError:
        return False


def open_native(directory: str | Path) -> NativeWeights:
    """Map a native directory's weights and check config, header, names, shapes and alignment; read no value.

    Raises ValueError that names file, tensor, expectation and remedy.
    """
    directory = Path(directory)
    config, raw = load_config(directory)
    kinds = _stated(directory / "config.json", raw)
    file = SafetensorsFile(directory / WEIGHT_FILE)
    shapes, lengths = native_shapes(config)
    planned = {name: native_infos(name, kinds.of(name), n, k) for name, (n, k) in shapes.items()}
    expected = {stored: info for infos in planned.values() for stored, info in infos.items()}
    expected |= {name: TensorInfo("float32", (size,)) for name, size in lengths.items()}
    _check_file(file, expected)
    matrices = {}
    for name, (n, k) in shapes.items():
        data, *scale = [_aligned(file, stored, ALIGN) for stored in planned[name]]
        matrices[name] = native.Packed(kinds.of(name), n, k, data, scale[0] if scale else None)
    vectors = {name: _aligned(file, name, 4) for name in lengths}
    return NativeWeights(directory, config, raw, kinds, matrices, vectors)


def _stated(path: Path, raw: dict[str, Any]) -> Kinds:
    """Read what config.json says of this form. Raises ValueError."""
    if NATIVE_KEY not in raw:
        raise damaged(path, "has no key native", "make the directory with codegen2 convert --to native")
    said = raw[NATIVE_KEY]
    if not isinstance(said, dict) or type(said.get("format")) is not int or said["format"] != FORMAT:
        raise damaged(path, f"native is {said!r:.200}, expected format {FORMAT}", AGAIN)
    if raw.get("mp_num") != 1:
        raise damaged(path, f"mp_num is {raw.get('mp_num')!r:.200}, expected 1", AGAIN)
    dtype, head_dtype = said.get("dtype"), said.get("head_dtype")
    if not isinstance(dtype, str) or not isinstance(head_dtype, str):
        raise damaged(path, f"native is {said!r:.200}, expected texts for dtype and head_dtype", AGAIN)
    try:
        return Kinds(dtype, head_dtype)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def _check_file(file: SafetensorsFile, expected: dict[str, TensorInfo]) -> None:
    stored = file.names()
    if missing := expected.keys() - stored:
        first = next(name for name in expected if name in missing)
        what = f"{first} is missing ({len(missing)} of {len(expected)} tensors), which config.json asks for"
        raise damaged(file.path, what, AGAIN)
    for name in stored:
        if name not in expected:
            raise damaged(file.path, f"{name!r:.200} is no tensor of this native model", AGAIN)
        if (found := file.info(name)) != (info := expected[name]):
            what = f"{name} is {found.dtype} {found.shape}, expected {info.dtype} {info.shape} by config.json"
            raise damaged(file.path, what, AGAIN)


def _aligned(file: SafetensorsFile, name: str, align: int) -> Array:
    array = file.read(name)
    # The address itself, not the offset: it is what the engine's loads see.
    if array.ctypes.data % align:
        raise damaged(file.path, f"{name} does not start at a multiple of {align} bytes", AGAIN)
    return array
