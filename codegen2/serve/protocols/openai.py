"""OpenAI's legacy completions with suffix, and two shells on the same handler: Mistral's FIM and DeepSeek's beta.

Not here: the other routes that OpenAI's clients ask (models.py), reading bodies (schema.py), the work
(generation/worker.py). Logarithms of likelihoods are told of every token, one entry each:

    prompt "x = fo" (echo)    entries  x | " =" | " fo"           the first has None; offsets 0 1 3
    answer "o + 1", <eom>     entries  o | " +" | " 1" | <eom>    offsets 6 7 9 11
    without echo the word "fo" is spelled again (token healing): the first entry is " foo", its offset 3
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from ...generation.request import Request
from ...generation.results import Choice, Result, TokenLogprob
from ...text.newlines import line_end_of
from ..fim_markers import translate
from ..http import Call, Items, json_response, problem_of
from ..schema import (
    MOST_ANSWERS,
    BadField,
    ErrorBody,
    OpenAIError,
    Operation,
    Problem,
    SamplingFields,
    default,
    limits,
    prompts_of,
    shown,
)
from ..schema import Prompt as PromptField

_EVENTS = "text/event-stream"
Bias = dict[Annotated[str, Meta(pattern="^[0-9]{1,9}$")], Annotated[float, Meta(ge=-100, le=100)]]


class StreamOptions(Struct):
    """include_usage: a last event with the tokens counted."""

    include_usage: bool = False


class CompletionBody(SamplingFields, kw_only=True):
    """OpenAI's fields, those that vLLM and Mistral add, and our own: raw, stop_at, language, token_healing."""

    model: str | None = None
    prompt: PromptField = ""
    suffix: str | None = None
    max_tokens: Annotated[int, limits("max_new_tokens", le=10**9)] = 16
    min_tokens: Annotated[int, limits("min_new_tokens", le=10**9)] = default("min_new_tokens")
    temperature: Annotated[float, limits("temperature", le=2)] | None = None
    repetition_penalty: Annotated[float, limits("repetition_penalty", gt=0)] = default("repetition_penalty")
    logit_bias: Bias | None = None
    logprobs: (
        Annotated[int, Meta(ge=0, le=5, description="likeliest tokens beside the chosen one")] | None
    ) = None
    echo: Annotated[
        bool, Meta(description="begin the answer with the prompt, which is read whole or refused")
    ] = False
    n: Annotated[int, Meta(ge=1, le=MOST_ANSWERS)] = 1
    best_of: Annotated[int, Meta(ge=1, le=MOST_ANSWERS)] | None = None
    random_seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None  # Mistral's name of seed
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    raw: Annotated[bool, Meta(description="no post-processing of an infill")] = False
    stop_at: Annotated[Literal["line", "block", "none"], Meta(description="where an infill ends")] = "block"
    language: Annotated[str, Meta(description="of the file: python, or what an editor calls it")] | None = (
        None
    )
    token_healing: Annotated[bool, Meta(description="spell the word before the cursor again")] = True

    def requests(self, call: Call[CompletionBody]) -> list[Request]:
        """Return the requests, one a prompt; those in another model's infill format become infills. Raises BadField.

        The first one alone carries the session, so that they do not supersede each other.
        """
        best_of = self.best_of if self.best_of not in (None, self.n) else None
        if best_of is not None and (best_of < self.n or self.stream):
            wanted = f"n ({self.n}) in a stream" if self.stream else f"at least n ({self.n})"
            raise BadField("best_of", f"best_of must be {wanted}, got {best_of}")
        if self.echo and self.suffix is not None:
            raise BadField("echo", "echo must be false with a suffix; the answer stands between the two")
        params = self.params(
            call.settings,
            max_new_tokens=self.max_tokens,
            min_new_tokens=self.min_tokens,
            repetition_penalty=self.repetition_penalty,
            logit_bias={int(token): value for token, value in (self.logit_bias or {}).items()},
            n=self.n,
            best_of=best_of,
            seed=self.seed if self.random_seed is None else self.random_seed,
            top_logprobs=0 if self.logprobs is None else max(1, self.logprobs),
            deadline_s=call.deadline_s,
        )
        made = []
        for i, prompt in enumerate(prompts_of("prompt", self.prompt)):
            text, tokens = (prompt, None) if isinstance(prompt, str) else ("", prompt)
            marked = translate(text) if self.suffix is None and not self.echo else None
            prefix, suffix = marked or (text, self.suffix)
            made.append(
                Request(
                    prefix, suffix, tokens=tokens, params=params, raw=self.raw, echo=self.echo,
                    stop_at=None if self.stop_at == "none" else self.stop_at, language=self.language,
                    heal=self.token_healing, session=None if i else call.session, client=call.client,
                )
            )  # fmt: skip
        return made


# ---- replies


class Logprobs(Struct):
    """One entry a token. top_logprobs: by the token's text, the chosen one among them."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Removed(Struct):
    """What post-processing took away, and why."""

    reason: str
    removed: str


class About(Struct):
    """What OpenAI has no word for. unindent: blanks before the cursor that an editor should delete first."""

    finish_reason: str
    cuts: list[Removed]
    unindent: int


class TextChoice(Struct):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None
    codegen2: About | UnsetType = UNSET


class Message(Struct):
    """An answer as chat clients read it."""

    content: str
    role: Literal["assistant"] = "assistant"


class ChatChoice(Struct):
    """One answer, or a piece of it, in Mistral's shape."""

    index: int
    finish_reason: Literal["stop", "length"] | None
    message: Message | UnsetType = UNSET
    delta: Message | UnsetType = UNSET
    codegen2: About | UnsetType = UNSET


class CachedTokens(Struct):
    """Prompt tokens that were known from before."""

    cached_tokens: int


class Usage(Struct):
    """Tokens of all prompts and answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Work(Struct):
    """Milliseconds and tokens of the slowest prompt, and what the model did not see of all."""

    timings: dict[str, float]
    dropped_prefix_chars: int
    dropped_suffix_chars: int


class Completion(Struct):
    """The reply, or an event of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
    codegen2: Work | UnsetType = UNSET


class ChatCompletion(Completion):
    """The reply in Mistral's shape."""

    choices: list[ChatChoice]  # type: ignore[assignment]


class MistralError(ErrorBody):
    """An error as Mistral's clients read it."""

    message: str
    type: str
    param: str | None
    code: str | None
    object: Literal["error"] = "error"

    @classmethod
    def of(cls, problem: Problem) -> MistralError:
        """Return the body that tells of a problem."""
        return cls(problem.message, problem.kind, problem.param, problem.code)


# ---- answering


async def completions(call: Call[CompletionBody]) -> Response:
    """Answer in OpenAI's shape."""
    return await _answered(call, mistral=False)


async def fim(call: Call[CompletionBody]) -> Response:
    """Answer in Mistral's shape, that of a chat."""
    return await _answered(call, mistral=True)


async def _answered(call: Call[CompletionBody], mistral: bool) -> Response:
    requests = call.body.requests(call)
    writer = Writer(call, requests, mistral)
    if call.body.stream:
        return await call.streamed(requests, writer.stream, _EVENTS)
    return json_response(writer.whole(await call.whole(*requests)))


class Writer:
    """Write the results of one call's requests."""

    def __init__(self, call: Call[CompletionBody], requests: Sequence[Request], mistral: bool) -> None:
        self._call, self._body, self._requests, self._mistral = call, call.body, requests, mistral
        self._texts = [
            p if isinstance(p, str) else None for p in prompts_of("prompt", call.body.prompt)
        ]  # as they were sent; None: tokens
        self._id = ("fim-" if mistral else "cmpl-") + uuid.uuid4().hex
        self._created = int(time.time())
        self._offsets: dict[tuple[int, int], int] = {}  # of the next token, by prompt and answer

    def whole(self, results: Sequence[Result]) -> Completion:
        """Return the reply in one piece."""
        choices = [
            self._choice(p, i, choice.text, choice.logprobs, result, choice)
            for p, result in enumerate(results)
            for i, choice in enumerate(result.choices)
        ]
        return self._completion(choices, usage=_usage(results), codegen2=_work(results))

    async def stream(self, items: Items) -> AsyncIterator[bytes]:
        """Yield the reply as server-sent events."""
        results: dict[int, Result] = {}
        usage = self._mistral or (self._body.stream_options or StreamOptions()).include_usage
        unknown = None if usage and not self._mistral else UNSET
        try:
            async for p, chunk in items:
                if chunk.result is not None:
                    results[p] = chunk.result
                    for i, choice in enumerate(chunk.result.choices):
                        last = self._choice(p, i, "", (), chunk.result, choice)
                        yield _event(self._completion([last], usage=unknown))
                elif chunk.text or chunk.logprobs:
                    piece = self._choice(p, chunk.index, chunk.text, chunk.logprobs)
                    yield _event(self._completion([piece], usage=unknown))
            if usage:
                done = [results[p] for p in sorted(results)]
                yield _event(self._completion([], usage=_usage(done), codegen2=_work(done)))
        except Exception as e:
            yield _event((MistralError if self._mistral else OpenAIError).of(problem_of(e)))
        yield b"data: [DONE]\n\n"

    def _completion(self, choices: list[Any], **more: Any) -> Completion:
        kind = "chat.completion" if self._mistral else "text_completion"
        kind += ".chunk" if self._mistral and self._body.stream else ""
        return Completion(self._id, kind, self._created, self._call.settings.model_name, choices, **more)

    def _choice(
        self,
        p: int,
        i: int,
        text: str,
        drawn: Sequence[TokenLogprob],
        result: Result | None = None,
        done: Choice | None = None,
    ) -> TextChoice | ChatChoice:
        """Return answer i to prompt p, or a piece of it; the first begins with the prompt where echo is asked."""
        if self._body.echo and (p, i) not in self._offsets:
            text = self._prompt(p) + text
        logprobs = self._logprobs(p, i, drawn)
        index = p * self._body.n + i
        reason: Literal["stop", "length"] | None = None
        about: About | UnsetType = UNSET
        if result is not None and done is not None:
            reason = "stop" if done.finish_reason == "stop" else "length"  # what ended it from outside, too
            cuts = [Removed(cut.reason, cut.removed) for cut in done.cuts]
            about = About(result.interrupted or done.finish_reason, cuts, done.unindent)
        if not self._mistral:
            return TextChoice(index, text, logprobs, reason, about)
        name = "delta" if self._body.stream else "message"
        return ChatChoice(index, reason, codegen2=about, **{name: Message(text)})

    def _prompt(self, p: int) -> str:
        """Return a prompt as text, control tokens as their own."""
        text = self._texts[p]
        if text is not None:
            return text
        return b"".join(map(self._bytes_of, self._requests[p].tokens or ())).decode("utf-8", errors="replace")

    def _bytes_of(self, token: int) -> bytes:
        tokenizer = self._call.worker.tokenizer
        assert tokenizer is not None  # the model has answered
        return tokenizer.decode_bytes([token]) if token in tokenizer.known else f"<token_{token}>".encode()

    # ---- log-probabilities

    def _logprobs(self, p: int, i: int, drawn: Sequence[TokenLogprob]) -> Logprobs | None:
        """Return the table of newly drawn tokens, of an echoed prompt's before the first ones."""
        table = Logprobs([], [], [], [])
        at = self._offsets.get((p, i))
        if self._body.logprobs is not None:
            if at is None:
                if self._body.echo:
                    self._add(table, 0, self._call.handles[p].prompt_logprobs, "\n")
                at = len(self._prompt(p))
            line_end = (
                "\n"
                if self._body.echo
                else line_end_of(self._requests[p].prefix, self._requests[p].suffix or "")
            )
            at = self._add(table, at, drawn, line_end)
        self._offsets[p, i] = at or 0
        if self._body.logprobs is None or (self._body.stream and not table.tokens):
            return None
        return table

    def _add(self, table: Logprobs, at: int, entries: Sequence[TokenLogprob], line_end: str) -> int:
        """Add entries whose first token's new text begins at a character; return where the next one begins."""
        n = self._body.logprobs or 0
        for entry in entries:
            raw = self._bytes_of(entry.token)
            at -= _characters(raw[: entry.n_spelled], line_end)
            top = {shown(self._bytes_of(token)): value for token, value in entry.top[:n]}
            if entry.logprob is not None:
                top[shown(raw)] = entry.logprob
            table.tokens.append(shown(raw))
            table.token_logprobs.append(entry.logprob)
            table.top_logprobs.append(top if entry.logprob is not None else None)
            table.text_offset.append(at)
            at += _characters(raw, line_end)
        return at


def _characters(raw: bytes, line_end: str) -> int:
    """Count the characters that begin in bytes: all but continuation bytes of UTF-8; a line end has its own length."""
    return sum(1 for b in raw if b & 0xC0 != 0x80) + raw.count(b"\n") * (len(line_end) - 1)


def _event(content: Any) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def _work(results: Sequence[Result]) -> Work:
    slowest = max((r.timings for r in results), key=lambda t: t.queued_ms + t.prompt_ms + t.predicted_ms)
    return Work(
        {name: round(value, 3) for name, value in vars(slowest).items()},
        sum(r.dropped.prefix_chars for r in results),
        sum(r.dropped.suffix_chars for r in results),
    )


def _usage(results: Sequence[Result]) -> Usage:
    read, written = sum(r.prompt_tokens for r in results), sum(r.completion_tokens for r in results)
    return Usage(read, written, read + written, CachedTokens(sum(r.timings.cached_n for r in results)))


OPERATIONS = (
    Operation("POST", "/v1/completions", completions, CompletionBody, Completion, stream=_EVENTS),
    Operation("POST", "/beta/completions", completions, CompletionBody, Completion, stream=_EVENTS),
    Operation(
        "POST", "/v1/fim/completions", fim, CompletionBody, ChatCompletion, MistralError, stream=_EVENTS
    ),
)
