"""Who answers a language server: the model in this process, or a server elsewhere by /v1/completions with suffix.

Not here: the protocol (server.py). An answer that nobody waits for any more is ended by cancelling the task that waits:
the engine stops within a pass, the connection is closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from ..api import Model
from ..generation.request import Request
from ..generation.results import Choice
from ..generation.worker import Worker
from ..text.postprocess import postprocess

_CONNECT_S = 5.0
_ANSWER_S = 120.0


class LocalBackend:
    """Run the model here."""

    def __init__(self, load: Callable[[], Model]) -> None:
        self._worker = Worker(load)

    async def start(self) -> None:
        """Load the model, in the worker's thread. Raises ValueError, OSError or RuntimeError saying why not."""
        await self._worker.run(lambda model: None)

    async def complete(self, request: Request) -> Choice | None:
        """Answer; None where a newer request of the same session took its place. Cancelling the task ends the work."""
        handle = self._worker.submit(request)
        try:
            result = await handle.whole()
        finally:
            handle.cancel()  # does nothing to one that is done
        return None if result.interrupted else result.choices[0]

    def close(self) -> None:
        """Stop the worker; one that still loads does so when it has loaded."""
        threading.Thread(target=self._worker.stop, name="codegen2-stop", daemon=True).start()


class RemoteBackend:
    """Ask a server: ours, or any that takes `suffix` at /v1/completions."""

    def __init__(self, address: str, model: str = "", api_key: str = "") -> None:
        """Raise ValueError for an address that is none."""
        self._url, self._name = _completions_url(address)
        self._model = {"model": model} if model else {}
        if not api_key.isascii() or any(c.isspace() for c in api_key):
            raise ValueError("the API key must be ASCII text without blanks")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def start(self) -> None:
        """Connect once, to see that somebody listens."""
        await self._send("HEAD", {}, None)

    async def complete(self, request: Request) -> Choice | None:
        """Answer; cancelling the task that waits here closes the connection."""
        params = request.params
        body = self._model | {
            "prompt": request.prefix,
            "suffix": request.suffix,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "stream": False,
            "stop_at": request.stop_at,  # ours stops there; of other servers' answers the rest is cut off here
            "language": request.language,
            "suggest": request.suggest,
            "suggest_above": params.suggest_above,
        }
        headers = {"X-Session-Id": request.session or ""}
        if params.deadline_s:
            headers["X-Deadline-Ms"] = str(int(params.deadline_s * 1000))
        status, content = await self._send("POST", headers, body)
        if status != 200:
            raise RuntimeError(f"{self._name} answered {status}: {_reason(content)}")
        try:
            done = postprocess(
                content["choices"][0]["text"], request.prefix, request.suffix or "",
                stop_at=request.stop_at, language=request.language,
            )  # fmt: skip
        except (LookupError, TypeError, AttributeError):
            raise RuntimeError(f"{self._name} gave no choices[0].text") from None
        return Choice(done.text, unindent=done.unindent)

    def close(self) -> None:
        """Do nothing: no connection is kept open."""

    async def _send(self, method: str, headers: dict[str, str], body: Any) -> tuple[int, Any]:
        """Return the status and the JSON of the answer, None where it is no JSON."""
        import httpx2  # takes a fifth of a second, which only those who ask a server pay

        timeout = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S)
        try:
            # A proxy from the environment would be asked for this machine's own ports, too.
            async with httpx2.AsyncClient(timeout=timeout, trust_env=False) as client:
                reply = await client.request(method, self._url, headers=self._headers | headers, json=body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as e:
            raise OSError(f"no server at {self._name} ({e or 'no answer'}); start codegen2 serve") from None
        except httpx2.TimeoutException:
            raise OSError(f"{self._name} did not answer within {_ANSWER_S:g} seconds") from None
        except httpx2.HTTPError as e:
            raise RuntimeError(f"{self._name} does not speak HTTP ({e})") from None
        try:
            return reply.status_code, reply.json()
        except ValueError:
            return reply.status_code, None


Backend = LocalBackend | RemoteBackend


def _completions_url(address: str) -> tuple[str, str]:
    """Return the address of the route, and the server's name for messages.

    >>> _completions_url("localhost:8012/v1")
    ('http://localhost:8012/v1/completions', 'localhost:8012')
    """
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ValueError(f"server must be an address such as http://127.0.0.1:8012, got {address!r}")
    path = parts.path.rstrip("/")
    if not path.endswith("/completions"):
        path = path.removesuffix("/v1") + "/v1/completions"
    return f"{parts.scheme}://{parts.netloc}{path}", parts.netloc.rpartition("@")[2]


def _reason(content: Any) -> str:
    """Find what a server says was wrong, in whichever shape.

    >>> _reason({"error": {"message": "no"}}), _reason({"error": "no"}), _reason(None)
    ('no', 'no', 'no reason given')
    """
    error = content.get("error") if isinstance(content, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return " ".join(error.split())[:300] if isinstance(error, str) else "no reason given"
