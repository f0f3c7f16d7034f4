"""A peer under the same problems: any server with OpenAI's completions interface.

Not here: our own model (own.py), models of a directory (transformers_model.py).
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from .base import COMPLETION_STOPS, Answer, Decoding, Task, finished, seed_of

_TRIES = 6
_LONGEST_WAIT_S = 60.0
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may be gone the next time
_KEY = "; name the key's variable by --api-key-env"
_REMEDIES = {401: _KEY, 403: _KEY, 404: "; check the URL and --endpoint-model"}
_MOST_BYTES = 16 << 20


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuse redirects: urllib would send the key on to wherever they lead."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Endpoint:
    """Answer by POST to an OpenAI-compatible /completions: prompt, and suffix for a hole."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key_variable: str | None = None,
        timeout_s: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises ValueError for a URL that is none, or a key that is not set."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"--endpoint {url!r} is no http or https URL; give for example http://127.0.0.1:8000/v1"
            )
        if parts.username is not None or parts.password is not None:
            raise ValueError("--endpoint holds a user name or password; give the key by --api-key-env")
        self.url = url if parts.path.endswith("/completions") else url.rstrip("/") + "/completions"
        self._model = model
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._headers = {"Content-Type": "application/json"}
        if key_variable is not None:
            if not os.environ.get(key_variable):
                raise ValueError(f"--api-key-env {key_variable}: no such variable is set; export it first")
            self._headers["Authorization"] = f"Bearer {os.environ[key_variable]}"
        self._open = urllib.request.build_opener(_NoRedirect).open

    def describe(self) -> dict[str, Any]:
        """Return where the answers come from; the key is not part of it."""
        return {"kind": "endpoint", "name": self._model or self.url, "url": self.url, "model": self._model}

    def answer(self, task: Task, numbers: range, how: Decoding) -> list[Answer]:
        """Ask once an answer."""
        return [self._one(task, seed_of(how.seed, task.task_id, i), how) for i in numbers]

    def _one(self, task: Task, seed: int, how: Decoding) -> Answer:
        body: dict[str, Any] = {
            "prompt": task.prompt,
            "max_tokens": how.max_new_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "seed": seed % 2**31,  # servers keep it in 32 bits
        }
        if self._model is not None:
            body["model"] = self._model
        if task.suffix is None:
            body["stop"] = COMPLETION_STOPS[:4]  # as many as OpenAI takes; the cut itself is ours
        else:
            body["suffix"] = task.suffix
        started = time.perf_counter()
        content, waited = self._post(body)
        took = time.perf_counter() - started - waited
        try:
            choice = content["choices"][0]
            text, reason = choice["text"], choice.get("finish_reason") or "stop"
            if not (isinstance(text, str) and isinstance(reason, str)):
                raise TypeError
            tokens = (content.get("usage") or {}).get("completion_tokens")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(
                f"{self.url}: the answer is no completion (choices[0].text is missing): {_short(json.dumps(content))}"
            ) from None
        return finished(task, text, reason, tokens if isinstance(tokens, int) else None, took, how)

    def _post(self, body: dict[str, Any]) -> tuple[Any, float]:
        """Return the reply, and the seconds that failed tries and waits before the last took."""
        data = json.dumps(body).encode()
        begun = time.perf_counter()
        for n in range(_TRIES):
            before = time.perf_counter() - begun
            call = urllib.request.Request(self.url, data, self._headers, method="POST")
            pause = min(2.0**n, _LONGEST_WAIT_S)
            try:
                with self._open(call, timeout=self._timeout_s) as reply:
                    return _parse(self.url, reply.read(_MOST_BYTES)), before
            except urllib.error.HTTPError as e:
                with e:
                    said = _short(e.read(2000).decode("utf-8", "replace"))
                trouble = f"HTTP {e.code} {e.reason}: {said}"
                if e.code not in _PASSING:
                    raise ValueError(f"{self.url}: {trouble}{_REMEDIES.get(e.code, '')}") from None
                pause = _retry_after(e.headers.get("Retry-After"), pause)
            except (urllib.error.URLError, HTTPException, OSError) as e:  # timeouts are OSErrors
                trouble = str(getattr(e, "reason", None) or e or type(e).__name__)
            if n + 1 < _TRIES:
                self._sleep(pause)
        raise ValueError(
            f"{self.url}: {_TRIES} tries failed, the last with {trouble}; is the server up? Then go on with the same"
            " command"
        )


def _parse(url: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError(
            f"{url}: the answer is no JSON: {_short(data[:400].decode('utf-8', 'replace'))}"
        ) from None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:200] + "..."


def _retry_after(said: str | None, otherwise: float) -> float:
    """Read the header Retry-After, where it has seconds; a date is passed over.

    >>> _retry_after("3", 1.0), _retry_after(None, 1.0), _retry_after("soon", 1.0), _retry_after("9999", 1.0)
    (3.0, 1.0, 1.0, 60.0)
    """
    return min(float(said), _LONGEST_WAIT_S) if said and said.strip().isdecimal() else otherwise
