"""What the worker gives back: pieces while an answer grows, then the answer. Plain data.

Not here: how it comes about (worker.py), how a dialect shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..generation.generate import FinishReason
from ..text.context import Dropped
from ..text.postprocess import Cut
from .schema import TokenInfo

Interruption = Literal["superseded", "cancelled", "stopping"]


@dataclass(frozen=True)
class Piece:
    """A piece of a streamed answer: text that will not change; the last of an index has a finish_reason.

    Of a post-processed infill only whole lines come, two lines late: a line that repeats what stands after the cursor
    is known for what it is by the lines below it.
    """

    text: str
    index: int = 0
    tokens: tuple[TokenInfo, ...] = ()  # drawn since the last piece; of raw text
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Choice:
    """One answer. text: as an editor should insert it, and what all its pieces join to; raw: as it was written.

    stop_string: the one of params.stop that ended it. ended_by_model: by <eom> or <|endoftext|>. unindent: characters
    before the cursor that an editor should delete first. tokens: of raw.
    """

    text: str
    raw: str
    finish_reason: FinishReason
    stop_string: str | None = None
    ended_by_model: bool = False
    cuts: tuple[Cut, ...] = ()
    unindent: int = 0
    tokens: tuple[TokenInfo, ...] = ()


@dataclass(frozen=True)
class Timings:
    """Milliseconds, and the tokens that were read (prompt_n), known before (cached_n), written (predicted_n)."""

    queued_ms: float = 0.0
    load_ms: float = 0.0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    cached_n: int = 0
    predicted_n: int = 0
    predicted_ms: float = 0.0


@dataclass(frozen=True)
class Answer:
    """The whole result of an Ask. interrupted: why it ended early, None when it did not.

    completion_tokens counts all that was drawn, best_of included. echo: the prompt's tokens, where they were asked for.
    """

    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int
    dropped: Dropped
    timings: Timings
    interrupted: Interruption | None = None
    echo: tuple[TokenInfo, ...] = ()


class Busy(Exception):
    """Raised when the queue is full."""


class Stopping(Exception):
    """Raised when the server is going down."""


class NoModel(RuntimeError):
    """Raised when the model cannot be loaded, saying why and what helps."""
