"""best_of: which of several answers are the likeliest.

A continuation by its mean log p a token; a middle by log p(middle, suffix | prefix) under the same model read from left
to right, so that what fits the text behind the hole comes first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from ..config import EOT
from ..engine.protocol import Engine
from ..text.newlines import normalise
from ..text.tokenizer import Tokenizer
from .handle import RequestHandle
from .results import Choice

_SUFFIX_TOKENS_JUDGED = 256  # what a middle makes likely fades with distance
_PIECE = 128  # tokens that are judged before others have their turn


def ranked(handle: RequestHandle, engine: Engine, tokenizer: Tokenizer) -> Iterator[tuple[Choice, ...]]:
    """Yield nothing after each piece of the work, at last the choices with what they are ranked by (nats), likeliest
    first."""
    choices = handle.choices
    if handle.request.suffix is None:
        scores = [s.sum_logprob / max(1, s.n_drawn) for s in handle.sequences]
    else:
        texts = [c.raw if handle.request.raw else normalise(c.text) for c in choices]
        known = dict.fromkeys(texts, 0.0)
        for text in known:
            for score in _middle_logprob(handle, text, engine, tokenizer):
                known[text] = score
                yield ()
        scores = [known[text] for text in texts]
    judged = [dataclasses.replace(c, logprob=score) for c, score in zip(choices, scores, strict=True)]
    yield tuple(sorted(judged, key=lambda c: -(c.logprob or 0.0)))


def _middle_logprob(
    handle: RequestHandle, text: str, engine: Engine, tokenizer: Tokenizer
) -> Iterator[float]:
    """Yield the log p of a middle and what follows it, as far as they are read; the last is of all."""
    assert handle.prompt is not None
    before, after = map(tokenizer.encode, handle.prompt.seen)
    tail = [*tokenizer.encode(text), *after[:_SUFFIX_TOKENS_JUDGED]]
    n_ctx = engine.config.n_ctx
    ids = [*[EOT, *before][-max(1, n_ctx - len(tail)) :], *tail][-n_ctx:]
    cache, parts = engine.new_cache(1, len(ids)), list[np.ndarray]()
    for at in range(0, len(ids) - 1 if tail else 0, _PIECE):
        parts.append(engine.token_logprobs(np.array([ids[at : at + _PIECE + 1]]), cache, at)[0])
        yield float(np.concatenate(parts)[-len(tail) :].sum())
