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
from .old import OldCache, OldMethods
from .protocol import Cancel, Cancelled, Piece, check_capacity, check_pieces
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


class NativeCache(OldCache):
    """Keys and values of n_rows rows of at most `capacity` tokens, in 16 bits; see protocol.Cache."""

    def __init__(self, engine: NativeEngine, n_rows: int, capacity: int) -> None:
        self.n_rows, self.capacity = n_rows, check_capacity(capacity, engine.config)
        self._lib = native.library()
        self.handle = self._lib.cg2_cache_new(engine.handle, n_rows, capacity)
        if not self.handle:
            raise ValueError(
                f"memory: a cache of {n_rows} x {capacity} tokens does not fit; ask for fewer or shorter rows"
            )
        self.begin(engine)  # the model must outlive its caches

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._lib.cg2_cache_free(self.handle)
            self.handle = None


def _part(piece: Piece, begin: int, end: int) -> Piece:
    """Return the piece of a piece's tokens begin..end.

    >>> _part(Piece(0, 5, [1, 2, 3, 4], 2, 3), 0, 3)
    Piece(row=0, start=5, tokens=[1, 2, 3], n_logits=1, n_prompt=3)
    """
    row, start, tokens, n_logits, n_prompt = piece
    wanted = max(0, min(end - begin, n_logits - (len(tokens) - end)))
    return Piece(row, start + begin, tokens[begin:end], wanted, max(0, min(n_prompt, end) - begin))


class NativeEngine(OldMethods):
    """Run packed weights on the CPU; see protocol.Engine for the meaning of each method.

    activations: "int8" (a scale a token and 32 channels) or "float32"; float weights always meet float activations.
    threads: of the process's one pool, shared by all engines; None leaves it as it is, or takes default_threads().
    """

    exact_rows = True

    _pool_set = False

    def __init__(
        self, weights: PackedWeights, *, activations: str = "int8", threads: int | None = None
    ) -> None:
        if activations not in ACTIVATIONS:
            raise ValueError(f"activations must be {' or '.join(ACTIVATIONS)}, got {activations!r}")
        self._lib = native.library()
        self.config = weights.config
        self.bytes_per_token = 2 * self.config.n_layer * self.config.n_embd * 2  # keys and values of 16 bits
        self._weights = weights  # keeps the file mapped
        if threads is not None or not NativeEngine._pool_set:
            self._lib.cg2_set_threads(default_threads() if threads is None else check_threads(threads))
            NativeEngine._pool_set = True
        self._flag = ctypes.c_int32(0)
        self._lock = threading.Lock()  # the model has one set of buffers
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

    @property
    def one_arithmetic(self) -> bool:
        """Whether decode steps compute as a prompt is computed: everywhere but on matrix tiles."""
        return bool(self._lib.cg2_one_arithmetic(self.handle))

    def new_cache(self, n_rows: int, capacity: int) -> NativeCache:
        """Return an empty cache for n_rows rows of at most `capacity` tokens. Raises ValueError if memory lacks."""
        return NativeCache(self, n_rows, capacity)

    def forward(self, pieces: Sequence[Piece], cache: NativeCache) -> list[np.ndarray]:
        """Read the pieces, each row at most once, and return each one's logits (n_logits, V), float32.

        A token's logits are bitwise those that it would get alone, or with others of its row before it. On matrix tiles
        prompts are one pass and decode steps another: Piece(0, 5, [a, b, c, d], 2, 3) reads a b c, then d.
        """
        check_pieces(pieces, cache, self.config)
        if self.one_arithmetic:
            return self._read(pieces, cache, prompt=True)
        parts: dict[int, list[np.ndarray]] = {p.row: [] for p in pieces}
        prompts = [_part(p, 0, p.n_prompt) for p in pieces if p.n_prompt]
        steps = [_part(p, p.n_prompt, len(p.tokens)) for p in pieces if p.n_prompt < len(p.tokens)]
        for some, prompt in ((prompts, True), (steps, False)):
            for p, logits in zip(some, self._read(some, cache, prompt), strict=True):
                parts[p.row].append(logits)
        return [np.concatenate(parts[p.row]) for p in pieces]

    def copy_row(self, cache: NativeCache, source: int, target: int, n_tokens: int) -> None:
        """Copy the keys and values of a row's first n_tokens tokens over those of another row."""
        rows = np.arange(target + 1, dtype=np.int32)
        lengths = np.zeros(target + 1, dtype=np.int32)
        rows[target], lengths[target] = source, n_tokens
        status = self._lib.cg2_cache_copy(
            cache.handle, cache.handle, native.address(rows), target + 1, native.address(lengths)
        )
        assert not status

    def hidden(self, ids: np.ndarray) -> np.ndarray:
        """Return the last hidden states (B, T, C), float32, of ids (B, T)."""
        B, T = ids.shape
        if self.config.n_ctx < T:
            raise ValueError(f"context: {T} tokens do not fit {self.config.n_ctx}; shorten the prompt")
        out = np.empty((B, T, self.config.n_embd), np.float32)
        pieces = [Piece(b, 0, row, 0, T) for b, row in enumerate(ids.tolist())]
        cache = self.new_cache(B, T)
        check_pieces(pieces, cache, self.config)
        self._run(pieces, cache, True, None, out)
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
        self._check(status, targets)
        return out.reshape(B, T - 1)

    # ---- helpers

    def _read(self, pieces: Sequence[Piece], cache: NativeCache, prompt: bool) -> list[np.ndarray]:
        """Return each piece's logits (n_logits, V), all of them read as a prompt or as decode steps."""
        if not pieces:
            return []
        wanted = [p.n_logits for p in pieces]
        logits = np.empty((sum(wanted), self.config.vocab_size), np.float32)
        self._run(pieces, cache, prompt, logits, None)
        return np.split(logits, np.cumsum(wanted)[:-1])

    def _run(
        self,
        pieces: Sequence[Piece],
        cache: NativeCache,
        prompt: bool,
        logits: np.ndarray | None,
        hidden: np.ndarray | None,
    ) -> None:
        """Write the logits of all pieces, one after the other, or the hidden states of all tokens."""
        ids: list[int] = []
        rows: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for row, start, tokens, n_logits, _ in pieces:
            ids += tokens
            rows += [row] * len(tokens)
            positions += range(start, start + len(tokens))
            wanted += range(len(ids) - n_logits, len(ids))
        flat, of, at, last = (np.array(x, dtype=np.int32) for x in (ids, rows, positions, wanted))
        with self._lock:
            status = self._lib.cg2_forward(
                self.handle, cache.handle, len(flat), native.address(flat), native.address(of),
                native.address(at), int(prompt), len(last), native.address(last), native.address(logits),
                native.address(hidden), ctypes.byref(self._flag),
            )  # fmt: skip
        self._check(status, flat)

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

    # ---- what the old loops call

    def copy_rows(
        self, source: NativeCache, target: NativeCache, rows: list[int], lengths: np.ndarray
    ) -> None:
        """Make row i of target the first lengths[i] tokens of rows[i] of source."""
        index, n = np.asarray(rows, dtype=np.int32), np.asarray(lengths, dtype=np.int32)
        status = self._lib.cg2_cache_copy(
            source.handle, target.handle, native.address(index), len(rows), native.address(n)
        )
        assert not status

    def extend_rows(
        self, work: Sequence[tuple[int, int, Sequence[int], int]], cache: NativeCache
    ) -> list[np.ndarray]:
        """Take in (row, start, tokens, n_logits) a piece, as forward does."""
        return self.forward([Piece(*w, len(w[2]) if len(w[2]) > 16 else 0) for w in work], cache)
