"""write_directory: a checkpoint's files as a new directory, whole or not at all; and what our own form has in them.

Not here: the forms that others read (convert.py), and the packed one (native/pack.py).
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import EOT, ModelConfig
from ..files.paths import part_of, sync_folder
from ..text.tokenizer import Tokenizer
from .digests import write_digests
from .formats.int8 import int8_entries
from .formats.safetensors import Entry, split_shards, total_bytes, write_safetensors
from .formats.tensors import Array, TensorInfo
from .layout import PROMPT_KEYS, QKV_NAME, as_stored, qkv_row_order
from .reader import TOKENIZER_FILE, WEIGHT_FILES
from .room import check_disk
from .weights import Weights

MAX_SHARD_BYTES = 5_000_000_000  # as on the hub: a broken download costs one shard, not the model
SMALL_FILES_BYTES = 8_000_000  # tokenizer.json and the configs

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Form:
    """What a directory is to hold: its tensors, and small files by name, config.json among them."""

    entries: list[Entry]
    files: dict[str, bytes]
    max_shard_bytes: int = MAX_SHARD_BYTES
    metadata: dict[str, str] | None = None
    align: int = 8
    digests: bool = False  # digests.json, too


def write_directory(
    form: Form, destination: Path, remedy: str, progress: Progress = lambda done, total: None
) -> None:
    """Write a form as a new directory, whole or not at all; an older one there is replaced.

    progress is called with the bytes written and their total after each block. Raises ValueError with the remedy where
    the disk has no room, and OSError.
    """
    size = total_bytes(form.entries)
    check_disk(destination, size + SMALL_FILES_BYTES, f"writing {destination}", remedy)
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(destination)
    part.mkdir()
    try:
        _write_weights(part, form, progress)
        for name, content in form.files.items():
            (part / name).write_bytes(content)
        if form.digests:
            write_digests(part)
        for path in part.iterdir():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
        sync_folder(part)
        _swap(part, destination)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def own_form(weights: Weights, dtype: str | None = None, max_shard_bytes: int = MAX_SHARD_BYTES) -> Form:
    """Return our normal form of a checkpoint, its weights in dtype; None keeps what is stored.

    int8: rows with a scale each, as the box is kept; they are in memory at once, a byte a weight.
    """
    if dtype == "int8":
        rows = [
            e for name in weights.names() for e in int8_entries(name, as_stored(name, weights.finite(name)))
        ]
        return Form(rows, own_files(weights, dtype), max_shard_bytes)
    entries = [own_entry(weights, name, dtype, groups=1) for name in weights.names()]
    return Form(entries, own_files(weights, entries[0].info.dtype), max_shard_bytes)


def own_files(weights: Weights, dtype: str, more: dict[str, Any] | None = None) -> dict[str, bytes]:
    """Return config.json, with `more` in it, and tokenizer.json where the source has its own, for our forms."""
    advice = {key: weights.raw[key] for key in PROMPT_KEYS if key in weights.raw}
    files = {"config.json": json_bytes(own_config(weights.config, dtype) | (more or {}) | advice)}
    return files | own_tokenizer(weights)


def own_entry(weights: Weights, name: str, dtype: str | None, groups: int) -> Entry:
    """Return the entry of a weight under its own name, QKV rows in so many groups of Q, V, K."""
    if not QKV_NAME.fullmatch(name):
        return entry(weights, name, name, dtype)
    return entry(weights, name, name, dtype, np.argsort(qkv_row_order(weights.config.n_embd, groups)))


def entry(
    weights: Weights, source: str, name: str, dtype: str | None, order: NDArray[np.intp] | None = None
) -> Entry:
    """Return the entry `name` that holds the weight `source`, in dtype and with its rows in the order given."""
    stored, shape = weights.info(source)
    dtype = dtype or stored
    rows = shape[0] if order is None else len(order)
    blocks: Callable[[], Iterator[Array]] = functools.partial(weights.converted, source, dtype, order)
    return Entry(name, TensorInfo(dtype, (rows, *shape[1:])), blocks)


def own_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Return config.json's content in our form."""
    # A toy vocabulary has no such ids.
    lacks = {"bos_token_id": None, "eos_token_id": None} if config.vocab_size <= EOT else {}
    return config.to_dict() | {"torch_dtype": dtype, "mp_num": 1} | lacks


def own_tokenizer(weights: Weights) -> dict[str, bytes]:
    """Return a checkpoint's own tokenizer.json by its name, if it has one. Raises ValueError when it does not fit."""
    path = weights.directory / TOKENIZER_FILE
    if not path.is_file():
        return {}
    size, rows = Tokenizer.from_file(path).vocab_size, weights.config.vocab_size
    if size > rows:
        raise ValueError(
            f"{path}: has ids up to {size - 1}, the model {rows} rows; use the one it was trained with"
        )
    return {TOKENIZER_FILE: path.read_bytes()}


def json_bytes(content: dict[str, Any]) -> bytes:
    """Return the content of a small JSON file, its keys sorted."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _write_weights(directory: Path, form: Form, progress: Progress) -> None:
    shards = list(split_shards(form.entries, form.max_shard_bytes))
    done, total = 0, total_bytes(form.entries)

    def wrote(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(done, total)

    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else WEIGHT_FILES[0]
        write_safetensors(directory / file, shard, form.metadata, form.align, wrote)
        weight_map |= {entry.name: file for entry in shard}
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / WEIGHT_FILES[1]).write_bytes(json_bytes(index))


def _swap(part: Path, destination: Path) -> None:
    """Put the finished directory in its place; an old one is moved aside first and removed last."""
    if not destination.exists():
        os.rename(part, destination)
    else:
        old = part.with_suffix(".old")
        os.rename(destination, old)
        try:
            os.rename(part, destination)
        except BaseException:
            os.rename(old, destination)
            raise
        shutil.rmtree(old)
    sync_folder(destination.parent)
