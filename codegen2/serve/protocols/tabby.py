"""Tabby's API, for its editor plugins: its body of POST /v1/completions, told apart from OpenAI's, and /v1/health.

Not here: the work (generation/worker.py). Tabby's plugins report what they show and what is accepted to /v1/events;
here that is thrown away unread, and they are asked to report nothing.
"""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Struct
from starlette.responses import Response

from ..._version import __version__
from ...generation.params import SamplingParams
from ...generation.request import Request
from ..fim_markers import characters, translate, with_extras
from ..http import Call
from ..schema import BadField, Json, Language, Operation, Seed, SuggestAbove, limits, short

VERSION = "v0.30.0"  # of the API that is spoken here: plugins leave things out with servers of old
_MOST_NEW = 64  # tokens, as Tabby's own server


class Snippet(Struct):
    """A piece of another file."""

    body: str = ""


class Segments(Struct):
    """The text around the cursor, and pieces of other files, the best first."""

    prefix: str
    suffix: str = ""
    relevant_snippets_from_recently_opened_files: list[Snippet] = []
    relevant_snippets_from_changed_files: list[Snippet] = []
    declarations: list[Snippet] = []

    def extras(self) -> list[str]:
        """Return the pieces, the most telling last, so nearest to the prefix."""
        recent = self.relevant_snippets_from_recently_opened_files
        kinds = (recent, self.relevant_snippets_from_changed_files, self.declarations)
        return [one.body for kind in kinds for one in reversed(kind)]


class DebugOptions(Struct):
    """raw_prompt: a prompt with another model's markers."""

    raw_prompt: str | None = None


class TabbyBody(Struct):
    """Tabby's body of POST /v1/completions."""

    language: Language | None = None
    segments: Segments | None = None
    debug_options: DebugOptions | None = None
    temperature: Annotated[float, limits("temperature")] | None = None
    seed: Seed | None = None
    suggest_above: SuggestAbove | None = None
    mode: str = "standard"


def is_tabby(content: Mapping[str, Any]) -> bool:
    """Return whether a body of POST /v1/completions is Tabby's.

    >>> is_tabby({"language": "python", "segments": {"prefix": "x"}}), is_tabby({"prompt": "x"})
    (True, False)
    """
    return "prompt" not in content and ("segments" in content or "debug_options" in content)


async def complete(call: Call[TabbyBody]) -> Json:
    """Answer POST /v1/completions."""
    (result,) = await call.whole(request_of(call))
    choices = [{"index": i, "text": choice.text} for i, choice in enumerate(result.choices)]
    return {"id": f"cmpl-{uuid.uuid4()}", "choices": choices}


def request_of(call: Call[TabbyBody]) -> Request:
    """Return what a body asks for. Raises BadField."""
    body, settings, suffix = call.body, call.settings, None
    if body.mode != "standard":
        raise BadField("mode", f"mode must be standard, got {short(body.mode)}; this model suggests no edits")
    if body.debug_options is not None and body.debug_options.raw_prompt is not None:
        raw = body.debug_options.raw_prompt
        prefix, suffix = translate(raw) or (raw, None)
    elif body.segments is not None:
        prefix, suffix = body.segments.prefix, body.segments.suffix
        prefix = with_extras(prefix, suffix, body.segments.extras(), characters(call.worker.rules))
    else:
        raise BadField("segments", "segments is missing; it must be an object with the prefix")
    params = SamplingParams(
        max_new_tokens=min(_MOST_NEW, settings.max_new_tokens),
        temperature=settings.temperature if body.temperature is None else body.temperature,
        seed=body.seed,
        suggest_above=body.suggest_above,
        deadline_s=call.deadline_s,
    )
    return Request(prefix, suffix, params=params, stop_at="block", language=body.language, suggest=True)


def health(call: Call[None]) -> Json:
    """Answer /v1/health."""
    version = {"git_sha": f"codegen2-{__version__}", "git_describe": VERSION}
    return {
        "model": call.settings.model_name,
        "device": "cpu",
        "arch": platform.machine(),
        "cpu_info": platform.processor(),
        "cpu_count": os.cpu_count() or 1,
        "cuda_devices": [],
        "version": {"build_date": "", "build_timestamp": "", **version},
    }


# What plugins report is thrown away unread.
OPERATIONS = (
    Operation("POST", "/v1/completions", complete, TabbyBody, when=is_tabby),
    Operation("GET", "/v1/health", health),
    Operation("POST", "/v1/health", health),
    Operation("GET", "/v1beta/server_setting", lambda call: {"disable_client_side_telemetry": True}),
    Operation(
        "POST", "/v1/events", lambda call: Response(media_type="text/plain"), reply=str, media="text/plain"
    ),
)
