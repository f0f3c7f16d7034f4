"""SamplingParams: how tokens are chosen and when an answer ends. The one table of these fields, their limits, what
turns them off and their help; the command line and every HTTP protocol read it.

Not here: what the fields do to logits (sampling.py).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

if TYPE_CHECKING:
    from ..engine.protocol import Cancel

BAN = -100.0  # a logit_bias of this value takes the token out altogether


class Limits(NamedTuple):
    """What a field may be. low: None for any whole number; above: whether low itself is too little."""

    kind: type
    low: float | None
    high: float = math.inf
    above: bool = False


_COUNT, _REAL, _POSITIVE = Limits(int, 0), Limits(float, 0), Limits(float, 0, above=True)
_SHARE, _PENALTY = Limits(float, 0, 1), Limits(float, -2, 2)
_ANSWERS = Limits(int, 1, 10_000)  # each takes memory at once


def _param(default: Any, limits: Limits, off: str, text: str) -> Any:
    """Return a field with its limits, what turns it off, and its help."""
    return field(default=default, metadata={"limits": limits, "off": off, "help": text, "kind": limits.kind})


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

    max_new_tokens: int = _param(128, _COUNT, "0 only reads the prompt", "tokens to write at most, a hole")
    min_new_tokens: int = _param(0, _COUNT, "0 sets none", "tokens before which the model may not end")
    temperature: float = _param(0.0, _REAL, "0 is greedy", "0 takes the likeliest token, higher is wilder")
    top_k: int = _param(0, _COUNT, "0 turns it off", "choose among the k likeliest tokens")
    top_p: float = _param(1.0, _SHARE, "1 turns it off", "choose among the likeliest tokens that sum to p")
    min_p: float = _param(0.0, _SHARE, "0 turns it off", "leave out tokens below p times the likeliest")
    repetition_penalty: float = _param(
        1.0, _POSITIVE, "1 turns it off", "as CTRL (arXiv 1909.05858), prompt included"
    )
    presence_penalty: float = _param(0.0, _PENALTY, "0 turns it off", "as OpenAI, once a token of the answer")
    frequency_penalty: float = _param(0.0, _PENALTY, "0 turns it off", "as OpenAI, for each time it occurs")
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by token id; -100 bans the token
    seed: int | None = _param(
        None, Limits(int, None), "None gives fresh randomness", "repeat the same random choices"
    )
    stop: Sequence[str] = ()  # kept as a tuple; a single string is one stop string
    n: int = _param(1, _ANSWERS, "1 gives one answer", "answers")
    best_of: int | None = _param(
        None, _ANSWERS, "of the answers drawn n are kept", "draw so many, keep the n likeliest"
    )
    top_logprobs: int = _param(0, _COUNT, "0 reports none", "likeliest tokens to report at each step")
    suggest_above: float | None = _param(
        None,
        _SHARE,
        "0 shows all",
        "of an infill that is not raw: show nothing less likely right, from 0 to 1",
    )
    drawn_logprobs: bool = False  # report what was drawn from, after bias, temperature and filters
    deadline_s: float | None = _param(
        None, _POSITIVE, "None sets none", "seconds from the request's arrival; an infill ends with a line"
    )
    cancel: Cancel | None = None
    speculate: bool = True  # draft tokens from the text at hand; never changes the answer

    def __post_init__(self) -> None:
        for name, entry in PARAMS.items():
            if (value := getattr(self, name)) is not None or entry["default"] is not None:
                _check(name, value, entry["limits"], entry["off"])
        if self.best_of is not None:
            _check("best_of", self.best_of, _ANSWERS._replace(low=self.n), "of the answers drawn n are kept")
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise ValueError(
                f"cancel must have is_set(), as threading.Event has, got {type(self.cancel).__name__}"
            )
        # Frozen, yet normalised once: whoever reads the parameters meets one type.
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))

    @property
    def n_drawn(self) -> int:
        """Return the number of answers drawn."""
        return self.best_of or self.n


# What the command line and the protocols read, by field: default, kind, help, limits, off.
PARAMS: dict[str, dict[str, Any]] = {
    f.name: {"default": f.default, **f.metadata} for f in dataclasses.fields(SamplingParams) if f.metadata
}


class SamplingOptions(TypedDict, total=False):
    """The fields of SamplingParams that every generating method takes as keywords."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: Sequence[str]
    n: int
    best_of: int | None
    top_logprobs: int
    suggest_above: float | None
    drawn_logprobs: bool
    deadline_s: float | None
    cancel: Cancel | None
    speculate: bool


def _check(name: str, value: Any, limits: Limits, off: str) -> None:
    """Raise ValueError unless a value is a number of the kind within its limits."""
    kind, low, high, above = limits
    right = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if right and low is not None:
        right = low < value <= min(high, sys.float_info.max) or (value == low and not above)
    if not right:
        if kind is int:
            limit = f" of at least {low}" if high == math.inf else f" from {low} to {high}"
            words = "a whole number" + ("" if low is None else limit)
        elif math.isfinite(high):
            words = f"from {low:g} to {high:g}"
        else:
            words = f"finite and {'above' if above else 'at least'} {low:g}"
        raise ValueError(f"{name} must be {words}, got {value!r}; {off}")


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
        _check("logit_bias: a token id", token, _COUNT, "give the id, not the text")
        _check(f"logit_bias[{token}]", value, Limits(float, BAN, -BAN), "-100 bans the token")
    return {token: float(value) for token, value in bias.items()}
