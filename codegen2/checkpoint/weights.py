"""Weights: a checkpoint's tensors in our layout, one at a time or a block of rows at a time. Free of torch.

What the engines and the converter read; the files' own order (reader.py, layout.py) does not show through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from .formats.tensors import Array, TensorFile, TensorInfo, damaged, from_float32, row_blocks, to_float32
from .layout import (
    NATIVE_KEY,
    QKV_NAME,
    check_tensors,
    expected_tensors,
    load_config,
    qkv_groups,
    qkv_row_order,
)
from .reader import open_checkpoint


class Weights:
    """A checked checkpoint: every weight of the config is there, in its shape, and nothing else."""

    def __init__(
        self, directory: Path, config: ModelConfig, raw: dict[str, Any], files: Mapping[str, TensorFile]
    ) -> None:
        self.directory, self.config, self.files = directory, config, files
        self.raw = raw  # config.json as it stands
        self.groups = qkv_groups(raw)
        check_tensors(config, directory, files)

    def names(self) -> list[str]:
        """List the weights in the order of the forward pass."""
        return list(expected_tensors(self.config))

    def info(self, name: str) -> TensorInfo:
        """Return (dtype, shape) of a weight as stored."""
        return self.files[name].info(name)

    def stored(self, name: str) -> Array:
        """Return a weight as a read-only view into its mapped file, its rows as they stand there."""
        return self.files[name].read(name)

    def rows(self, name: str, order: NDArray[np.intp] | None = None) -> Iterator[Array]:
        """Return a weight in its stored dtype as blocks of rows of about 16 MiB, QKV as Q, K, V.

        order asks for our rows in another order (for qkv_proj.weight in other groups).
        """
        stored = self.stored(name)
        if QKV_NAME.fullmatch(name):
            ours = qkv_row_order(self.config.n_embd, self.groups)
            order = ours if order is None else ours[order]
        if order is None:
            return row_blocks(stored)
        return (stored[block] for block in row_blocks(order, stored[0].nbytes))

    def converted(self, name: str, dtype: str, order: NDArray[np.intp] | None = None) -> Iterator[Array]:
        """Return a weight's blocks of rows in another dtype. Raises ValueError that names file and weight."""
        stored = self.info(name).dtype
        for block in self.rows(name, order):
            try:
                yield block if stored == dtype else from_float32(to_float32(block, stored), dtype)
            except ValueError as e:
                raise ValueError(f"{self.files[name].path}: {name}: {e}") from e

    def fill(self, name: str, out: Array, dtype: str = "float32") -> None:
        """Write a weight's values into `out`, of its shape and of dtype (bfloat16: uint16 patterns)."""
        at = 0
        for block in self.converted(name, dtype):
            out[at : at + len(block)] = block
            at += len(block)

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a weight as a new float32 array in our layout."""
        out = np.empty(self.info(name).shape, np.float32)
        self.fill(name, out)
        return out

    def finite(self, name: str) -> NDArray[np.float32]:
        """Return a weight as `read` does. Raises ValueError for values that are no finite numbers."""
        values = self.read(name)
        if not np.isfinite(values).all():
            what = f"{name}: holds values that are not finite numbers"
            raise damaged(self.files[name].path, what, "the checkpoint is damaged")
        return values


def open_weights(directory: str | Path) -> Weights:
    """Open a checkpoint's directory and check config, headers, names and shapes; read no weight yet.

    Raises ValueError that names file, tensor, expectation and remedy.
    """
    config, raw = load_config(directory)
    if NATIVE_KEY in raw:
        what = (
            "is a native directory made by convert --to native, its weights packed for the native engine only"
        )
        raise damaged(directory, what, "give the checkpoint that it was made from")
    return Weights(Path(directory), config, raw, open_checkpoint(directory))
