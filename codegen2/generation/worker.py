"""Worker: the one thread that owns a model. It loads it, calls Scheduler.step while anybody waits, and unloads it when
nobody asked for long. An event loop submits Requests and awaits their handles.

Not here: what a step does and whose turn it is (scheduler.py), HTTP (serve/), the editor's protocol (lsp/).

    event loop                      this thread
    submit(request) -> handle  ->   [load the model]  scheduler.add
    handle.cancel()            ->   handle.why: the pass under way is broken off
    async for chunk in handle  <-   scheduler.step: chunks, a result or an error, then the handle's event is set
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from typing import Any, Generic, Literal, Protocol, TypeVar

from ..config import ModelConfig
from ..text.tokenizer import Tokenizer
from .async_handle import STOPPING, AsyncHandle, Busy, NoModel, Stopping
from .request import PromptRules, Request
from .results import Interruption
from .scheduler import Observer, Scheduler

__all__ = ["AsyncHandle", "Busy", "NoModel", "Stopping", "Worker"]
State = Literal["new", "loading", "ready", "unloaded", "failed", "stopped", "dead"]
_LOG = logging.getLogger("codegen2.worker")  # events; a record's `fields` are their details
_STOP_SECONDS = 1.0  # a model that loads is not waited for longer


class Loaded(Protocol):
    """What a worker loads; api.Model is one."""

    @property
    def scheduler(self) -> Scheduler: ...


M = TypeVar("M", bound=Loaded)
T = TypeVar("T")


class Worker(Generic[M]):
    """Own a model: load it, run requests in one thread, unload it when idle.

    load: called in the worker's thread, again after each unloading. keep_alive_s: idle seconds after which the model is
    unloaded, negative for never. max_queue: requests under way, more are refused. max_new_tokens: larger budgets are
    lowered to it, and to half the context. config, tokenizer and rules: the model's, kept while it is unloaded.
    """

    def __init__(
        self,
        load: Callable[[], M],
        *,
        keep_alive_s: float = -1.0,
        max_queue: int = 256,
        max_new_tokens: int | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state: State = "new"
        self.error = ""  # why loading failed, or what the thread died of
        self.model: M | None = None  # while it is in memory
        self.config: ModelConfig | None = None
        self.tokenizer: Tokenizer | None = None
        self.rules: PromptRules | None = None
        self.loaded_at = self.load_s = 0.0  # seconds since 1970; seconds
        self._load, self._clock, self._observer = load, clock, observer or Observer()
        self._keep_alive_s, self._max_queue, self._max_new_tokens = keep_alive_s, max_queue, max_new_tokens
        self._wake = threading.Condition()  # guards what follows
        self._handles: dict[AsyncHandle, None] = {}  # all that have not ended, in order
        self._new: list[AsyncHandle] = []  # of these, what the scheduler does not have yet
        self._calls: dict[Future[Any], Iterator[None]] = {}  # of run_in_steps
        self._draining = self._stopping = False
        self._idle_since = clock()
        self._thread = threading.Thread(target=self._run, name="codegen2-worker", daemon=True)

    # ---- from any thread

    def start(self) -> None:
        """Begin to load and to answer."""
        with self._wake:
            if self.state == "new":
                self.state = "loading"
                self._thread.start()

    def submit(self, request: Request, *, stream: bool = False) -> AsyncHandle:
        """Take a request in; call it in an event loop. stream: the handle is iterated, not only waited for.

        A newer request of a session ends the older ones. Raises Busy, Stopping, NoModel.
        """
        handle = AsyncHandle(request, stream, self.cancel)
        with self._wake:
            self._check_open(request)
            self._handles[handle] = None
            self._new.append(handle)
            self._wake.notify()
        self.start()
        return handle

    async def run(self, call: Callable[[M], T]) -> T:
        """Return call(model), called in the worker's thread between two steps. Raises as submit, and what it raises."""
        return await self.run_in_steps(lambda model: iter([call(model)]))

    async def run_in_steps(self, call: Callable[[M], Iterator[T]]) -> T:
        """Return the last of what call(model) yields; between two of its items others have their turn."""
        future: Future[T] = Future()

        def steps() -> Iterator[None]:
            if not future.set_running_or_notify_cancel():
                return  # nobody waits any more
            try:
                assert self.model is not None
                for value in call(self.model):  # noqa: B007  # the last one counts
                    yield
                future.set_result(value)
            except Exception as e:
                future.set_exception(e)

        with self._wake:
            self._check_open()
            self._calls[future] = steps()
            self._wake.notify()
        self.start()
        return await asyncio.wrap_future(future)

    def _check_open(self, request: Request | None = None) -> None:
        """Raise where nothing can be taken in; a newer request of a session ends the older ones."""
        if self._draining:
            raise Stopping(STOPPING)
        if self.state == "dead":
            raise NoModel(f"the worker has died ({self.error}); start the server again")
        if request is not None and request.session is not None:
            same = (request.session, request.user)
            self.cancel(
                [h for h in self._handles if (h.request.session, h.request.user) == same], "superseded"
            )
        if sum(h.why is None for h in self._handles) + len(self._calls) >= self._max_queue:
            raise Busy(f"{self._max_queue} requests wait or run already; try again in a second")

    def keep_alive(self, seconds: float) -> None:
        """Unload the model after so many idle seconds from now on; 0: as soon as it is idle, negative: never."""
        with self._wake:
            self._keep_alive_s = seconds
            self._wake.notify()

    def drain(self) -> None:
        """Take no more requests; those taken in are answered."""
        self._draining = True

    @property
    def n_requests(self) -> int:
        """Return how many requests and calls have not ended."""
        return len(self._handles) + len(self._calls)

    def busy(self) -> bool:
        """Return whether anybody waits for an answer."""
        return self.n_requests > 0

    def cancel(self, handles: Iterable[AsyncHandle], why: Interruption) -> None:
        """End requests early."""
        with self._wake:
            for handle in handles:
                handle.interrupt(why, self._clock())

    def cancel_all(self) -> None:
        """End everything that was asked, and take no more."""
        self.drain()
        self.cancel(list(self._handles), "stopping")

    def stop(self) -> None:
        """End everything now and wait for the thread; a load goes on, which nothing can end, and then ends it."""
        self.cancel_all()
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS if self.state == "loading" else None)
        self.state = "stopped"

    # ---- the thread

    def _run(self) -> None:
        try:
            while self._wait():
                self._turn()
        except BaseException as e:  # a fault in handling a fault
            self.state, self.error = "dead", type(e).__name__
            self._fail_all(NoModel(f"the worker has died ({self.error}); start the server again"))
            self._log("dead", error=self.error)
        self.model = None
        gc.collect()

    def _wait(self) -> bool:
        """Wait for something to do, and unload the model while there is nothing; False when the worker was stopped."""
        with self._wake:
            while not (self.busy() or self.state == "loading"):
                if self._stopping:
                    return False
                wait = None
                if self.model is not None and self._keep_alive_s >= 0:
                    wait = min(self._idle_since + self._keep_alive_s - self._clock(), threading.TIMEOUT_MAX)
                    if wait <= 0:
                        self._unload()
                        continue
                self._wake.wait(wait)
            return self.busy() or not self._stopping

    def _turn(self) -> None:
        """Load the model if it is not there, take in what was asked, and run one step."""
        model = self.model or self._loaded()
        if model is None:
            return
        try:
            self._begin(model)
            model.scheduler.step()
        except Exception as e:  # those whose work it was have it as their error
            self._fault(e)
        except BaseException as e:  # an exit: nobody knows what the scheduler holds now
            self._fault(e)
            self._fail_all(RuntimeError(type(e).__name__))
            self._unload()
        with self._wake:
            for handle in [h for h in self._handles if h.done]:
                del self._handles[handle]
                self._measure(handle)
            self._idle_since = self._clock()

    def _begin(self, model: M) -> None:
        """Hand new requests to the scheduler, and call what is to be called."""
        with self._wake:
            new, self._new = self._new, []
            for handle in new:
                model.scheduler.add(self._within_limits(handle.request), handle)
            calls = list(self._calls.items())
        for future, steps in calls:
            if next(steps, self) is self:  # it has ended
                del self._calls[future]

    def _within_limits(self, request: Request) -> Request:
        assert self.config is not None
        most = self.config.n_ctx // (2 * max(1, request.n_holes))
        most = min(most, self._max_new_tokens or most)
        if request.params.max_new_tokens <= most:
            return request
        return dataclasses.replace(request, params=dataclasses.replace(request.params, max_new_tokens=most))

    def _loaded(self) -> M | None:
        """Load the model; where that fails, tell everybody who waits."""
        self.state, started = "loading", self._clock()
        try:
            model = self._load()
            scheduler = model.scheduler
        except BaseException as e:
            self.error, self.state = " ".join(str(e).split()) or type(e).__name__, "failed"
            self._log("load failed", error=self.error)
            self._fail_all(NoModel(f"the model cannot be loaded: {self.error}"))
            return None
        scheduler.observer = self._observer
        self.config, self.tokenizer = scheduler.engine.config, scheduler.tokenizer
        self.rules = scheduler.rules
        self.load_s, self.loaded_at, self._idle_since = self._clock() - started, time.time(), self._clock()
        self.model, self.state, self.error = model, "ready", ""
        self._observer.count("codegen2_loads_total")
        self._log("loaded", model=scheduler.name, seconds=round(self.load_s, 3))
        return model

    def _unload(self) -> None:
        self.model, self.state = None, "unloaded"
        gc.collect()  # engines and caches know each other
        self._observer.count("codegen2_unloads_total")
        self._log("unloaded")

    def _fail_all(self, error: Exception) -> None:
        with self._wake:
            handles, self._handles, self._new = [h for h in self._handles if not h.done], {}, []
            calls, self._calls = self._calls, {}
        for handle in handles:
            handle.error = error
            handle.notify()
        for future in calls:
            with contextlib.suppress(InvalidStateError):  # nobody waits any more
                future.set_exception(error)

    def _fault(self, error: BaseException) -> None:
        self._observer.count("codegen2_faults_total")
        self._log("fault", error=type(error).__name__, message=" ".join(str(error).split()))

    def _measure(self, handle: AsyncHandle) -> None:
        """Count a request that has ended."""
        result = handle.result
        end = "error" if result is None else result.interrupted or result.choices[0].finish_reason
        self._observer.count("codegen2_requests_total", end=end)
        user = {"user": handle.request.user} if handle.request.user else {}
        n_written = 0 if result is None else result.completion_tokens
        self._observer.count("codegen2_written_tokens_total", n_written, **user)
        self._observer.observe("codegen2_request_seconds", self._clock() - handle.arrived)

    def _log(self, event: str, **fields: Any) -> None:
        _LOG.info(event, extra={"fields": fields})
