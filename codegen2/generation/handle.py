"""RequestHandle: a request under way, from its arrival to its result.

Not here: whose turn it is (scheduler.py), one answer's tokens (sequence.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from ..text.context import Dropped
from .request import Prompt, Request
from .results import Choice, Chunk, FinishReason, Interruption, Result, Timings, TokenLogprob
from .sequence import Sequence as Answering


class RequestHandle:
    """A request under way. chunks: what of its answer is certain and was not yet taken; result or error at the end."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.chunks: deque[Chunk] = deque()
        self.result: Result | None = None
        self.error: Exception | None = None
        self.why: Interruption | None = None  # what ends it early, set from any thread
        self.cancelled_at = 0.0
        self.group = request.user or request.session or request.client  # whom a turn is counted for
        self.prompt: Prompt | None = None
        self.sequences: list[Answering] = []
        self.ranking: Iterator[tuple[Choice, ...]] | None = None  # of the answers, when all are written
        self.prompt_logprobs: list[TokenLogprob] = []
        self.arrived = self.started = self.read_at = 0.0
        self.n_cached = self.n_evaluated = 0

    @property
    def done(self) -> bool:
        """Whether result or error is there."""
        return self.result is not None or self.error is not None

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for the answer any more."""
        cancel = self.request.params.cancel
        return self.why is not None or (cancel is not None and cancel.is_set())

    @property
    def choices(self) -> list[Choice]:
        """Return the answers of all sequences, as far as they have ended."""
        return [choice for s in self.sequences for choice in s.choices]

    def interrupt(self, why: Interruption, now: float) -> None:
        """End it early, unless it has ended or is about to; from any thread."""
        if self.why is None and not self.done:
            self.cancelled_at = now
            self.why = why

    def notify(self) -> None:
        """Tell who waits, in the stepping thread: something was added to chunks, or result or error is there."""

    def outcome(self, now: float, reason: FinishReason, chosen: Sequence[Choice] = ()) -> Result:
        """Return the result of what the sequences have, or of those of them that are chosen.

        reason: why it ended before any began.
        """
        params, n_holes = self.request.params, self.request.n_holes
        started, read_at = self.started or now, self.read_at or now
        choices = chosen or self.choices or [Choice("", finish_reason=reason)] * max(params.n, n_holes)
        n_drawn = sum(s.n_drawn for s in self.sequences)
        timings = Timings(
            queued_ms=1e3 * (started - self.arrived),
            prompt_n=self.n_evaluated,
            prompt_ms=1e3 * (read_at - started),
            cached_n=self.n_cached,
            predicted_n=n_drawn,
            predicted_ms=1e3 * (now - read_at),
        )
        return Result(
            choices=tuple(choices[: max(params.n, n_holes)]),
            prompt_tokens=0 if self.prompt is None else len(self.prompt.tokens) + len(self.prompt.words[0]),
            completion_tokens=n_drawn,
            dropped=Dropped() if self.prompt is None else self.prompt.dropped,
            timings=timings,
            prompt_logprobs=tuple(self.prompt_logprobs),
            interrupted=self.why,
        )


class MostlyUnwanted:
    """Whether the pass that is going on should be broken off: when most of it is for nobody (engine.protocol.Cancel).

    A broken pass is lost for all that are in it, and a whole one is short.
    """

    def __init__(self) -> None:
        self.shares: tuple[tuple[RequestHandle, int], ...] = ()  # how many tokens of the pass are whose

    def is_set(self) -> bool:
        shares = self.shares
        gone = sum(n for handle, n in shares if handle.unwanted)
        return bool(gone) and 2 * gone > sum(n for _, n in shares)
