"""Loaded: a model in memory, what it has read, and one pass of its engine for all rows at hand.

Not here: who asks, whose turn it is to have a slot, and how an answer ends (worker.py). Everything runs in the worker's
thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..api import Model
from ..config import EOT
from ..generation.generate import FinishReason
from ..generation.sampling import Cancelled
from ..generation.speculate import MOST_GUESSES, Lookup, Stopwatch
from ..text.infill import EOM
from .job import Job, Lane
from .metrics import Metrics
from .settings import Settings
from .slots import Slots, Work

_PASS_SECONDS = 0.1  # a pass that reads prompts
_LEAST_READ, _MOST_READ = 32, 348  # tokens of prompts a pass; the engine works in chunks of up to 348
_MOST_ECHO = 64  # prompt tokens a pass whose logits are all wanted: 51,200 numbers each
_SHORT = 32  # a prompt with so little left goes first


class _Unwanted:
    """Tell the engine's watcher whether the pass that is going on should be broken off; see sampling.Cancel.

    It is when most of it is for nobody. A broken pass is lost for all that are in it, and a whole one is short.
    """

    def __init__(self) -> None:
        self.shares: tuple[tuple[Job, int], ...] = ()  # whose rows the pass has, and how many tokens of each

    def is_set(self) -> bool:
        shares = self.shares
        gone = sum(n for job, n in shares if job.why)
        return bool(gone) and 2 * gone > sum(n for _, n in shares)


class Planned(NamedTuple):
    """A row's part of a pass: how many ids it reads, and how many of the last want logits."""

    job: Job
    lane: Lane
    n: int
    wanted: int


class Grown(NamedTuple):
    """What a pass brought to a row: text, and why it ends if it does."""

    job: Job
    lane: Lane
    text: str
    end: FinishReason | None


class Loaded:
    """Own a model, its slots and the watch on its engine; close() before it is dropped."""

    def __init__(self, model: Model, settings: Settings, metrics: Metrics) -> None:
        self.model = model
        self.slots = Slots(model.engine, int(settings.cache_gib * 2**30))
        self._metrics = metrics
        self._engine: Any = model.engine
        config = model.engine.config
        self._ban = np.zeros(config.vocab_size, dtype=bool)  # what is never written
        self._ban[[i for i in model.banned - {EOT, EOM} if i < config.vocab_size]] = True
        self._ban_ends = self._ban.copy()  # and what would end an answer
        self._ban_ends[[i for i in (EOT, EOM) if i < config.vocab_size]] = True
        self._read_tok_s = 500.0
        self._unwanted = _Unwanted()
        self._watch = contextlib.ExitStack()
        self._watching = False

    def close(self) -> None:
        """End the watch on the engine; the next pass begins it again."""
        self._watch.close()
        self._watching = False

    def work(self, running: Sequence[Job], served: dict[str, float]) -> Iterator[Grown]:
        """Run the engine once for all rows that can go on, and return one after the other what it brought.

        served: tokens of work by group, which is added to. Returns nothing when the pass was broken off.
        """
        lanes = [(job, lane) for job in running for lane in job.lanes if lane.slot is not None]
        if not lanes:
            return
        plan = self._plan(lanes, served)
        work: list[Work] = []
        for _, lane, n, wanted in plan:
            assert lane.slot is not None
            work.append((lane.slot.number, len(lane.slot.tokens), [*lane.todo[:n], *lane.guesses], wanted))
        self._unwanted.shares = tuple((job, n + len(lane.guesses)) for job, lane, n, _ in plan)
        self._watch_engine()
        try:
            with Stopwatch() as watch:
                found = self.slots.rows.extend(work)
        except Cancelled:
            self.close()  # its flag stays up until then
            return
        finally:
            self._unwanted.shares = ()
        self._note_pass(plan, watch.seconds, served)
        for (job, lane, n, _), logits in zip(plan, found, strict=True):
            grown = self._go_on(job, lane, n, logits)
            if grown is not None:
                yield grown

    def _watch_engine(self) -> None:
        if not self._watching and hasattr(self._engine, "cancelled_by"):
            self._watch.enter_context(self._engine.cancelled_by(self._unwanted))
            self._watching = True

    def _plan(self, lanes: list[tuple[Job, Lane]], served: dict[str, float]) -> list[Planned]:
        """Choose what a pass does."""
        writing = [(job, lane) for job, lane in lanes if not lane.reading]
        reading = [(job, lane) for job, lane in lanes if lane.reading]
        reading.sort(key=lambda both: (len(both[1].todo) > _SHORT, served[both[0].group]))
        if len(writing) == 1 and not reading:
            self._guess(writing[0][1])
        plan = [Planned(job, lane, len(lane.todo), 1 + len(lane.guesses)) for job, lane in writing]
        room = max(_LEAST_READ, min(_MOST_READ, int(self._read_tok_s * _PASS_SECONDS)))
        for job, lane in reading:
            echo = job.ask.echo_logprobs and lane.index == 0
            n = min(room, len(lane.todo), _MOST_ECHO if echo else _MOST_READ)
            if n <= 0:
                break
            room -= n
            last = n == len(lane.todo)
            wanted = n if echo else int(last and lane.row.params.max_new_tokens > 0)
            plan.append(Planned(job, lane, n, wanted))
        return plan

    def _guess(self, lane: Lane) -> None:
        """Guess what the one row that writes says next: several tokens a pass cost a single row little more."""
        row = lane.row
        if not (row.params.speculate and getattr(self._engine, "exact_rows", False)):
            return
        if lane.lookup is None:
            lane.lookup = Lookup([*row.prompt, *row.tokens])
        assert lane.slot is not None
        guesses, lane.match = lane.lookup.guess(MOST_GUESSES)
        room = self._engine.config.n_ctx - len(lane.slot.tokens) - 1
        lane.guesses = guesses[: max(0, min(self._engine.pace.most(lane.match, lane.purse), room))]

    def _note_pass(self, plan: list[Planned], seconds: float, served: dict[str, float]) -> None:
        n_read = 0
        for job, lane, n, _ in plan:
            n_read += n if lane.reading else 0
            served[job.group] += n + len(lane.guesses)
        self._metrics.count("codegen2_passes_total")
        self._metrics.count("codegen2_pass_rows_total", len(plan))
        self._metrics.count("codegen2_prompt_tokens_total", n_read)
        if n_read >= _LEAST_READ:
            self._read_tok_s = 0.7 * self._read_tok_s + 0.3 * n_read / max(seconds, 1e-6)
        if len(plan) == 1 and not plan[0].lane.reading:
            pace = getattr(self._engine, "pace", None)
            if pace is not None:
                pace.note_cost(1 + len(plan[0].lane.guesses), seconds)

    def _go_on(self, job: Job, lane: Lane, n: int, logits: np.ndarray) -> Grown | None:
        """Take in what a pass brought to one row."""
        assert lane.slot is not None
        slot, row, tokenizer = lane.slot, lane.row, self.model.tokenizer
        done, lane.todo = lane.todo[:n], lane.todo[n:]
        first = not slot.tokens
        slot.tokens += done
        if lane.reading:
            if job.ask.echo_logprobs and lane.index == 0:
                following = [*done, *lane.todo[:1]]
                job.note_prompt(following, logits, first, tokenizer)
                logits = logits[-1:]
            if lane.todo:
                return None
            lane.reading = False
            if not job.read_at:
                job.read_at = time.monotonic()
                self._metrics.count("codegen2_cached_tokens_total", job.cached)
            if row.params.max_new_tokens == 0:  # a client's warm-up
                return Grown(job, lane, "", "length")
            if np.isnan(logits).any():
                raise RuntimeError("the model's logits are no numbers; its weights are damaged")
        return self._draw(job, lane, logits)

    def _draw(self, job: Job, lane: Lane, logits: np.ndarray) -> Grown:
        """Draw a token, and more while what was drawn is what was guessed."""
        assert lane.slot is not None
        row, text, right, checked = lane.row, "", 0, len(lane.guesses)
        n_ctx = self._engine.config.n_ctx
        for at in range(len(logits)):
            if not row.tokens and row.finish_reason is None and lane.index == 0:
                self._metrics.observe("codegen2_first_token_seconds", time.monotonic() - job.arrived)
            early = len(row.tokens) < job.ask.min_tokens
            token, new = row.take(logits[at], self._ban_ends if early else self._ban)
            text += new
            if row.finish_reason is not None:
                break
            if lane.lookup is not None:
                lane.lookup.add(token)
            if len(lane.slot.tokens) + 1 >= n_ctx:
                text += row.finish("length")
                break
            if at < checked and lane.guesses[at] == token:
                lane.slot.tokens.append(token)
                right += 1
                continue
            lane.todo = [token]
            break
        if checked:
            pace = self._engine.pace  # guesses are for engines that keep one
            pace.note_guess(lane.match, right, checked)
            lane.purse.note(1 + right, pace.cost(1 + checked))
        lane.guesses = []
        return Grown(job, lane, text, row.finish_reason)
