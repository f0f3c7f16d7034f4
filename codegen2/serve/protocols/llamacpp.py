"""llama.cpp's server, as llama.vim, llama.vscode, twinny and llm-ls use it: POST /infill and /completion, GET /props.

Not here: how a body is read (llamacpp_ask.py), GET /health (app.py), the work (worker.py).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..._version import __version__
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
from ..openapi_dialects import LLAMA_CPP
from ..schema import TokenInfo
from ..settings import Settings
from ..worker import Answer, Choice, Piece, Worker
from .llamacpp_ask import CHARS_PER_TOKEN, USUAL_CONTEXT, Wanted, completion_request, infill_request

_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "unavailable_error",
    503: "unavailable_error",
}


def routes(worker: Worker, settings: Settings) -> list[Route]:
    """Return the routes of this family."""

    async def infill(request: Request) -> Response:
        body = await read_body(request, settings)
        n_ctx = worker.config.n_ctx if worker.config is not None else USUAL_CONTEXT
        wanted = infill_request(body, settings, room=CHARS_PER_TOKEN * n_ctx, **_who(request))
        return await _reply(request, worker, settings, wanted)

    async def completion(request: Request) -> Response:
        body = await read_body(request, settings)
        return await _reply(request, worker, settings, completion_request(body, settings, **_who(request)))

    async def props(request: Request) -> Response:
        if worker.config is None:
            return json_response(llama_error(Problem(503, "Loading model")), 503)
        return json_response(_props(worker, settings))

    return [
        Route("/infill", guard(infill, settings, llama_error), methods=["POST"]),
        Route("/completion", guard(completion, settings, llama_error), methods=["POST"]),
        Route("/completions", guard(completion, settings, llama_error), methods=["POST"]),
        Route("/props", guard(props, settings, llama_error), methods=["GET"]),
    ]


OPENAPI_PATHS = LLAMA_CPP


def llama_error(problem: Problem) -> dict[str, Any]:
    """Return an error as llama.cpp's clients read it."""
    kind = _KINDS.get(problem.status, problem.kind)
    return {"error": {"code": problem.status, "message": problem.message, "type": kind}}


def _who(request: Request) -> dict[str, Any]:
    session, client = session_of(request)
    return {"session": session, "client": client, "deadline_s": deadline_of(request)}


async def _reply(request: Request, worker: Worker, settings: Settings, wanted: Wanted) -> Response:
    ticket = worker.submit(wanted.ask, pieces=wanted.stream)
    if wanted.stream:
        items = await opened(request, [ticket])
        return StreamedAnswer([ticket], _events(items, wanted, settings.model_name), "text/event-stream")
    found = await answer(request, ticket)
    shown = [pick(r, wanted.fields) for r in results(found, wanted, settings.model_name)]
    return json_response(shown[0] if len(shown) == 1 else shown)


async def _events(
    items: AsyncIterator[tuple[int, Piece | Answer]], wanted: Wanted, model: str
) -> AsyncIterator[bytes]:
    """Yield the reply as `data:` lines; the last of each answer has no text and tells all the rest."""
    whole: dict[int, str] = {}  # what came of each answer, and how much of it is out
    sent: dict[int, int] = {}

    def part(index: int, text: str) -> bytes:
        out = text[sent.get(index, 0) :]
        sent[index] = max(sent.get(index, 0), len(text))
        event = {"index": index, "content": out, "tokens": [], "stop": False, "id_slot": wanted.id_slot}
        return _event(event) if out else b""

    try:
        async for _, item in items:
            if isinstance(item, Piece):
                whole[item.index] = whole.get(item.index, "") + item.text
                line = part(item.index, within_indent(whole[item.index], wanted.n_indent, final=False)[0])
                if line:
                    yield line
                continue
            for result in results(item, wanted, model):
                rest = part(result["index"], result["content"])
                yield rest + _event(pick({**result, "content": ""}, wanted.fields))
    except Exception as e:
        yield _event(llama_error(problem_of(e)))


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + dumps(content) + b"\n\n"


def results(found: Answer, wanted: Wanted, model: str) -> list[dict[str, Any]]:
    """Return the reply of every answer, all fields."""
    return [_result(i, choice, found, wanted, model) for i, choice in enumerate(found.choices)]


def _result(index: int, choice: Choice, found: Answer, wanted: Wanted, model: str) -> dict[str, Any]:
    text, cut = within_indent(choice.text, wanted.n_indent)
    kind = "limit" if cut else stop_type(choice)
    result: dict[str, Any] = {
        "index": index,
        "content": text,
        "tokens": [t.token for t in choice.tokens] if wanted.return_tokens else [],
        "id_slot": wanted.id_slot,
        "stop": True,
        "model": model,
        "tokens_predicted": found.completion_tokens if len(found.choices) == 1 else len(choice.tokens),
        "tokens_evaluated": found.prompt_tokens,
        "generation_settings": wanted.settings,
        "prompt": wanted.ask.prefix,
        "has_new_line": "\n" in text,
        "truncated": bool(found.dropped),
        "stop_type": kind,
        "stopping_word": choice.stop_string or "" if kind == "word" else "",
        "tokens_cached": found.timings.cached_n,
        "timings": timings(found),
        "codegen2": {
            "finish_reason": found.interrupted or choice.finish_reason,
            "cuts": [{"reason": c.reason, "removed": c.removed} for c in choice.cuts],
            "unindent": choice.unindent,
        },
    }
    if wanted.n_probs:
        result["completion_probabilities"] = [_probabilities(t, wanted.n_probs) for t in choice.tokens]
    return result


def _probabilities(token: TokenInfo, n: int) -> dict[str, Any]:
    def one(raw: bytes, logprob: float | None) -> dict[str, Any]:
        return {"token": raw.decode(errors="replace"), "bytes": list(raw), "logprob": logprob}

    top = [one(raw, logprob) for raw, logprob in token.top[:n]]
    return {"id": token.token, **one(token.raw, token.logprob), "top_logprobs": top}


def stop_type(choice: Choice) -> str:
    """Return what ended an answer in llama.cpp's words; where post-processing ended it, it is whole, as by "eos"."""
    if choice.stop_string is not None:
        return "word"
    return {"stop": "eos", "length": "limit", "deadline": "limit"}.get(choice.finish_reason, "none")


def timings(found: Answer) -> dict[str, Any]:
    """Return milliseconds and rates; a rate over nothing is 0."""
    t = found.timings
    shown: dict[str, Any] = {"cache_n": t.cached_n}
    for name, n, ms in (("prompt", t.prompt_n, t.prompt_ms), ("predicted", t.predicted_n, t.predicted_ms)):
        shown |= {
            f"{name}_n": n,
            f"{name}_ms": round(ms, 3),
            f"{name}_per_token_ms": round(ms / n, 3) if n else 0.0,
            f"{name}_per_second": round(1000 * n / ms, 3) if ms > 0 else 0.0,
        }
    return shown


def pick(result: dict[str, Any], fields: tuple[str, ...] | None) -> dict[str, Any]:
    """Keep the fields that were asked for, those of objects under their whole name.

    >>> pick({"content": "x", "timings": {"prompt_n": 3}}, ("timings/prompt_n", "nothing", ""))
    {'timings/prompt_n': 3}
    """
    if not fields:
        return result
    found = {}
    for name in fields:
        value: Any = result
        for key in name.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found


def within_indent(text: str, n_indent: int, *, final: bool = True) -> tuple[str, bool]:
    """Cut before the first line, after the first one, that begins with fewer than n_indent blanks; and say whether.

    Empty lines do not count. Of a text that still grows, blanks at the end of it wait for what follows them.

    >>> within_indent("a\\n\\n  b\\nc", 2)
    ('a\\n\\n  b', True)
    >>> within_indent("a\\n ", 2, final=False)
    ('a', False)
    """
    if n_indent <= 0:
        return text, False
    lines = text.split("\n")
    for i, line in enumerate(lines[1:], start=1):
        code = line.lstrip(" \t")
        if code.strip("\r") and len(line) - len(code) < n_indent:
            return "\n".join(lines[:i]).rstrip("\r"), True
    if not final and len(lines) > 1:
        return re.sub(r"\s+\Z", "", text) if not lines[-1].strip() else text, False
    return text, False


def _props(worker: Worker, settings: Settings) -> dict[str, Any]:
    assert worker.config is not None
    defaults = {"n_predict": settings.max_new_tokens, "temperature": settings.temperature}
    return {
        "default_generation_settings": {"id": 0, "n_ctx": worker.config.n_ctx, "params": defaults},
        "total_slots": settings.max_parallel,
        "model_path": settings.model_name,
        "model_alias": settings.model_name,
        "chat_template": "",
        "modalities": {"vision": False, "audio": False},
        "build_info": f"codegen2-{__version__}",
    }
