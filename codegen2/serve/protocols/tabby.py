"""Tabby's API, for its editor plugins: its body of POST /v1/completions, which openai.py hands over, and /v1/health.

Not here: OpenAI's body on the same path (openai.py), the work (worker.py). Tabby's plugins report what they show and
what is accepted to POST /v1/events; here that is thrown away unread, and they are told to report nothing.
"""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..._version import __version__
from ...generation.sampling import SamplingParams
from ..fim_markers import Extra, translate, with_extras
from ..http import answer, deadline_of, guard, json_response, session_of
from ..openapi_dialects import TABBY
from ..schema import Ask, BadField, Body, short
from ..settings import Settings
from ..worker import Worker
from .llamacpp_ask import CHARS_PER_TOKEN, USUAL_CONTEXT

VERSION = "v0.30.0"  # of the API that is spoken here: plugins leave things out with servers of old
_MOST_NEW = 64  # tokens, as Tabby's own server
_SNIPPETS = (  # the most telling last, so nearest to the prefix
    "relevant_snippets_from_recently_opened_files",
    "relevant_snippets_from_changed_files",
    "declarations",
)


def routes(worker: Worker, settings: Settings) -> list[Route]:
    """Return the routes that are Tabby's alone."""

    async def health(request: Request) -> Response:
        return json_response(_health(settings))

    async def server_setting(request: Request) -> Response:
        return json_response({"disable_client_side_telemetry": True})

    async def events(request: Request) -> Response:
        return Response(status_code=200)

    return [
        Route("/v1/health", guard(health, settings), methods=["GET", "POST"]),
        Route("/v1beta/server_setting", guard(server_setting, settings), methods=["GET"]),
        Route("/v1/events", guard(events, settings), methods=["POST"]),
    ]


OPENAPI_PATHS = TABBY


def is_tabby(body: Body) -> bool:
    """Return whether a body of POST /v1/completions is Tabby's.

    >>> is_tabby(Body({"language": "python", "segments": {"prefix": "x"}})), is_tabby(Body({"prompt": "x"}))
    (True, False)
    """
    return "prompt" not in body.content and ("segments" in body.content or "debug_options" in body.content)


async def complete(request: Request, worker: Worker, settings: Settings, body: Body) -> Response:
    """Answer Tabby's body of POST /v1/completions."""
    session, client = session_of(request)
    n_ctx = worker.config.n_ctx if worker.config is not None else USUAL_CONTEXT
    ask = tabby_request(
        body, settings, room=CHARS_PER_TOKEN * n_ctx, session=session, client=session or client,
        deadline_s=deadline_of(request),
    )  # fmt: skip
    found = await answer(request, worker.submit(ask, pieces=False))
    choices = [{"index": i, "text": choice.text} for i, choice in enumerate(found.choices)]
    return json_response({"id": f"cmpl-{uuid.uuid4()}", "choices": choices})


def tabby_request(
    body: Body,
    settings: Settings,
    *,
    room: int,
    session: str | None = None,
    client: str = "",
    deadline_s: float | None = None,
) -> Ask:
    """Read Tabby's body; room: characters that the model can be shown. Raises BadField."""
    if (mode := body.text("mode", "standard")) != "standard":
        raise BadField("mode", f"mode must be standard, got {short(mode)}; this model suggests no edits")
    body.text("language"), body.text("user")
    raw = body.object("debug_options").text("raw_prompt")
    if raw is not None:
        prefix, suffix = translate(raw) or (raw, None)
    else:
        segments = body.object("segments")
        given = segments.text("prefix")
        if given is None:
            raise BadField("segments", "segments.prefix is missing; give the text before the cursor")
        suffix = segments.text("suffix", "") or ""
        prefix = with_extras(given, suffix, _extras(segments), room)
    params = SamplingParams(
        max_new_tokens=min(_MOST_NEW, settings.max_new_tokens),
        temperature=body.number("temperature", settings.temperature, 0, 100),
        seed=None if body.get("seed") is None else body.whole("seed", 0, -(2**63), 2**64),
    )
    return Ask(
        prefix=prefix, suffix=suffix, params=params, session=session, client=client, deadline_s=deadline_s
    )


def _extras(segments: Body) -> Iterator[Extra]:
    for name in _SNIPPETS:
        value = segments.get(name)
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise BadField(
                f"segments.{name}", f"segments.{name} must be a list of objects, got {short(value)}"
            )
        for one in reversed(value):  # they come best first
            item = Body(one)
            yield Extra(item.text("filepath", "") or "", item.text("body", "") or "")


def _health(settings: Settings) -> dict[str, Any]:
    return {
        "model": settings.model_name,
        "device": "cpu",
        "arch": platform.machine(),
        "cpu_info": platform.processor(),
        "cpu_count": os.cpu_count() or 1,
        "cuda_devices": [],
        "version": {
            "build_date": "",
            "build_timestamp": "",
            "git_sha": f"codegen2-{__version__}",
            "git_describe": VERSION,
        },
    }
