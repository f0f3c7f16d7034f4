"""create_app: all dialects in one Starlette application, with what is common to them around.

Not here: any dialect's fields, the work (worker.py), sockets and signals (run.py).
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import AsyncIterator
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

from . import page
from .http import Problem, guard, json_response, openai_error
from .logs import log
from .openapi import document
from .protocols import llamacpp, ollama, openai, tabby
from .settings import Settings
from .worker import Worker


def create_app(worker: Worker, settings: Settings) -> Starlette:
    """Return the application; its start starts the worker, its end stops it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    described = document(
        {path: item for d in DIALECTS for path, item in getattr(d, "OPENAPI_PATHS", {}).items()}
    )

    async def openapi(request: Request) -> Response:
        return json_response(described)

    async def metrics(request: Request) -> Response:
        return Response(worker.metrics.text(), media_type="text/plain; version=0.0.4")

    async def health(request: Request) -> Response:
        return health_response(worker)

    all_routes: list[BaseRoute] = [
        Route("/health", health, methods=["GET"]),
        Route("/metrics", guard(metrics, settings), methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]
    for dialect in DIALECTS:
        all_routes += dialect.routes(worker, settings)
    middleware = [Middleware(Watch, worker=worker, paths={getattr(r, "path", "") for r in all_routes})]
    middleware.append(Middleware(LocalOnly, settings=settings))
    if settings.cors:
        cors: Any = CORSMiddleware
        origins = list(settings.cors)
        middleware.append(Middleware(cors, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    return Starlette(
        routes=all_routes,
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={HTTPException: no_such_thing},
    )


DIALECTS: tuple[Any, ...] = (openai, llamacpp, ollama, tabby, page)


def health_response(worker: Worker) -> Response:
    """Return whether the server can answer: 503 while the model loads, as llama.cpp's; an unloaded one comes back."""
    if worker.state in ("ready", "unloaded"):
        return json_response({"status": "ok", "model": worker.state})
    problem = {"code": 503, "message": "Loading model", "type": "unavailable_error", "param": None}
    if worker.state == "failed":
        problem |= {
            "code": 500,
            "message": f"the model cannot be loaded: {worker.error}",
            "type": "server_error",
        }
    elif worker.state == "dead":
        problem["message"] = f"the worker has died ({worker.error}); start the server again"
    elif worker.state == "stopped":
        problem["message"] = "The server is going down"
    return json_response({"error": problem}, int(str(problem["code"])), {"Retry-After": "1"})


async def no_such_thing(request: Request, error: Exception) -> Response:
    """Answer a wrong path or method in the shape of the dialect that it looks like."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:100]}: {error.detail.lower()}"
    if request.url.path.startswith("/api/"):
        return json_response({"error": message}, error.status_code, dict(error.headers or {}))
    problem = Problem(error.status_code, message, code="not_found" if error.status_code == 404 else None)
    return json_response(openai_error(problem), error.status_code, dict(error.headers or {}))


class Watch:
    """Count and log every request: path, status, milliseconds; never what is in it."""

    def __init__(self, app: ASGIApp, worker: Worker, paths: set[str]) -> None:
        self._app, self._worker, self._paths = app, worker, paths

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
            path = (
                scope["path"] if scope["path"] in self._paths else "other"
            )  # so that nobody makes labels up
            self._worker.metrics.count("codegen2_http_requests_total", path=path, status=str(status))
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
                response = json_response(openai_error(Problem(403, why, "permission_error")), 403)
                await response(scope, receive, send)
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
