"""Ollama's API, as Continue, Zed, twinny, llm-ls and cmp-ai use it: POST /api/generate and what is asked around it.

Not here: what a marked prompt means (dialects.py), the work (worker.py). A `system` text has no place in the template
of a model that only continues code, as in Ollama itself; a request's own `template` may name it. There is one model:
every name is answered, and given back. `keep_alive` counts for the server from then on, as the last one does in Ollama.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...generation.sampling import SamplingParams
from ..fim_markers import translate
from ..http import (
    Problem,
    StreamedAnswer,
    answer,
    deadline_of,
    dumps,
    guard,
    json_response,
    opened,
    problem_of,
    read_body,
    session_of,
)
from ..openapi_dialects import OLLAMA
from ..schema import Ask, BadField, Body, short
from ..settings import Settings
from ..worker import Answer, Piece, Worker

VERSION = "0.12.0"  # of the API that is spoken here: clients refuse servers older than what they need
TEMPLATE = "{{ .Prompt }}{{ if .Suffix }}<mask_1>{{ .Suffix }}<|endoftext|><sep><mask_1>{{ end }}"
_VARIABLE = re.compile(r"\{\{ ?\.(System|Prompt|Suffix) ?\}\}")
_DURATION = re.compile(r"(-?)((?:\d+(?:\.\d+)?(?:h|ms|us|ns|m|s))+|\d+(?:\.\d+)?)")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_MOST_VARIABLES = 8
_UNLOAD_S = 5.0  # how long keep_alive 0 waits for the model to be idle


def routes(worker: Worker, settings: Settings) -> list[Route]:
    """Return the routes of this family."""

    async def generate(request: Request) -> Response:
        return await _generate(request, worker, settings)

    async def show(request: Request) -> Response:
        body = await read_body(request, settings)
        body.text("model"), body.text("name")
        return json_response(model_card(worker, settings))

    async def tags(request: Request) -> Response:
        return json_response({"models": [_listing(worker, settings)]})

    async def running(request: Request) -> Response:
        loaded = [] if worker.model is None else [_running(worker, settings)]
        return json_response({"models": loaded})

    async def version(request: Request) -> Response:
        return json_response({"version": VERSION})

    return [
        Route("/api/generate", guard(generate, settings, ollama_error), methods=["POST"]),
        Route("/api/show", guard(show, settings, ollama_error), methods=["POST"]),
        Route("/api/tags", guard(tags, settings, ollama_error), methods=["GET"]),
        Route("/api/ps", guard(running, settings, ollama_error), methods=["GET"]),
        Route("/api/version", guard(version, settings, ollama_error), methods=["GET"]),
    ]


OPENAPI_PATHS = OLLAMA


def ollama_error(problem: Problem) -> dict[str, Any]:
    """Return an error as Ollama's clients read it."""
    return {"error": problem.message}


# ---- what is asked


@dataclass(frozen=True)
class Wanted:
    """An Ask, None where the model is only to be loaded (or unloaded), and how to answer."""

    ask: Ask | None
    model: str
    stream: bool
    keep_alive_s: float | None  # None: not mentioned; negative: never unload


def generate_request(
    body: Body,
    settings: Settings,
    *,
    session: str | None = None,
    client: str = "",
    deadline_s: float | None = None,
) -> Wanted:
    """Read a body of POST /api/generate. Raises BadField."""
    for name in ("images", "format"):
        if body.get(name):
            raise BadField(name, f"{name} is not supported by this model; leave it out")
    model = body.text("model") or settings.model_name
    prompt, suffix = body.text("prompt", "") or "", body.text("suffix") or None
    system, template = body.text("system", "") or "", body.text("template", "") or ""
    raw, stream = body.flag("raw"), body.flag("stream", True)
    keep_alive_s = _keep_alive(body)
    params = _params(body.object("options"), settings)
    if not prompt and suffix is None:
        return Wanted(None, model, stream, keep_alive_s)
    if template and not raw:
        prompt, suffix = render(template, system, prompt, suffix or ""), None
    if suffix is None:
        prompt, suffix = translate(prompt) or (prompt, None)
    ask = Ask(
        prefix=prompt, suffix=suffix, params=params, session=session, client=session or client,
        deadline_s=deadline_s,
    )  # fmt: skip
    return Wanted(ask, model, stream, keep_alive_s)


def _params(options: Body, settings: Settings) -> SamplingParams:
    n = options.whole("num_predict", -1, -2, 10**9)  # -1: endless, -2: until the context is full
    options.whole("num_ctx", 0, 0)
    seed = options.get("seed")
    return SamplingParams(
        max_new_tokens=n if n >= 0 else settings.max_new_tokens,
        temperature=options.number("temperature", settings.temperature, 0, 100),
        top_k=max(0, options.whole("top_k", 0, -1, 10**9)),
        top_p=options.number("top_p", 1.0, 0, 1),
        min_p=options.number("min_p", 0.0, 0, 1),
        repetition_penalty=options.number("repeat_penalty", 1.0, 0.01, 100),
        presence_penalty=options.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=options.number("frequency_penalty", 0.0, -2, 2),
        seed=None if seed in (None, -1) else options.whole("seed", 0, -(2**63), 2**64),
        stop=options.strings("stop"),
    )


def _keep_alive(body: Body) -> float | None:
    """Read seconds, or a duration as Go writes it.

    >>> _keep_alive(Body({"keep_alive": "1h30m"})), _keep_alive(Body({"keep_alive": -1}))
    (5400.0, -1.0)
    """
    value = body.get("keep_alive")
    if not isinstance(value, str):
        return None if value is None else body.number("keep_alive", 0.0, -1e9, 1e9)
    found = _DURATION.fullmatch(value)
    if found is None:
        raise BadField(
            "keep_alive", f"keep_alive must be seconds or a duration such as 5m, got {short(value)}"
        )
    sign, rest = found.groups()
    parts = re.findall(r"([\d.]+)(h|ms|us|ns|m|s)", rest) or [(rest, "s")]
    return (-1 if sign else 1) * sum(float(n) * _UNIT_S[unit] for n, unit in parts)


def render(template: str, system: str, prompt: str, suffix: str) -> str:
    """Fill a request's own template, of the three variables alone. Raises BadField for more than those.

    >>> render("<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>", "", "a", "b")
    '<PRE> a <SUF>b <MID>'
    """
    values = {"System": system, "Prompt": prompt, "Suffix": suffix}
    parts = _VARIABLE.split(template)  # text, name, text, name, ..., text
    if any("{{" in text for text in parts[::2]):
        raise BadField(
            "template",
            "template may hold {{ .System }}, {{ .Prompt }} and {{ .Suffix }} and no more; send raw",
        )
    if len(parts[1::2]) > _MOST_VARIABLES:  # a thousand times a long prompt is more than memory holds
        raise BadField(
            "template", f"template may hold {_MOST_VARIABLES} variables, got {len(parts[1::2])}; send raw"
        )
    return "".join(values[part] if i % 2 else part for i, part in enumerate(parts))


# ---- what is answered


async def _generate(request: Request, worker: Worker, settings: Settings) -> Response:
    body = await read_body(request, settings)
    session, client = session_of(request)
    wanted = generate_request(body, settings, session=session, client=client, deadline_s=deadline_of(request))
    unload = wanted.keep_alive_s == 0
    if wanted.keep_alive_s is not None and not unload:
        worker.keep_alive(wanted.keep_alive_s)
    if wanted.ask is None:
        if not unload:
            nothing = Ask(params=SamplingParams(max_new_tokens=0), client=client)
            loaded = await answer(request, worker.submit(nothing, pieces=False))
            return json_response({**_end(wanted, "load"), **_durations(loaded)})
        await _unload(worker, settings)
        return json_response(_end(wanted, "unload"))
    ticket = worker.submit(wanted.ask, pieces=wanted.stream)
    if wanted.stream:
        items = await opened(request, [ticket])
        lines = _lines(items, wanted, worker, settings)
        return StreamedAnswer([ticket], lines, "application/x-ndjson")
    found = await answer(request, ticket)
    if unload:
        await _unload(worker, settings)
    return json_response(_result(found, wanted))


async def _unload(worker: Worker, settings: Settings) -> None:
    """Unload the model if it is idle soon. Others' requests are not harmed, and the next one loads it again."""
    worker.keep_alive(0)
    for _ in range(int(_UNLOAD_S / 0.01)):
        if worker.model is None:
            break
        await asyncio.sleep(0.01)
    worker.keep_alive(settings.keep_alive_s)


async def _lines(
    items: AsyncIterator[tuple[int, Piece | Answer]], wanted: Wanted, worker: Worker, settings: Settings
) -> AsyncIterator[bytes]:
    sent = 0
    try:
        async for _, item in items:
            if isinstance(item, Piece):
                sent += len(item.text)
                if item.text:
                    yield dumps(_part(wanted, item.text)) + b"\n"
                continue
            rest = item.choices[0].text[sent:]
            if rest:
                yield dumps(_part(wanted, rest)) + b"\n"
            yield dumps({**_result(item, wanted), "response": ""}) + b"\n"
        if wanted.keep_alive_s == 0:
            await _unload(worker, settings)
    except Exception as e:
        yield dumps(ollama_error(problem_of(e))) + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _part(wanted: Wanted, text: str) -> dict[str, Any]:
    return {"model": wanted.model, "created_at": _now(), "response": text, "done": False}


def _end(wanted: Wanted, reason: str) -> dict[str, Any]:
    return {**_part(wanted, ""), "done": True, "done_reason": reason}


def _result(found: Answer, wanted: Wanted) -> dict[str, Any]:
    choice = found.choices[0]
    reason = "stop" if choice.finish_reason == "stop" else "length"
    about = {
        "finish_reason": found.interrupted or choice.finish_reason,
        "cuts": [{"reason": c.reason, "removed": c.removed} for c in choice.cuts],
        "unindent": choice.unindent,
    }
    return {
        **_end(wanted, reason),
        "response": choice.text,
        **_durations(found),
        "prompt_eval_count": found.prompt_tokens,
        "eval_count": found.completion_tokens,
        "codegen2": about,
    }


def _durations(found: Answer) -> dict[str, int]:
    """Return nanoseconds."""
    t = found.timings
    return {
        "total_duration": round(1e6 * (t.queued_ms + t.load_ms + t.prompt_ms + t.predicted_ms)),
        "load_duration": round(1e6 * t.load_ms),
        "prompt_eval_duration": round(1e6 * t.prompt_ms),
        "eval_duration": round(1e6 * t.predicted_ms),
    }


# ---- what is told of the model


def _details(worker: Worker) -> dict[str, Any]:
    size = worker.config.n_params if worker.config is not None else 0
    shown = f"{size / 1e9:.1f}B" if size >= 1e9 else f"{size / 1e6:.1f}M" if size else ""
    return {
        "parent_model": "",
        "format": "codegen2",
        "family": "codegen2",
        "families": ["codegen2"],
        "parameter_size": shown,
        "quantization_level": "",
    }


def _listing(worker: Worker, settings: Settings) -> dict[str, Any]:
    """Return an entry of /api/tags; clients require the digest, which here only tells names apart."""
    return {
        "name": settings.model_name,
        "model": settings.model_name,
        "modified_at": datetime.fromtimestamp(worker.loaded_at, UTC).isoformat().replace("+00:00", "Z"),
        "size": 0,
        "digest": hashlib.sha256(settings.model_name.encode()).hexdigest(),
        "details": _details(worker),
    }


def _running(worker: Worker, settings: Settings) -> dict[str, Any]:
    """Return an entry of /api/ps. Nobody knows when somebody asks again, so the year 9999 stands for never."""
    return {
        **_listing(worker, settings),
        "expires_at": "9999-12-31T23:59:59Z",
        "size_vram": 0,
        "context_length": worker.config.n_ctx if worker.config is not None else 0,
    }


def model_card(worker: Worker, settings: Settings) -> dict[str, Any]:
    """Return the answer of /api/show, also before the model is loaded: Continue asks once, when it starts.

    It infills if `.Suffix` is in the template, and returns up on `parameters` with an empty line in it.
    """
    info: dict[str, Any] = {"general.architecture": "codegen2"}
    n_ctx = 2048
    if worker.config is not None:
        config, n_ctx = worker.config, worker.config.n_ctx
        info |= {
            "general.parameter_count": config.n_params,
            "codegen2.block_count": config.n_layer,
            "codegen2.embedding_length": config.n_embd,
            "codegen2.attention.head_count": config.n_head,
        }
    return {
        "modelfile": f"FROM {settings.model_name}\nTEMPLATE {TEMPLATE}",
        "parameters": f"num_ctx {n_ctx}\ntemperature {settings.temperature:g}",
        "template": TEMPLATE,
        "details": _details(worker),
        "model_info": {**info, "codegen2.context_length": n_ctx},
        "capabilities": ["completion", "insert"],
        "modified_at": _listing(worker, settings)["modified_at"],
    }
