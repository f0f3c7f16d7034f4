"""A server in the test's own process: on a script of tokens, to see exactly what a reply makes of it, or on the box."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient
from tiny import ScriptedEngine

from codegen2.api import Model
from codegen2.generation.worker import Worker
from codegen2.loading import load
from codegen2.serve.app import create_app
from codegen2.serve.settings import Settings
from codegen2.text.infill import EOM
from codegen2.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer()
RECORDED = sorted((Path(__file__).parent / "fixtures" / "serve").glob("*.json"))


class Client(TestClient):
    """A client with the worker and the model behind it."""

    worker: Worker[Model]

    @property
    def asked(self) -> str:
        """Return the prompt of the last answer of a scripted engine, control tokens as their names."""
        engine = self.worker.model.engine
        return TOKENIZER.decode(engine.rows[0][: engine.begins[0]])


@contextmanager
def saying(text: str, ends: bool = True, **settings: Any) -> Iterator[Client]:
    """Serve a model that says text whatever it is asked, and then ends, or says the last token for ever."""
    tokens = [*TOKENIZER.encode(text), *([EOM] if ends else [])]
    model = Model(ScriptedEngine(tokens), TOKENIZER, "scripted")
    with served(lambda: model, **settings) as client:
        yield client


@functools.cache
def box_model() -> Model:
    """Return the model in the box, loaded once."""
    return load(engine="native")


@contextmanager
def box(**settings: Any) -> Iterator[Client]:
    """Serve the model in the box."""
    with served(box_model, **settings) as client:
        yield client


@contextmanager
def served(load: Callable[[], Model], **settings: Any) -> Iterator[Client]:
    """Serve what `load` returns."""
    app = create_app(load, Settings(**settings))
    with Client(app, base_url="http://127.0.0.1") as client:
        client.worker = app.state.worker
        yield client


def recorded(path: Path) -> dict[str, Any]:
    """Read a recorded request."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def events(text: str) -> list[dict[str, Any]]:
    """Read server-sent events, without [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in text.split("\n\n") if line)
    return [json.loads(line) for line in lines if line != "[DONE]"]
