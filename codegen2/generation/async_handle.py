"""AsyncHandle: a request that was submitted to a worker, as an event loop sees it; and why a worker refuses one.

Not here: the thread (worker.py), the request inside the scheduler (handle.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from .handle import RequestHandle
from .request import Request
from .results import Chunk, Interruption, Result, TokenLogprob

STOPPING = "the server is going down; try again when it is back"


class Busy(Exception):
    """Raised when the queue is full."""


class Stopping(Exception):
    """Raised when the worker takes no more requests, or ended one before its turn came."""


class NoModel(RuntimeError):
    """Raised when the model cannot be loaded or the thread has died, saying why and what helps."""


class AsyncHandle:
    """A submitted request: iterate for Chunks, then take .result; or `await handle.whole()`.

    It belongs to the event loop in which it was submitted. Both raise ValueError for what is wrong with the request,
    Stopping where the worker stopped before its turn, NoModel, and RuntimeError for what went wrong here.
    """

    def __init__(
        self, request: Request, stream: bool, cancel: Callable[[AsyncHandle], None], call: Any = None
    ) -> None:
        self.request, self.call = request, call  # call: of Worker.run_in_steps, in place of the request
        self.steps: Iterator[Any] | None = None  # what `call` returned
        self.result: Result | None = None
        self.value: Any = None  # the last of the steps
        self.error: Exception | None = None  # of the worker or the call; the scheduler's is inner.error
        self.inner: RequestHandle | None = None  # once the scheduler has it
        self.why: Interruption | None = None  # what ends it early; the worker's lock guards it
        self.done = False
        self._cancel, self._stream = cancel, stream
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            self._event.clear()
            done = self.done  # asked before the chunks are taken: what came before the end is there then
            while self._stream and self.inner is not None and self.inner.chunks:
                yield self.inner.chunks.popleft()
            if done:
                break
            await self._event.wait()
        error = self.error or (self.inner.error if self.inner is not None else None)
        if error is not None:
            ours = self.call is not None or isinstance(error, ValueError | Stopping | NoModel)
            raise error if ours else RuntimeError(f"{type(error).__name__}: {error}") from error
        self.result = None if self.inner is None else self.inner.result
        if self.result and self.result.interrupted == "stopping" and not self.result.timings.prompt_n:
            raise Stopping(STOPPING)

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Return those of the prompt, where echo asked for them; all are there with the first chunk."""
        return () if self.inner is None else tuple(self.inner.prompt_logprobs)

    async def whole(self) -> Result:
        """Return the whole result."""
        async for _ in self:
            pass
        assert self.result is not None
        return self.result

    def cancel(self) -> None:
        """End it early: the engine stops within a piece of work. Does nothing to one that is done."""
        self._cancel(self)

    def notify(self, error: Exception | None = None) -> None:
        """Wake who waits, at the end or for a chunk; called in the worker's thread."""
        self.error = self.error or error
        self.done = self.error is not None or (self.inner.done if self.inner else self.call is not None)
        if self._stream or self.done:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
                self._loop.call_soon_threadsafe(self._event.set)
