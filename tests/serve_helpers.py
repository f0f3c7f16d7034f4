"""A server in the test's own process: on a script of tokens, to say exactly what a reply makes of it, or on the box."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient
from tiny import CONFIG

from codegen2.api import Model
from codegen2.loading import load
from codegen2.serve.app import create_app
from codegen2.serve.settings import Settings
from codegen2.serve.worker import Worker
from codegen2.text.infill import EOM
from codegen2.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer()
RECORDED = sorted((Path(__file__).parent / "fixtures" / "serve").glob("*.json"))


class SayingEngine:
    """An engine that goes on with its script where a row's last tokens are the script's first ones, else begins it."""

    class Cache:
        """One row's tokens."""

        def __init__(self) -> None:
            self.tokens: list[int] = []

        @property
        def length(self) -> int:
            return len(self.tokens)

        def truncate(self, n: int) -> None:
            del self.tokens[n:]

    def __init__(self, script: list[int]) -> None:
        self.config, self.script = CONFIG, script
        self.prompt: list[int] = []  # what the last answer was begun after

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        return self.Cache()

    def _said(self, tokens: list[int]) -> int:
        longest = min(len(tokens), len(self.script))
        return next((k for k in range(longest, 0, -1) if tokens[-k:] == self.script[:k]), 0)

    def extend(self, ids: Any, cache: Cache) -> Any:
        logits = np.zeros((1, ids.shape[1], CONFIG.vocab_size), dtype=np.float32)
        for at, token in enumerate(ids[0].tolist()):
            cache.tokens.append(token)
            said = self._said(cache.tokens)
            if said == 0:
                self.prompt = list(cache.tokens)
            logits[0, at, self.script[min(said, len(self.script) - 1)]] = 50.0
        return logits

    def prefill(self, ids: Any, cache: Cache, pad: Any = None) -> Any:
        return self.extend(ids, cache)[:, -1]

    def decode_step(self, ids: Any, cache: Cache) -> Any:
        return self.extend(ids[:, None], cache)[:, -1]


class Client(TestClient):
    """A client with the worker and, for a scripted one, the engine behind it."""

    worker: Worker
    engine: SayingEngine


@contextmanager
def saying(text: str, ends: bool = True, **settings: Any) -> Iterator[Client]:
    """Serve a model that says text whatever it is asked, and then ends, or says the last token for ever."""
    tokens = [*TOKENIZER.encode(text), *([EOM] if ends else [])]
    engine = SayingEngine(tokens)
    with _served(
        Worker(lambda: Model(engine, TOKENIZER, "scripted"), Settings(**settings)), settings
    ) as client:
        client.engine = engine
        yield client


@contextmanager
def box(**settings: Any) -> Iterator[Client]:
    """Serve the model in the box."""
    with _served(Worker(lambda: load(threads=1), Settings(**settings)), settings) as client:
        yield client


@contextmanager
def _served(worker: Worker, settings: dict[str, Any]) -> Iterator[Client]:
    app = create_app(worker, Settings(**settings))
    with Client(app, base_url="http://127.0.0.1") as client:
        client.worker = worker
        yield client


def asked(client: Client) -> str:
    """Return the last prompt that a scripted engine was shown, control tokens as their names."""
    return TOKENIZER.decode(client.engine.prompt)


def recorded(path: Path) -> dict[str, Any]:
    """Read a recorded request."""
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def events(text: str) -> list[dict[str, Any]]:
    """Read server-sent events, without [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in text.split("\n\n") if line)
    return [json.loads(line) for line in lines if line != "[DONE]"]
