"""The OpenAPI description of llama.cpp's, Ollama's and Tabby's paths, by hand beside the checks of their modules. Pure.

Not here: OpenAI's family (openapi.py). Tabby's body of POST /v1/completions is not described: it shares the path.
"""

from __future__ import annotations

from typing import Any

from .openapi import content, errors
from .schema import MOST_ANSWERS

Json = dict[str, Any]


def _object(required: tuple[str, ...], **properties: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": properties}


def _or_null(kind: str, **limits: Any) -> Json:
    return {"type": [kind, "null"], **limits}


_TEXT, _FLAG = _or_null("string"), _or_null("boolean")
_WHOLE = _or_null("integer", minimum=0, maximum=10**9)
_SHARE = _or_null("number", minimum=0, maximum=1)
_PENALTY = _or_null("number", minimum=-2, maximum=2)
_STOP: Json = {
    "anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}, "maxItems": 64}]
}
_CHOOSING: Json = {
    "temperature": _or_null("number", minimum=0, maximum=100),
    "top_k": _or_null("integer", minimum=-1, maximum=10**9),
    "top_p": _SHARE,
    "min_p": _SHARE,
    "repeat_penalty": _or_null("number", minimum=0.01, maximum=100),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "seed": _or_null("integer", minimum=-(2**63), maximum=2**64),
    "stop": _STOP,
}
_LLAMA_SHARED: Json = {
    **_CHOOSING,
    "model": _TEXT,
    "n_predict": _or_null("integer", minimum=-2, maximum=10**9, default=-1),
    "max_tokens": _or_null("integer", minimum=-2, maximum=10**9),
    "n_cmpl": _or_null("integer", minimum=1, maximum=MOST_ANSWERS),
    "n_indent": _or_null("integer", minimum=0, maximum=10**6),
    "n_probs": _or_null("integer", minimum=0, maximum=100),
    "id_slot": _or_null("integer", minimum=-1, maximum=10**6),
    "samplers": _STOP,
    "t_max_prompt_ms": _or_null("number", minimum=-1, maximum=1e12),
    "t_max_predict_ms": _or_null("number", minimum=-1, maximum=1e12),
    "cache_prompt": _FLAG,
    "return_tokens": _FLAG,
    "stream": _FLAG,
    "raw": _or_null("boolean", description="no post-processing of an infill"),
    "response_fields": {"type": ["array", "null"], "items": {"type": "string"}},
}
_EXTRA = _object(("text",), text={"type": "string"}, filename=_TEXT)
_INFILL = _object(
    ("input_prefix", "input_suffix"),
    input_prefix={"type": "string"},
    input_suffix={"type": "string"},
    prompt=_TEXT,
    input_extra={"type": ["array", "null"], "items": _EXTRA},
    **_LLAMA_SHARED,
)
_COMPLETION = _object(("prompt",), prompt={"type": "string"}, **_LLAMA_SHARED)
_LLAMA_ERROR = _object(
    ("error",),
    error=_object(
        ("code", "message", "type"),
        code={"type": "integer"}, message={"type": "string"}, type={"type": "string"},
    ),
)  # fmt: skip
_KEEP_ALIVE: Json = {
    "anyOf": [
        {"type": ["number", "null"], "minimum": -1e9, "maximum": 1e9},
        {"type": "string", "pattern": "^-?[0-9]{1,6}(h|m|s|ms)?$"},
    ]
}
_GENERATE = _object(
    (),
    model=_TEXT,
    prompt=_TEXT,
    suffix=_TEXT,
    system=_TEXT,
    template=_or_null(
        "string", pattern="^[^{]*$", description="of {{ .System }}, {{ .Prompt }}, {{ .Suffix }}"
    ),
    stream=_or_null("boolean", default=True),
    raw=_FLAG,
    keep_alive=_KEEP_ALIVE,
    options={
        "type": ["object", "null"],
        "properties": {
            **_CHOOSING,
            "num_predict": _or_null("integer", minimum=-2, maximum=10**9, default=-1),
            "num_ctx": _WHOLE,
        },
    },
)
_OLLAMA_ERROR = _object(("error",), error={"type": "string"})
_ERRORS = (400, 401, 403, 408, 413, 429, 500, 503)


def _post(body: Json, error: Json, name: str, stream: str | None = None) -> Json:
    answer = {"description": "the answer", **content({})}
    if stream is not None:
        answer["content"][stream] = {"schema": {}}
    asked = {"required": True, **content(body)}
    return {
        "post": {
            "operationId": name,
            "requestBody": asked,
            "responses": {"200": answer, **errors(error, *_ERRORS)},
        }
    }


def _get(error: Json, name: str) -> Json:
    answer = {"description": "the answer", **content({"type": "object"})}
    return {"get": {"operationId": name, "responses": {"200": answer, **errors(error, 401, 403, 503)}}}


LLAMA_CPP: Json = {
    "/infill": _post(_INFILL, _LLAMA_ERROR, "infill", "text/event-stream"),
    "/completion": _post(_COMPLETION, _LLAMA_ERROR, "llamaCompletion", "text/event-stream"),
    "/props": _get(_LLAMA_ERROR, "props"),
}
OLLAMA: Json = {
    "/api/generate": _post(_GENERATE, _OLLAMA_ERROR, "generate", "application/x-ndjson"),
    "/api/show": _post(_object((), model=_TEXT, name=_TEXT), _OLLAMA_ERROR, "show"),
    "/api/tags": _get(_OLLAMA_ERROR, "tags"),
    "/api/ps": _get(_OLLAMA_ERROR, "running"),
    "/api/version": _get(_OLLAMA_ERROR, "version"),
}
TABBY: Json = {
    "/v1/health": _get({"type": "object"}, "tabbyHealth"),
    "/v1beta/server_setting": _get({"type": "object"}, "tabbySettings"),
}
