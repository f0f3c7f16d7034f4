"""What the server's tests share: a model that says a script, a worker or an app around it, a real process."""

from __future__ import annotations

import asyncio
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient
from tiny import CONFIG, ScriptedEngine

from codegen2.api import Model
from codegen2.config import EOT, ModelConfig
from codegen2.engine.protocol import Cancelled
from codegen2.generation.params import SamplingParams
from codegen2.generation.request import Request
from codegen2.generation.worker import Worker
from codegen2.serve.app import create_app
from codegen2.serve.metrics import Metrics
from codegen2.serve.settings import Settings
from codegen2.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
TOK = Tokenizer()


class Says(ScriptedEngine):
    """An engine that answers every prompt with a text and then ends; it needs no weights.

    passes: how many forward passes it makes before it waits for `allow`, None for all: so a test holds an answer
    where it wants it, and no clock decides. A pass that waits can be cancelled. fail: raised by the next passes.
    """

    def __init__(self, text: str, config: ModelConfig = CONFIG, passes: int | None = None) -> None:
        super().__init__([*TOK.encode(text), EOT], config)
        self.fail: list[BaseException] = []
        self.waits = False
        self._left = passes
        self._changed = threading.Condition()
        self._cancel: Any = None

    def allow(self, passes: int | None = None) -> None:
        """Let it make so many passes more, None for all."""
        with self._changed:
            self._left = None if passes is None or self._left is None else self._left + passes
            self._changed.notify()

    @contextlib.contextmanager
    def cancelled_by(self, cancel: Any) -> Iterator[None]:
        self._cancel = cancel
        yield
        self._cancel = None

    def forward(self, pieces: Any, cache: Any) -> Any:
        with self._changed:
            while self._left == 0:
                self.waits = True
                if self._cancel is not None and self._cancel.is_set():
                    raise Cancelled
                self._changed.wait(0.005)
            self.waits = False
            if self._left is not None:
                self._left -= 1
        if self.fail:
            self.passes += 1
            raise self.fail.pop()
        return super().forward(pieces, cache)


def says(text: str, **options: Any) -> Model:
    """Return a model that says a text."""
    return Model(Says(text, **options), TOK, "says")


def ask(prefix: str, suffix: str | None = None, **options: Any) -> Request:
    """Return a Request; what SamplingParams knows goes there."""
    of_params = {k: options.pop(k) for k in list(options) if k in SamplingParams.__dataclass_fields__}
    return Request(prefix, suffix, params=SamplingParams(**of_params), **options)


class Counted(Metrics):
    """Metrics that a test looks up."""

    def value(self, name: str) -> float:
        """Return a metric, summed over its labels."""
        lines = [line for line in self.text().splitlines() if re.match(rf"{name}(\{{| )", line)]
        return sum(float(line.split()[-1]) for line in lines)


@contextlib.contextmanager
def running(model: Model | Callable[[], Model], **options: Any) -> Iterator[Any]:
    """Run a worker; its metrics are worker.metrics."""
    load = model if not isinstance(model, Model) else lambda: model
    metrics = Counted()
    worker: Any = Worker(load, observer=metrics, **options)
    worker.metrics = metrics
    try:
        yield worker
    finally:
        worker.stop()


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that will come true."""
    while not condition():
        await asyncio.sleep(0.002)


def wait_until(condition: Callable[[], Any], pause_s: float = 0.002) -> None:
    """Wait for something that will come true, asking every so often."""
    while not condition():
        time.sleep(pause_s)


async def first_of(stream: Any) -> Any:
    """Return a stream's first item."""
    async for item in stream:
        return item
    raise AssertionError("an empty stream")


@contextlib.contextmanager
def client(model: Model | Callable[[], Model], ready: bool = True, **settings: Any) -> Iterator[TestClient]:
    """Run an app in this process; the worker is client.app.state.worker."""
    load = model if not isinstance(model, Model) else lambda: model
    app = create_app(load, Settings(**settings))
    with TestClient(app) as found:
        if ready:
            wait_until(lambda: app.state.worker.state != "loading")
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

    def connection(self, timeout: float = 300) -> http.client.HTTPConnection:
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
        wait_until(lambda: self.process.poll() is not None or self.get("/health")[0] == 200, pause_s=0.05)
        assert self.process.poll() is None, self.lines

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(300)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(300)
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
