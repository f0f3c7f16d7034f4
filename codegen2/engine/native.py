"""The native engine: the compiled forward pass behind the Engine protocol of generate.py, numpy in and out, no torch.

Not here: the arithmetic (codegen2/native/src), packed weights on disk (checkpoint/native_form.py), choosing tokens.
It equals engine/reference.py up to rounding: tests/test_native_engine.py. Letters: B rows, T tokens in this call,
S slots of a cache, C n_embd, V vocab.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import native
from ..config import ModelConfig
from ..generation.sampling import Cancel, Cancelled
from ..generation.speculate import Pace
from .system import allowed_cores

ACTIVATIONS = ("int8", "float32")
_WATCH_SECONDS = 0.005  # between two looks at a request's cancel flag


class Packed(Protocol):
    """One packed matrix (N, K); scale (Np,) for int8."""

    @property
    def kind(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def data(self) -> NDArray[np.uint8]: ...
    @property
    def scale(self) -> NDArray[np.float32] | None: ...


class PackedWeights(Protocol):
    """All weights of a model, named as in the released checkpoints; a tied model has no transformer.wte.weight."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def matrices(self) -> Mapping[str, Packed]: ...
    @property
    def vectors(self) -> Mapping[str, NDArray[np.float32]]: ...


def default_threads() -> int:
    """Count the cores this process may use: its affinity and, in a container, its share of processor time.

    CODEGEN2_THREADS in the environment decides, where it is set. Raises ValueError for one that is no number.
    """
    if given := os.environ.get("CODEGEN2_THREADS"):
        return check_threads(int(given) if given.isdecimal() else given)
    cores = allowed_cores()
    quota = _cgroup_cores()
    return max(1, min(cores, 256, math.ceil(quota) if quota else cores))


def check_threads(n: Any) -> int:
    """Return n. Raises ValueError unless it is a whole number from 1 to 256."""
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 256:
        raise ValueError(f"threads must be a whole number from 1 to 256, got {n!r}")
    return n


def _cgroup_cores() -> float | None:
    with contextlib.suppress(OSError, ValueError):
        most, each = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        return int(most) / int(each)  # "max" is no number: no limit
    with contextlib.suppress(OSError, ValueError):
        quota = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text("ascii"))
        period = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text("ascii"))
        return quota / period if quota > 0 else None
    return None


def instruction_sets() -> list[str]:
    """List the instruction sets that can be used here, best first."""
    return str(native.library().cg2_isas().decode()).split()


def choose_instruction_set(name: str | None) -> None:
    """Compute with this instruction set from now on, in all engines of the process; None is the best.

    Raises ValueError for one that this machine does not have.
    """
    name = name or instruction_sets()[0]
    if native.library().cg2_set_isa(name.encode()):
        raise ValueError(
            f"instruction set {name!r} is not here; choose one of {', '.join(instruction_sets())}"
        )


def rotary_tables(n_ctx: int, rotary_dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cos and sin (n_ctx, R/2), float32, rounded step by step as model.rotary_tables does."""
    inverse = np.float32(10000.0) ** (-np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim))
    angle = np.arange(n_ctx, dtype=np.float32)[:, None] * inverse.astype(np.float32)
    return np.cos(angle), np.sin(angle)


class NativeCache:
    """Keys and values of B rows, in 16 bits, owned by the caller. The same life as cache.KVCache.

    Row b's first pad[b] slots are left padding: they hold nothing, and its tokens lie from position 0 on.
    """

    def __init__(self, engine: NativeEngine, batch_size: int, capacity: int | None = None) -> None:
        capacity = engine.config.n_ctx if capacity is None else capacity
        if not 1 <= capacity <= engine.config.n_ctx:
            raise ValueError(
                f"cache: capacity {capacity} is outside 1..{engine.config.n_ctx}, the model's context"
            )
        self._engine = engine  # the model must outlive its caches
        self._lib = native.library()
        self.handle = self._lib.cg2_cache_new(engine.handle, batch_size, capacity)
        if not self.handle:
            raise ValueError(
                f"memory: a cache of {batch_size} x {capacity} tokens does not fit; ask for fewer or shorter rows"
            )
        self.batch_size, self.capacity, self.length = batch_size, capacity, 0
        self.pad = np.zeros(batch_size, dtype=np.int64)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._lib.cg2_cache_free(self.handle)
            self.handle = None

    def check_room(self, n_tokens: int) -> None:
        """Raise ValueError when n_tokens more would not fit."""
        if self.length + n_tokens > self.capacity:
            raise ValueError(
                f"context: {self.length} tokens cached and {n_tokens} new do not fit {self.capacity};"
                " shorten the prompt or ask for fewer new tokens"
            )

    def truncate(self, n: int) -> None:
        """Forget all but the first n slots of each row. Raises ValueError when n is not in 0..length."""
        if not 0 <= n <= self.length:
            raise ValueError(f"cache: cannot truncate to {n}, length is {self.length}")
        self.length = n

    def select_rows(self, rows: list[int]) -> NativeCache:
        """Return a cache whose row i is a copy of this one's rows[i]. Raises ValueError for rows that are not there."""
        if not all(0 <= r < self.batch_size for r in rows):
            raise ValueError(f"cache: rows {rows} are not all in 0..{self.batch_size - 1}")
        new = NativeCache(self._engine, len(rows), self.capacity)
        index = np.asarray(rows, dtype=np.int32)
        new.pad, new.length = self.pad[index], self.length
        lengths = np.maximum(self.length - new.pad, 0).astype(np.int32)
        status = self._lib.cg2_cache_copy(
            self.handle, new.handle, native.address(index), len(rows), native.address(lengths)
        )
        assert not status
        return new


class NativeEngine:
    """Run packed weights on the CPU; see generate.Engine for the meaning of each method.

    activations: "int8" (a scale a token and 32 channels) or "float32"; float weights always meet float activations.
    threads: of the process's one pool, shared by all engines; None leaves it as it is, or takes default_threads().
    """

    exact_rows = True  # extend gives bit by bit what single steps would give, up to 16 tokens a row

    _pool_set = False

    def __init__(
        self, weights: PackedWeights, *, activations: str = "int8", threads: int | None = None
    ) -> None:
        if activations not in ACTIVATIONS:
            raise ValueError(f"activations must be {' or '.join(ACTIVATIONS)}, got {activations!r}")
        self._lib = native.library()
        self.config = weights.config
        self._weights = weights  # keeps the file mapped
        if threads is not None or not NativeEngine._pool_set:
            self._lib.cg2_set_threads(default_threads() if threads is None else check_threads(threads))
            NativeEngine._pool_set = True
        self._flag = ctypes.c_int32(0)
        self._lock = threading.Lock()  # the model has one set of buffers
        self.pace = Pace()  # what passes of several rows cost here
        self.handle = self._new_model(weights, activations)

    def _new_model(self, weights: PackedWeights, activations: str) -> int:
        config = self.config
        blocks = [f"transformer.h.{i}." for i in range(config.n_layer)]
        names = ["transformer.wte.weight", "lm_head.weight"]
        for b in blocks:
            names += [
                b + f"{part}.weight" for part in ("attn.qkv_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out")
            ]
        table = (native.Matrix * len(names))()
        for entry, name in zip(table, names, strict=True):
            m = weights.matrices.get(name)
            if m is not None:
                scale = None if m.scale is None else m.scale.ctypes.data
                kind = native.KINDS.index(m.kind)
                entry.data, entry.scale, entry.kind, entry.n, entry.k = (
                    m.data.ctypes.data,
                    scale,
                    kind,
                    m.n,
                    m.k,
                )
        cos, sin = rotary_tables(config.n_ctx, config.rotary_dim)
        v = weights.vectors
        arrays = [cos, sin, v["transformer.ln_f.weight"], v["transformer.ln_f.bias"], v["lm_head.bias"]]
        for b in blocks:
            arrays += [
                v[b + "ln_1.weight"],
                v[b + "ln_1.bias"],
                v[b + "mlp.fc_in.bias"],
                v[b + "mlp.fc_out.bias"],
            ]
        arrays = [np.ascontiguousarray(a, dtype=np.float32) for a in arrays]
        vectors = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        shape = native.Shape(
            config.vocab_size, config.n_ctx, config.n_embd, config.n_layer, config.n_head, config.rotary_dim,
            config.layer_norm_epsilon, int(activations == "float32"),
        )  # fmt: skip
        error = ctypes.create_string_buffer(200)
        handle = self._lib.cg2_model_new(ctypes.byref(shape), table, vectors, error, len(error))
        if not handle:
            raise ValueError(
                f"native engine: {error.value.decode()} (n_embd {config.n_embd}, n_head {config.n_head});"
                " choose the reference engine"
            )
        return int(handle)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._lib.cg2_model_free(self.handle)
            self.handle = 0

    # ---- cancelling

    @contextlib.contextmanager
    def cancelled_by(self, cancel: Cancel | None) -> Iterator[None]:
        """Watch `cancel` while the block runs: a call in progress then raises Cancelled within a piece of work."""
        if cancel is None:
            yield
            return
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_WATCH_SECONDS):
                if cancel.is_set():
                    self._flag.value = 1
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self._flag.value = 0

    # ---- the Engine protocol

    def new_cache(self, batch_size: int, capacity: int) -> NativeCache:
        """Return an empty cache for B rows of at most `capacity` tokens."""
        return NativeCache(self, batch_size, capacity)

    def prefill(self, ids: np.ndarray, cache: NativeCache, pad: np.ndarray | None = None) -> np.ndarray:
        """Take in ids (B, T) behind the cached tokens and return the last position's logits (B, V), float32.

        pad (B,), with the first call only: how many of each row's first slots are left padding.
        """
        if pad is not None:
            cache.pad = np.asarray(pad, dtype=np.int64)
        B, T = ids.shape
        return self._extend(ids, cache, np.arange(B) * T + T - 1)

    def decode_step(self, ids: np.ndarray, cache: NativeCache) -> np.ndarray:
        """Take in one more token a row, ids (B,), and return logits (B, V), float32."""
        return self.prefill(ids[:, None], cache)

    def extend(self, ids: np.ndarray, cache: NativeCache) -> np.ndarray:
        """Take in ids (B, T) and return the logits after each of them, (B, T, V), float32.

        A row's logits are bitwise those that T single steps would give; on AMX this holds up to 16 tokens.
        """
        B, T = ids.shape
        return self._extend(ids, cache, np.arange(B * T)).reshape(B, T, -1)

    def extend_rows(
        self, work: Sequence[tuple[int, int, Sequence[int], int]], cache: NativeCache
    ) -> list[np.ndarray]:
        """Take in tokens of several rows in one pass, each row as long as it is: (row, slot, ids, wanted) a piece.

        A row occurs once; slot is where its first id goes. Returns each piece's logits after its last `wanted` ids,
        (wanted, V), bitwise those that it would get alone. The caller keeps the rows' lengths, not cache.length.
        """
        ids: list[int] = []
        rows: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for row, slot, tokens, n_wanted in work:
            ids += tokens
            rows += [row] * len(tokens)
            positions += range(slot, slot + len(tokens))
            wanted += range(len(ids) - n_wanted, len(ids))
        logits = np.empty((len(wanted), self.config.vocab_size), np.float32)
        flat, of, at, last = (np.array(x, dtype=np.int32) for x in (ids, rows, positions, wanted))
        self._run(cache, flat, of, at, last, logits, None)
        ends = np.cumsum([n for *_, n in work])
        return np.split(logits, ends[:-1])

    def copy_row(self, cache: NativeCache, source: int, target: int, n_tokens: int) -> None:
        """Copy the first n_tokens of one row of a cache over those of another."""
        rows = np.arange(target + 1, dtype=np.int32)
        lengths = np.zeros(target + 1, dtype=np.int32)
        rows[target], lengths[target] = source, n_tokens
        status = self._lib.cg2_cache_copy(
            cache.handle, cache.handle, native.address(rows), target + 1, native.address(lengths)
        )
        assert not status

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Return float32 logits at all positions, (B, T, V), of ids (B, T)."""
        return self.extend(ids, self.new_cache(ids.shape[0], ids.shape[1]))

    def hidden(self, ids: np.ndarray) -> np.ndarray:
        """Return the last hidden states (B, T, C), float32, of ids (B, T)."""
        B, T = ids.shape
        self._check_context(T)
        out = np.empty((B, T, self.config.n_embd), np.float32)
        self._forward(ids, self.new_cache(B, T), np.empty(0, np.int64), None, out)
        return out

    def token_logprobs(self, ids: np.ndarray) -> np.ndarray:
        """Return log p (nats, float32) of ids[:, 1:] each given what stands before it: (B, T - 1) of ids (B, T)."""
        B, T = ids.shape
        if T < 2:
            return np.empty((B, 0), np.float32)
        hidden = np.ascontiguousarray(self.hidden(ids[:, :-1]).reshape(B * (T - 1), -1))
        targets = np.ascontiguousarray(ids[:, 1:].reshape(-1), dtype=np.int32)
        out = np.empty(len(targets), np.float32)
        with self._lock:
            status = self._lib.cg2_logprobs(
                self.handle, native.address(hidden), native.address(targets), len(targets), native.address(out),
                ctypes.byref(self._flag),
            )  # fmt: skip
        self._check(status, ids)
        return out.reshape(B, T - 1)

    # ---- helpers

    def _check_context(self, n_tokens: int) -> None:
        if n_tokens > self.config.n_ctx:
            raise ValueError(f"context: {n_tokens} tokens do not fit {self.config.n_ctx}; shorten the prompt")

    def _extend(self, ids: np.ndarray, cache: NativeCache, wanted: np.ndarray) -> np.ndarray:
        cache.check_room(ids.shape[1])
        self._check_context(cache.length + ids.shape[1])
        logits = np.zeros((len(wanted), self.config.vocab_size), np.float32)
        self._forward(ids, cache, wanted, logits, None)
        cache.length += ids.shape[1]
        return logits

    def _forward(
        self,
        ids: np.ndarray,
        cache: NativeCache,
        wanted: np.ndarray,
        logits: np.ndarray | None,
        hidden: np.ndarray | None,
    ) -> None:
        """Run tokens that are no padding, row by row; wanted are indices into ids.ravel(), none of them padding."""
        B, T = ids.shape
        self._check_context(T)
        slots = np.arange(cache.length, cache.length + T)
        positions = slots - cache.pad[:, None]  # (B, T)
        real = (positions >= 0).ravel()
        if not real.all():
            number = np.cumsum(real) - 1
            if not real[wanted].all() or hidden is not None:
                raise ValueError("a row of padding alone has no last token; give each row at least one token")
            wanted = number[wanted]
        flat = np.ascontiguousarray(ids.ravel()[real], dtype=np.int32)
        rows = np.ascontiguousarray(np.repeat(np.arange(B), T)[real], dtype=np.int32)
        at = np.ascontiguousarray(positions.ravel()[real], dtype=np.int32)
        wanted = np.ascontiguousarray(wanted, dtype=np.int32)
        self._run(cache, flat, rows, at, wanted, logits, hidden)

    def _run(
        self,
        cache: NativeCache,
        ids: np.ndarray,
        rows: np.ndarray,
        positions: np.ndarray,
        wanted: np.ndarray,
        logits: np.ndarray | None,
        hidden: np.ndarray | None,
    ) -> None:
        """Call the library; all arrays of indices are int32 and one after the other in memory."""
        with self._lock:
            status = self._lib.cg2_forward(
                self.handle, cache.handle, len(ids), native.address(ids), native.address(rows),
                native.address(positions), len(wanted) if logits is not None else 0, native.address(wanted),
                native.address(logits), native.address(hidden), ctypes.byref(self._flag),
            )  # fmt: skip
        self._check(status, ids)

    def _check(self, status: int, ids: np.ndarray) -> None:
        if status == 1:
            raise Cancelled
        if status == 3:
            raise ValueError("memory: there is not enough for this many tokens at once; give fewer rows")
        if status:
            worst = int(ids.max()) if ids.size and ids.max() >= self.config.vocab_size else int(ids.min())
            raise ValueError(
                f"prompt: token id {worst} is outside this model's vocabulary 0..{self.config.vocab_size - 1}"
            )
