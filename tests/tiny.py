"""Small random models with the released vocabulary, for tests of everything around the forward pass."""

import torch

from codegen2.api import Model
from codegen2.config import ModelConfig
from codegen2.engine.reference import ReferenceEngine
from codegen2.model import CodeGen2
from codegen2.tokenizer import Tokenizer

CONFIG = ModelConfig(n_ctx=256, n_embd=64, n_layer=2, n_head=1)


def random_model(config: ModelConfig = CONFIG, seed: int = 0, spread: float = 0.3) -> Model:
    """Give a model whose weights are wide enough apart that its choices look like choices."""
    network = CodeGen2(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(0.0, spread, generator=generator)
    return Model(ReferenceEngine(network), Tokenizer(), "random")


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
        import numpy as np

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
