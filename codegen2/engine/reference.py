"""The reference engine: the PyTorch model behind protocol.Engine, numpy in and out.

Not here: choosing tokens, or text. Letters: B rows, T tokens in this call, C n_embd, V vocab.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..cache import KVCache
from ..model import CodeGen2
from .protocol import Cancel, Cancelled, Piece, check_pieces

_LONG = 64  # tokens; a longer piece has work enough by itself
_ROWS_OF_LOGITS = 256  # at 51,200 columns of float32: 52 MB


def like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Return groups of indices whose pieces run as one batch: none is more than twice as long as another.

    >>> like_length([1, 300, 1, 3, 4, 1, 280])
    [[0, 2, 5], [3, 4], [1], [6]]
    """
    groups: dict[int, list[int]] = {}
    for i, n in enumerate(lengths):
        groups.setdefault((n - 1).bit_length() if n <= _LONG else _LONG + i, []).append(i)
    return [groups[key] for key in sorted(groups)]


class ReferenceEngine:
    """Run model.py on the device that it is on; see protocol.Engine for the meaning of each method.

    Results are equal up to rounding however rows are batched and cut, and decode steps are like prompts in that.
    """

    exact_rows = False
    one_arithmetic = True

    def __init__(self, model: CodeGen2) -> None:
        self.config, self.model, first = model.config, model.eval(), next(model.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.bytes_per_token = 2 * self.config.n_layer * self.config.n_embd * self.dtype.itemsize

    @contextlib.contextmanager
    def cancelled_by(self, cancel: Cancel) -> Iterator[None]:
        """Watch `cancel` inside the block: it is looked at before every layer."""

        def check(*_: object) -> None:
            if cancel.is_set():
                raise Cancelled

        hooks = [block.register_forward_pre_hook(check) for block in self.model.transformer.h]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def new_cache(self, n_rows: int, capacity: int) -> KVCache:
        """Return an empty cache for n_rows rows of at most `capacity` tokens. Raises ValueError if memory lacks."""
        try:
            return KVCache(self.config, n_rows, capacity, device=self.device, dtype=self.dtype)
        except RuntimeError as e:  # PyTorch's word for memory that lacks
            what = f"a cache of {n_rows} x {capacity} tokens does not fit"
            raise ValueError(f"memory: {what}; ask for fewer or shorter rows") from e

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece], cache: KVCache) -> list[np.ndarray]:
        """Read the pieces, each row at most once, and return each one's logits (n_logits, V), float32."""
        check_pieces(pieces, cache, self.config)
        found: dict[int, np.ndarray] = {}
        for group in like_length([len(p.tokens) for p in pieces]):
            group.sort(key=lambda i: pieces[i].row)  # neighbours in the cache need no copy
            found |= zip(group, self._batch([pieces[i] for i in group], cache), strict=True)
        return [found[i] for i in range(len(pieces))]

    def _batch(self, pieces: list[Piece], cache: KVCache) -> list[np.ndarray]:
        """Run pieces as one batch.

        The shorter ones repeat their last token at its own position, which writes its keys and values once more: so
        nothing else is written over, and no token sees anything new. Lengths 3 and 2, T = 3, starts 7 and 0:

            ids        a b c     positions   7 8 9
                       d e e                 0 1 1
        """
        last = np.array([len(p.tokens) - 1 for p in pieces])[:, None]
        at = np.minimum(np.arange(last.max() + 1), last)  # (B, T)
        ids = np.array([[p.tokens[t] for t in row] for p, row in zip(pieces, at, strict=True)])
        positions = at + np.array([p.start for p in pieces])[:, None]
        slots = cache.slots([p.row for p in pieces], torch.from_numpy(positions))
        h = self.model.hidden(self._ids(ids), slots)
        wanted = [h[b, len(p.tokens) - p.n_logits : len(p.tokens)] for b, p in enumerate(pieces)]
        logits = self.model.lm_head(torch.cat(wanted)).float().cpu().numpy()
        return np.split(logits, np.cumsum([p.n_logits for p in pieces])[:-1])

    def copy_row(self, cache: KVCache, source: int, target: int, n_tokens: int) -> None:
        """Copy the keys and values of a row's first n_tokens tokens over those of another row."""
        for kept in (cache.k, cache.v):
            kept[:, target, :, :n_tokens] = kept[:, source, :, :n_tokens]

    def _ids(self, ids: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(self.device)

    @torch.inference_mode()
    def hidden(self, ids: np.ndarray, cache: KVCache | None = None, start: int = 0) -> np.ndarray:
        """Return the last hidden states (B, T, C), float32, of ids (B, T) behind `start` tokens of cache."""
        return np.asarray(self._hidden(ids, cache, start).float().cpu().numpy())

    def _hidden(self, ids: np.ndarray, cache: KVCache | None, start: int) -> torch.Tensor:
        at = torch.arange(start, start + ids.shape[1]).expand(len(ids), -1)
        return self.model.hidden(self._ids(ids), cache.slots([*range(len(ids))], at) if cache else None)

    @torch.inference_mode()
    def token_logprobs(self, ids: np.ndarray, cache: KVCache | None = None, start: int = 0) -> np.ndarray:
        """Return log p (nats, float32) of ids[:, 1:] each given all before it, cache too: (B, T - 1)."""
        if ids.shape[1] < 2:
            return np.empty((len(ids), 0), np.float32)
        h = self._hidden(ids[:, :-1], cache, start).flatten(0, 1)
        targets, parts = self._ids(ids)[:, 1:].flatten(), []
        for at in range(0, len(targets), _ROWS_OF_LOGITS):
            logits = self.model.lm_head(h[at : at + _ROWS_OF_LOGITS]).float()
            picked = logits.gather(1, targets[at : at + _ROWS_OF_LOGITS, None])[:, 0]
            parts.append(picked - logits.logsumexp(-1))
        return np.asarray(torch.cat(parts).view(len(ids), -1).cpu().numpy())
