"""Ollama's API, as Continue, Zed, twinny, llm-ls and cmp-ai use it: POST /api/generate and what is asked around it.

Not here: what a marked prompt means (fim_markers.py), the work (generation/worker.py). A `system` text has no place in
the template of a model that only continues code, as in Ollama itself; a request's own `template` may name it. There is
one model: it answers to every name. `keep_alive` counts for the server from then on, as the last one does in Ollama.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.responses import Response

from ...generation.request import Request
from ...generation.results import Result, Timings
from ..fim_markers import translate
from ..http import Call, Items, json_response, problem_of
from ..schema import BadField, ErrorBody, Operation, Problem, SamplingFields, default, limits, short

VERSION = "0.12.0"  # of the API that is spoken here: clients refuse servers older than what they need
TEMPLATE = "{{ .Prompt }}{{ if .Suffix }}<mask_1>{{ .Suffix }}<|endoftext|><sep><mask_1>{{ end }}"
_LINES = "application/x-ndjson"
_VARIABLE = re.compile(r"\{\{ ?\.(System|Prompt|Suffix) ?\}\}")
_DURATION = re.compile(r"(-?)((?:\d+(?:\.\d+)?(?:h|ms|us|ns|m|s))+|\d+(?:\.\d+)?)")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_MOST_VARIABLES = 8
_UNLOAD_S = 5.0  # how long keep_alive 0 waits for the model to be idle

# ---- bodies


class Options(SamplingFields, kw_only=True):
    """The sampling fields of a body. num_predict: -1 and -2 are as many as the server allows."""

    num_predict: Annotated[int, Meta(ge=-2, le=10**9)] = -1
    repeat_penalty: Annotated[float, limits("repetition_penalty", gt=0)] = default("repetition_penalty")


class GenerateBody(Struct):
    """POST /api/generate. template: of {{ .System }}, {{ .Prompt }} and {{ .Suffix }}."""

    model: str = ""
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    stream: bool = True
    raw: bool = False
    keep_alive: str | float | None = None
    options: Options = msgspec.field(default_factory=Options)
    images: Any = None
    format: Any = None


class ShowBody(Struct):
    """POST /api/show."""

    model: str = ""
    name: str = ""


class OllamaError(ErrorBody):
    """An error as Ollama's clients read it."""

    error: str

    @classmethod
    def of(cls, problem: Problem) -> OllamaError:
        """Return the body that tells of a problem."""
        return cls(problem.message)


# ---- from a body to a request


def request_of(call: Call[GenerateBody]) -> Request | None:
    """Return what a body asks for, None where the model is only to be loaded (or unloaded). Raises BadField."""
    body, settings = call.body, call.settings
    for name in ("images", "format"):
        if getattr(body, name):
            raise BadField(name, f"{name} is not supported by this model; leave it out")
    options = body.options
    params = options.params(
        settings,
        max_new_tokens=options.num_predict if options.num_predict >= 0 else settings.max_new_tokens,
        repetition_penalty=options.repeat_penalty,
        seed=None if options.seed == -1 else options.seed,
        deadline_s=call.deadline_s,
    )
    if not body.prompt and not body.suffix:
        return None
    prefix, suffix = body.prompt, body.suffix or None
    if body.template and not body.raw:
        prefix, suffix = render(body.template, body.system, prefix, body.suffix), None
    if suffix is None:
        prefix, suffix = translate(prefix) or (prefix, None)
    return Request(prefix, suffix, params=params, stop_at="block", session=call.session, client=call.client)


def seconds_of(keep_alive: str | float | None) -> float | None:
    """Return seconds, of a number or a duration as Go writes it.

    >>> seconds_of("1h30m"), seconds_of(-1), seconds_of(None)
    (5400.0, -1.0, None)
    """
    if not isinstance(keep_alive, str):
        return None if keep_alive is None else float(keep_alive)
    match = _DURATION.fullmatch(keep_alive)
    if match is None:
        words = f"keep_alive must be seconds or a duration such as 5m, got {short(keep_alive)}"
        raise BadField("keep_alive", words)
    sign, rest = match.groups()
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
        words = "template may hold {{ .System }}, {{ .Prompt }} and {{ .Suffix }} and no more; send raw"
        raise BadField("template", words)
    if len(parts[1::2]) > _MOST_VARIABLES:  # a thousand times a long prompt is more than memory holds
        words = f"template may hold {_MOST_VARIABLES} variables, got {len(parts[1::2])}; send raw"
        raise BadField("template", words)
    return "".join(values[part] if i % 2 else part for i, part in enumerate(parts))


# ---- replies


async def generate(call: Call[GenerateBody]) -> Response:
    """Answer POST /api/generate."""
    request, seconds, loaded_at = request_of(call), seconds_of(call.body.keep_alive), call.worker.loaded_at
    unload = seconds == 0
    if seconds:
        call.worker.keep_alive(seconds)
    if request is None:
        if unload:
            await _unload(call)
            return json_response(_end(call, "unload"))
        await call.in_worker(lambda model: None)
        return json_response({**_end(call, "load"), **_durations(call, Timings(), loaded_at)})
    if call.body.stream:
        return await call.streamed([request], lambda items: _lines(call, items, loaded_at, unload), _LINES)
    (result,) = await call.whole(request)
    if unload:
        await _unload(call)
    return json_response(_reply_of(call, result, loaded_at))


async def _unload(call: Call[Any]) -> None:
    """Unload the model if it is idle soon. Others' requests are not harmed, and the next one loads it again."""
    call.worker.keep_alive(0)
    for _ in range(int(_UNLOAD_S / 0.01)):
        if call.worker.model is None:
            break
        await asyncio.sleep(0.01)
    call.worker.keep_alive(call.settings.keep_alive_s)


async def _lines(call: Call[Any], items: Items, loaded_at: float, unload: bool) -> AsyncIterator[bytes]:
    """Yield the reply as lines; the last has no text and tells all the rest."""
    try:
        async for _, chunk in items:
            if chunk.text:
                yield _line(_part(call, chunk.text))
            if chunk.result is not None:
                yield _line({**_reply_of(call, chunk.result, loaded_at), "response": ""})
        if unload:
            await _unload(call)
    except Exception as e:
        yield _line(OllamaError.of(problem_of(e)))


def _line(content: Any) -> bytes:
    return msgspec.json.encode(content) + b"\n"


def _timestamp(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _part(call: Call[Any], text: str) -> dict[str, Any]:
    model = call.body.model or call.settings.model_name
    return {"model": model, "created_at": _timestamp(datetime.now(UTC)), "response": text, "done": False}


def _end(call: Call[Any], reason: str) -> dict[str, Any]:
    return {**_part(call, ""), "done": True, "done_reason": reason}


def _reply_of(call: Call[Any], result: Result, loaded_at: float) -> dict[str, Any]:
    choice = result.choices[0]
    about = {"finish_reason": result.interrupted or choice.finish_reason, "unindent": choice.unindent}
    return {
        **_end(call, "stop" if choice.finish_reason == "stop" else "length"),
        "response": choice.text,
        **_durations(call, result.timings, loaded_at),
        "prompt_eval_count": result.prompt_tokens,
        "eval_count": result.completion_tokens,
        "codegen2": {**about, "cuts": choice.cuts},
    }


def _durations(call: Call[Any], t: Timings, loaded_at: float) -> dict[str, int]:
    """Return nanoseconds; loading counts where the model was loaded since the time that is given."""
    load_ms = 1e3 * call.worker.load_s if call.worker.loaded_at != loaded_at else 0.0
    return {
        "total_duration": round(1e6 * (t.queued_ms + load_ms + t.prompt_ms + t.predicted_ms)),
        "load_duration": round(1e6 * load_ms),
        "prompt_eval_duration": round(1e6 * t.prompt_ms),
        "eval_duration": round(1e6 * t.predicted_ms),
    }


# ---- what is told of the model


async def show(call: Call[ShowBody]) -> Response:
    """Answer POST /api/show, also before the model is loaded: Continue asks once, when it starts.

    It infills if `.Suffix` is in the template, and gives up on `parameters` with an empty line in it.
    """
    config, settings = call.worker.config, call.settings
    info: dict[str, Any] = {"general.architecture": "codegen2", "codegen2.context_length": 2048}
    if config is not None:
        info |= {
            "general.parameter_count": config.n_params,
            "codegen2.context_length": config.n_ctx,
            "codegen2.block_count": config.n_layer,
            "codegen2.embedding_length": config.n_embd,
            "codegen2.attention.head_count": config.n_head,
        }
    listed = _listing(call)
    return json_response(
        {
            "modelfile": f"FROM {settings.model_name}\nTEMPLATE {TEMPLATE}",
            "parameters": f"num_ctx {info['codegen2.context_length']}\ntemperature {settings.temperature:g}",
            "template": TEMPLATE,
            "details": listed["details"],
            "model_info": info,
            "capabilities": ["completion", "insert"],
            "modified_at": listed["modified_at"],
        }
    )


async def tags(call: Call[None]) -> Response:
    """Answer GET /api/tags."""
    return json_response({"models": [_listing(call)]})


async def running(call: Call[None]) -> Response:
    """Answer GET /api/ps. Nobody knows when somebody asks again, so the year 9999 stands for never."""
    n_ctx = call.worker.config.n_ctx if call.worker.config is not None else 0
    about = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": n_ctx}
    return json_response({"models": [] if call.worker.model is None else [_listing(call) | about]})


async def version(call: Call[None]) -> Response:
    """Answer GET /api/version."""
    return json_response({"version": VERSION})


def _listing(call: Call[Any]) -> dict[str, Any]:
    """Return an entry of /api/tags; clients require the digest, which here only tells names apart."""
    name, config = call.settings.model_name, call.worker.config
    size = config.n_params if config is not None else 0
    shown = f"{size / 1e9:.1f}B" if size >= 1e9 else f"{size / 1e6:.1f}M" if size else ""
    kind = {"parent_model": "", "format": "codegen2", "family": "codegen2", "families": ["codegen2"]}
    return {
        "name": name,
        "model": name,
        "modified_at": _timestamp(datetime.fromtimestamp(call.worker.loaded_at, UTC)),
        "size": 0,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": {**kind, "parameter_size": shown, "quantization_level": ""},
    }


OPERATIONS = (
    Operation("POST", "/api/generate", generate, GenerateBody, error=OllamaError, stream=_LINES),
    Operation("POST", "/api/show", show, ShowBody, error=OllamaError),
    Operation("GET", "/api/tags", tags, error=OllamaError),
    Operation("GET", "/api/ps", running, error=OllamaError),
    Operation("GET", "/api/version", version, error=OllamaError),
)
