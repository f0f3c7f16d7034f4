"""Connections that come when there is no descriptor for them, and those whose client never says or takes anything.

Not here: addresses (run.py), bodies and replies that take too long (http.py).
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .logs import log

_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 0.5  # asyncio itself asks again after one
_LOG_SECONDS = 60.0  # between two lines of the log
_MOST_READ = 2**15  # bytes at once: chunks of one byte each cost 20 microseconds
_HEAD_SECONDS = 60.0  # a request's head that takes longer is not waited for, nor a reader who takes nothing


class Listening(socket.socket):
    """A socket that says "nobody waits" right after there was no descriptor for somebody who does.

    asyncio would ask once for each place of its queue, and log each time: a megabyte a second.
    """

    _lacked_at = _logged_at = -math.inf

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a new connection and its address. Raises BlockingIOError where there is none."""
        if time.monotonic() - self._lacked_at < _PAUSE_SECONDS:
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as e:
            if e.errno in _LACKS:
                self._lacked_at = time.monotonic()
            raise

    def on_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle what the event loop could not do: a lack of descriptors is a line a minute, without a traceback."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _LACKS):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._logged_at >= _LOG_SECONDS:
            self._logged_at = time.monotonic()
            log("no descriptors", error=f"{error.strerror}; new connections wait; allow more (ulimit -n)")


class Connection(H11Protocol):
    """A connection that is cut when a request's head takes a minute, however many bytes trickle in.

    What it reads at once is little, so that others have their turn between.
    """

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        transport.max_size = _MOST_READ  # type: ignore[attr-defined]  # of asyncio's, 256 KiB
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        self._unwatch()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also one whose client has not taken its last answer."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._limit is None:
            self._limit = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _unwatch(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
