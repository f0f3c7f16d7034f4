"""What the server's tests share: a model that says what it is told, a worker or an app around it, a real process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient
from tiny import CONFIG

from codegen2.api import Model
from codegen2.config import EOT, ModelConfig
from codegen2.generation.sampling import Cancelled, SamplingParams
from codegen2.serve.app import create_app
from codegen2.serve.schema import Ask
from codegen2.serve.settings import Settings
from codegen2.serve.worker import Worker
from codegen2.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
TOK = Tokenizer()


class Says:
    """An engine that goes on with a given text behind every prompt's end, then ends; it needs no weights.

    A prompt ends behind its last mask and the cursor line's indentation, or at `end`. delay: seconds a pass.
    """

    def __init__(self, text: str, end: str = "", config: ModelConfig = CONFIG, delay: float = 0.0) -> None:
        self.config, self.delay = config, delay
        self.script = [*TOK.encode(text), EOT]
        self.end = TOK.encode(end)
        self.indented = True  # the cursor stands behind up to eight blanks, which an infill's prompt ends in
        self.passes = 0
        self.fail: list[Exception] = []  # raised by the next passes
        self._cancel: Any = None

    class Cache:
        def __init__(self) -> None:
            self.ids: list[int] = []

        @property
        def length(self) -> int:
            return len(self.ids)

        def truncate(self, n: int) -> None:
            del self.ids[n:]

    @contextlib.contextmanager
    def cancelled_by(self, cancel: Any) -> Iterator[None]:
        self._cancel = cancel
        yield
        self._cancel = None

    def new_cache(self, batch_size: int, capacity: int) -> Any:
        return self.Cache()

    def _next(self, ids: list[int]) -> int:
        if 51199 in ids:
            at = len(ids) - ids[::-1].index(51199)
            blank = TOK.encode("    ")[0]
            at += ids[at : at + 2].count(blank) if self.indented else 0
        elif self.end:
            n = len(self.end)
            at = next((i for i in range(len(ids), n - 1, -1) if ids[i - n : i] == self.end), len(ids))
        else:
            return self.script[0]
        return self.script[min(len(ids) - at, len(self.script) - 1)]

    def _logits(self, ids: list[int]) -> np.ndarray:
        logits = np.zeros(self.config.vocab_size, dtype=np.float32)
        logits[self._next(ids)] = 50.0
        return logits

    def extend(self, ids: np.ndarray, cache: Any) -> np.ndarray:
        self.passes += 1
        last = time.monotonic() + self.delay
        while time.monotonic() < last:
            if self._cancel is not None and self._cancel.is_set():
                raise Cancelled
            time.sleep(0.001)
        if self.fail:
            raise self.fail.pop()
        found = []
        for i in ids[0].tolist():
            cache.ids.append(i)
            found.append(self._logits(cache.ids))
        return np.array([found])

    def prefill(self, ids: np.ndarray, cache: Any, pad: Any = None) -> np.ndarray:
        return self.extend(ids, cache)[:, -1]


def says(text: str, end: str = "", **kwargs: Any) -> Model:
    """Return a model that says a text."""
    return Model(Says(text, end, **kwargs), TOK, "says")


def ask(prefix: str, suffix: str | None = None, **kwargs: Any) -> Ask:
    """Return an Ask; what SamplingParams knows goes there."""
    of_params = {k: kwargs.pop(k) for k in list(kwargs) if k in SamplingParams.__dataclass_fields__}
    return Ask(prefix, suffix, params=SamplingParams(**of_params), **kwargs)


@contextlib.contextmanager
def running(model: Model | Callable[[], Model], **settings: Any) -> Iterator[Worker]:
    """Run a worker."""
    load = model if not isinstance(model, Model) else lambda: model
    worker = Worker(load, Settings(**settings))
    try:
        yield worker
    finally:
        worker.stop()


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that will come true."""
    import asyncio

    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


async def first_of(stream: Any) -> Any:
    """Return a stream's first item."""
    async for item in stream:
        return item
    raise AssertionError("an empty stream")


Test = Callable[[], Awaitable[None]]


@contextlib.contextmanager
def client(model: Model | Callable[[], Model], ready: bool = True, **settings: Any) -> Iterator[TestClient]:
    """Run an app in this process; the worker is client.app.state.worker."""
    load = model if not isinstance(model, Model) else lambda: model
    made = Settings(**settings)
    worker = Worker(load, made)
    app = create_app(worker, made)
    app.state.worker = worker
    with TestClient(app) as found:
        while ready and worker.state == "loading":
            time.sleep(0.005)
        yield found


class Process:
    """A real `codegen2 serve` on a free port."""

    def __init__(self, *arguments: str, code: str | None = None, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "codegen2"] if code is None else [sys.executable, "-c", code]
        self.process = subprocess.Popen(
            [*command, "serve", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[str] = []
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"http://127.0.0.1:(\d+)", line)
        assert found, line + self.process.stderr.read()
        self.port = int(found[1])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += self.process.stderr

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log's events of one name so far."""
        found = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [e for e in found if e["event"] == name]

    def connection(self, timeout: float = 60) -> http.client.HTTPConnection:
        """Return a new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, path: str) -> tuple[int, str]:
        """Ask once."""
        connection = self.connection()
        connection.request("GET", path)
        reply = connection.getresponse()
        found = reply.status, reply.read().decode()
        connection.close()
        return found

    def post(self, content: Any, path: str = "/v1/completions", **headers: str) -> tuple[int, Any]:
        """Ask once."""
        connection = self.connection()
        connection.request("POST", path, json.dumps(content), headers)
        reply = connection.getresponse()
        found = reply.status, json.loads(reply.read())
        connection.close()
        return found

    def metric(self, name: str) -> float:
        """Return a metric, summed over its labels."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}(\{{| )", line))

    def wait_until_ready(self) -> None:
        """Wait for the model."""
        for _ in range(600):
            if self.get("/health")[0] == 200:
                return
            time.sleep(0.05)
        raise AssertionError("never ready")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(60)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(10)
            if self.process.stderr is not None:
                self.process.stderr.close()
        return self.process.returncode

    def __enter__(self) -> Process:
        self.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)


# A program whose files may not grow past 2 MB.
LIMITED = """
import resource, sys
from codegen2.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
sys.exit(main(sys.argv[1:]))
"""


def left(folder: Path) -> list[Path]:
    """Return the files of a cache."""
    return [path for path in folder.rglob("*") if path.is_file()]
