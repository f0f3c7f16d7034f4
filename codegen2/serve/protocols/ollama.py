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
from typing import Any

from msgspec import Struct, field

from ...generation.request import Request
from ...generation.results import Result, Timings
from .. import schema
from ..fim_markers import translate
from ..http import Call, Items
from ..schema import BadField, Json, Operation, Problem, SamplingFields
from ..settings import seconds_of
from . import about

VERSION = "0.12.0"  # of the API that is spoken here: clients refuse servers older than what they need
TEMPLATE = "{{ .Prompt }}{{ if .Suffix }}<mask_1>{{ .Suffix }}<|endoftext|><sep><mask_1>{{ end }}"
_VARIABLE = re.compile(r"\{\{ ?\.(System|Prompt|Suffix) ?\}\}")
_MOST_VARIABLES, _MOST_CHARS = 8, 2**24
_UNLOAD_S = 5.0  # how long keep_alive 0 waits for the model to be idle

# ---- bodies


class Options(SamplingFields, kw_only=True):
    """The sampling fields of a body, and our own: language."""

    max_new_tokens: schema.Budget = field(default=-1, name="num_predict")
    repetition_penalty: schema.RepetitionPenalty = field(default=1.0, name="repeat_penalty")
    language: schema.Language | None = None


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
    options: Options = field(default_factory=Options)
    images: Any = None
    format: Any = None


def error_of(problem: Problem) -> Json:
    """Return an error's body as Ollama's clients read it."""
    return {"error": problem.message}


# ---- from a body to a request


def request_of(call: Call[GenerateBody]) -> Request | None:
    """Return what a body asks for, None where the model is only to be loaded (or unloaded). Raises BadField."""
    body = call.body
    for name in ("images", "format"):
        if getattr(body, name):
            raise BadField(name, f"{name} is not supported by this model; leave it out")
    options = body.options
    params = options.params(call, seed=None if options.seed == -1 else options.seed)
    if not body.prompt and not body.suffix:
        return None
    prefix, suffix = body.prompt, body.suffix or None
    if body.template and not body.raw:
        prefix, suffix = render(body.template, body.system, prefix, body.suffix), None
    if suffix is None:
        prefix, suffix = translate(prefix) or (prefix, None)
    return Request(prefix, suffix, params=params, stop_at="block", language=options.language, suggest=True)


def render(template: str, system: str, prompt: str, suffix: str) -> str:
    """Fill a request's own template, of the three variables alone. Raises BadField for more than those.

    >>> render("<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>", "", "a", "b")
    '<PRE> a <SUF>b <MID>'
    """
    values = {"System": system, "Prompt": prompt, "Suffix": suffix}
    # Text, name, text, name, ..., text; no further than needed, as a template may be long.
    parts = _VARIABLE.split(template, _MOST_VARIABLES + 1)
    if len(parts[1::2]) > _MOST_VARIABLES:  # a thousand times a long prompt is more than memory holds
        words = f"template may hold {_MOST_VARIABLES} variables, got more; send raw"
        raise BadField("template", words)
    if any("{{" in text for text in parts[::2]):
        words = "template may hold {{ .System }}, {{ .Prompt }} and {{ .Suffix }} and no more; send raw"
        raise BadField("template", words)
    filled = [values[part] if i % 2 else part for i, part in enumerate(parts)]
    if (size := sum(map(len, filled))) > _MOST_CHARS:
        raise BadField("template", f"template makes {size} characters, more than {_MOST_CHARS}; send raw")
    return "".join(filled)


# ---- replies


async def generate(call: Call[GenerateBody]) -> Any:
    """Answer POST /api/generate."""
    keep_alive = call.body.keep_alive
    try:
        seconds = seconds_of(keep_alive) if isinstance(keep_alive, str) else keep_alive
    except ValueError as e:
        raise BadField("keep_alive", f"keep_alive {e}") from None
    request, loaded_at, unload = request_of(call), call.worker.loaded_at, seconds == 0
    if request is None and unload:
        call.check_operator("unloading the model")
    unload = unload and call.operator
    if seconds and call.operator:  # clients send it along without a thought, so others' is passed over
        call.worker.keep_alive(seconds)
    if request is not None and call.body.stream:
        return await call.streamed([request], lambda items: _lines(call, items, loaded_at, unload))
    if request is not None:
        reply = _reply_of(call, (await call.whole(request))[0], loaded_at)
    elif unload:
        reply = _part(call, "", "unload")
    else:
        await call.worker.run(lambda model: None)
        reply = _part(call, "", "load") | _durations(call, Timings(), loaded_at)
    if unload:
        await _unload(call)
    return reply


async def _unload(call: Call[Any]) -> None:
    """Unload the model if it is idle soon. Others' requests are not harmed, and the next one loads it again."""
    call.worker.keep_alive(0)
    for _ in range(int(_UNLOAD_S / 0.01)):
        if call.worker.model is None:
            break
        await asyncio.sleep(0.01)
    call.worker.keep_alive(call.settings.keep_alive_s)


async def _lines(call: Call[Any], items: Items, loaded_at: float, unload: bool) -> AsyncIterator[Json]:
    """Yield the reply in pieces; the last has no text and tells all the rest."""
    async for _, chunk in items:
        if chunk.text:
            yield _part(call, chunk.text)
        if chunk.result is not None:
            yield {**_reply_of(call, chunk.result, loaded_at), "response": ""}
    if unload:
        await _unload(call)


def _timestamp(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _part(call: Call[Any], text: str, reason: str | None = None) -> Json:
    """Return the reply or a piece of it; reason: why it ends there."""
    end = {"done": False} if reason is None else {"done": True, "done_reason": reason}
    model = call.body.model or call.settings.model_name
    return {"model": model, "created_at": _timestamp(datetime.now(UTC)), "response": text, **end}


def _reply_of(call: Call[Any], result: Result, loaded_at: float) -> Json:
    choice = result.choices[0]
    return {
        **_part(call, choice.text, "stop" if choice.finish_reason == "stop" else "length"),
        **_durations(call, result.timings, loaded_at),
        "prompt_eval_count": result.prompt_tokens,
        "eval_count": result.completion_tokens,
        "codegen2": about(result, choice),
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


def show(call: Call[None]) -> Json:
    """Answer POST /api/show, whatever model is named, also before it is loaded: Continue asks once, at its start.

    It infills if `.Suffix` is in the template, and gives up on `parameters` with an empty line in it.
    """
    config, settings = call.worker.config, call.settings
    info: Json = {"general.architecture": "codegen2", "codegen2.context_length": 2048}
    if config is not None:
        info |= {
            "general.parameter_count": config.n_params,
            "codegen2.context_length": config.n_ctx,
            "codegen2.block_count": config.n_layer,
            "codegen2.embedding_length": config.n_embd,
            "codegen2.attention.head_count": config.n_head,
        }
    listed = _listing(call)
    return {
        "modelfile": f"FROM {settings.model_name}\nTEMPLATE {TEMPLATE}",
        "parameters": f"num_ctx {info['codegen2.context_length']}\ntemperature {settings.temperature:g}",
        "template": TEMPLATE,
        "details": listed["details"],
        "model_info": info,
        "capabilities": ["completion", "insert"],
        "modified_at": listed["modified_at"],
    }


def running(call: Call[None]) -> Json:
    """Answer GET /api/ps. Nobody knows when somebody asks again, so the year 9999 stands for never."""
    n_ctx = call.worker.config.n_ctx if call.worker.config is not None else 0
    about = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": n_ctx}
    return {"models": [] if call.worker.model is None else [_listing(call) | about]}


def _listing(call: Call[Any]) -> Json:
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
    Operation("POST", "/api/generate", generate, GenerateBody, error=error_of, stream=schema.LINES),
    Operation("POST", "/api/show", show, error=error_of),
    Operation("GET", "/api/tags", lambda call: {"models": [_listing(call)]}, error=error_of),
    Operation("GET", "/api/ps", running, error=error_of),
    Operation("GET", "/api/version", lambda call: {"version": VERSION}, error=error_of),
)
