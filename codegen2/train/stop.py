"""Work that is asked to end: the signal is noted, and the loop ends behind its step with a checkpoint.

Not here: the loop, and the time that a run may take (loop.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Raised when all is saved, in place of what the signal would have done. signum: SIGINT or SIGTERM."""

    def __init__(self, signum: int, what: str) -> None:
        super().__init__(what)
        self.signum = signum


class Stop(threading.Event):
    """Set when a signal came; signum: its number, 0 before."""

    signum = 0


@contextlib.contextmanager
def stop_signals(*signals: int, again: Any = signal.SIG_DFL, heard: bytes = b"") -> Iterator[Stop]:
    """Yield an event that the first of these signals sets; a second one does what `again` says, or ends the process.

    heard: what standard error says when the first one comes. In a thread other than the main one, where Python lets
    nobody listen, signals have their usual effect.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(signum: int, frame: Any) -> None:
        stop.signum = signum
        stop.set()
        for each in signals:  # SIG_DFL kills in the midst of a kernel, too, where Python would not look
            signal.signal(each, again)
        with contextlib.suppress(OSError):
            os.write(2, heard)

    before = {each: signal.signal(each, note) for each in signals}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def leave_signals_alone(worker: int) -> None:
    """Make a forked process deaf to Ctrl-C, which its parent answers, and mortal by SIGTERM, as its parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
