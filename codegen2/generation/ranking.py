"""best_of: which of several answers are the likeliest.

A continuation by its mean log p a token; a middle by log p(middle, suffix | prefix) under the same model read from left
to right, so that what fits the text behind the hole comes first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..config import EOT
from ..engine.protocol import Engine
from ..text.newlines import normalise
from ..text.tokenizer import Tokenizer
from .handle import RequestHandle
from .results import Choice

_SUFFIX_TOKENS_JUDGED = 256  # what a middle makes likely fades with distance


def ranked(
    handle: RequestHandle, choices: Sequence[Choice], engine: Engine, tokenizer: Tokenizer
) -> tuple[Choice, ...]:
    """Return the choices with what they are ranked by (nats), the likeliest first."""
    if handle.request.suffix is None:
        scores = [s.sum_logprob / max(1, s.n_drawn) for s in handle.sequences]
    else:
        texts = [c.raw if handle.request.raw else normalise(c.text) for c in choices]
        known = {text: _middle_logprob(handle, text, engine, tokenizer) for text in set(texts)}
        scores = [known[text] for text in texts]
    judged = [dataclasses.replace(c, logprob=score) for c, score in zip(choices, scores, strict=True)]
    return tuple(sorted(judged, key=lambda c: -(c.logprob or 0.0)))


def _middle_logprob(handle: RequestHandle, text: str, engine: Engine, tokenizer: Tokenizer) -> float:
    assert handle.prompt is not None
    before, after = map(tokenizer.encode, handle.prompt.seen)
    tail = [*tokenizer.encode(text), *after[:_SUFFIX_TOKENS_JUDGED]]
    n_ctx = engine.config.n_ctx
    ids = [*[EOT, *before][-max(1, n_ctx - len(tail)) :], *tail][-n_ctx:]
    return float(engine.token_logprobs(np.array([ids]))[0][-len(tail) :].sum()) if tail else 0.0
