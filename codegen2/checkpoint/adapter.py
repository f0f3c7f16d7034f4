"""LoRA adapters in the file format of the library peft, and checkpoints seen with one merged in. Free of torch.

Not here: training one (train/linear.py). An adapter is a directory with adapter_config.json and
adapter_model.safetensors. Its names and the row order of qkv_proj are those of transformers' CodeGenForCausalLM (4
groups of Q, V, K), so that peft takes it on a directory made by `codegen2 convert --to hf`.
Letters: N out, K in, R rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..files.paths import cache_dir, replacing, write_atomic
from .formats.safetensors import Entry, SafetensorsFile, write_safetensors
from .formats.tensors import Array, TensorInfo, damaged, to_float32
from .layout import NATIVE_KEY, QKV_NAME, as_stored, expected_tensors, load_config, ungroup_qkv
from .native.cache import kept, source_hash, used, write_entry
from .native.form import Kinds
from .reader import read_json
from .weights import Weights, open_weights
from .write import json_bytes, own_form

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILE = "adapter_model.safetensors"
_GROUPS = 4  # as transformers has them
_PREFIX = "base_model.model."
_REMEDY = "give the directory of an adapter, as codegen2 finetune --lora writes it"
_TARGETS = ("qkv_proj", "out_proj", "fc_in", "fc_out")
# An adapter is a sum of B A when every setting has a value named here, or is null, false or empty: so a setting that
# is not known, today's or tomorrow's, is refused. PiSSA, OLoRA and their like change the base model's weights too.
_HARMLESS: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",), "task_type": ("CAUSAL_LM",), "bias": ("none",), "use_rslora": (True,),
    "init_lora_weights": (True, "gaussian"), "megatron_core": ("megatron.core",), "qalora_group_size": (16,),
}  # fmt: skip
# What describes an adapter, or concerns only its training; r and lora_alpha are checked apart, target_modules below.
_DESCRIPTIVE = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_alpha", "lora_dropout", "peft_version", "r",
    "revision", "runtime_config", "target_modules",
}  # fmt: skip
_PLAIN = (
    "merge it into its model with peft (merge_and_unload) and give that model, or train a plain LoRA adapter"
)

Floats = NDArray[np.float32]
Additions = Mapping[str, tuple[Floats, Floats]]  # by the matrix's name in our layout: A (R, K), B (N, R)


def write_adapter(directory: Path, additions: Additions, alpha: float, base: str) -> None:
    """Write an adapter; base: name or directory of the model that it was trained on. Existing files are replaced."""
    entries: list[Entry] = []
    for name, (a, b) in sorted(additions.items()):
        stem = _PREFIX + name.removesuffix(".weight")
        rows = as_stored(name, b, _GROUPS)
        entries += [_entry(f"{stem}.lora_A.weight", a), _entry(f"{stem}.lora_B.weight", rows)]
    with replacing(directory / WEIGHT_FILE) as part:
        write_safetensors(part, entries, {"format": "pt"})
    rank = len(next(iter(additions.values()))[0])
    content = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "target_modules": sorted({n.split(".")[-2] for n in additions}), "use_rslora": False, "use_dora": False,
        "init_lora_weights": True, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    write_atomic(directory / CONFIG_FILE, json_bytes(content))


def _entry(name: str, values: Floats) -> Entry:
    whole = np.ascontiguousarray(values, np.float32)
    return Entry(name, TensorInfo("float32", whole.shape), lambda: iter([whole]))


def read_adapter(directory: Path, config: ModelConfig) -> dict[str, Floats]:
    """Return what to add to each matrix, by its name, float32 in our layout.

    Raises ValueError naming the file for anything that is not a plain LoRA adapter of a model of this shape.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise damaged(path, "not found", _REMEDY)
    raw = read_json(path)
    scale = _scale(path, raw)
    file = SafetensorsFile(directory / WEIGHT_FILE)
    shapes, targets = expected_tensors(config), raw.get("target_modules") or ""
    found: dict[str, dict[str, str]] = {}
    for stored in file.names():
        stem, _, kind = stored.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        name = f"{stem}.weight"
        if kind not in ("A", "B") or name not in shapes or stem.split(".")[-1] not in _TARGETS:
            what = f"{stored!r:.200} adds to no matrix of this model"
            raise damaged(file.path, what, "give its own adapter")
        # peft leaves out what the settings do not name; a text is a pattern, from which peft chose when it wrote.
        if isinstance(targets, list) and not any(f".{stem}".endswith(f".{t}") for t in targets):
            raise damaged(path, f"target_modules is {targets!r:.200}, without {stem}", _PLAIN)
        found.setdefault(name, {})[kind] = stored
    if not found:
        raise damaged(file.path, "holds no additions", "train the adapter again")
    return {name: _product(file, name, pair, shapes[name], raw["r"]) * scale for name, pair in found.items()}


def _scale(path: Path, raw: dict[str, Any]) -> np.float32:
    for key, value in {"peft_type": None, **raw}.items():
        known = _HARMLESS.get(key, ())
        if key not in _DESCRIPTIVE and value not in known and (value or key == "peft_type"):
            expected = repr(known[0]) if known else "null, false or empty"
            raise damaged(path, f"{key:.100} is {value!r:.200}, expected {expected}", _PLAIN)
    r: Any = raw.get("r")
    alpha: Any = raw.get("lora_alpha")
    if type(r) is not int or not 1 <= r <= 2**16 or type(alpha) not in (int, float) or not abs(alpha) <= 1e6:
        what = f"r is {r!r:.200} and lora_alpha {alpha!r:.200}, expected a whole number of 1 to 65536 and one to 1e6"
        raise damaged(path, what, "train the adapter again")
    return np.float32(alpha / (math.sqrt(r) if raw.get("use_rslora") else r))


def _product(
    file: SafetensorsFile, name: str, pair: dict[str, str], shape: tuple[int, ...], r: int
) -> Floats:
    values = {}
    for kind, expected in (("A", (r, shape[1])), ("B", (shape[0], r))):
        if kind not in pair:
            raise damaged(file.path, f"{name} has no lora_{kind}", "the adapter is not whole")
        dtype, have = file.info(pair[kind])
        if have != expected:
            what = f"{pair[kind]} has shape {have}, expected {expected} by the model"
            raise damaged(file.path, what, "give its own adapter")
        values[kind] = to_float32(file.read(pair[kind]), dtype)
        if not np.isfinite(values[kind]).all():
            what = f"{pair[kind]} holds values that are not finite"
            raise damaged(file.path, what, "train the adapter again")
    b = ungroup_qkv(values["B"], _GROUPS) if QKV_NAME.fullmatch(name) else values["B"]
    product: Floats = b @ values["A"]
    return product


class AdaptedWeights(Weights):
    """A checkpoint with an adapter merged into its matrices, block by block as they are read, in float32."""

    def __init__(self, weights: Weights, adapter: Path) -> None:
        super().__init__(weights.directory, weights.config, weights.raw, weights.files)
        self._added = read_adapter(adapter, weights.config)

    def info(self, name: str) -> TensorInfo:
        """Return (dtype, shape); merged matrices are float32."""
        found = super().info(name)
        return TensorInfo("float32", found.shape) if name in self._added else found

    def rows(self, name: str, order: NDArray[np.intp] | None = None) -> Iterator[Array]:
        """Return a weight as blocks of rows, merged."""
        added = self._added.get(name)
        if added is None:
            yield from super().rows(name, order)
            return
        stored, at = super().info(name).dtype, 0
        for block in super().rows(name, order):
            rows = slice(at, at + len(block))
            yield to_float32(block, stored) + (added[rows] if order is None else added[order[rows]])
            at += len(block)


def merged_directory(directory: Path, adapter: str | Path) -> Path:
    """Return a checkpoint directory of a model with an adapter merged in: the one in the cache, else a new one.

    It takes 4 bytes a weight in cache_dir()/merged, and appears whole or not at all. Raises ValueError for a bad
    checkpoint or adapter, and for a cache that cannot be written.
    """
    adapter = Path(adapter)
    if (adapter / CONFIG_FILE).is_file():
        _scale(adapter / CONFIG_FILE, read_json(adapter / CONFIG_FILE))  # an older version may have merged it
    if NATIVE_KEY in load_config(directory)[1]:
        what = "its weights are packed, so no adapter can be merged"
        raise damaged(directory, what, "give the checkpoint it was made from")
    entry = cache_dir() / "merged" / f"{source_hash(directory, Kinds.choose())}-{_adapter_hash(adapter)}"

    def make() -> None:
        weights = AdaptedWeights(open_weights(directory), adapter)
        form = replace(own_form(weights), digests=True)
        write_entry(weights, form, entry, doing="merging an adapter into")

    return used(kept(entry, make), directory, adapter)


def _adapter_hash(adapter: Path) -> str:
    h = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHT_FILE):
        if not (adapter / name).is_file():
            raise damaged(adapter / name, "not found", _REMEDY)
        h.update((adapter / name).read_bytes())
    return h.hexdigest()[:16]
