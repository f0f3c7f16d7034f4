"""From logits to a token: SamplingParams, and pure numpy functions over one row of logits (V,).

Not here: the loop that calls them (generate.py) and stop strings (stopping.py). Order in a step:
apply_penalties, apply_bias, then choose (temperature, top_k, top_p, min_p, one draw). Reported
log-probabilities (log_softmax, top_alternatives) are those of the model itself: hand them the raw logits,
before penalties, bias and temperature.

Letters: V vocabulary, k number kept.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.protocol import Cancel as Cancel
from ..engine.protocol import Cancelled as Cancelled

Logits = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]

BAN = -100.0  # a logit_bias of this value takes the token out altogether
_NUCLEUS_GUESSES = (32, 1024)  # tokens; most nuclei are smaller, and sorting all 51,200 takes far longer
_BLOCK = 256
_ROUNDING = 1e-12  # so that 0.5 + 0.3 reaches a top_p of 0.8


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to stop; the defaults are greedy.

    Raises ValueError naming the field, its limit and the remedy.

    >>> SamplingParams(stop="\\n\\n").stop
    ('\\n\\n',)
    >>> SamplingParams(top_p=1.5)
    Traceback (most recent call last):
    ...
    ValueError: top_p must be from 0 to 1, got 1.5; 1 turns it off
    """

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0  # relative to the likeliest token
    repetition_penalty: float = 1.0  # as CTRL (arXiv 1909.05858), over prompt and generated tokens
    presence_penalty: float = 0.0  # as OpenAI, over generated tokens
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by token id; -100 bans the token
    seed: int | None = None  # None: fresh randomness
    stop: Sequence[str] = ()  # kept as a tuple; a single string is taken as one stop string
    n: int = 1  # answers wanted
    best_of: int | None = None  # draw so many, keep the n likeliest
    top_logprobs: int = 0  # alternatives to report a token
    deadline_s: float | None = None  # seconds from the start of the call
    cancel: Cancel | None = None
    speculate: bool = True  # guess tokens from the text at hand; never changes the answer

    def __post_init__(self) -> None:
        for name, least, remedy in _WHOLE:
            _check_whole(name, getattr(self, name), least, remedy)
        for name, low, high, remedy in _REAL:
            _check_real(name, getattr(self, name), low, high, remedy)
        if self.repetition_penalty == 0:
            raise ValueError("repetition_penalty must be above 0, got 0; 1 turns it off")
        if self.best_of is not None:
            _check_whole("best_of", self.best_of, self.n, "it counts the answers drawn, of which n are kept")
        if self.seed is not None:
            _check_whole("seed", self.seed, None, "None gives fresh randomness")
        if self.deadline_s is not None:
            _check_real("deadline_s", self.deadline_s, 0.0, math.inf, "None sets no deadline")
            if self.deadline_s == 0:
                raise ValueError("deadline_s must be above 0 seconds, got 0; None sets no deadline")
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise ValueError(
                f"cancel must have is_set(), as threading.Event has, got {type(self.cancel).__name__}"
            )
        # Frozen, yet normalised once: whoever holds the parameters reads one type.
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))


_WHOLE: tuple[tuple[str, int, str], ...] = (
    ("max_new_tokens", 0, "0 only reads the prompt"),
    ("top_k", 0, "0 turns it off"),
    ("n", 1, "1 gives one answer"),
    ("top_logprobs", 0, "0 reports none"),
)
_REAL: tuple[tuple[str, float, float, str], ...] = (
    ("temperature", 0.0, math.inf, "0 is greedy"),
    ("top_p", 0.0, 1.0, "1 turns it off"),
    ("min_p", 0.0, 1.0, "0 turns it off"),
    ("repetition_penalty", 0.0, math.inf, "1 turns it off"),
    ("presence_penalty", -2.0, 2.0, "0 turns it off"),
    ("frequency_penalty", -2.0, 2.0, "0 turns it off"),
)


def _check_whole(name: str, value: object, low: int | None, remedy: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (low is not None and isinstance(value, int) and value < low):
        limit = "" if low is None else f" of at least {low}"
        raise ValueError(f"{name} must be a whole number{limit}, got {value!r}; {remedy}")


def _check_real(name: str, value: object, low: float, high: float, remedy: str) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not (real and isinstance(value, int | float) and math.isfinite(value) and low <= value <= high):
        limit = f"from {low:g} to {high:g}" if math.isfinite(high) else f"finite and at least {low:g}"
        raise ValueError(f"{name} must be {limit}, got {value!r}; {remedy}")


def _stop_strings(stop: object) -> tuple[str, ...]:
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, Sequence) or not all(isinstance(s, str) for s in stop):
        raise ValueError(f"stop must be a string or a list of strings, got {stop!r}")
    if "" in stop:
        raise ValueError("stop has an empty string, which would stop before the first token; leave it out")
    return tuple(stop)


def _bias(bias: object) -> dict[int, float]:
    if not (isinstance(bias, Mapping) and all(isinstance(token, int) for token in bias)):
        raise ValueError(f"logit_bias must map token ids (whole numbers) to numbers, got {bias!r}")
    for token, value in bias.items():
        _check_whole("logit_bias: a token id", token, 0, "give the id, not the text")
        _check_real(f"logit_bias[{token}]", value, BAN, -BAN, "-100 bans the token")
    return {token: float(value) for token, value in bias.items()}


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
        penalty = params.repetition_penalty
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


def top_alternatives(logits: Logits, k: int) -> list[tuple[int, float]]:
    """Return the k likeliest (id, log-probability) of raw logits (V,), likeliest first, of equals the lower id.

    >>> [(i, round(p, 4)) for i, p in top_alternatives(np.array([0.0, 1.0, 1.0]), 2)]
    [(1, -0.862), (2, -0.862)]
    """
    if k < 1:
        return []
    kept = _largest(logits, k)
    kept = kept[np.argsort(-logits[kept], kind="stable")]
    return list(zip(kept.tolist(), log_softmax(logits)[kept].tolist(), strict=True))


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
    ids, weights = _kept(logits, params, _check_finite(float(logits.max())))
    out[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    return out


def choose(
    logits: Logits,
    params: SamplingParams,
    rng: np.random.Generator,
    banned: npt.NDArray[np.bool_] | None = None,
) -> int:
    """Return the next token: at temperature 0 the largest logit's, else one drawn as candidates says.

    Of equally large logits the lowest id. Every sampled token costs exactly one draw from rng, a greedy one
    none. banned (V,): what is never taken. Raises ValueError for logits that hold no finite maximum (a damaged
    model, or every token banned).
    """
    best = int(logits.argmax())  # NaN, if there is one
    if banned is not None and banned[best]:  # rare, so that only then all logits are copied
        logits, banned = np.where(banned, -np.inf, logits), None
        best = int(logits.argmax())
    top = _check_finite(float(logits[best]))
    if params.temperature == 0:
        return best
    ids, weights = _kept(logits, params, top, banned)
    at = _invert(weights, rng.random())
    return at if ids is None else int(ids[at])


def _invert(weights: Logits, u: float) -> int:
    """Return the position where the running sum of weights first exceeds u, in [0, 1), of the whole.

    First the block, then the place in it: a float64 running sum over all of V would take ten times as long.
    """
    masses = np.add.reduceat(weights, _block_starts(len(weights)), dtype=np.float64)
    upto = masses.cumsum()
    target = u * upto[-1]
    block = _first_above(upto, target)
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    return block * _BLOCK + _first_above(inside, target - (upto[block] - masses[block]))


def _first_above(running: Floats, target: float) -> int:
    """Return the first position whose running sum exceeds target; past the end, the last with a weight."""
    return int(min(np.searchsorted(running, target, "right"), np.searchsorted(running, running[-1], "left")))


def _check_finite(top: float) -> float:
    if not math.isfinite(top):
        raise ValueError(
            f"logits: the largest is {top}; the weights are damaged, or logit_bias bans every token"
        )
    return top


def _kept(
    logits: Logits, params: SamplingParams, top: float, banned: npt.NDArray[np.bool_] | None = None
) -> tuple[Ids | None, Logits]:
    """Return the ids that may be chosen, ascending, None for all; and their weights (not normalised, the largest is 1).

    top: the largest logit that is not banned. A banned id has no weight.
    """
    if params.temperature == 0:
        return np.array([logits.argmax()]), np.ones(1)
    ids: Ids | None = None
    if params.top_k:
        if banned is not None:
            logits = np.where(banned, -np.inf, logits)
        ids = _largest(logits, params.top_k)
    # In the logits' own float32: its exp takes a tenth of float64's time, and errs by 1e-6 of a probability
    # at most.
    x = (logits if ids is None else logits[ids]) - logits.dtype.type(top)
    if ids is None and banned is not None:
        np.copyto(x, -np.inf, where=banned)
    # A tiny temperature sends all but the largest to minus infinity, as it should.
    with np.errstate(over="ignore"):
        x /= x.dtype.type(max(params.temperature, float(np.finfo(x.dtype).tiny)))
    weights: Logits = np.exp(x, out=x)
    if params.top_p < 1.0:
        nucleus = _nucleus(weights, params.top_p)
        ids, weights = nucleus if ids is None else ids[nucleus], weights[nucleus]
    if params.min_p > 0.0:
        enough = np.flatnonzero(weights >= params.min_p)  # the largest weight is 1
        ids, weights = enough if ids is None else ids[enough], weights[enough]
    return ids, weights


@functools.lru_cache(maxsize=64)
def _block_starts(n: int) -> Ids:
    """Return 0, _BLOCK, 2 _BLOCK ... below n, made once."""
    starts = np.arange(0, n, _BLOCK)
    starts.flags.writeable = False
    return starts


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


def _nucleus(weights: Logits, top_p: float) -> Ids:
    """Return the positions, ascending, of the fewest largest weights whose sum reaches top_p of the whole."""
    target = (top_p - _ROUNDING) * float(weights.sum(dtype=np.float64))
    for k in (*_NUCLEUS_GUESSES, len(weights)):
        largest = weights if k >= len(weights) else weights[_largest(weights, k)]
        falling = np.sort(largest)[::-1]
        mass = falling.cumsum(dtype=np.float64)
        if mass[-1] >= target or k >= len(weights):
            n = min(int(np.searchsorted(mass, target, side="left")) + 1, len(falling))
            kept = np.flatnonzero(weights >= falling[n - 1])
            equal = np.flatnonzero(weights[kept] == falling[n - 1])  # of these the first ones are kept
            return np.delete(kept, equal[len(equal) - (len(kept) - n) :])
    raise AssertionError("the last round holds every weight")
