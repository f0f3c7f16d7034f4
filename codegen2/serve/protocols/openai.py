"""OpenAI's legacy completions with suffix, and two shells on the same handler: Mistral's FIM and DeepSeek's beta.

Not here: what the fields mean (schema.py), the work (worker.py).
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..fim_markers import translate
from ..http import (
    Problem,
    StreamedAnswer,
    deadline_of,
    dumps,
    guard,
    json_response,
    openai_error,
    opened,
    problem_of,
    read_body,
    session_of,
    unless_gone,
)
from ..schema import OpenAIRequest, TokenInfo, openai_request, shown
from ..settings import Settings
from ..ticket import Ticket
from ..worker import Answer, Choice, Piece, Worker
from . import tabby

Shell = Literal["openai", "mistral"]


def routes(worker: Worker, settings: Settings) -> list[Route]:
    """Return the routes of this family."""

    def completions(shell: Shell) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            body = await read_body(request, settings)
            if shell == "openai" and tabby.is_tabby(body):
                return await tabby.complete(request, worker, settings, body)
            asked = with_request(openai_request(body, settings.temperature), request)
            return await reply(request, worker, asked, settings.model_name, shell)

        return guard(endpoint, settings, mistral_error if shell == "mistral" else openai_error)

    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [model_card(worker, settings)]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != settings.model_name:
            message = f"the model {name[:60]!r} is not here; this server has {settings.model_name!r}"
            return json_response(openai_error(Problem(404, message, code="model_not_found")), 404)
        return json_response(model_card(worker, settings))

    return [
        Route("/v1/completions", completions("openai"), methods=["POST"]),
        Route("/beta/completions", completions("openai"), methods=["POST"]),
        Route("/v1/fim/completions", completions("mistral"), methods=["POST"]),
        Route("/v1/models", guard(models, settings), methods=["GET"]),
        Route("/v1/models/{name:path}", guard(model, settings), methods=["GET"]),
    ]


def mistral_error(problem: Problem) -> dict[str, Any]:
    """Return an error as Mistral's clients read it."""
    return {
        "object": "error",
        "message": problem.message,
        "type": problem.kind,
        "param": problem.param,
        "code": problem.code,
    }


def model_card(worker: Worker, settings: Settings) -> dict[str, Any]:
    """Return an entry of /v1/models."""
    card: dict[str, Any] = {
        "id": settings.model_name,
        "object": "model",
        "created": int(worker.loaded_at),
        "owned_by": "codegen2",
    }
    if worker.config is not None:
        card["max_model_len"] = worker.config.n_ctx
    return card


def with_request(asked: OpenAIRequest, request: Request) -> OpenAIRequest:
    """Add what the headers say, and read prompts that are written in another model's infill format.

    The first prompt of several carries the session: they do not supersede each other.
    """
    session, client = session_of(request)
    deadline_s = deadline_of(request)
    asks = []
    for i, ask in enumerate(asked.asks):
        marked = translate(ask.prefix) if ask.suffix is None and not asked.echo else None
        prefix, suffix = marked or (ask.prefix, ask.suffix)
        asks.append(
            dataclasses.replace(
                ask,
                prefix=prefix,
                suffix=suffix,
                session=None if i else session,
                client=session or client,
                deadline_s=deadline_s,
            )
        )
    return dataclasses.replace(asked, asks=tuple(asks))


async def reply(request: Request, worker: Worker, asked: OpenAIRequest, model: str, shell: Shell) -> Response:
    """Submit all prompts and return their answers, whole or streamed."""
    writer = Writer(asked, worker, model, shell)
    tickets: list[Ticket] = []
    try:
        for ask in asked.asks:
            tickets.append(worker.submit(ask, pieces=asked.stream))
    except Exception:
        for ticket in tickets:
            ticket.cancel()
        raise
    if asked.stream:
        items = await opened(request, tickets)
        return StreamedAnswer(tickets, writer.stream(items), "text/event-stream")

    async def all_answers() -> list[Answer]:
        return [await ticket.whole() for ticket in tickets]

    answers = await unless_gone(request, all_answers(), tickets)
    return json_response(writer.whole(answers))


class Writer:
    """Write answers in the form of one request's reply."""

    def __init__(self, asked: OpenAIRequest, worker: Worker, model: str, shell: Shell) -> None:
        self._asked, self._worker, self._chat = asked, worker, shell == "mistral"
        kind = "text_completion" if not self._chat else "chat.completion"
        self._head = {
            "id": ("cmpl-" if not self._chat else "fim-") + uuid.uuid4().hex,
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        self._n = asked.asks[0].params.n

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the reply in one piece."""
        choices = [
            self._choice(p, i, choice, self._prompt(p) + choice.text, answer)
            for p, answer in enumerate(answers)
            for i, choice in enumerate(answer.choices)
        ]
        return {**self._head, "choices": choices, "usage": _usage(answers), "codegen2": _about(answers)}

    async def stream(self, items: AsyncIterator[tuple[int, Piece | Answer]]) -> AsyncIterator[bytes]:
        """Yield the reply as server-sent events."""
        sent: dict[tuple[int, int], int] = {}  # characters of each choice that are out
        written: dict[tuple[int, int], int] = {}  # and of its raw text, which its tokens tell
        answers: dict[int, Answer] = {}
        try:
            async for p, item in items:
                if isinstance(item, Piece):
                    at = (p, item.index)
                    text = item.text if at in sent else self._prompt(p) + item.text
                    sent[at] = sent.get(at, 0) + len(item.text)
                    logprobs = self._stream_logprobs(p, item.tokens, written, at)
                    if text or logprobs:
                        yield self._event([self._part(p, item.index, text, logprobs)])
                    continue
                answers[p] = item
                for i, choice in enumerate(item.choices):
                    rest = choice.text[sent[p, i] :] if (p, i) in sent else self._prompt(p) + choice.text
                    yield self._event([self._part(p, i, rest, None, choice, item)])
            ordered = [answers[p] for p in sorted(answers)]
            if self._asked.include_usage or self._chat:
                yield self._event([], {"usage": _usage(ordered), "codegen2": _about(ordered)})
        except Exception as e:
            problem = problem_of(e)
            error = mistral_error(problem) if self._chat else openai_error(problem)
            yield b"data: " + dumps(error) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        content = {**self._head, "choices": choices, **(more or {})}
        if self._chat:
            content["object"] = "chat.completion.chunk"
        if self._asked.include_usage:
            content.setdefault("usage", None)
        return b"data: " + dumps(content) + b"\n\n"

    def _prompt(self, p: int) -> str:
        if not self._asked.echo:
            return ""
        text = self._asked.texts[p]
        if text is None:  # tokens: the worker's tokenizer says what they are
            model = self._worker.model
            text = model.tokenizer.decode(list(self._asked.asks[p].tokens or ())) if model is not None else ""
        return text

    def _part(
        self,
        p: int,
        i: int,
        text: str,
        logprobs: dict[str, Any] | None,
        choice: Choice | None = None,
        answer: Answer | None = None,
    ) -> dict[str, Any]:
        reason = None if choice is None else _reason(choice)
        part: dict[str, Any] = {"index": p * self._n + i, "finish_reason": reason}
        if self._chat:
            part["delta"] = {"role": "assistant", "content": text}
        else:
            part |= {"text": text, "logprobs": logprobs}
        if choice is not None and answer is not None:
            part["codegen2"] = _about_choice(choice, answer)
        return part

    def _choice(self, p: int, i: int, choice: Choice, text: str, answer: Answer) -> dict[str, Any]:
        made: dict[str, Any] = {"index": p * self._n + i, "finish_reason": _reason(choice)}
        if self._chat:
            made["message"] = {"role": "assistant", "content": text}
        else:
            made |= {"text": text, "logprobs": self._logprobs(p, choice, answer)}
        return made | {"codegen2": _about_choice(choice, answer)}

    # ---- log-probabilities

    def _length(self, p: int) -> int:
        """Return the characters of the whole prompt, from whose start text_offset counts."""
        text = self._asked.texts[p]
        return len(text) if text is not None else 0

    def _logprobs(self, p: int, choice: Choice, answer: Answer) -> dict[str, Any] | None:
        if self._asked.logprobs is None:
            return None
        length = self._length(p)
        shown_text = choice.text if choice.raw.startswith(choice.text) else choice.raw
        tokens = _up_to(choice.tokens, len(shown_text))
        if not self._asked.echo:
            return self._table(tokens, length)
        return self._table([*answer.echo, *tokens], answer.dropped.prefix_chars)

    def _stream_logprobs(
        self, p: int, tokens: Sequence[TokenInfo], written: dict[tuple[int, int], int], at: tuple[int, int]
    ) -> dict[str, Any] | None:
        if self._asked.logprobs is None or not tokens:
            return None
        start = written.get(at, self._length(p))
        written[at] = start + sum(_characters(t.raw) for t in tokens)
        return self._table(tokens, start)

    def _table(self, tokens: Sequence[TokenInfo], start: int) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(start)
            start += _characters(token.raw)
        n = self._asked.logprobs or 0
        tops = [
            {shown(raw): value for raw, value in t.top[:n]} if t.logprob is not None else None for t in tokens
        ]
        return {
            "tokens": [t.text for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": tops if n else None,
            "text_offset": offsets,
        }


def _characters(raw: bytes) -> int:
    """Count the characters that begin in these bytes: all but continuation bytes of UTF-8 begin one."""
    return sum(1 for b in raw if b & 0xC0 != 0x80)


def _up_to(tokens: Sequence[TokenInfo], n_characters: int) -> list[TokenInfo]:
    """Return the tokens that the first characters come from: what a stop string or a cut took away is no answer."""
    kept, at = [], 0
    for token in tokens:
        if at >= n_characters:
            break
        kept.append(token)
        at += _characters(token.raw)
    return kept


def _reason(choice: Choice) -> str:
    """Return OpenAI's word: whatever ended an answer from outside is "length"."""
    return "stop" if choice.finish_reason == "stop" else "length"


def _about_choice(choice: Choice, answer: Answer) -> dict[str, Any]:
    """Return what OpenAI's schema has no word for."""
    return {
        "finish_reason": answer.interrupted or choice.finish_reason,
        "cuts": [{"reason": cut.reason, "removed": cut.removed} for cut in choice.cuts],
        "unindent": choice.unindent,
    }


def _about(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return timings (milliseconds; of the slowest prompt) and what the model did not see."""
    slowest = max(answers, key=lambda a: a.timings.queued_ms + a.timings.prompt_ms + a.timings.predicted_ms)
    return {
        "timings": {k: round(v, 3) for k, v in dataclasses.asdict(slowest.timings).items()},
        "dropped_prefix_chars": sum(a.dropped.prefix_chars for a in answers),
        "dropped_suffix_chars": sum(a.dropped.suffix_chars for a in answers),
    }


def _usage(answers: Sequence[Answer]) -> dict[str, Any]:
    read = sum(a.prompt_tokens for a in answers)
    written = sum(a.completion_tokens for a in answers)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(a.timings.cached_n for a in answers)},
    }
