"""Small random models with the released vocabulary, on either engine, for tests of what is around the forward pass."""

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from codegen2 import native
from codegen2.api import Model
from codegen2.config import ModelConfig
from codegen2.engine.native import NativeEngine
from codegen2.engine.protocol import Piece
from codegen2.loading import load
from codegen2.text.infill import EOM, is_control
from codegen2.text.tokenizer import Tokenizer

CONFIG = ModelConfig(n_ctx=256, n_embd=64, n_layer=2, n_head=1)


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every weight."""
    C, V = config.n_embd, config.vocab_size
    found: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (V, C)}
    for i in range(config.n_layer):
        b = f"transformer.h.{i}."
        found |= {b + "ln_1.weight": (C,), b + "ln_1.bias": (C,)}
        found |= {b + "attn.qkv_proj.weight": (3 * C, C), b + "attn.out_proj.weight": (C, C)}
        found |= {b + "mlp.fc_in.weight": (4 * C, C), b + "mlp.fc_in.bias": (4 * C,)}
        found |= {b + "mlp.fc_out.weight": (C, 4 * C), b + "mlp.fc_out.bias": (C,)}
    found |= {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}
    if not config.tie_word_embeddings:
        found["lm_head.weight"] = (V, C)
    return found | {"lm_head.bias": (V,)}


def random_weights(config: ModelConfig, seed: int = 0, spread: float = 0.3) -> dict[str, np.ndarray]:
    """Draw weights (float32) that lie wide enough apart that a model's choices look like choices."""
    return {n: w.copy() for n, w in _drawn(config, seed, spread).items()}


@functools.lru_cache(maxsize=4)  # drawing costs far more than copying
def _drawn(config: ModelConfig, seed: int, spread: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0.0, spread, s).astype(np.float32) for n, s in shapes(config).items()}


@dataclass(frozen=True)
class PackedModel:
    """Weights packed in memory, as checkpoint/native_form.py opens them from a file."""

    config: ModelConfig
    matrices: dict[str, native.Packed]
    vectors: dict[str, np.ndarray]


def pack_model(config: ModelConfig, weights: dict[str, np.ndarray], kind: str = "float32") -> PackedModel:
    """Pack all matrices as one kind."""
    matrices = {}
    for name, w in weights.items():
        if w.ndim == 2:
            tied = name == "transformer.wte.weight" and config.tie_word_embeddings
            matrices["lm_head.weight" if tied else name] = native.Packed(
                kind, *w.shape, *native.pack(kind, w)
            )
    return PackedModel(config, matrices, {n: w for n, w in weights.items() if w.ndim == 1})


def reference_engine(config: ModelConfig, weights: dict[str, np.ndarray]) -> Any:
    """Return the PyTorch engine with these weights."""
    import torch

    from codegen2.engine.reference import ReferenceEngine
    from codegen2.model import CodeGen2

    network = CodeGen2(config)
    state = {n: torch.from_numpy(w) for n, w in weights.items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    network.load_state_dict(state)
    return ReferenceEngine(network)


def random_engine(
    engine: str = "native",
    config: ModelConfig = CONFIG,
    seed: int = 0,
    spread: float = 0.3,
    kind: str = "float32",
    threads: int = 1,
) -> Any:
    """Return an engine with random weights; kind is what the native one packs them as."""
    weights = random_weights(config, seed, spread)
    if engine == "native":
        return NativeEngine(pack_model(config, weights, kind), threads=threads)
    return reference_engine(config, weights)


def logits_of(engine: Any, ids: Any) -> np.ndarray:
    """Return the logits (B, T, V) after each of ids (B, T), read as prompts."""
    rows = np.asarray(ids).tolist()
    T = len(rows[0])
    pieces = [Piece(b, 0, row, T, T) for b, row in enumerate(rows)]
    return np.stack(engine.forward(pieces, engine.new_cache(len(rows), T)))


@functools.cache
def box(engine: str = "native") -> Model:
    """Return the model in the box, loaded once for all tests; a test that changes it puts it back.

    PyTorch zeroes its cache at once; as much as by default takes seconds.
    """
    return load(engine=engine, cache_gib=1 if engine == "native" else 0.05)


def random_model(
    engine: str = "native", config: ModelConfig = CONFIG, seed: int = 0, spread: float = 0.3
) -> Model:
    """Return a model with random weights."""
    return Model(random_engine(engine, config, seed, spread), Tokenizer(), "random")


class ScriptedEngine:
    """An engine that says a given list of tokens, whatever it is asked; it shows what it was fed.

    The word before the cursor, which an answer spells again, is spelled as it was; then the script begins. What is read
    between two holes stands for as many tokens of the script.
    """

    exact_rows = one_arithmetic = True
    bytes_per_token = 1

    def __init__(self, script: list[int], config: ModelConfig = CONFIG) -> None:
        self.config, self.script = config, script
        self.rows: dict[int, list[int]] = {}
        self.begins: dict[int, int] = {}  # where in a row the script begins
        self.passes = 0

    @property
    def fed(self) -> list[int]:
        """Return what the first row has read."""
        return self.rows[0]

    def new_cache(self, n_rows, capacity):
        return None

    def copy_row(self, cache, source, target, n_tokens):
        self.rows[target] = self.rows[source][:n_tokens]

    def cancelled_by(self, cancel):
        return contextlib.nullcontext()

    def forward(self, pieces, cache):
        self.passes += 1
        return [self._forward(piece) for piece in pieces]

    def _forward(self, piece):
        row = self.rows.setdefault(piece.row, [])
        assert piece.start <= len(row) and piece.n_logits <= len(piece.tokens)
        row[piece.start :] = piece.tokens
        word = 0
        if piece.n_prompt:
            word = len(piece.tokens) - piece.n_prompt
            self.begins[piece.row] = piece.start + len(piece.tokens)
        elif (masks := [i for i, t in enumerate(piece.tokens) if is_control(t) and t > EOM]) and masks:
            word = len(piece.tokens) - 1 - masks[-1]
            self.begins[piece.row] += word
        logits = np.zeros((piece.n_logits, self.config.vocab_size), dtype=np.float32)
        for i in range(piece.n_logits):
            at = (
                piece.start + len(piece.tokens) - piece.n_logits + i + 1
            )  # of the token that these logits choose
            spelled = piece.n_logits - 1 - i if word else 0
            said = at - self.begins[piece.row]
            token = row[at] if spelled else self.script[max(0, min(said, len(self.script) - 1))]
            logits[i, token] = 50.0
        return logits
