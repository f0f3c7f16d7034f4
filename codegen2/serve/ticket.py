"""Ticket: what the one who asked holds while the worker works; it belongs to the event loop it was made in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from .answers import Answer, Piece
from .job import Job


class Ticket:
    """An Ask under way: iterate for Pieces, then take .result; or `await ticket.whole()`.

    Both raise ValueError (BadField where one field is to blame) for what the client got wrong, Stopping when the server
    goes down before the Ask had its turn, and RuntimeError for what went wrong here.
    """

    def __init__(self, job: Job, queue: asyncio.Queue[Any], wake: Callable[[], None]) -> None:
        self._job, self._queue, self._wake = job, queue, wake
        self.result: Answer | None = None
        self._over = False

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[Piece]:
        while not self._over:
            item = await self._queue.get()
            if isinstance(item, Piece):
                yield item
                continue
            self._over = True
            if isinstance(item, Exception):
                raise item
            self.result = item

    async def whole(self) -> Answer:
        """Wait for the answer."""
        async for _ in self:
            pass
        if self.result is None:
            raise RuntimeError("this ticket ended in an error already")
        return self.result

    def cancel(self) -> None:
        """End it early: the engine stops within a piece of work. Does nothing to one that is done."""
        self._job.cancel("cancelled")
        self._wake()
