"""Worker: the one thread that owns the engine. It takes Asks, works on several at once, and ends them early.

Not here: prompts and texts (job.py), the passes of the engine (loaded.py), keys and values (slots.py), HTTP. A turn of
the thread:

    1. take in new asks; drop those that are superseded or whose client is gone
    2. give waiting rows a slot, those of whom least was done for first
    3. one pass of the engine: a token for every row that writes, and a piece of the prompts that are being read: short
       ones first (a key typed is a token or two), then those of whom least was done for
    4. draw tokens, show text, hand out answers

A pass lasts about a tenth of a second at most, so that nobody waits long; one that is not wanted is broken off.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from ..api import Model
from ..config import ModelConfig
from ..generation.sampling import Cancelled
from .answers import Answer, Busy, Choice, NoModel, Piece, Stopping, Timings
from .job import Job, Lane
from .loaded import Loaded
from .logs import log
from .metrics import Metrics, resident_bytes
from .schema import Ask
from .settings import Settings
from .slots import Slot
from .ticket import Ticket

__all__ = ["Answer", "Busy", "Choice", "NoModel", "Piece", "Stopping", "Ticket", "Timings", "Worker"]
State = Literal["new", "loading", "ready", "unloaded", "failed", "stopped", "dead"]
_STOP_SECONDS = 1.0  # a model that loads is not waited for longer


class Worker:
    """Own a model: load it, answer Asks in one thread, unload it when nobody asks for long.

    load: gives the model; called in the worker's thread, again after each unloading.
    """

    def __init__(self, load: Callable[[], Model], settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.metrics = Metrics()
        self.state: State = "new"
        self.error = ""  # why loading failed, or what the thread died of
        self.config: ModelConfig | None = None  # once a model was loaded
        self.loaded_at = 0.0  # seconds since 1970
        self.load_s = 0.0
        self._load = load
        self._keep_alive_s = self.settings.keep_alive_s
        self._wake = threading.Condition()
        self._inbox: list[Job] = []
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._loaded: Loaded | None = None
        self._served: dict[str, float] = {}
        self._stopping = self._draining = False
        self._idle_since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="codegen2-worker", daemon=True)
        for name, read in (
            ("codegen2_waiting", lambda: len(self._inbox) + len(self._waiting)),
            ("codegen2_running", lambda: len(self._running)),
            ("codegen2_slots", lambda: len(self._slots())),
            ("codegen2_cached_tokens", lambda: sum(len(s.tokens) for s in self._slots())),
            ("codegen2_model_loaded", lambda: int(self.model is not None)),
            ("process_resident_memory_bytes", resident_bytes),
        ):
            self.metrics.gauge(name, read)

    # ---- from any thread

    @property
    def model(self) -> Model | None:
        """Return the model while it is in memory."""
        loaded = self._loaded
        return None if loaded is None else loaded.model

    def start(self) -> None:
        """Begin to load and to answer."""
        if self.state == "new":
            self.state = "loading"
            self._thread.start()

    def submit(self, ask: Ask, pieces: bool = True) -> Ticket:
        """Take an Ask in; call it in an event loop, which the ticket belongs to.

        A newer Ask of the same session ends an older one. pieces: the ticket is iterated, not only waited for.
        Raises Busy when the queue is full, Stopping when the server goes down and NoModel when the thread has died.
        """
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        job = Job(ask, loop, queue, pieces)
        with self._wake:
            if self._draining or self._stopping:
                raise Stopping("the server is going down; try again when it is back")
            if self.state == "dead":
                raise NoModel(f"the worker has died ({self.error}); start the server again")
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
        """Return whether anybody waits for an answer."""
        return bool(self._inbox or self._waiting or self._running)

    def cancel_all(self) -> None:
        """End everything that was asked, and take no more."""
        with self._wake:
            self._draining = True
            for job in [*self._inbox, *self._waiting, *self._running]:
                job.cancel("stopping")
            self._wake.notify()

    def stop(self) -> None:
        """End everything now and wait for the thread; a load goes on, which nothing can end, and then ends it."""
        self.cancel_all()
        with self._wake:
            self._stopping = True
            self._wake.notify()
        last = time.monotonic() + _STOP_SECONDS
        while self._thread.is_alive() and (self.state != "loading" or time.monotonic() < last):
            self._thread.join(0.05)
        self.state = "stopped"

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _slots(self) -> list[Slot]:
        loaded = self._loaded
        return [] if loaded is None else loaded.slots.slots

    # ---- the thread

    def _run(self) -> None:
        try:
            while True:
                try:
                    if not self._turn():
                        break
                except BaseException as e:  # whatever it was, the next request is answered
                    self._fault(e)
            self._let_go()
        except BaseException as e:  # a fault in writing a fault down
            self._die(e)

    def _turn(self) -> bool:
        """Do one turn; False when the worker was stopped."""
        if not self._take_in():
            return False
        if self._loaded is None and (self._waiting or self.state == "loading"):
            self._load_model()
        if self._loaded is None or not (self._waiting or self._running):
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
                if self._loaded is not None:
                    self._loaded.close()
                wait = None
                if self._loaded is not None and self._keep_alive_s >= 0:
                    wait = self._idle_since + self._keep_alive_s - time.monotonic()
                    if wait <= 0:
                        self._unload()
                        wait = None
                    else:
                        wait = min(wait, threading.TIMEOUT_MAX)
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
            loaded = Loaded(model, self.settings, self.metrics)
        except BaseException as e:
            self.state, self.error = "failed", " ".join(str(e).split()) or type(e).__name__
            log("load failed", error=self.error)
            for job in self._waiting:
                self._end(job, NoModel(f"the model cannot be loaded: {self.error}"))
            self._waiting = []
            return
        self.load_s = time.monotonic() - started
        self.config = model.engine.config
        self._loaded = loaded
        self.state, self.error = "ready", ""
        self.loaded_at = time.time()
        self._idle_since = time.monotonic()
        for job in self._waiting:
            job.load_s = min(self.load_s, time.monotonic() - job.arrived)
        self.metrics.count("codegen2_loads_total")
        log("loaded", model=model.name, seconds=round(self.load_s, 3), slots=len(self._slots()))

    def _unload(self) -> None:
        self._loaded, self.state = None, "unloaded"
        gc.collect()  # engines and caches know each other
        self.metrics.count("codegen2_unloads_total")
        log("unloaded")

    def _let_go(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = None
        gc.collect()

    def _fault(self, error: BaseException) -> None:
        """Fail what was going on, and forget what the slots hold.

        Where nothing was, it is what waits that cannot be worked on; left there it would be tried without end.
        """
        told = self._failed(error)
        jobs = self._running or self._waiting
        for job in list(jobs):
            self._end(job, told)
        jobs.clear()
        if self._loaded is not None:
            self._loaded.slots.forget()

    def _die(self, error: BaseException) -> None:
        """Tell everybody that nobody works any more."""
        with self._wake:
            self.state, self.error = "dead", type(error).__name__
            jobs = [*self._inbox, *self._waiting, *self._running]
            self._inbox, self._waiting, self._running = [], [], []
        for job in jobs:
            job.put(NoModel(f"the worker has died ({self.error}); start the server again"))
        log("dead", error=self.error)

    # ---- a turn's parts

    def _drop(self) -> None:
        """End what nobody wants any more, and what ran past its deadline."""
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
        """Return rows slots: first more rows of what runs, then what waits, the least served first."""
        assert self._loaded is not None
        model, slots = self._loaded.model, self._loaded.slots
        room = self.settings.max_parallel - sum(
            1 for j in self._running for lane in j.lanes if lane.slot is not None
        )
        self._waiting.sort(key=lambda j: (self._served[j.group], j.arrived))
        for job in [*self._running, *self._waiting]:
            if room <= 0 or not slots.idle():
                break
            if job.why:  # gone since this turn began; a prompt takes tens of milliseconds to prepare
                continue
            if not job.lanes:
                try:
                    job.prepare(model, slots, self.settings.max_new_tokens)
                except Exception as e:
                    self._waiting.remove(job)
                    self._end(job, e if isinstance(e, ValueError) else self._failed(e))
                    continue
            for lane in job.lanes:
                if room <= 0 or lane.slot is not None or lane.done or (lane.index and not job.read_at):
                    continue  # the second answer copies what the first one's prompt cost
                if not job.admit(lane, slots):
                    break
                room -= 1
                if job in self._waiting:
                    self._running.append(job)  # first: submit looks for older ones of a session at any time
                    self._waiting.remove(job)

    def _pass(self) -> None:
        """Run the engine once and hand out what it brought."""
        assert self._loaded is not None
        for job, lane, text, end in self._loaded.work(self._running, self._served):
            if end is not None:
                self._finish(job, lane, end, text)
            else:
                job.grown(lane, text, self._loaded.model.tokenizer)

    def _finish(self, job: Job, lane: Lane, reason: Any, text: str = "") -> None:
        """End a row, and the job with its last one."""
        assert self._loaded is not None
        if lane.slot is None and lane.done:
            return
        text += lane.row.finish(reason)
        if lane.slot is not None:
            self._loaded.slots.release(lane.slot)
            lane.slot = None
        job.grown(lane, text, self._loaded.model.tokenizer)
        if all(one.done for one in job.lanes):
            if job in self._running:
                self._running.remove(job)
            self._end(job, self._answer(job))

    def _answer(self, job: Job) -> Answer | Exception:
        assert self._loaded is not None
        try:
            return job.result(self._loaded.model)
        except Cancelled:
            return RuntimeError("the choice between answers was broken off")
        except BaseException as e:
            return self._failed(e)

    def _failed(self, error: BaseException) -> RuntimeError:
        """Write down a fault of ours and return what those who wait for an answer get instead."""
        log("fault", error=type(error).__name__, message=" ".join(str(error).split()))
        self.metrics.count("codegen2_faults_total")
        return RuntimeError(f"{type(error).__name__}: {error}")

    def _end(self, job: Job, item: Answer | Exception) -> None:
        """Hand out an answer or what went wrong instead."""
        if job.finished:
            return
        job.finished = True
        for lane in job.lanes:
            if lane.slot is not None and self._loaded is not None:
                self._loaded.slots.release(lane.slot)
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
