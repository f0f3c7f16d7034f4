"""What the methods of Model give back. Plain data.

Not here: how it comes about (api.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..text.context import Dropped
from ..text.postprocess import Cut
from ..text.windows import bits_per_byte
from .generate import FinishReason, Generation


@dataclass(frozen=True)
class Completion:
    """N continuations of a prompt; text, tokens and finish_reason are the first one's."""

    choices: list[Generation]
    prompt_tokens: int
    dropped: Dropped

    @property
    def text(self) -> str:
        """Return the new text, without the prompt."""
        return self.choices[0].text

    @property
    def tokens(self) -> list[int]:
        """Return the new ids."""
        return self.choices[0].tokens

    @property
    def finish_reason(self) -> FinishReason:
        """Return why it ended."""
        return self.choices[0].finish_reason


@dataclass(frozen=True)
class Middle:
    """The text for one hole: as an editor should insert it, as the model wrote it, and what was cut and why.

    unindent: columns of blank text before the cursor that an editor should delete first. logprob (nats): of middle
    and suffix together, where best_of asked for a choice.
    """

    text: str
    raw: str
    cuts: tuple[Cut, ...]
    unindent: int
    finish_reason: FinishReason
    generation: Generation
    logprob: float | None = None


@dataclass(frozen=True)
class Infilling:
    """The answers to an infill: for one hole n choices, for several holes one middle each."""

    choices: list[Middle]
    prompt_tokens: int
    dropped: Dropped

    @property
    def text(self) -> str:
        """Return the first middle, ready to insert."""
        return self.choices[0].text

    @property
    def raw(self) -> str:
        """Return the first middle as the model wrote it."""
        return self.choices[0].raw

    @property
    def finish_reason(self) -> FinishReason:
        """Return why the first one ended; "length" when the model did not end it with <eom>."""
        return self.choices[0].finish_reason


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; the last one of a row carries its finish_reason.

    The very last chunk of all also carries the whole result. An infill streams raw text: what an editor should keep
    of it is known at the end, in result.
    """

    text: str
    index: int = 0
    finish_reason: FinishReason | None = None
    result: Completion | Infilling | None = None


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
