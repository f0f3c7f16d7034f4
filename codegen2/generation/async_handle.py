"""AsyncHandle: a request that was submitted to a worker, as an event loop sees it; and why a worker refuses one.

Not here: the thread (worker.py), what a request is otherwise (handle.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from .handle import RequestHandle
from .request import Request
from .results import Chunk, Interruption, Result

STOPPING = "the server is going down; try again when it is back"


class Busy(Exception):
    """Raised when the queue is full."""


class Stopping(Exception):
    """Raised when the worker takes no more requests, or ended one before its turn came."""


class NoModel(RuntimeError):
    """Raised when the model cannot be loaded or the thread has died, saying why and what helps."""


class AsyncHandle(RequestHandle):
    """A submitted request: iterate for Chunks, then take .result; or `await handle.whole()`.

    It belongs to the event loop in which it was submitted. Both raise ValueError for what is wrong with the request,
    Stopping where the worker stopped before its turn, NoModel, and RuntimeError for what went wrong here.
    """

    def __init__(
        self, request: Request, stream: bool, cancel: Callable[[Sequence[AsyncHandle], Interruption], None]
    ) -> None:
        super().__init__(request)
        self._cancel, self._stream = cancel, stream
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            self._event.clear()
            done = self.done  # asked before the chunks are taken: what came before the end is there then
            while self._stream and self.chunks:
                yield self.chunks.popleft()
            if done:
                break
            await self._event.wait()
        if (error := self.error) is not None:
            ours = isinstance(error, ValueError | Stopping | NoModel)
            raise error if ours else RuntimeError(f"{type(error).__name__}: {error}") from error
        if self.result and self.result.interrupted == "stopping" and not self.result.timings.prompt_n:
            raise Stopping(STOPPING)

    async def whole(self) -> Result:
        """Return the whole result."""
        async for _ in self:
            pass
        assert self.result is not None
        return self.result

    def cancel(self) -> None:
        """End it early: the engine stops within a piece of work. Does nothing to one that is done."""
        self._cancel([self], "cancelled")

    def notify(self) -> None:
        """Wake who waits, at the end or for a chunk; called in the worker's thread."""
        if self._stream or self.done:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
                self._loop.call_soon_threadsafe(self._event.set)
