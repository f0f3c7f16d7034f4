"""What an answer is: choices with their tokens, what was cut and why, how long it took. Plain data.

Not here: how it comes about (scheduler.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..text.context import Dropped
from ..text.postprocess import Cut
from ..text.windows import bits_per_byte

FinishReason = Literal["stop", "length", "cancel", "deadline"]
Interruption = Literal["superseded", "cancelled", "stopping"]


@dataclass(frozen=True)
class TokenLogprob:
    """One token's log-probability (nats, of the unmodified model) and the likeliest alternatives, itself among them.

    logprob: None for the first token of a prompt, which nothing stands before. n_spelled: how many of the token's first
    bytes stand before the cursor already (token healing).
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    n_spelled: int = 0


@dataclass(frozen=True)
class Choice:
    """One answer, or the answer for one of several holes.

    text: as it is to be inserted, with the line ends of the text around it. raw: as the model wrote it, with LF.
    tokens: the ids that brought new text, without the one that ended it (stop_token, None without one). The first of
    them may begin with text that stands before the cursor already (token healing). logprobs: one entry a drawn token,
    the ending one included, where top_logprobs asked for them. cuts: what post-processing took away. unindent: blanks
    before the cursor that an editor should delete first. logprob (nats): what best_of ranked by. confidence: the
    estimated probability that an infill's text is exactly what was wanted; None of a model whose config says nothing of
    it. One held back because it is below suggest_above has no text, and its last cut says so.
    """

    text: str
    raw: str = ""
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason = "cancel"
    stop_token: int | None = None
    stop_string: str | None = None
    cuts: tuple[Cut, ...] = ()
    unindent: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    logprob: float | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Timings:
    """Milliseconds, and tokens: read (prompt_n), known from before (cached_n), written (predicted_n)."""

    queued_ms: float = 0.0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    cached_n: int = 0
    predicted_n: int = 0
    predicted_ms: float = 0.0


@dataclass(frozen=True)
class Result:
    """The answer to a request: n choices, or for several holes one choice each.

    completion_tokens counts all that was drawn, best_of included, but for tokens that only repeat the prompt's last
    text (token healing), which count as prompt. dropped: what the model did not see. prompt_logprobs: one entry a
    prompt token, where echo asked for them. interrupted: why it ended before its time, None where it did not.
    """

    choices: tuple[Choice, ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dropped: Dropped = field(default_factory=Dropped)
    timings: Timings = field(default_factory=Timings)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    interrupted: Interruption | None = None

    @property
    def text(self) -> str:
        """Return the first choice's text, ready to insert."""
        return self.choices[0].text

    @property
    def raw(self) -> str:
        """Return the first choice as the model wrote it."""
        return self.choices[0].raw

    @property
    def tokens(self) -> tuple[int, ...]:
        """Return the first choice's new ids."""
        return self.choices[0].tokens

    @property
    def finish_reason(self) -> FinishReason:
        """Return why the first choice ended; "length" where the model did not end it."""
        return self.choices[0].finish_reason


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer: text that will not change. All pieces of an index join to its choice's text.

    The last piece of an index has its finish_reason; the very last chunk of all has the whole result. tokens: drawn
    since the last piece, where top_logprobs asked for them.
    """

    text: str
    index: int = 0
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    result: Result | None = None


@dataclass(frozen=True)
class Score:
    """Log-likelihoods of a text's tokens, nats, each given all before it and the document's start."""

    tokens: list[int]
    logprobs: list[float]
    n_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Return bits per UTF-8 byte. Raises ValueError for an empty text."""
        return bits_per_byte(-sum(self.logprobs), self.n_bytes)
