"""A run that is asked to end: Ctrl-C and SIGTERM are noted, and the loop ends behind its step with a checkpoint.

Not here: the loop, and the time that a run may take (loop.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HEARD = b"\ncodegen2: ends when this step is done and saved; the same again ends at once\n"


class Interrupted(KeyboardInterrupt):
    """Raised when all is saved, in place of what the signal would have done. signum: SIGINT or SIGTERM."""

    def __init__(self, signum: int, what: str) -> None:
        super().__init__(what)
        self.signum = signum


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of the signal that came, 0 before; a second one ends the process.

    In a thread other than the main one, where Python lets nobody listen, signals have their usual effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    came = 0

    def note(signum: int, frame: Any) -> None:
        nonlocal came
        came = signum
        for each in _SIGNALS:
            signal.signal(
                each, signal.SIG_DFL
            )  # kills in the midst of a kernel, too, where Python would not look
        with contextlib.suppress(OSError):
            os.write(2, _HEARD)

    before = {each: signal.signal(each, note) for each in _SIGNALS}
    try:
        yield lambda: came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def leave_signals_alone(worker: int) -> None:
    """Make a forked process deaf to Ctrl-C, which its parent answers, and mortal by SIGTERM, as its parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
