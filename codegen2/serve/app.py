"""create_app: all protocols in one Starlette application, with what is common to them around.

Not here: any protocol's fields (protocols/), the work (generation/worker.py), sockets and signals (run.py).
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..api import Model
from ..generation.worker import Worker
from . import models, page
from .http import Call, endpoint, json_response, problem_response
from .logs import log
from .metrics import Metrics, watch
from .protocols import llamacpp, ollama, openai, tabby
from .schema import Json, Operation, Problem, document, openai_error
from .settings import Settings

PROTOCOLS: tuple[Any, ...] = (openai, models, llamacpp, ollama, tabby, page)


def create_app(load: Callable[[], Model], settings: Settings) -> Starlette:
    """Return the application; its start starts the worker, its end stops it. Both are in app.state: worker, metrics."""

    def loaded() -> Model:
        model = load()
        model.scheduler.max_running = settings.max_parallel
        model.scheduler.reserved = settings.max_parallel // 4
        return model

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    def show(call: Call[None]) -> Response:
        call.check_operator("/metrics")
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    metrics = Metrics()
    worker = Worker(
        loaded, keep_alive_s=settings.keep_alive_s, max_queue=settings.max_queue,
        max_new_tokens=settings.max_new_tokens, observer=metrics,
    )  # fmt: skip
    watch(metrics, worker)
    operations = [o for protocol in PROTOCOLS for o in protocol.OPERATIONS]
    operations.append(Operation("GET", "/health", health, keyless=True))
    operations.append(Operation("GET", "/metrics", show, reply=str, media="text/plain"))
    described = functools.cache(functools.partial(document, tuple(operations)))
    operations.append(Operation("GET", "/openapi.json", lambda call: described(), keyless=True))
    places: dict[tuple[str, str], list[Operation]] = {}
    for o in operations:
        places.setdefault((o.path, o.method), []).append(o)
    cors: Any = CORSMiddleware
    app = Starlette(
        routes=[
            Route(p, endpoint(several, worker, settings), methods=[m]) for (p, m), several in places.items()
        ],
        middleware=[
            Middleware(Around, metrics=metrics, settings=settings, paths={o.path for o in operations}),
            Middleware(cors, allow_origins=settings.cors, allow_methods=["*"], allow_headers=["*"]),
        ][: 1 + bool(settings.cors)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_such_thing({o.path: o.error for o in operations})},
    )
    app.state.worker, app.state.metrics = worker, metrics
    return app


async def health(call: Call[None]) -> Response:
    """Return whether the server can answer: 503 while the model loads, as llama.cpp's; an unloaded one comes back."""
    worker = call.worker
    if worker.state in ("ready", "unloaded"):
        return json_response({"status": "ok", "model": worker.state})
    status, kind, message = {
        "failed": (500, "server_error", f"the model cannot be loaded: {worker.error}"),
        "dead": (503, "unavailable_error", f"the worker has died ({worker.error}); start the server again"),
        "stopped": (503, "unavailable_error", "the server is going down"),
    }.get(worker.state, (503, "unavailable_error", "Loading model"))
    problem = {"code": status, "message": message, "type": kind, "param": None}
    return json_response({"error": problem}, status, {"Retry-After": "1"})


def _no_such_thing(shapes: dict[str, Callable[[Problem], Json]]) -> Any:
    """Return the answer to wrong paths and methods: in the shape of the protocol with the most similar path."""

    async def answer(request: Request, error: HTTPException) -> Response:
        path, code = request.url.path, "not_found" if error.status_code == 404 else None
        problem = Problem(
            error.status_code, f"{request.method} {path[:100]}: {error.detail.lower()}", code=code
        )
        alike = [shape for known, shape in shapes.items() if known.split("/")[1] == path.split("/")[1]]
        response = problem_response(problem, shapes.get(path) or [*alike, openai_error][0])
        response.headers.update(error.headers or {})
        return response

    return answer


class Around:
    """Count and log every request, never what is in it; keep web pages out.

    A page may reach this machine's ports, by its own name made to point here too. So a request with an Origin must come
    from a page of this server's or an origin that --cors allows; on a loopback address the Host must be this machine.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Settings, paths: set[str]) -> None:
        self._app, self._metrics, self._settings, self._paths = app, metrics, settings, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = Headers(scope=scope)
        why = self._refused(headers.get("host", ""), headers.get("origin"))
        try:
            answer = problem_response(Problem(403, why, "permission_error")) if why else self._app
            await answer(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"  # nobody makes labels up
            self._metrics.count("codegen2_http_requests_total", path=path, status=str(status))
            ms = round(1e3 * (time.monotonic() - started), 1)
            log("request", method=scope["method"], path=path, status=status, ms=ms)

    def _refused(self, host: str, origin: str | None) -> str | None:
        allowed = (*self._settings.cors, f"http://{host}", f"https://{host}")
        if origin is not None and "*" not in allowed and origin not in allowed:
            return f"pages of {origin[:100]} may not ask this server; start it with --cors {origin[:100]}"
        if self._settings.only_local_names and not _is_local(host):
            return f"this server is not {host[:100]}; ask it as localhost or by its address"
        return None


def _is_local(host: str) -> bool:
    """Return whether a Host header names this machine: by address, or as localhost.

    >>> [_is_local(h) for h in ("127.0.0.1:8080", "[::1]:1", "localhost", "evil.example:8080", "")]
    [True, True, True, False, True]
    """
    with contextlib.suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        if not host or name == "localhost" or name.endswith(".localhost"):  # none: HTTP/1.0, so no browser
            return True
        ipaddress.ip_address(name)
        return True
    return False
