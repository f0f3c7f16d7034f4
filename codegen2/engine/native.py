"""The native engine: the compiled forward pass behind protocol.Engine, numpy in and out, no torch.

Not here: the arithmetic (native/src), packed weights on disk (checkpoint/native/form.py), choosing tokens. It equals
engine/reference.py up to rounding: tests/engine/test_native_engine.py. Letters as in protocol.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .. import native
from ..config import ModelConfig
from .protocol import Cancel, Cancelled, Piece, check_pieces
from .system import check_threads, default_threads

ACTIVATIONS = ("int8", "float32")
Out = NDArray[np.float32] | None
_WATCH_SECONDS = 0.005  # between two looks at a request's cancel flag


class PackedWeights(Protocol):
    """All weights of a model, named as in the released checkpoints; a tied model has no transformer.wte.weight."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def matrices(self) -> Mapping[str, native.Packed]: ...
    @property
    def vectors(self) -> Mapping[str, NDArray[np.float32]]: ...


def rotary_tables(n_ctx: int, rotary_dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cos and sin (n_ctx, R/2), float32, rounded step by step as model.rotary_tables does."""
    inverse = np.float32(10000.0) ** (-np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim))
    angle = np.arange(n_ctx, dtype=np.float32)[:, None] * inverse.astype(np.float32)
    return np.cos(angle), np.sin(angle)


class NativeCache:
    """Keys and values of n_rows rows of at most `capacity` tokens, in 16 bits; see protocol.Cache."""

    def __init__(self, engine: NativeEngine, n_rows: int, capacity: int) -> None:
        n_ctx = engine.config.n_ctx
        if not 1 <= capacity <= n_ctx:
            raise ValueError(f"cache: capacity {capacity} is outside 1..{n_ctx}, the model's context")
        self.n_rows, self.capacity = n_rows, capacity
        self._engine = engine  # the model must outlive its caches
        self._lib = native.library()
        self.handle = self._lib.cg2_cache_new(engine.handle, n_rows, capacity)
        if not self.handle:
            raise ValueError(
                f"memory: a cache of {n_rows} x {capacity} tokens does not fit; ask for fewer or shorter rows"
            )

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


class NativeEngine:
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
        wide = weights.matrices["transformer.h.0.attn.qkv_proj.weight"].kind == "float32"  # else float16
        self.bytes_per_token = 2 * self.config.n_layer * self.config.n_embd * (4 if wide else 2)
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
            names += [f"{b}{p}.weight" for p in ("attn.qkv_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out")]
        table = (native.Matrix * len(names))()
        for i, m in enumerate(weights.matrices.get(name) for name in names):
            if m is not None:
                scale = None if m.scale is None else m.scale.ctypes.data
                table[i] = native.Matrix(m.data.ctypes.data, scale, native.KINDS.index(m.kind), m.n, m.k)
        cos, sin = rotary_tables(config.n_ctx, config.rotary_dim)
        v = weights.vectors
        arrays = [cos, sin, v["transformer.ln_f.weight"], v["transformer.ln_f.bias"], v["lm_head.bias"]]
        for b in blocks:
            arrays += [v[b + p] for p in ("ln_1.weight", "ln_1.bias", "mlp.fc_in.bias", "mlp.fc_out.bias")]
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
    def cancelled_by(self, cancel: Cancel) -> Iterator[None]:
        """Watch `cancel` inside the block: a call in progress then raises Cancelled within a piece of work."""
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
        rows, lengths = np.arange(target + 1, dtype=np.int32), np.zeros(target + 1, dtype=np.int32)
        rows[target], lengths[target] = source, n_tokens
        status = self._lib.cg2_cache_copy(
            cache.handle, cache.handle, native.address(rows), target + 1, native.address(lengths)
        )
        assert not status

    def hidden(self, ids: np.ndarray, cache: NativeCache | None = None, start: int = 0) -> np.ndarray:
        """Return the last hidden states (B, T, C), float32, of ids (B, T) behind `start` tokens of cache."""
        B, T = ids.shape
        if self.config.n_ctx < T:
            raise ValueError(f"context: {T} tokens do not fit {self.config.n_ctx}; shorten the prompt")
        pieces = [Piece(b, start, row, 0, T) for b, row in enumerate(ids.tolist())]
        check_pieces(pieces, cache := cache or self.new_cache(B, T), self.config)
        self._run(pieces, cache, True, hidden=(out := np.empty((B, T, self.config.n_embd), np.float32)))
        return out

    def token_logprobs(self, ids: np.ndarray, cache: NativeCache | None = None, start: int = 0) -> np.ndarray:
        """Return log p (nats, float32) of ids[:, 1:] each given all before it, cache too: (B, T - 1)."""
        B, T = ids.shape
        if T < 2:
            return np.empty((B, 0), np.float32)
        hidden = self.hidden(ids[:, :-1], cache, start).reshape(B * (T - 1), -1)
        targets = np.ascontiguousarray(ids[:, 1:].reshape(-1), dtype=np.int32)
        out = np.empty(len(targets), np.float32)
        with self._lock:
            status = self._lib.cg2_logprobs(
                self.handle, native.address(hidden), native.address(targets), len(targets), native.address(out),
                ctypes.byref(self._flag),
            )  # fmt: skip
        _raise(status)
        return out.reshape(B, T - 1)

    # ---- helpers

    def _read(self, pieces: Sequence[Piece], cache: NativeCache, prompt: bool) -> list[np.ndarray]:
        """Return each piece's logits (n_logits, V), all of them read as a prompt or as decode steps."""
        wanted = [p.n_logits for p in pieces]
        logits = np.empty((sum(wanted), self.config.vocab_size), np.float32)
        self._run(pieces, cache, prompt, logits=logits)
        return np.split(logits, np.cumsum(wanted)[:-1]) if pieces else []

    def _run(
        self,
        pieces: Sequence[Piece],
        cache: NativeCache,
        prompt: bool,
        *,
        logits: Out = None,
        hidden: Out = None,
    ) -> None:
        """Write the logits that the pieces ask for, one after the other, or the hidden states of all tokens."""
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
        _raise(status)


def _raise(status: int) -> None:
    """Raise what the library's answer stands for; ids and positions are checked before."""
    if status == 1:
        raise Cancelled
    if status == 3:
        raise ValueError("memory: there is not enough for this many tokens at once; give fewer rows")
    assert not status, status
