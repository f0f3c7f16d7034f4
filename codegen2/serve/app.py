"""create_app: all protocols in one Starlette application, with what is common to them around.

Not here: any protocol's fields (protocols/), the work (generation/worker.py), sockets and signals (run.py).
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import itertools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..api import Model
from ..generation.worker import Worker
from . import models, page
from .http import Call, endpoint, json_response, problem_response
from .logs import log
from .metrics import Metrics, watch
from .protocols import llamacpp, ollama, openai, tabby
from .schema import ErrorBody, OpenAIError, Operation, Problem, document
from .settings import Settings

PROTOCOLS: tuple[Any, ...] = (openai, models, llamacpp, ollama, tabby, page)


def create_app(load: Callable[[], Model], settings: Settings) -> Starlette:
    """Return the application; its start starts the worker, its end stops it. Both are in app.state: worker, metrics."""

    def loaded() -> Model:
        model = load()
        model.scheduler.max_running = settings.max_parallel
        return model

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    metrics = Metrics()
    worker = Worker(
        loaded, keep_alive_s=settings.keep_alive_s, max_queue=settings.max_queue,
        max_new_tokens=settings.max_new_tokens, observer=metrics,
    )  # fmt: skip
    watch(metrics, worker)
    operations = [o for protocol in PROTOCOLS for o in protocol.OPERATIONS] + _common(metrics)
    described = functools.cache(functools.partial(document, tuple(operations)))

    async def openapi(call: Call[None]) -> Response:
        return json_response(described())

    operations.append(Operation("GET", "/openapi.json", openapi, keyless=True))
    routes: list[BaseRoute] = []
    for (path, method), several in itertools.groupby(
        sorted(operations, key=lambda o: (o.path, o.method)), key=lambda o: (o.path, o.method)
    ):
        routes.append(Route(path, endpoint(list(several), worker, settings), methods=[method]))
    middleware = [
        Middleware(Watch, metrics=metrics, paths={o.path for o in operations}),
        Middleware(LocalOnly, settings=settings),
    ]
    if settings.cors:
        cors: Any = CORSMiddleware
        origins = list(settings.cors)
        middleware.append(Middleware(cors, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    shapes = {path: o.error for o in operations if (path := o.path)}
    app = Starlette(
        routes=routes,
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_such_thing(shapes)},
    )
    app.state.worker, app.state.metrics = worker, metrics
    return app


def _common(metrics: Metrics) -> list[Operation]:
    async def show(call: Call[None]) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return [
        Operation("GET", "/health", health, keyless=True),
        Operation("GET", "/metrics", show, reply=str, media="text/plain"),
    ]


async def health(call: Call[None]) -> Response:
    """Return whether the server can answer: 503 while the model loads, as llama.cpp's; an unloaded one comes back."""
    worker = call.worker
    if worker.state in ("ready", "unloaded"):
        return json_response({"status": "ok", "model": worker.state})
    status, kind, message = 503, "unavailable_error", "Loading model"
    if worker.state == "failed":
        status, kind, message = 500, "server_error", f"the model cannot be loaded: {worker.error}"
    elif worker.state == "dead":
        message = f"the worker has died ({worker.error}); start the server again"
    elif worker.state == "stopped":
        message = "the server is going down"
    problem = {"code": status, "message": message, "type": kind, "param": None}
    return json_response({"error": problem}, status, {"Retry-After": "1"})


def _no_such_thing(shapes: dict[str, type[ErrorBody]]) -> Any:
    """Return the answer to wrong paths and methods: in the shape of the protocol with the most similar path."""

    async def answer(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:100]}: {error.detail.lower()}"
        code = "not_found" if error.status_code == 404 else None
        top = request.url.path.split("/")[1]
        alike = [shape for path, shape in shapes.items() if path.split("/")[1] == top]
        shape = shapes.get(request.url.path) or (alike or [OpenAIError])[0]
        response = problem_response(Problem(error.status_code, message, code=code), shape)
        response.headers.update(error.headers or {})
        return response

    return answer


class Watch:
    """Count and log every request: path, status, milliseconds; never what is in it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"  # nobody makes labels up
            self._metrics.count("codegen2_http_requests_total", path=path, status=str(status))
            ms = round(1e3 * (time.monotonic() - started), 1)
            log("request", method=scope["method"], path=path, status=status, ms=ms)


class LocalOnly:
    """Keep web pages out: a page may reach this machine's ports, by its own name made to point here too.

    A request with an Origin must come from a page of this server's or an origin that --cors allows; on a loopback
    address the Host must be this machine.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] == "http":
            headers = {k: v.decode("latin-1") for k, v in scope["headers"] if k in (b"host", b"origin")}
            why = self._refused(headers.get(b"host", ""), headers.get(b"origin"))
            if why:
                await problem_response(Problem(403, why, "permission_error"))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refused(self, host: str, origin: str | None) -> str | None:
        allowed = self._settings.cors
        if origin is not None and "*" not in allowed and origin not in allowed and _place_of(origin) != host:
            return f"pages of {origin[:100]} may not ask this server; start it with --cors {origin[:100]}"
        if self._settings.only_local_names and not _is_local(host):
            return f"this server is not {host[:100]}; ask it as localhost or by its address"
        return None


def _place_of(origin: str) -> str | None:
    """Return an origin's host and port, None for one that is none.

    >>> _place_of("http://localhost:8012"), _place_of("null"), _place_of("http://[")
    ('localhost:8012', None, None)
    """
    with contextlib.suppress(ValueError):
        return urlsplit(origin).netloc or None
    return None


def _is_local(host: str) -> bool:
    """Return whether a Host header names this machine: by address, or as localhost.

    >>> [_is_local(h) for h in ("127.0.0.1:8080", "[::1]:1", "localhost", "evil.example:8080", "")]
    [True, True, True, False, True]
    """
    if not host:
        return True  # HTTP/1.0: no browser
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return False
