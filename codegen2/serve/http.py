"""From an Operation to an endpoint: keys, a body within its limit, errors in the protocol's shape, and giving up as
soon as the client is gone.

Not here: the fields of a protocol (protocols/), reading them (schema.py), the work (generation/worker.py).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..api import Model
from ..generation import request as core
from ..generation.results import Chunk, Result
from ..generation.sampling import DamagedWeights
from ..generation.worker import AsyncHandle, Busy, NoModel, Stopping, Worker
from . import schema
from .logs import log
from .schema import BadField, ErrorBody, OpenAIError, Operation, Problem
from .settings import Settings

_SEND_SECONDS = 60.0  # a reader who takes nothing for so long is gone
_BODY_SECONDS = 60.0  # a body that takes longer is not waited for
_DEADLINE_HEADER, SESSION_HEADER = "x-deadline-ms", "x-session-id"
B = TypeVar("B")
T = TypeVar("T")
Items = AsyncIterator[tuple[int, Chunk]]  # chunks of several requests, each with its request's number


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


class Refused(Exception):
    """A problem that has its own status."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return compact JSON: llama.vim reads no blank after a colon."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


class Call(Generic[B]):
    """One HTTP request to an operation, its body read, and what it may ask of the worker."""

    def __init__(self, request: Request, worker: Worker[Model], settings: Settings, body: B) -> None:
        self.request, self.worker, self.settings, self.body = request, worker, settings, body
        self.handles: list[AsyncHandle] = []  # of the requests that were submitted
        # Only a key that was given on purpose supersedes: two programs on one machine have the same address.
        self.session = request.headers.get(SESSION_HEADER) or None
        self.client = self.session or (
            request.client.host if request.client else ""
        )  # whom scheduling is fair to

    @property
    def deadline_s(self) -> float | None:
        """Return the deadline that the header X-Deadline-Ms sets, seconds. Raises BadField for what is no number."""
        given = self.request.headers.get(_DEADLINE_HEADER)
        if given is None:
            return None
        if not (given.isascii() and given.isdecimal()) or int(given[:12]) == 0:
            raise BadField(
                _DEADLINE_HEADER, f"{_DEADLINE_HEADER} must be milliseconds from 1, got {given[:40]!r}"
            )
        return int(given[:12]) / 1000

    async def whole(self, *requests: core.Request) -> list[Result]:
        """Return the results of all requests; when the client closes its connection first, cancel them."""
        handles = self._submit(requests, stream=False)

        async def all_results() -> list[Result]:
            return [await handle.whole() for handle in handles]

        return await self._unless_gone(all_results(), handles)

    async def streamed(
        self, requests: Sequence[core.Request], write: Callable[[Items], AsyncIterator[bytes]], media: str
    ) -> Response:
        """Return what `write` makes of the chunks as they come; it says itself what there is to say of later errors.

        An error before the first chunk is raised here, and so has its own status.
        """
        handles = self._submit(requests, stream=True)
        items = _merged(handles)

        async def one() -> tuple[int, Chunk]:
            return await anext(items)

        first = await self._unless_gone(one(), handles)

        async def all_of_them() -> Items:
            yield first
            async for item in items:
                yield item

        return _Streamed(handles, write(all_of_them()), media)

    async def in_worker(self, call: Callable[[Model], T]) -> T:
        """Return call(model), called in the worker's thread."""
        return await self.worker.run(call)

    def _submit(self, requests: Sequence[core.Request], stream: bool) -> list[AsyncHandle]:
        self.handles = []
        try:
            for request in requests:
                self.handles.append(self.worker.submit(request, stream=stream))
        except Exception:
            _cancel(self.handles)
            raise
        return self.handles

    async def _unless_gone(self, wanted: Coroutine[Any, Any, T], handles: Sequence[AsyncHandle]) -> T:
        gone = asyncio.ensure_future(_gone(self.request.receive))
        waiting = asyncio.ensure_future(wanted)
        try:
            await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientGone
            return waiting.result()
        except BaseException:
            _cancel(handles)
            raise
        finally:
            await _end(gone, waiting)


def endpoint(
    operations: Sequence[Operation], worker: Worker[Model], settings: Settings
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of the operations that share a path and a method."""
    operations = sorted(operations, key=lambda o: o.when is None)

    async def answer(request: Request) -> Response:
        operation = operations[-1]
        try:
            if not operation.keyless:
                check_key(request, settings)
            body = None
            if operation.body is not None:
                content = await _content(request, settings)
                operation = next(o for o in operations if o.when is None or o.when(content))
                assert operation.body is not None
                body = schema.read(content, operation.body)
            found: Response = await operation.answer(Call(request, worker, settings, body))
            return found
        except ClientGone:
            return Response(status_code=499)
        except Exception as e:
            return problem_response(problem_of(e), operation.error)

    return answer


def problem_response(problem: Problem, shape: type[ErrorBody] = OpenAIError) -> Response:
    """Return an error in a protocol's shape, with the headers that go with its status."""
    headers = {
        401: {"WWW-Authenticate": "Bearer"},
        413: {"Connection": "close"},  # what is left of the body is not read
        429: {"Retry-After": "1"},
        503: {"Retry-After": "1"},
    }
    return json_response(shape.of(problem), problem.status, headers.get(problem.status))


def problem_of(error: Exception) -> Problem:
    """Return what an exception means to the client; a fault of ours is logged."""
    message = " ".join(str(error).split())
    if isinstance(error, Refused):
        return error.problem
    if isinstance(error, DamagedWeights):
        log("fault", error=type(error).__name__, message=message)
        return Problem(500, message, "server_error", code="damaged_weights")
    if isinstance(error, ValueError):
        return Problem(400, message, param=getattr(error, "param", None))
    if isinstance(error, Busy):
        return Problem(429, message, "rate_limit_error", code="queue_full")
    if isinstance(error, Stopping):
        return Problem(503, message, "server_error", code="stopping")
    if isinstance(error, NoModel):
        return Problem(500, message, "server_error", code="no_model")
    log("fault", error=type(error).__name__, message=message)
    return Problem(500, "something went wrong here; the server's log says what", "server_error")


def check_key(request: Request, settings: Settings) -> None:
    """Raise Refused where a key is asked for and the request has none that fits; all are compared, in constant time."""
    given = request.headers.get("authorization", "")
    given = given[7:] if given[:7].lower() == "bearer " else request.headers.get("x-api-key", "")
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in settings.api_keys]
    if matches and not any(matches):
        message = "the API key is missing or wrong; send Authorization: Bearer KEY"
        raise Refused(Problem(401, message, code="invalid_api_key"))


async def _content(request: Request, settings: Settings) -> schema.Json:
    """Read a JSON object. Raises Refused where it is too large or too slow, BadField, ClientGone."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            raw = await _read(request, settings.max_body_mib)
    except TimeoutError:
        raise Refused(
            Problem(408, f"the body did not come within {_BODY_SECONDS:g} seconds; send it again")
        ) from None
    content = schema.parse(raw)
    if settings.log_prompts:
        log("body", path=request.url.path, body=content)
    return content


async def _read(request: Request, max_mib: float) -> bytes:
    most = int(max_mib * 2**20)
    length = request.headers.get("content-length", "")
    size = int(length) if length.isdecimal() else 0
    parts: list[bytes] = []
    more = True
    while more or size > most:
        if size > most:
            message = f"the body is larger than this server's {max_mib:g} MiB; send less around the cursor"
            raise Refused(Problem(413, message))
        message_in = await request.receive()
        if message_in["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message_in.get("body", b""))
        size = max(size, sum(map(len, parts)))
        more = message_in.get("more_body", False)
    return b"".join(parts)


def _cancel(handles: Sequence[AsyncHandle]) -> None:
    for handle in handles:  # nothing happens to those that are done
        handle.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> list[Any]:
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def _merged(handles: Sequence[AsyncHandle]) -> Items:
    """Yield the chunks of all handles as they come. Raises what a handle raises; at an early end all are cancelled."""
    queue: asyncio.Queue[tuple[int, Chunk | Exception]] = asyncio.Queue()

    async def read(number: int, handle: AsyncHandle) -> None:
        try:
            async for chunk in handle:
                queue.put_nowait((number, chunk))
        except Exception as e:
            queue.put_nowait((number, e))

    readers = [asyncio.ensure_future(read(i, handle)) for i, handle in enumerate(handles)]
    try:
        left = len(handles)
        while left:
            number, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= item.result is not None  # the last chunk of a request has its result
            yield number, item
    finally:
        _cancel(handles)
        await _end(*readers)


class _Streamed(Response):
    """Send parts as they come; when the client is gone or takes nothing for a minute, the handles are cancelled."""

    def __init__(self, handles: Sequence[AsyncHandle], parts: AsyncIterator[bytes], media: str) -> None:
        self.status_code, self.background, self.media_type, self.body = 200, None, media, b""
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.raw_headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        self._handles, self._parts = handles, parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            _cancel(self._handles)
            error = (await _end(sending, gone))[0]
        if isinstance(error, Exception) and not isinstance(error, OSError | TimeoutError):
            raise error

    async def _send(self, send: Send) -> None:
        async def put(message: dict[str, Any]) -> None:
            await asyncio.wait_for(send(message), _SEND_SECONDS)

        await put({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for part in self._parts:
            await put({"type": "http.response.body", "body": part, "more_body": True})
        await put({"type": "http.response.body", "body": b"", "more_body": False})
