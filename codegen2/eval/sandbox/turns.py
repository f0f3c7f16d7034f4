"""Judgements side by side, or one alone: no verdict may come from a wall clock that load has beaten.

A candidate whose wall clock ran out while its CPU seconds did not was waiting: of its own will, or for a core that
others had. Which one, a second try tells: alone, and with more patience. A program that sleeps times out there, too.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Outcome = TypeVar("Outcome")


class Turns:
    """Many holders at once, or one that is alone and before which nobody new begins."""

    def __init__(self) -> None:
        self._door = threading.Lock()  # held by who is alone or waits to be, so that nobody begins
        self._changed = threading.Condition()
        self._running = 0

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Run the block beside others."""
        with self._door, self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Run the block when all others have ended."""
        with self._door:
            with self._changed:
                self._changed.wait_for(lambda: not self._running)
            yield


TURNS = Turns()  # of the whole process: two judges' candidates disturb each other, too


def run_fairly(
    run: Callable[[bool], Outcome], starved: Callable[[Outcome], bool], turns: Turns = TURNS
) -> Outcome:
    """Return run(False), or where it was starved the outcome of a second try, run(True), with nothing beside it.

    starved: whether the wall clock ran out before the budget of CPU seconds did. A second try should be more patient.
    """
    with turns.shared():
        outcome = run(False)
    if starved(outcome):
        with turns.alone():
            outcome = run(True)
    return outcome
