"""Show how far something long is, on standard error: a bar on a terminal, else nothing or a line now and then.

The one place that draws bars. Imports rich only where a bar is drawn.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Unit = Literal["items", "bytes"]


class Bar:
    """What a piece of work reports to; without a terminal every method may be called all the same."""

    def __init__(
        self, title: str, total: int | None, drawn: Progress | None, lines_every_s: float | None
    ) -> None:
        self._title, self._total, self._done = title, total, 0
        self._drawn, self._lines_every_s = drawn, lines_every_s
        self._tasks: dict[str, TaskID] = {}
        self._printed_at, self._began = float("-inf"), time.monotonic()

    def update(
        self, done: int, total: int | None = None, *, note: str = "", title: str | None = None,
        left_s: float | None = None,
    ) -> None:  # fmt: skip
        """Report how much is done, of how much; a title other than before begins another bar below.

        left_s: the seconds that are left; None: by what was done since the bar began.
        Callable as (done, total), so `bar.update` is what load and convert take as progress.
        """
        if title is not None and title != self._title:
            self._title, self._total, self._began = title, None, time.monotonic()
        self._done, self._total = done, total if total is not None else self._total
        now, left = time.monotonic(), ""
        if self._total and 0 < done < self._total:
            left_s = (now - self._began) / done * (self._total - done) if left_s is None else left_s
            left = f"{timedelta(seconds=round(left_s))} left"
        if self._drawn is not None:
            if self._title not in self._tasks:
                self._tasks[self._title] = self._drawn.add_task(self._title, left="", note="")
            self._drawn.update(
                self._tasks[self._title], completed=done, total=self._total, left=left, note=note
            )
        elif self._lines_every_s is not None and (
            done == self._total or now - self._printed_at >= self._lines_every_s
        ):
            self._printed_at = now
            of = "" if self._total is None else f"/{self._total}"
            print(*filter(None, (f"{self._title}: {done}{of}", left, note)), file=sys.stderr, flush=True)

    def advance(self, by: int = 1) -> None:
        """Report that so much more is done."""
        self.update(self._done + by)


@contextlib.contextmanager
def progress_bar(
    title: str, total: int | None = None, *, unit: Unit = "items", lines_every_s: float | None = None
) -> Iterator[Bar]:
    """Yield a Bar, which is gone when the block ends.

    total: None where it is not known yet. unit: "bytes" are shown as kB, MB and so on. lines_every_s: where standard
    error is no terminal, print a line at most so often, and at the end; None prints nothing there.

    >>> with progress_bar("packing", 2) as bar:
    ...     bar.advance()
    """
    if not sys.stderr.isatty():
        yield Bar(title, total, None, lines_every_s)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn

    text = TextColumn("{task.description}", markup=False)  # a path may hold brackets
    # Not rich's column: that knows nothing before the second step, and nothing of a time limit.
    left, note = TextColumn("{task.fields[left]}"), TextColumn("{task.fields[note]}", markup=False)
    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    console = Console(stderr=True)
    with Progress(text, BarColumn(), count, left, note, console=console, transient=True) as drawn:
        bar = Bar(title, total, drawn, None)
        bar.update(0)
        yield bar
