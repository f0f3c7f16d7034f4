"""From an Operation to an endpoint: keys, a body within its limit, errors in the protocol's shape, and giving up as
soon as the client is gone.

Not here: the fields of a protocol (protocols/), reading them (schema.py), the work (generation/worker.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from ..api import Model
from ..generation import request as core
from ..generation.results import Chunk, Result
from ..generation.sampling import DamagedWeights
from ..generation.worker import AsyncHandle, Busy, NoModel, Stopping, Worker
from ..text.tokenizer import Tokenizer
from . import schema
from .logs import log
from .schema import BadField, Json, Operation, Problem, openai_error
from .settings import Settings

_SEND_SECONDS = 60.0  # a reader who takes nothing for so long is gone
_BODY_SECONDS = 60.0  # a body that takes longer is not waited for
LONG = 100_000  # bytes or characters; what is done to more is done in another thread
_LONG_WORK = ThreadPoolExecutor(1, "codegen2-long")  # one: more would take turns from the event loop
OPERATOR = "key 1"
_DEADLINE_HEADER, SESSION_HEADER = "x-deadline-ms", "x-session-id"
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    413: {"Connection": "close"},  # what is left of the body is not read
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
}
_PROBLEMS: tuple[tuple[type[Exception], int, str, str | None], ...] = (
    (DamagedWeights, 500, "server_error", "damaged_weights"),  # a ValueError, too
    (ValueError, 400, "invalid_request_error", None),
    (Busy, 429, "rate_limit_error", "queue_full"),
    (Stopping, 503, "server_error", "stopping"),
    (NoModel, 500, "server_error", "no_model"),
)
B = TypeVar("B")
T = TypeVar("T")
Items = AsyncIterator[tuple[int, Chunk]]  # chunks of several requests, each with its request's number


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return compact JSON: llama.vim reads no blank after a colon.

    Of an iterator a list, item by item: in one call for 40 MB, and where so much is collected, no other thread runs.
    """
    if isinstance(content, Iterator):
        body = b"[" + b",".join(map(msgspec.json.encode, content)) + b"]"
    else:
        body = msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/json")


class Call(Generic[B]):
    """One HTTP request to an operation, its body read, and what it may ask of the worker."""

    def __init__(
        self, request: Request, worker: Worker[Model], settings: Settings, operation: Operation, body: B,
        user: str = "",
    ) -> None:  # fmt: skip
        self.request, self.worker, self.settings = request, worker, settings
        self.operation, self.body = operation, body
        self.handles: list[AsyncHandle] = []  # of the requests that were submitted
        # Only a key that was given on purpose supersedes: two programs on one machine have the same address.
        self.session = request.headers.get(SESSION_HEADER) or None
        self.user, self.operator = user, user in ("", OPERATOR)
        # Whom scheduling is fair to.
        self.client = self.session or (request.client.host if request.client else "")

    @property
    def deadline_s(self) -> float | None:
        """Return the deadline that the header X-Deadline-Ms sets, seconds. Raises BadField for what is no number."""
        given = self.request.headers.get(_DEADLINE_HEADER)
        if given is None:
            return None
        if not (given.isascii() and given.isdecimal()) or int(given[:12]) == 0:
            words = f"{_DEADLINE_HEADER} must be milliseconds from 1, got {given[:40]!r}"
            raise BadField(_DEADLINE_HEADER, words)
        return int(given[:12]) / 1000

    def check_operator(self, what: str) -> None:
        """Raise Problem where the server has keys and this request has not the first one."""
        if not self.operator:
            raise Problem(403, f"{what} is for the operator, who has the first key", "permission_error")

    async def whole(self, *requests: core.Request) -> list[Result]:
        """Return the results of all requests; when the client closes its connection first, cancel them."""
        try:
            handles = self._submit(requests, stream=False)
            return await _unless_gone(self.request.receive, asyncio.gather(*(h.whole() for h in handles)))
        finally:
            _cancel(self.handles)

    async def replied(self, write: Callable[[list[Result]], Any], results: list[Result]) -> Response:
        """Return what `write` makes of the results; in another thread, since log-probabilities can be 40 MB."""
        return await asyncio.to_thread(lambda: json_response(write(results)))

    async def streamed(
        self, requests: Sequence[core.Request], write: Callable[[Items], AsyncIterator[Any]]
    ) -> Response:
        """Return what `write` makes of the chunks as they come, in the operation's framing.

        An error before the first chunk is raised here, and so has its own status; a later one is the last part.
        """
        framing = self.operation.stream
        assert framing is not None
        try:
            items = _merged(self._submit(requests, stream=True))
            first = await _unless_gone(self.request.receive, anext(items))
        except BaseException:
            _cancel(self.handles)
            raise

        async def all_of_them() -> Items:
            yield first
            async for item in items:
                yield item

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for part in write(all_of_them()):
                    yield framing.frame(part)
            except Exception as e:
                yield framing.frame(self.operation.error(problem_of(e)))
            if framing.end:
                yield framing.end

        return _Streamed(self.handles, parts(), framing.media)

    async def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer, after loading the model where it never was."""
        known = self.worker.tokenizer
        return await self.worker.run(lambda model: model.tokenizer) if known is None else known

    def _submit(self, requests: Sequence[core.Request], stream: bool) -> list[AsyncHandle]:
        for i, request in enumerate(requests):
            session = request.session or self.session
            of_user = dataclasses.replace(
                request, user=self.user, client=session or self.client, session=None if i else session
            )  # several do not supersede each other
            self.handles.append(self.worker.submit(of_user, stream=stream))
        return self.handles


def endpoint(
    operations: Sequence[Operation], worker: Worker[Model], settings: Settings
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of the operations that share a path and a method."""
    operations = sorted(operations, key=lambda o: o.when is None)

    def understood(raw: bytes) -> tuple[Operation, Any]:
        content = schema.parse(raw)
        if settings.log_prompts:
            log("body", path=operations[0].path, body=content)
        operation = next(o for o in operations if o.when is None or o.when(content))
        assert operation.body is not None
        return operation, schema.read(content, operation.body)

    async def answer(request: Request) -> Response:
        operation = operations[-1]
        try:
            user = "" if operation.keyless else user_of(request, settings)
            body = None
            if operation.body is not None:
                raw = await _content(request, settings)
                operation, body = await in_turn(understood, raw) if len(raw) > LONG else understood(raw)
            found = operation.answer(Call(request, worker, settings, operation, body, user))
            found = await found if inspect.isawaitable(found) else found
            return found if isinstance(found, Response) else json_response(found)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as e:
            return problem_response(problem_of(e), operation.error)

    return answer


def problem_response(problem: Problem, error: Callable[[Problem], Json] = openai_error) -> Response:
    """Return an error in a protocol's shape, with the headers that go with its status."""
    return json_response(error(problem), problem.status, _HEADERS.get(problem.status))


def problem_of(error: Exception) -> Problem:
    """Return what an exception means to the client; a fault of ours is logged."""
    if isinstance(error, Problem):
        return error
    message = " ".join(str(error).split())
    known = next((entry for entry in _PROBLEMS if isinstance(error, entry[0])), None)
    if known is None or known[0] is DamagedWeights:
        log("fault", error=type(error).__name__, message=message)
    if known is None:
        return Problem(500, "something went wrong here; the server's log says what", "server_error")
    _, status, kind, code = known
    return Problem(status, message, kind, getattr(error, "param", None), code)


def user_of(request: Request, settings: Settings) -> str:
    """Return who asks: "" where the server has no keys, else by the key, of which the first is the operator's.

    Raises Problem for a key that is missing or wrong; all are compared, in constant time.
    """
    given = request.headers.get("authorization", "")
    given = given[7:] if given[:7].lower() == "bearer " else request.headers.get("x-api-key", "")
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in settings.api_keys]
    if not matches:
        return ""
    if not any(matches):
        message = "the API key is missing or wrong; send Authorization: Bearer KEY"
        raise Problem(401, message, code="invalid_api_key")
    return f"key {matches.index(True) + 1}"


async def in_turn(call: Callable[..., T], *args: Any) -> T:
    """Return call(*args), called in the one thread for long work: only others there wait for it."""
    return await asyncio.get_running_loop().run_in_executor(_LONG_WORK, call, *args)


async def _content(request: Request, settings: Settings) -> bytes:
    """Read a body. Raises Problem where it is too large or too slow, ClientDisconnect."""
    most, raw = int(settings.max_body_mib * 2**20), bytearray()
    length = request.headers.get("content-length", "")
    too_large = length.isdecimal() and int(length) > most
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            stream = request.stream()
            while not too_large and (part := await anext(stream, None)) is not None:
                raw += part
                too_large = len(raw) > most
    except TimeoutError:
        message = f"the body did not come within {_BODY_SECONDS:g} seconds; send it again"
        raise Problem(408, message) from None
    if too_large:
        message = f"the body is larger than this server's {settings.max_body_mib:g} MiB; send less around the cursor"
        raise Problem(413, message)
    return bytes(raw)


def _cancel(handles: Sequence[AsyncHandle]) -> None:
    for handle in handles:  # nothing happens to those that are done
        handle.cancel()


async def _unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Return what is awaited. Raises ClientDisconnect, and ends it, where the client is gone before."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    waiting, ending = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({waiting, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        await _end(waiting, ending)


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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


class _Streamed(StreamingResponse):
    """Send parts as they come; when the client is gone or takes nothing for a minute, the handles are cancelled."""

    def __init__(self, handles: Sequence[AsyncHandle], parts: AsyncIterator[bytes], media: str) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(parts, headers=headers, media_type=media)
        self._handles = handles

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def put(message: Message) -> None:
            async with asyncio.timeout(_SEND_SECONDS):  # wait_for may swallow that the client is gone
                await send(message)

        try:
            await _unless_gone(receive, self.stream_response(put))
        except (ClientDisconnect, OSError, TimeoutError):
            pass  # nobody to tell
        finally:
            _cancel(self._handles)
