"""Was the QKV grouping guessed right? The loss of a fixed snippet under the guess and under its rival.

With the wrong grouping everything loads and the text is garbage: the loss on plain Python is near 9 nats instead of
below 1. So both are computed before a model is used, by forward.py. Random weights give the same loss both ways and
pass. The answer is cached by the files' hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json

import numpy as np

from ..config import VOCAB_SIZE
from ..files import paths
from ..text.tokenizer import Tokenizer
from .formats.tensors import to_float32
from .forward import Floats, layer, layer_norm, linear
from .layout import qkv_row_order
from .reader import fingerprint
from .weights import Weights

MARGIN_NATS = 2.0  # per token; the right grouping wins by some 8 nats, chance moves it by hundredths
RIVALS = {4: 8, 8: 4}

# Alike functions, because what was said before is what attention can use and a model without it cannot.
SNIPPET = """\
def add(a, b):
    return a + b


def sub(a, b):
    return a - b


def mul(a, b):
    return a * b


def div(a, b):
    return a / b
"""


def check_grouping(weights: Weights) -> None:
    """Raise ValueError when the snippet's loss would be lower by more than 2 nats under the other grouping.

    Says nothing of files that cannot be asked: mp_num 1, another vocabulary, a shape without a rival.
    """
    g = weights.groups
    rival = RIVALS.get(g)
    if rival is None or weights.config.vocab_size != VOCAB_SIZE or weights.config.n_embd % rival:
        return
    cached = paths.cache_dir() / "selfcheck" / f"{cache_key(weights)}.json"
    try:
        mine, other = (float(loss) for loss in json.loads(cached.read_bytes())["losses"])
    except (OSError, ValueError, LookupError, TypeError):
        losses = snippet_losses(weights, Tokenizer().encode(SNIPPET), [g, rival])
        # A cache that cannot be written costs time, not truth.
        with contextlib.suppress(OSError):
            paths.write_atomic(cached, json.dumps({"losses": losses}).encode())
        mine, other = losses
    if mine - other > MARGIN_NATS:
        raise ValueError(
            f"{weights.directory / 'config.json'}: QKV weights look laid out in {rival} groups, not"
            f" {g}: the loss on plain Python is {mine:.2f} nats a token with {g}, {other:.2f} with {rival};"
            f' set "mp_num": {rival} in config.json'
        )


def cache_key(weights: Weights) -> str:
    """Return the directory's fingerprint with layer 0's QKV rows in it: re-laying them moves nothing else."""
    qkv = weights.stored("transformer.h.0.attn.qkv_proj.weight")
    some = qkv[:: max(1, len(qkv) // 96)].tobytes()  # a few MB
    return fingerprint(weights.directory, SNIPPET + hashlib.sha256(some).hexdigest())


def snippet_losses(weights: Weights, ids: list[int], groupings: list[int]) -> list[float]:
    """Return the mean next-token loss of ids, nats, under each grouping; each weight is read once for all."""
    logits = reference_logits(weights, ids, groupings)[:, :-1].astype(np.float64)  # (G, T-1, V)
    top = logits.max(-1)
    log_sum = top + np.log(np.exp(logits - top[..., None]).sum(-1))
    right = logits[:, np.arange(len(ids) - 1), ids[1:]]
    return [float(x) for x in (log_sum - right).mean(-1)]


def reference_logits(weights: Weights, ids: list[int], groupings: list[int]) -> Floats:
    """Return the logits (G, T, V) of ids (T) for G readings of the QKV rows: model.py's forward pass in numpy.

    Memory: activations and one block of 16 MiB. A test holds it to the golden logits.
    """
    config = weights.config
    orders = [qkv_row_order(config.n_embd, g) for g in groupings]
    wte = weights.stored("transformer.wte.weight")[ids]
    x = to_float32(wte, weights.info("transformer.wte.weight").dtype)
    x = np.repeat(x[None], len(groupings), axis=0)  # (G, T, C)
    for n in range(config.n_layer):
        x = layer(weights, n, x, orders)
    h = layer_norm(weights, "transformer.ln_f", x)
    head = "transformer.wte" if config.tie_word_embeddings else "lm_head"
    return linear(weights, head, h) + weights.read("lm_head.bias")
