"""From logits to a token: pure numpy functions over one row of logits (V,).

Not here: the parameters (params.py), the loop that calls them (scheduler.py), stop strings. Order in a step:
apply_penalties, apply_bias, then choose (temperature, top_k, top_p, min_p, one draw). Reported
log-probabilities (log_softmax, top_alternatives) are those of the model itself: hand them the raw logits,
before penalties, bias and temperature.

Letters: V vocabulary, k number kept.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..native import address, library
from .params import BAN, SamplingParams

Logits = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]
Banned = npt.NDArray[np.bool_] | None

_NUCLEUS_GUESSES = (
    1e-3,
    1e-5,
    0.0,
)  # weights; most nuclei have few smaller ones, and sorting all 51,200 takes long
_BLOCK = 256
_ROUNDING = 1e-12  # so that 0.5 + 0.3 reaches a top_p of 0.8


class DamagedWeights(ValueError):
    """Raised for logits that are no numbers: the weights are damaged, or the machine is."""


def row_rng(seed: int | None, row: int) -> np.random.Generator:
    """Return row's own stream of randomness: Philox keyed by (seed mod 2^64, row), or fresh when seed is None.

    A row draws once a token, so its randomness depends on (seed, row, step) only, not on the rest of its
    batch.
    """
    if seed is None:
        return np.random.Generator(np.random.Philox())
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, row % 2**64], dtype=np.uint64)))


def apply_penalties(
    logits: Logits, prompt_ids: Sequence[int], generated_ids: Sequence[int], params: SamplingParams
) -> Logits:
    """Make tokens that have been seen less likely; logits (V,) itself is never written to.

    First the repetition penalty, once for each token of prompt or answer: a positive logit is divided,
    another multiplied. Then, for tokens of the answer, presence_penalty once and frequency_penalty for each
    occurrence.

    >>> params = SamplingParams(repetition_penalty=2.0)
    >>> apply_penalties(np.array([2.0, -2.0, 1.0]), [0, 1], [], params).tolist()
    [1.0, -4.0, 1.0]
    """
    out = logits
    if params.repetition_penalty != 1.0 and len(prompt_ids) + len(generated_ids):
        seen = np.unique(np.array([*prompt_ids, *generated_ids], dtype=np.intp))
        values = logits[seen]
        penalty = min(max(params.repetition_penalty, 1e-30), 1e30)  # what float32 holds, times any logit too
        out = logits.copy()
        out[seen] = np.where(values > 0, values / penalty, values * penalty)
    if (params.presence_penalty or params.frequency_penalty) and len(generated_ids):
        tokens, counts = np.unique(np.array(generated_ids, dtype=np.intp), return_counts=True)
        out = logits.copy() if out is logits else out
        out[tokens] -= (params.presence_penalty + params.frequency_penalty * counts).astype(out.dtype)
    return out


def apply_bias(logits: Logits, params: SamplingParams) -> Logits:
    """Add logit_bias to logits (V,), -100 as minus infinity; logits itself is never written to.

    Raises ValueError for a token id outside the vocabulary.

    >>> apply_bias(np.array([2.0, 0.0]), SamplingParams(logit_bias={0: -100, 1: 1.5})).tolist()
    [-inf, 1.5]
    """
    if not params.logit_bias:
        return logits
    tokens = np.array(list(params.logit_bias), dtype=np.intp)
    if tokens.max() >= len(logits):
        raise ValueError(
            f"logit_bias: token id {tokens.max()} is not in the vocabulary (0..{len(logits) - 1})"
        )
    values = np.array(list(params.logit_bias.values()))
    out = logits.copy()
    out[tokens] += np.where(values <= BAN, -np.inf, values).astype(out.dtype)
    return out


def log_softmax(logits: Logits) -> Floats:
    """Return natural-log probabilities along the last axis, in float64 for the sake of long sums.

    >>> log_softmax(np.array([0.0, 0.0])).round(4).tolist()
    [-0.6931, -0.6931]
    """
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)  # the largest becomes 0, so that exp cannot overflow
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def log_norm(logits: Logits) -> float:
    """Return the logarithm of the sum of exp of logits (V,): a token's log-probability is its logit less this.

    In the logits' own type but for the sum: a tenth of log_softmax's time, and right to 1e-6. Raises as check_finite.
    """
    top = check_finite(float(logits.max()))
    return top + math.log(weigh(logits, top, 1.0)[1].sum())


def top_alternatives(logits: Logits, k: int, logp: Floats | None = None) -> list[tuple[int, float]]:
    """Return the k likeliest (id, log-probability) of raw logits (V,), likeliest first, of equals the lower id.

    logp: log_softmax of the logits, where the caller has it.

    >>> [(i, round(p, 4)) for i, p in top_alternatives(np.array([0.0, 1.0, 1.0]), 2)]
    [(1, -0.862), (2, -0.862)]
    """
    if k < 1:
        return []
    kept = _largest(logits, k)
    kept = kept[np.argsort(-logits[kept], kind="stable")]
    logp = log_softmax(logits) if logp is None else logp
    return list(zip(kept.tolist(), logp[kept].tolist(), strict=True))


def candidates(logits: Logits, params: SamplingParams) -> Floats:
    """Return the probability (V,) with which choose takes each token; they sum to 1.

    In this order: temperature; top_k keeps exactly k tokens; top_p keeps the likeliest tokens up to the one
    with which their sum reaches top_p of what top_k left, at least one; min_p drops those below min_p times
    the largest probability. Of equal tokens the lower ids are kept. Temperature 0 gives all to the largest
    logit.

    >>> candidates(np.log([0.5, 0.3, 0.1, 0.1]), SamplingParams(temperature=1.0, top_p=0.8)).round(3).tolist()
    [0.625, 0.375, 0.0, 0.0]
    """
    out = np.zeros(len(logits))
    ids, weights, sums = _kept(logits, params, check_finite(float(logits.max())))
    out[slice(None) if ids is None else ids] = weights / sums.sum()
    return out


def choose(
    logits: Logits,
    params: SamplingParams,
    rng: np.random.Generator | None,
    banned: Banned = None,
) -> int:
    """Return the next token: at temperature 0 the largest logit's, else one drawn as candidates says.

    Of equally large logits the lowest id. Every sampled token costs exactly one draw from rng, a greedy one
    none, so it needs no rng. banned (V,): what is never taken. Raises ValueError for logits that hold no finite
    maximum (a damaged model, or every token banned).
    """
    best = int(logits.argmax())  # NaN, if there is one
    if banned is not None and banned[best]:  # rare, so that only then all logits are copied
        logits, banned = np.where(banned, -np.inf, logits), None
        best = int(logits.argmax())
    top = check_finite(float(logits[best]))
    if params.temperature == 0:
        return best
    assert rng is not None
    ids, weights, sums = _kept(logits, params, top, banned)
    at = _invert(weights, sums, rng.random())
    return at if ids is None else int(ids[at])


def _invert(weights: Logits, sums: Floats, u: float) -> int:
    """Return the position where the running sum of weights first exceeds u, in [0, 1), of the whole.

    First the block, by the blocks' sums, then the place in it: a running sum over all of V takes ten times as long.
    """
    upto = sums.cumsum()
    target = u * upto[-1]
    block = _first_above(upto, target)
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    return block * _BLOCK + _first_above(inside, target - (upto[block] - sums[block]))


def _first_above(running: Floats, target: float) -> int:
    """Return the first position whose running sum exceeds target; past the end, the last with a weight."""
    return int(min(np.searchsorted(running, target, "right"), np.searchsorted(running, running[-1], "left")))


def check_finite(top: float) -> float:
    """Return the largest logit. Raises DamagedWeights for none or no finite one, ValueError where all are banned."""
    if math.isnan(top) or top == math.inf:
        raise DamagedWeights(
            f"logits: the largest is {top}; the model's weights are damaged, fetch or convert them again"
        )
    if top == -math.inf:
        raise ValueError("logit_bias: every token that could come next is banned; ban fewer")
    return top


def _kept(
    logits: Logits, params: SamplingParams, top: float, banned: Banned = None
) -> tuple[Ids | None, Logits, Floats]:
    """Return the ids that may be chosen, ascending, None for all; their weights as weigh's, and the sums of these.

    top: the largest logit that is not banned. A banned id has no weight.
    """
    if params.temperature == 0:
        return np.array([logits.argmax()]), np.ones(1), np.ones(1)
    ids: Ids | None = None
    if params.top_k:
        if banned is not None:
            logits, banned = np.where(banned, -np.inf, logits), None
        ids = _largest(logits, params.top_k)
        logits = logits[ids]
    weights, sums = weigh(logits, top, params.temperature, banned)
    if params.top_p < 1.0:
        nucleus = _nucleus(weights, float(sums.sum()), params.top_p)
        ids, weights = nucleus if ids is None else ids[nucleus], weights[nucleus]
    if params.min_p > 0.0:
        enough = np.flatnonzero(weights >= params.min_p)  # the largest weight is 1
        ids, weights = enough if ids is None else ids[enough], weights[enough]
    return ids, weights, sums if ids is None else _block_sums(weights)


def weigh(logits: Logits, top: float, temperature: float, banned: Banned = None) -> tuple[Logits, Floats]:
    """Return e^((logits - top) / temperature) (V,), 0 where banned, in the logits' own type; sums of every _BLOCK.

    In float32 by the compiled kernel, where it is built, in a third of numpy's time: equal to 1e-6 of a probability.
    """
    # A tiny temperature sends all but the largest to minus infinity, as it should. One that the logits' type does not
    # hold would divide by infinity, and make NaN of what is banned.
    limits = np.finfo(logits.dtype)
    heat = min(max(temperature, float(limits.tiny)), float(limits.max))
    kernel = _kernel() if logits.dtype == np.float32 and logits.flags.c_contiguous else None
    if kernel is not None:
        weights, sums = np.empty(len(logits), np.float32), np.empty(-(-len(logits) // _BLOCK))
        kernel(address(logits), len(logits), address(banned), top, heat, address(weights), address(sums))
        return weights, sums
    x = logits - logits.dtype.type(top)
    if banned is not None:
        np.copyto(x, -np.inf, where=banned)
    with np.errstate(over="ignore"):
        x /= x.dtype.type(heat)
    np.exp(x, out=x)
    return x, _block_sums(x)


@functools.cache
def _kernel() -> Callable[..., None] | None:
    """Return the compiled weigh, None where it is not built: the reference engine does without."""
    with contextlib.suppress(ValueError):
        return cast(Callable[..., None], library().cg2_weigh)
    return None


def _block_sums(weights: Logits) -> Floats:
    return np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)


def _largest(values: Logits, k: int) -> Ids:
    """Return the positions of the k largest values, ascending; of equal values the first ones.

    Partitioning all of V is slow. The k-th largest of 4k column maxima is no larger than the k-th largest
    value (k columns each hold one as large), so only the few values that reach it can be among the k.
    """
    if k >= len(values):
        return np.arange(len(values))
    ids: Ids = np.arange(len(values)) if len(values) < 16 * k else _reaching_column_maxima(values, k)
    near = values[ids]
    border = np.partition(near, len(near) - k)[len(near) - k]
    above = np.flatnonzero(near > border)
    equal = np.flatnonzero(near == border)[: k - len(above)]
    return ids[np.sort(np.concatenate((above, equal)))]


def _reaching_column_maxima(values: Logits, k: int) -> Ids:
    columns = 4 * k
    rows = len(values) // columns
    maxima = values[: rows * columns].reshape(rows, columns).max(axis=0)
    return np.flatnonzero(values >= np.partition(maxima, columns - k)[columns - k])


def _nucleus(weights: Logits, total: float, top_p: float) -> Ids:
    """Return the positions, ascending, of the fewest largest weights whose sum reaches top_p of the total."""
    target = (top_p - _ROUNDING) * total
    for least in _NUCLEUS_GUESSES:  # of the largest, which is 1; the last one takes all
        ids = np.flatnonzero(weights >= least)
        near = weights[ids]
        falling = np.sort(near)[::-1]
        mass = falling.cumsum(dtype=np.float64)
        if mass[-1] >= target:
            break
    n = min(int(np.searchsorted(mass, target, side="left")) + 1, len(falling))
    kept = near > falling[n - 1]
    equal = np.flatnonzero(near == falling[n - 1])
    kept[equal[: n - np.count_nonzero(kept)]] = True  # of equal weights the first ones
    chosen: Ids = ids[kept]
    return chosen
