"""SamplingParams: how tokens are chosen and when an answer ends. The one table of these fields, their limits, what
turns them off and their help; the command line and every HTTP protocol read it.

Not here: what the fields do to logits (sampling.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from ..engine.protocol import Cancel

BAN = -100.0  # a logit_bias of this value takes the token out altogether


def _param(default: Any, low: float | None, high: float, off: str, text: str) -> Any:
    """Return a field with its limits (low None: any whole number), what turns it off, and its help."""
    return field(
        default=default, metadata={"kind": type(default), "low": low, "high": high, "off": off, "help": text}
    )


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

    max_new_tokens: int = _param(
        128, 0, math.inf, "0 only reads the prompt", "tokens to write at most, a hole"
    )
    min_new_tokens: int = _param(0, 0, math.inf, "0 sets none", "tokens before which the model may not end")
    temperature: float = _param(
        0.0, 0, math.inf, "0 is greedy", "0 takes the likeliest token, higher is wilder"
    )
    top_k: int = _param(0, 0, math.inf, "0 turns it off", "choose among the k likeliest tokens")
    top_p: float = _param(1.0, 0, 1, "1 turns it off", "choose among the likeliest tokens that sum to p")
    min_p: float = _param(0.0, 0, 1, "0 turns it off", "leave out tokens below p times the likeliest")
    repetition_penalty: float = _param(
        1.0, 0, math.inf, "1 turns it off", "as CTRL (arXiv 1909.05858), prompt included"
    )
    presence_penalty: float = _param(0.0, -2, 2, "0 turns it off", "as OpenAI, once a token of the answer")
    frequency_penalty: float = _param(0.0, -2, 2, "0 turns it off", "as OpenAI, for each time it occurs")
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by token id; -100 bans the token
    seed: int | None = field(default=None, metadata={"kind": int, "help": "repeat the same random choices"})
    stop: Sequence[str] = ()  # kept as a tuple; a single string is one stop string
    n: int = _param(1, 1, math.inf, "1 gives one answer", "answers")
    best_of: int | None = field(
        default=None, metadata={"kind": int, "help": "draw so many, keep the n likeliest"}
    )
    top_logprobs: int = _param(0, 0, math.inf, "0 reports none", "likeliest tokens to report at each step")
    suggest_above: float | None = field(
        default=None,
        metadata={
            "kind": float,
            "help": "of an infill that is not raw: show nothing less likely right, from 0 to 1",
        },
    )
    drawn_logprobs: bool = (
        False  # report the distribution that was drawn from, after bias, temperature and filters
    )
    deadline_s: float | None = field(
        default=None,
        metadata={"kind": float, "help": "seconds from the request's arrival; an infill ends with a line"},
    )
    cancel: Cancel | None = None
    speculate: bool = True  # draft tokens from the text at hand; never changes the answer

    def __post_init__(self) -> None:
        for name, entry in PARAMS.items():
            if "low" in entry:
                value, low = getattr(self, name), entry["low"]
                if entry["kind"] is int:
                    _check_whole(name, value, low, entry["off"])
                else:
                    _check_real(name, value, low, entry["high"], entry["off"])
        if self.repetition_penalty == 0:
            raise ValueError("repetition_penalty must be above 0, got 0; 1 turns it off")
        if self.best_of is not None:
            _check_whole("best_of", self.best_of, self.n, "it counts the answers drawn, of which n are kept")
        if self.seed is not None:
            _check_whole("seed", self.seed, None, "None gives fresh randomness")
        if self.suggest_above is not None:
            _check_real("suggest_above", self.suggest_above, 0, 1, "0 shows every answer")
        if self.deadline_s is not None:
            _check_real("deadline_s", self.deadline_s, 0.0, math.inf, "None sets no deadline")
            if self.deadline_s == 0:
                raise ValueError("deadline_s must be above 0 seconds, got 0; None sets no deadline")
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


# What the command line and the protocols read, by field: default, kind, help; low, high and off where it has limits.
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


def _check_whole(name: str, value: object, low: float | None, off: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (low is not None and isinstance(value, int) and value < low):
        limit = "" if low is None else f" of at least {low:g}"
        raise ValueError(f"{name} must be a whole number{limit}, got {value!r}; {off}")


def _check_real(name: str, value: object, low: float, high: float, off: str) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not (real and isinstance(value, int | float) and math.isfinite(value) and low <= value <= high):
        limit = f"from {low:g} to {high:g}" if math.isfinite(high) else f"finite and at least {low:g}"
        raise ValueError(f"{name} must be {limit}, got {value!r}; {off}")


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
