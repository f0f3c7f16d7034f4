"""Who answers a language server: the engine in this process, or a server elsewhere by /v1/completions with suffix.

Not here: the protocol (server.py). An answer that nobody waits for any more is ended by cancelling the task that waits:
the engine stops within a pass, the connection is closed.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..api import Model
from ..generation.sampling import SamplingParams
from ..serve.schema import Ask
from ..serve.settings import Settings
from ..serve.worker import Worker
from ..text.postprocess import postprocess
from .request import Filling, Hole

_CONNECT_S = 5.0
_ANSWER_S = 120.0
_MOST_BYTES = 2**24


class Backend(Protocol):
    """Answer holes."""

    async def start(self) -> None:
        """Get ready. Raises ValueError, OSError or RuntimeError saying why not."""

    async def fill(self, hole: Hole) -> Filling | None:
        """Answer; None where a newer request of the same session took its place. Raises as start does."""

    def close(self) -> None:
        """End everything."""


class LocalBackend:
    """Run the engine here."""

    def __init__(self, load: Callable[[], Model], settings: Settings) -> None:
        self._worker = Worker(load, settings)

    async def start(self) -> None:
        """Load the model, in the worker's thread."""
        self._worker.start()
        await self._worker.submit(Ask("", params=SamplingParams(max_new_tokens=0)), pieces=False).whole()

    async def fill(self, hole: Hole) -> Filling | None:
        """Answer; cancelling the task that waits here ends the engine's work."""
        ask = Ask(
            hole.prefix,
            hole.suffix,
            params=SamplingParams(max_new_tokens=hole.max_tokens, temperature=hole.temperature),
            stop_at=hole.stop_at,
            session=hole.session,
            deadline_s=hole.deadline_s,
        )
        ticket = self._worker.submit(ask, pieces=False)
        try:
            answer = await ticket.whole()
        finally:
            ticket.cancel()  # does nothing to one that is done
        if answer.interrupted:
            return None
        return Filling(answer.choices[0].text, answer.choices[0].unindent)

    def close(self) -> None:
        """Stop the worker; one that still loads does so when it has loaded."""
        if self._worker.state != "new":
            threading.Thread(target=self._worker.stop, name="codegen2-stop", daemon=True).start()


class RemoteBackend:
    """Ask a server: ours, or any that takes `suffix` at /v1/completions."""

    def __init__(self, address: str, model: str = "", api_key: str = "") -> None:
        """Raise ValueError for an address that is none."""
        parts = urlsplit(address if "://" in address else f"http://{address}")
        try:
            self._host, port = parts.hostname or "", parts.port
        except ValueError:
            self._host, port = "", None
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.fragment:
            raise ValueError(f"server must be an address such as http://127.0.0.1:8000, got {address!r}")
        self._secure = parts.scheme == "https"
        self._port = port or (443 if self._secure else 80)
        path = parts.path.rstrip("/")
        self._path = path if path.endswith("/completions") else path.removesuffix("/v1") + "/v1/completions"
        self._model, self._api_key = model, api_key
        if not api_key.isascii() or any(c.isspace() for c in api_key):
            raise ValueError("the API key must be ASCII text without blanks")

    async def start(self) -> None:
        """See that somebody listens."""
        _, writer = await self._connect()
        writer.close()

    async def fill(self, hole: Hole) -> Filling | None:
        """Answer; cancelling the task that waits here closes the connection."""
        body: dict[str, Any] = {
            "prompt": hole.prefix,
            "suffix": hole.suffix,
            "max_tokens": hole.max_tokens,
            "temperature": hole.temperature,
            "stream": False,
            "stop_at": hole.stop_at,  # ours stops there; with others' servers the rest is cut off here
        }
        if self._model:
            body["model"] = self._model
        headers = {"X-Session-Id": hole.session}
        if hole.deadline_s:
            headers["X-Deadline-Ms"] = str(int(hole.deadline_s * 1000))
        async with asyncio.timeout(_ANSWER_S):
            status, content = await self._post(body, headers)
        choices = content.get("choices") if isinstance(content, dict) else None
        if status != 200:
            raise RuntimeError(f"{self._host}:{self._port} answered {status}: {_reason(content)}")
        try:
            text = choices[0]["text"]  # type: ignore[index]
            done = postprocess(
                text, hole.prefix, hole.suffix, stop_at=hole.stop_at, language=hole.language or None
            )
        except (LookupError, TypeError, AttributeError):
            raise RuntimeError(f"{self._host}:{self._port} gave no choices[0].text") from None
        return Filling(done.text, done.unindent)

    def close(self) -> None:
        """Nothing is kept open."""

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(_CONNECT_S):
                return await asyncio.open_connection(self._host, self._port, ssl=self._secure or None)
        except (OSError, TimeoutError) as e:
            why = "no answer" if isinstance(e, TimeoutError) else str(e)
            raise OSError(f"no server at {self._host}:{self._port} ({why}); start codegen2 serve") from None

    async def _post(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any]:
        """Send one request in HTTP/1.0, whose answers come in one piece, and read the answer."""
        raw = json.dumps(body, ensure_ascii=False).encode()
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = [
            f"POST {self._path} HTTP/1.0",
            f"Host: {host}:{self._port}",
            "Content-Type: application/json",
            f"Content-Length: {len(raw)}",
            *([f"Authorization: Bearer {self._api_key}"] if self._api_key else []),
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        reader, writer = await self._connect()
        try:
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + raw)
            await writer.drain()
            got = await _read_all(reader)
        finally:
            writer.close()
        head, _, content = got.partition(b"\r\n\r\n")
        status = head.split(b" ", 2)[1:2]
        if not status or not status[0].isdigit():
            raise RuntimeError(f"{self._host}:{self._port} does not speak HTTP")
        try:
            return int(status[0]), json.loads(content)
        except ValueError:
            return int(status[0]), None


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await reader.read(2**16):
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise RuntimeError(f"the server's answer is larger than {_MOST_BYTES} bytes")
    return b"".join(parts)


def _reason(content: Any) -> str:
    """Find what a server says was wrong, in whichever shape.

    >>> _reason({"error": {"message": "no"}}), _reason({"error": "no"}), _reason(None)
    ('no', 'no', 'no reason given')
    """
    error = content.get("error") if isinstance(content, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return " ".join(error.split())[:300] if isinstance(error, str) else "no reason given"
