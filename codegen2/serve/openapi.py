"""The OpenAPI description of the server, written by hand beside schema.py's checks; a test holds the two together.

Not here: what the dialects of other modules add by themselves (their OPENAPI_PATHS).
"""

from __future__ import annotations

from typing import Any

from .._version import __version__
from .schema import MOST_ANSWERS

Json = dict[str, Any]


def _nullable(kind: str, **limits: Any) -> Json:
    return {"type": [kind, "null"], **limits}


_TOKENS: Json = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 50294}, "minItems": 1}
_STRINGS: Json = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 64}
COMPLETION_REQUEST: Json = {
    "type": "object",
    "properties": {
        "model": _nullable("string"),
        "prompt": {
            "anyOf": [
                {"type": ["string", "null"]},
                _STRINGS,
                _TOKENS,
                {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": 64},
            ]
        },
        "suffix": _nullable("string"),
        "max_tokens": _nullable("integer", minimum=0, maximum=10**9, default=16),
        "min_tokens": _nullable("integer", minimum=0, maximum=10**9),
        "temperature": _nullable("number", minimum=0, maximum=2),
        "top_p": _nullable("number", minimum=0, maximum=1),
        "top_k": _nullable("integer", minimum=0, maximum=10**9),
        "min_p": _nullable("number", minimum=0, maximum=1),
        "repetition_penalty": _nullable("number", minimum=0.01, maximum=100),
        "presence_penalty": _nullable("number", minimum=-2, maximum=2),
        "frequency_penalty": _nullable("number", minimum=-2, maximum=2),
        "logit_bias": {
            "type": ["object", "null"],
            "propertyNames": {"pattern": "^[0-4]?[0-9]{1,4}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
        "logprobs": _nullable("integer", minimum=0, maximum=5),
        "echo": _nullable("boolean"),
        "n": _nullable("integer", minimum=1, maximum=MOST_ANSWERS),
        "best_of": _nullable("integer", minimum=1, maximum=MOST_ANSWERS),
        "seed": _nullable("integer", minimum=-(2**63), maximum=2**64),
        "random_seed": _nullable("integer", minimum=-(2**63), maximum=2**64),
        "stop": {
            "anyOf": [
                {"type": ["string", "null"]},
                {"type": "array", "items": {"type": "string"}, "maxItems": 32},
            ]
        },
        "stream": _nullable("boolean"),
        "stream_options": {
            "type": ["object", "null"],
            "properties": {"include_usage": _nullable("boolean")},
        },
        "user": _nullable("string"),
        "raw": _nullable("boolean", description="no post-processing of an infill"),
        "stop_at": {"enum": ["line", "block", "none", None], "description": "where an infill ends; block"},
    },
}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_MISTRAL_ERROR: Json = {
    "type": "object",
    "required": ["object", "message", "type"],
    "properties": {"object": {"const": "error"}, "message": {"type": "string"}, "type": {"type": "string"}},
}
_USAGE: Json = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        name: {"type": "integer", "minimum": 0}
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    },
}


def _answer(choice: Json, kind: str) -> Json:
    properties = {"index": {"type": "integer"}, "finish_reason": {"enum": ["stop", "length"]}, **choice}
    one = {"type": "object", "required": list(properties), "properties": properties}
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": one},
            "usage": _USAGE,
        },
    }


_COMPLETION = _answer(
    {"text": {"type": "string"}, "logprobs": {"type": ["object", "null"]}}, "text_completion"
)
_CHAT = _answer(
    {
        "message": {
            "type": "object",
            "required": ["role", "content"],
            "properties": {"role": {"const": "assistant"}, "content": {"type": "string"}},
        }
    },
    "chat.completion",
)


def content(schema: Json, kind: str = "application/json") -> Json:
    """Return a body of one type."""
    return {"content": {kind: {"schema": schema}}}


def errors(schema: Json, *statuses: int) -> Json:
    """Return one error's shape for several statuses."""
    return {str(s): {"description": "an error", **content(schema)} for s in statuses}


def _post(answer: Json, error: Json, name: str) -> Json:
    replies = {"200": {"description": "the answer, or a stream of events", **content(answer)}}
    replies["200"]["content"][
        "text/event-stream"
    ] = {}  # an event a line; the last is [DONE], which is no JSON
    body = {"required": True, **content(COMPLETION_REQUEST)}
    replies |= errors(error, 400, 401, 403, 408, 413, 429, 500, 503)
    return {"post": {"operationId": name, "requestBody": body, "responses": replies}}


def _get(reply: Json, name: str, *others: int) -> Json:
    replies = {"200": {"description": "the answer", **reply}, **errors(_ERROR, 401, 403, *others)}
    return {"get": {"operationId": name, "responses": replies}}


def document(more_paths: Json) -> Json:
    """Return the whole description; more_paths are those of other dialects."""
    listed = content(
        {"type": "object", "required": ["object", "data"], "properties": {"object": {"const": "list"}}}
    )
    paths = {
        "/v1/completions": _post(_COMPLETION, _ERROR, "completions"),
        "/beta/completions": _post(_COMPLETION, _ERROR, "betaCompletions"),
        "/v1/fim/completions": _post(_CHAT, _MISTRAL_ERROR, "fimCompletions"),
        "/v1/models": _get(listed, "models"),
        "/health": _get(content({"type": "object"}), "health", 500, 503),
        "/metrics": _get(content({"type": "string"}, "text/plain"), "metrics"),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "codegen2 serve", "version": __version__},
        "paths": paths | more_paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }
