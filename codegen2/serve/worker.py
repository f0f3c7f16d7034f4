"""Worker: the one thread that owns the engine. It takes Asks, works on several at once, and ends them early.

Not here: prompts and texts (job.py), keys and values (slots.py), HTTP. A turn of the thread:

    1. take in new asks; drop those that are superseded or whose client is gone
    2. give waiting rows a slot, those of whom least was done for first
    3. one pass of the engine: a token for every row that writes, and a piece of the prompts that are being read: short
       ones first (a key typed is a token or two), then those of whom least was done for
    4. draw tokens, show text, hand out answers

A pass lasts about a tenth of a second at most, so that nobody waits long; one that is not wanted is broken off.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ..api import Model
from ..config import EOT, ModelConfig
from ..infill import EOM
from ..sampling import Cancelled
from ..speculate import MOST_GUESSES, Lookup, Stopwatch
from .answers import Answer, Busy, Choice, Piece, Stopping, Timings
from .job import Job, Lane
from .logs import log
from .metrics import Metrics, resident_bytes
from .schema import Ask
from .settings import Settings
from .slots import Slots, Work
from .ticket import Ticket

__all__ = ["Answer", "Busy", "Choice", "Piece", "Stopping", "Ticket", "Timings", "Worker"]
State = Literal["new", "loading", "ready", "unloaded", "failed", "stopped"]
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


class Worker:
    """Own a model: load it, answer Asks in one thread, unload it when nobody asks for long.

    load: gives the model; called in the worker's thread, again after each unloading.
    """

    def __init__(self, load: Callable[[], Model], settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.metrics = Metrics()
        self.state: State = "new"
        self.error = ""  # why loading failed
        self.config: ModelConfig | None = None  # once a model was loaded
        self.model: Model | None = None
        self.loaded_at = 0.0  # seconds since 1970
        self.load_s = 0.0
        self._load = load
        self._keep_alive_s = self.settings.keep_alive_s
        self._wake = threading.Condition()
        self._inbox: list[Job] = []
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._slots: Slots | None = None
        self._served: dict[str, float] = {}
        self._stopping = self._draining = False
        self._read_tok_s = 500.0
        self._unwanted = _Unwanted()
        self._watch = contextlib.ExitStack()
        self._watching = False
        self._ban: np.ndarray | None = None  # what is never written
        self._ban_ends: np.ndarray | None = None  # and what would end an answer
        self._idle_since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="codegen2-worker", daemon=True)
        for name, read in (
            ("codegen2_waiting", lambda: len(self._inbox) + len(self._waiting)),
            ("codegen2_running", lambda: len(self._running)),
            ("codegen2_slots", lambda: len(self._slots.slots) if self._slots else 0),
            ("codegen2_cached_tokens", self._cached_tokens),
            ("codegen2_model_loaded", lambda: int(self.model is not None)),
            ("process_resident_memory_bytes", resident_bytes),
        ):
            self.metrics.gauge(name, read)

    # ---- from any thread

    def start(self) -> None:
        """Begin to load and to answer."""
        if self.state == "new":
            self.state = "loading"
            self._thread.start()

    def submit(self, ask: Ask, pieces: bool = True) -> Ticket:
        """Take an Ask in; call it in an event loop, which the ticket belongs to.

        A newer Ask of the same session ends an older one. pieces: the ticket is iterated, not only waited for.
        Raises Busy when the queue is full and Stopping when the server goes down.
        """
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        job = Job(ask, loop, queue, pieces)
        with self._wake:
            if self._draining or self._stopping:
                raise Stopping("the server is going down; try again when it is back")
            older = [*self._inbox, *self._waiting, *self._running]
            if ask.session is not None:
                for other in older:
                    if other.ask.session == ask.session:
                        other.cancel("superseded")
            if sum(1 for other in older if other.why is None) >= self.settings.max_queue:
                raise Busy(f"{self.settings.max_queue} requests wait or run already; try again in a second")
            self._inbox.append(job)
            self._wake.notify()
        self.start()
        return Ticket(job, queue, self._notify)

    def keep_alive(self, seconds: float) -> None:
        """Unload the model when nobody asked for so long, from now on; 0: as soon as it is idle, negative: never."""
        self._keep_alive_s = seconds
        self._notify()

    def drain(self) -> None:
        """Take no more Asks; those taken in are answered."""
        with self._wake:
            self._draining = True
            self._wake.notify()

    def busy(self) -> bool:
        """Say whether anybody waits for an answer."""
        return bool(self._inbox or self._waiting or self._running)

    def cancel_all(self) -> None:
        """End everything that was asked, and take no more."""
        with self._wake:
            self._draining = True
            for job in [*self._inbox, *self._waiting, *self._running]:
                job.cancel("stopping")
            self._wake.notify()

    def stop(self) -> None:
        """End everything now and wait for the thread."""
        self.cancel_all()
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.state = "stopped"

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _cached_tokens(self) -> float:
        slots = self._slots
        return sum(len(s.tokens) for s in slots.slots) if slots else 0

    # ---- the thread

    def _run(self) -> None:
        while True:
            try:
                if not self._turn():
                    break
            except Exception as e:  # whatever it was, the next request is answered
                self._fault(e)
        self._let_go()

    def _turn(self) -> bool:
        """Do one turn; False when the worker was stopped."""
        if not self._take_in():
            return False
        if self.model is None and (self._waiting or self.state == "loading"):
            self._load_model()
        if self.model is None or not (self._waiting or self._running):
            return True
        self._drop()
        self._admit()
        self._pass()
        return True

    def _take_in(self) -> bool:
        """Wait for something to do, and unload the model while there is nothing."""
        with self._wake:
            while not (self._inbox or self._waiting or self._running or self.state == "loading"):
                if self._stopping:
                    return False
                self._watch.close()
                self._watching = False
                wait = None
                if self.model is not None and self._keep_alive_s >= 0:
                    wait = self._idle_since + self._keep_alive_s - time.monotonic()
                    if wait <= 0:
                        self._unload()
                        wait = None
                self._wake.wait(wait)
            if self._stopping and not (self._inbox or self._waiting or self._running):
                return False
            new, self._inbox = self._inbox, []
            least = min(
                (self._served.get(j.group, 0.0) for j in [*self._waiting, *self._running]), default=0.0
            )
            for job in new:  # somebody new has no claim on all the time before
                self._served[job.group] = max(self._served.get(job.group, 0.0), least)
            self._waiting += new
        return True

    def _load_model(self) -> None:
        self.state = "loading"
        started = time.monotonic()
        try:
            model = self._load()
        except Exception as e:
            self.state, self.error = "failed", " ".join(str(e).split())
            log("load failed", error=self.error)
            for job in self._waiting:
                self._end(job, RuntimeError(f"the model cannot be loaded: {self.error}"))
            self._waiting = []
            return
        self.load_s = time.monotonic() - started
        self.config = model.engine.config
        self._ban = np.zeros(self.config.vocab_size, dtype=bool)
        self._ban[[i for i in model.banned - {EOT, EOM} if i < self.config.vocab_size]] = True
        self._ban_ends = self._ban.copy()
        self._ban_ends[[i for i in (EOT, EOM) if i < self.config.vocab_size]] = True
        self._slots = Slots(model.engine, int(self.settings.cache_gib * 2**30))
        self.model, self.state, self.error = model, "ready", ""
        self.loaded_at = time.time()
        self._idle_since = time.monotonic()
        for job in self._waiting:
            job.load_s = min(self.load_s, time.monotonic() - job.arrived)
        self.metrics.count("codegen2_loads_total")
        log("loaded", model=model.name, seconds=round(self.load_s, 3), slots=len(self._slots.slots))

    def _unload(self) -> None:
        self.model, self._slots, self.state = None, None, "unloaded"
        gc.collect()  # engines and caches know each other
        self.metrics.count("codegen2_unloads_total")
        log("unloaded")

    def _let_go(self) -> None:
        self._watch.close()
        self.model = self._slots = None
        gc.collect()

    def _fault(self, error: Exception) -> None:
        """Fail what was going on, and forget what the slots hold."""
        told = self._failed(error)
        for job in self._running:
            self._end(job, told)
        self._running = []
        if self._slots is not None:
            self._slots.forget()

    # ---- a turn's parts

    def _drop(self) -> None:
        """End what nobody wants any more, and what ran past its deadline."""
        assert self.model is not None
        for job in [j for j in self._waiting if j.why]:
            self._waiting.remove(job)
            self._count_cancelled(job, "queue")
            self._end(
                job, Stopping("the server is going down") if job.why == "stopping" else self._answer(job)
            )
        now = time.monotonic()
        for job in list(self._running):
            if job.why:
                self._count_cancelled(job, "read" if any(lane.reading for lane in job.lanes) else "write")
                for lane in job.lanes:
                    self._finish(job, lane, "cancel")
            elif job.ask.deadline_s is not None and job.read_at and now - job.read_at > job.ask.deadline_s:
                for lane in job.lanes:
                    if job.line_exists(lane):
                        self._finish(job, lane, "deadline")

    def _count_cancelled(self, job: Job, phase: str) -> None:
        self.metrics.count("codegen2_cancelled_total", reason=str(job.why), phase=phase)
        self.metrics.observe("codegen2_cancel_seconds", time.monotonic() - job.cancelled_at)

    def _admit(self) -> None:
        """Give rows slots: first more rows of what runs, then what waits, the least served first."""
        assert self.model is not None and self._slots is not None
        room = self.settings.max_parallel - sum(
            1 for j in self._running for lane in j.lanes if lane.slot is not None
        )
        self._waiting.sort(key=lambda j: (self._served[j.group], j.arrived))
        for job in [*self._running, *self._waiting]:
            if room <= 0 or not self._slots.idle():
                break
            if not job.lanes:
                try:
                    job.prepare(self.model, self._slots, self.settings.max_new_tokens)
                except Exception as e:
                    self._waiting.remove(job)
                    self._end(job, e if isinstance(e, ValueError) else self._failed(e))
                    continue
            for lane in job.lanes:
                if room <= 0 or lane.slot is not None or lane.done or (lane.index and not job.read_at):
                    continue  # the second answer copies what the first one's prompt cost
                if not job.admit(lane, self._slots):
                    break
                room -= 1
                if job in self._waiting:
                    self._waiting.remove(job)
                    self._running.append(job)

    def _pass(self) -> None:
        """Run the engine once for all rows that can go on."""
        assert self._slots is not None
        lanes = [(job, lane) for job in self._running for lane in job.lanes if lane.slot is not None]
        if not lanes:
            return
        plan = self._plan(lanes)
        work: list[Work] = []
        for _, lane, n, wanted in plan:
            assert lane.slot is not None
            work.append((lane.slot.number, len(lane.slot.tokens), [*lane.todo[:n], *lane.guesses], wanted))
        self._unwanted.shares = tuple((job, n + len(lane.guesses)) for job, lane, n, _ in plan)
        self._watch_engine()
        try:
            with Stopwatch() as watch:
                found = self._slots.rows.extend(work)
        except Cancelled:
            self._watch.close()  # its flag stays up until then
            self._watching = False
            return
        finally:
            self._unwanted.shares = ()
        self._note_pass(plan, watch.seconds)
        for (job, lane, n, _), logits in zip(plan, found, strict=True):
            self._go_on(job, lane, n, logits)

    def _watch_engine(self) -> None:
        assert self.model is not None
        engine: Any = self.model.engine
        if not self._watching and hasattr(engine, "cancelled_by"):
            self._watch.enter_context(engine.cancelled_by(self._unwanted))
            self._watching = True

    def _plan(self, lanes: list[tuple[Job, Lane]]) -> list[tuple[Job, Lane, int, int]]:
        """Choose (job, lane, ids to read, how many logits are wanted) for a pass."""
        writing = [(job, lane) for job, lane in lanes if not lane.reading]
        reading = [(job, lane) for job, lane in lanes if lane.reading]
        reading.sort(key=lambda both: (len(both[1].todo) > _SHORT, self._served[both[0].group]))
        if len(writing) == 1 and not reading:
            self._guess(*writing[0])
        plan = [(job, lane, len(lane.todo), 1 + len(lane.guesses)) for job, lane in writing]
        room = max(_LEAST_READ, min(_MOST_READ, int(self._read_tok_s * _PASS_SECONDS)))
        for job, lane in reading:
            echo = job.ask.echo_logprobs and lane.index == 0
            n = min(room, len(lane.todo), _MOST_ECHO if echo else _MOST_READ)
            if n <= 0:
                break
            room -= n
            last = n == len(lane.todo)
            plan.append((job, lane, n, n if echo else int(last and lane.row.params.max_new_tokens > 0)))
        return plan

    def _guess(self, job: Job, lane: Lane) -> None:
        """Guess what the one row that writes says next: several tokens a pass cost a single row little more."""
        assert self.model is not None
        engine: Any = self.model.engine
        row = lane.row
        if not (row.params.speculate and getattr(engine, "exact_rows", False)):
            return
        if lane.lookup is None:
            lane.lookup = Lookup([*row.prompt, *row.tokens])
        assert lane.slot is not None
        guesses, lane.match = lane.lookup.guess(MOST_GUESSES)
        room = engine.config.n_ctx - len(lane.slot.tokens) - 1
        lane.guesses = guesses[: max(0, min(engine.pace.most(lane.match, lane.purse), room))]

    def _note_pass(self, plan: list[tuple[Job, Lane, int, int]], seconds: float) -> None:
        n_read = 0
        for job, lane, n, _ in plan:
            n_read += n if lane.reading else 0
            self._served[job.group] += n + len(lane.guesses)
        self.metrics.count("codegen2_passes_total")
        self.metrics.count("codegen2_pass_rows_total", len(plan))
        self.metrics.count("codegen2_prompt_tokens_total", n_read)
        if n_read >= _LEAST_READ:
            self._read_tok_s = 0.7 * self._read_tok_s + 0.3 * n_read / max(seconds, 1e-6)
        if len(plan) == 1 and not plan[0][1].reading:
            lane, pace = plan[0][1], getattr(self.model and self.model.engine, "pace", None)
            if pace is not None:
                pace.note_cost(1 + len(lane.guesses), seconds)

    def _go_on(self, job: Job, lane: Lane, n: int, logits: np.ndarray) -> None:
        """Take in what a pass brought to one row."""
        assert self.model is not None and lane.slot is not None
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
                return
            lane.reading = False
            if not job.read_at:
                job.read_at = time.monotonic()
                self.metrics.count("codegen2_cached_tokens_total", job.cached)
            if row.params.max_new_tokens == 0:  # a client's warm-up
                self._finish(job, lane, "length")
                return
            if np.isnan(logits).any():
                raise RuntimeError("the model's logits are no numbers; its weights are damaged")
        self._draw(job, lane, logits)

    def _draw(self, job: Job, lane: Lane, logits: np.ndarray) -> None:
        """Draw a token, and more while what was drawn is what was guessed."""
        assert self.model is not None and lane.slot is not None
        row, text, right, checked = lane.row, "", 0, len(lane.guesses)
        n_ctx = self.model.engine.config.n_ctx
        for at in range(len(logits)):
            if not row.tokens and row.finish_reason is None and lane.index == 0:
                self.metrics.observe("codegen2_first_token_seconds", time.monotonic() - job.arrived)
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
            engine: Any = self.model.engine  # guesses are for engines that keep a pace
            pace = engine.pace
            pace.note_guess(lane.match, right, checked)
            lane.purse.note(1 + right, pace.cost(1 + checked))
        lane.guesses = []
        if row.finish_reason is not None:
            self._finish(job, lane, row.finish_reason, text)
        else:
            job.grown(lane, text, self.model.tokenizer)

    def _finish(self, job: Job, lane: Lane, reason: Any, text: str = "") -> None:
        """End a row, and the job with its last one."""
        assert self.model is not None and self._slots is not None
        if lane.slot is None and lane.done:
            return
        text += lane.row.finish(reason)
        if lane.slot is not None:
            self._slots.release(lane.slot)
            lane.slot = None
        job.grown(lane, text, self.model.tokenizer)
        if all(one.done for one in job.lanes):
            if job in self._running:
                self._running.remove(job)
            self._end(job, self._answer(job))

    def _answer(self, job: Job) -> Answer | Exception:
        assert self.model is not None
        try:
            return job.result(self.model)
        except Cancelled:
            return RuntimeError("the choice between answers was broken off")
        except Exception as e:
            return self._failed(e)

    def _failed(self, error: Exception) -> RuntimeError:
        """Write down a fault of ours and give what those who wait for an answer get instead."""
        log("fault", error=type(error).__name__, message=" ".join(str(error).split()))
        self.metrics.count("codegen2_faults_total")
        return RuntimeError(f"{type(error).__name__}: {error}")

    def _end(self, job: Job, item: Answer | Exception) -> None:
        """Hand out an answer or what went wrong instead."""
        if job.finished:
            return
        job.finished = True
        for lane in job.lanes:
            if lane.slot is not None and self._slots is not None:
                self._slots.release(lane.slot)
                lane.slot = None
        written = item.completion_tokens if isinstance(item, Answer) else 0
        how = "error" if isinstance(item, Exception) else item.interrupted or item.choices[0].finish_reason
        self.metrics.count("codegen2_requests_total", end=how)
        self.metrics.count("codegen2_written_tokens_total", written)
        self.metrics.observe("codegen2_request_seconds", time.monotonic() - job.arrived)
        if not any(j.group == job.group and not j.finished for j in [*self._waiting, *self._running]):
            with self._wake:
                if not any(j.group == job.group for j in self._inbox):
                    self._served.pop(job.group, None)
        self._idle_since = time.monotonic()
        job.put(item)
