"""Small random models with the released vocabulary, on either engine, for tests of what is around the forward pass."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from codegen2 import native
from codegen2.api import Model
from codegen2.config import ModelConfig
from codegen2.engine.native import NativeEngine
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
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0.0, spread, s).astype(np.float32) for n, s in shapes(config).items()}


@dataclass(frozen=True)
class Packed:
    """One packed matrix (N, K)."""

    kind: str
    n: int
    k: int
    data: np.ndarray
    scale: np.ndarray | None


@dataclass(frozen=True)
class PackedModel:
    """Weights packed in memory, as checkpoint/native_form.py opens them from a file."""

    config: ModelConfig
    matrices: dict[str, Packed]
    vectors: dict[str, np.ndarray]


def pack_model(config: ModelConfig, weights: dict[str, np.ndarray], kind: str = "float32") -> PackedModel:
    """Pack all matrices as one kind."""
    matrices = {}
    for name, w in weights.items():
        if w.ndim == 2:
            tied = name == "transformer.wte.weight" and config.tie_word_embeddings
            matrices["lm_head.weight" if tied else name] = Packed(kind, *w.shape, *native.pack(kind, w))
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
) -> Any:
    """Return an engine with random weights; kind is what the native one packs them as."""
    weights = random_weights(config, seed, spread)
    if engine == "native":
        return NativeEngine(pack_model(config, weights, kind), threads=2)
    return reference_engine(config, weights)


def random_model(
    engine: str = "native", config: ModelConfig = CONFIG, seed: int = 0, spread: float = 0.3
) -> Model:
    """Return a model with random weights."""
    return Model(random_engine(engine, config, seed, spread), Tokenizer(), "random")


class ScriptedEngine:
    """An engine that says a given list of tokens, whatever it is asked; it shows what it was fed."""

    def __init__(self, script: list[int], config: ModelConfig = CONFIG) -> None:
        self.config = config
        self.script = script
        self.fed: list[int] = []
        self.prompt_length = 0

    class Cache:
        def __init__(self) -> None:
            self.length = 0

        def truncate(self, n):
            self.length = n

        def select_rows(self, rows):
            return self

    def new_cache(self, batch_size, capacity):
        return self.Cache()

    def _logits(self, rows):
        logits = np.zeros((rows, self.config.vocab_size), dtype=np.float32)
        said = len(self.fed) - self.prompt_length
        logits[:, self.script[min(said, len(self.script) - 1)]] = 50.0
        return logits

    def prefill(self, ids, cache, pad=None):
        cache.length += ids.shape[1]
        self.fed += ids[0].tolist()
        self.prompt_length = len(self.fed)
        return self._logits(len(ids))

    def decode_step(self, ids, cache):
        cache.length += 1
        self.fed.append(int(ids[0]))
        return self._logits(len(ids))

    def extend(self, ids, cache):
        return self.decode_step(ids[:, 0], cache)[:, None]
