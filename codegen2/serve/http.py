"""What every dialect needs of HTTP: reading a body within its limit, keys, errors in the dialect's shape, and giving up
as soon as the client is gone.

Not here: any dialect's fields, the work (worker.py). A dialect is a module with `routes(worker, settings)`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .logs import log
from .schema import BadField, Body
from .settings import Settings
from .worker import Answer, Busy, NoModel, Piece, Stopping, Ticket

_SEND_SECONDS = 60.0  # a reader who takes nothing for so long is gone
_BODY_SECONDS = 60.0  # a body that takes longer is not waited for
_DEADLINE_HEADER = "x-deadline-ms"
SESSION_HEADER = "x-session-id"


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


class TooLarge(Exception):
    """The body is larger than the server takes."""


class TooSlow(Exception):
    """The body did not come in time."""


@dataclass(frozen=True)
class Problem:
    """An error before it takes a dialect's shape; kind is OpenAI's word for it."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None


T = TypeVar("T")
Shape = Callable[[Problem], dict[str, Any]]
Endpoint = Callable[[Request], Awaitable[Response]]


def openai_error(problem: Problem) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    return {
        "error": {
            "message": problem.message,
            "type": problem.kind,
            "param": problem.param,
            "code": problem.code,
        }
    }


def dumps(content: Any) -> bytes:
    """Return compact JSON: llama.vim reads no blank after a colon."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return content as compact JSON."""
    return Response(dumps(content), status, headers, media_type="application/json")


def guard(endpoint: Endpoint, settings: Settings, shape: Shape = openai_error) -> Endpoint:
    """Return the endpoint behind a check of the key, with all its errors in the dialect's shape."""

    async def guarded(request: Request) -> Response:
        problem = check_key(request, settings)
        if problem is None:
            try:
                return await endpoint(request)
            except ClientGone:
                return Response(status_code=499)
            except Exception as e:
                problem = problem_of(e)
        headers = {"Retry-After": "1"} if problem.status in (429, 503) else {}
        if problem.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if problem.status == 413:
            headers["Connection"] = "close"  # what is left of the body is not read
        return json_response(shape(problem), problem.status, headers)

    return guarded


def problem_of(error: Exception) -> Problem:
    """Say in a dialect's words what an exception means to the client; a fault of ours is logged."""
    message = " ".join(str(error).split())
    if isinstance(error, BadField):
        return Problem(400, message, param=error.param)
    if isinstance(error, ValueError):
        return Problem(400, message)
    if isinstance(error, TooLarge):
        return Problem(413, message)
    if isinstance(error, TooSlow):
        return Problem(408, message)
    if isinstance(error, Busy):
        return Problem(429, message, "rate_limit_error", code="queue_full")
    if isinstance(error, Stopping):
        return Problem(503, message, "server_error", code="stopping")
    if isinstance(error, NoModel):
        return Problem(500, message, "server_error", code="no_model")
    log("fault", error=type(error).__name__, message=message)
    return Problem(500, "something went wrong here; the server's log says what", "server_error")


def check_key(request: Request, settings: Settings) -> Problem | None:
    """Return what is wrong with a request's key; None when it may pass. Every key is compared, in constant time."""
    if not settings.api_keys:
        return None
    given = request.headers.get("authorization", "")
    given = given[7:] if given[:7].lower() == "bearer " else request.headers.get("x-api-key", "")
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in settings.api_keys]
    if any(matches):
        return None
    return Problem(
        401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
    )


async def read_body(request: Request, settings: Settings) -> Body:
    """Read a JSON object. Raises TooLarge, TooSlow, BadField, ClientGone."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            raw = await _read(request, settings)
    except TimeoutError:
        raise TooSlow(f"the body did not come within {_BODY_SECONDS:g} seconds") from None
    body = Body.of(raw)
    if settings.log_prompts:
        log("body", path=request.url.path, body=body.content)
    return body


async def _read(request: Request, settings: Settings) -> bytes:
    most = int(settings.max_body_mib * 2**20)
    too_large = (
        f"the body is larger than this server's {settings.max_body_mib:g} MiB; send less around the cursor"
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise TooLarge(too_large)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise TooLarge(too_large)
        parts.append(part)
        if not message.get("more_body", False):
            break
    return b"".join(parts)


def session_of(request: Request) -> tuple[str | None, str]:
    """Return the editor session's key, None without one, and the client's address.

    Only a key given on purpose supersedes: two programs on one machine have the same address.
    """
    client = request.client.host if request.client else ""
    return request.headers.get(SESSION_HEADER) or None, client


def deadline_of(request: Request) -> float | None:
    """Return the deadline that the header X-Deadline-Ms sets, seconds. Raises BadField for one that is no number."""
    given = request.headers.get(_DEADLINE_HEADER)
    if given is None:
        return None
    if not given.isascii() or not given.isdecimal() or int(given[:12]) == 0:
        raise BadField(
            _DEADLINE_HEADER, f"{_DEADLINE_HEADER} must be milliseconds from 1, got {given[:40]!r}"
        )
    return int(given[:12]) / 1000


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, wanted: Coroutine[Any, Any, T], tickets: Sequence[Ticket]) -> T:
    """Wait for something of the tickets; when the client closes its connection first, cancel them, raise ClientGone.

    They are cancelled by an exception of `wanted`, too.
    """
    gone = asyncio.ensure_future(_gone(request.receive))
    waiting = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientGone
        return waiting.result()
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
    finally:
        for task in (gone, waiting):
            task.cancel()
        await asyncio.gather(gone, waiting, return_exceptions=True)


async def answer(request: Request, ticket: Ticket) -> Answer:
    """Wait for the whole answer; when the client closes its connection first, cancel and raise ClientGone."""
    return await unless_gone(request, ticket.whole(), [ticket])


async def merged(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Piece | Answer]]:
    """Yield what the tickets give as it comes, each with its ticket's number; an Answer is a ticket's last.

    Raises what a ticket raises; when this ends early, all are cancelled.
    """
    queue: asyncio.Queue[tuple[int, Piece | Answer | Exception]] = asyncio.Queue()

    async def read(number: int, ticket: Ticket) -> None:
        try:
            async for piece in ticket:
                queue.put_nowait((number, piece))
            queue.put_nowait((number, await ticket.whole()))
        except Exception as e:
            queue.put_nowait((number, e))

    readers = [asyncio.ensure_future(read(i, t)) for i, t in enumerate(tickets)]
    try:
        left = len(tickets)
        while left:
            number, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= isinstance(item, Answer)
            yield number, item
    finally:
        for ticket in tickets:
            ticket.cancel()
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def opened(request: Request, tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Piece | Answer]]:
    """Return merged(tickets) once its first item is there, so that an error still gets its own status."""
    items = merged(tickets)

    async def one() -> tuple[int, Piece | Answer]:
        return await anext(items)

    first = await unless_gone(request, one(), tickets)

    async def all_of_them() -> AsyncIterator[tuple[int, Piece | Answer]]:
        yield first
        async for item in items:
            yield item

    return all_of_them()


class StreamedAnswer(Response):
    """Send lines as they come; when the client is gone or takes nothing for a minute, the tickets are cancelled.

    parts yields bytes and may raise: what it has to say about errors it says itself.
    """

    def __init__(self, tickets: Sequence[Ticket], parts: AsyncIterator[bytes], media_type: str) -> None:
        self.status_code, self.background, self.media_type = 200, None, media_type
        self.body = b""
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.raw_headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        self._tickets, self._parts = tickets, parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, the parts and the end."""
        gone = asyncio.ensure_future(_gone(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for ticket in self._tickets:  # nothing happens to those that are done
                ticket.cancel()
            for task in (gone, sending):
                task.cancel()
            results = await asyncio.gather(gone, sending, return_exceptions=True)
        error = results[1]
        if isinstance(error, Exception) and not isinstance(error, OSError | TimeoutError):
            raise error

    async def _send(self, send: Send) -> None:
        async def put(message: dict[str, Any]) -> None:
            await asyncio.wait_for(send(message), _SEND_SECONDS)

        head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await put(head)
        async for part in self._parts:
            await put({"type": "http.response.body", "body": part, "more_body": True})
        await put({"type": "http.response.body", "body": b"", "more_body": False})
