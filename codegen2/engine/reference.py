"""The reference engine: the PyTorch model behind the Engine protocol of generate.py, numpy in and out.

Not here: choosing tokens, or text. Letters: B rows, T tokens in this call, C n_embd, V vocab.
"""

from __future__ import annotations

import numpy as np
import torch

from ..cache import KVCache
from ..config import ModelConfig
from ..model import CodeGen2
from .native import check_threads

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ROWS_OF_LOGITS = 256  # at 51,200 columns of float32: 52 MB


def dtype_of(name: str) -> torch.dtype:
    """Return the torch dtype of a name. Raises ValueError naming the possible ones."""
    if name not in _DTYPES:
        raise ValueError(
            f"dtype {name!r} is unknown to the reference engine; choose one of {', '.join(_DTYPES)}"
        )
    return _DTYPES[name]


def set_threads(n: int) -> None:
    """Let PyTorch use n threads of the CPU. Raises ValueError for a number it cannot take."""
    torch.set_num_threads(check_threads(n))


def check_device(name: str) -> torch.device:
    """Return the torch device of a name. Raises ValueError when it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown; choose cpu, cuda or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        found = ", ".join(d for d, is_there in there.items() if is_there)
        raise ValueError(f"device {name!r} is not available here; choose one of {found}")
    return device


class ReferenceEngine:
    """Run model.py on a device; see generate.Engine for the meaning of each method."""

    def __init__(self, model: CodeGen2, device: str = "cpu") -> None:
        self.config: ModelConfig = model.config
        self.device = check_device(device)
        self.model = model.to(self.device).eval()
        self.dtype = next(model.parameters()).dtype

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Return an empty cache for B rows of at most `capacity` tokens."""
        return KVCache(self.config, batch_size, capacity, device=self.device, dtype=self.dtype)

    def _ids(self, ids: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(self.device)

    @torch.inference_mode()
    def prefill(self, ids: np.ndarray, cache: KVCache, pad: np.ndarray | None = None) -> np.ndarray:
        """Take in ids (B, T) behind the cached tokens and return the last position's logits (B, V), float32.

        pad (B,), with the first call only: how many of each row's first slots are left padding.
        """
        if pad is not None:
            cache.pad = self._ids(pad)
        return np.asarray(self.model(self._ids(ids), cache, last_only=True)[:, 0].cpu().numpy())

    def decode_step(self, ids: np.ndarray, cache: KVCache) -> np.ndarray:
        """Take in one more token a row, ids (B,), and return logits (B, V), float32."""
        return self.prefill(ids[:, None], cache)

    @torch.inference_mode()
    def extend(self, ids: np.ndarray, cache: KVCache) -> np.ndarray:
        """Take in ids (B, T) and return the logits after each of them, (B, T, V), float32."""
        return np.asarray(self.model(self._ids(ids), cache).cpu().numpy())

    @torch.inference_mode()
    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Return float32 logits at all positions, (B, T, V), of ids (B, T)."""
        return np.asarray(self.model(self._ids(ids)).cpu().numpy())

    @torch.inference_mode()
    def hidden(self, ids: np.ndarray) -> np.ndarray:
        """Return the last hidden states (B, T, C), float32, of ids (B, T)."""
        return np.asarray(self.model.hidden(self._ids(ids)).float().cpu().numpy())

    @torch.inference_mode()
    def token_logprobs(self, ids: np.ndarray) -> np.ndarray:
        """Return log p (nats, float32) of ids[:, 1:] each given what stands before it: (B, T - 1) of ids (B, T)."""
        at = self._ids(ids)
        h = self.model.hidden(at)[:, :-1].flatten(0, 1)
        targets = at[:, 1:].flatten()
        parts = []
        for start in range(0, len(targets), _ROWS_OF_LOGITS):
            logits = self.model.lm_head(h[start : start + _ROWS_OF_LOGITS]).float()
            picked = logits.gather(1, targets[start : start + _ROWS_OF_LOGITS, None])[:, 0]
            parts.append(picked - logits.logsumexp(-1))
        return np.asarray(torch.cat(parts).view(len(ids), -1).cpu().numpy())
