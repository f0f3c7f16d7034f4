"""OpenAI's legacy completions with suffix, and two shells on the same handler: Mistral's FIM and DeepSeek's beta.

Not here: the other routes that OpenAI's clients ask (models.py), reading bodies (schema.py), the work
(generation/worker.py). Logarithms of likelihoods are told of every token, one entry each:

    prompt "x = fo" (echo)    entries  x | " =" | " fo"           the first has None; offsets 0 1 3
    answer "o + 1", <eom>     entries  o | " +" | " 1" | <eom>    offsets 6 7 9 11
    without echo the word "fo" is spelled again (token healing): the first entry is " foo", its offset 3
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType, field

from ...generation.request import Request
from ...generation.results import Result, TokenLogprob
from ...text.newlines import line_end_of
from .. import schema
from ..fim_markers import translate
from ..http import Call, Items
from ..schema import BadField, Json, NAnswers, Operation, Problem, RepetitionPenalty, SamplingFields, limits
from . import about

C = TypeVar("C")
Bias = Annotated[
    dict[Annotated[str, Meta(pattern="^[0-9]{1,9}$")], Annotated[float, Meta(ge=-100, le=100)]],
    Meta(max_length=schema.MOST_BIASES),
]
NAlternatives = Annotated[int, Meta(ge=0, le=5, description="likeliest tokens beside the chosen one")]
Echo = Annotated[bool, Meta(description="begin the answer with the prompt, which is read whole or refused")]
StopAt = Annotated[Literal["line", "block", "none"], Meta(description="where an infill ends")]
FinishReason = Literal["stop", "length"] | None


class StreamOptions(Struct):
    """include_usage: a last event with the tokens counted."""

    include_usage: bool = False


class CompletionBody(SamplingFields, kw_only=True):
    """OpenAI's fields, those that vLLM and Mistral add, and our own: raw, stop_at, language, token_healing, suggest."""

    model: str | None = None
    prompt: schema.Prompt = ""
    suffix: str | None = None
    max_new_tokens: Annotated[int, limits("max_new_tokens", le=10**9)] = field(default=16, name="max_tokens")
    min_new_tokens: Annotated[int, limits("min_new_tokens", le=10**9)] = field(default=0, name="min_tokens")
    temperature: Annotated[float, limits("temperature", le=2)] | None = None
    repetition_penalty: RepetitionPenalty = 1.0
    logit_bias: Bias | None = None
    logprobs: NAlternatives | None = None
    echo: Echo = False
    n: NAnswers = 1
    best_of: NAnswers | None = None
    random_seed: schema.Seed | None = None  # Mistral's name of seed
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    raw: Annotated[bool, Meta(description="no post-processing of an infill")] = False
    stop_at: StopAt = "block"
    language: schema.Language | None = None
    suggest: Annotated[
        bool, Meta(description="shown unasked: only if the model's config finds it worth that")
    ] = False
    token_healing: Annotated[bool, Meta(description="spell the word before the cursor again")] = True

    def requests(self, call: Call[CompletionBody]) -> list[Request]:
        """Return the requests, one a prompt; those in another model's infill format become infills. Raises BadField."""
        best_of = None if self.best_of == self.n else self.best_of
        if best_of is not None and self.stream:
            raise BadField("best_of", f"best_of must be n ({self.n}) in a stream, got {best_of}")
        if self.echo and self.suffix is not None:
            raise BadField("echo", "echo must be false with a suffix; the answer stands between the two")
        params = self.params(
            call,
            logit_bias={int(token): value for token, value in (self.logit_bias or {}).items()},
            best_of=best_of,
            seed=self.seed if self.random_seed is None else self.random_seed,
            top_logprobs=0 if self.logprobs is None else max(1, self.logprobs),
        )
        made = []
        for prompt in schema.prompts_of("prompt", self.prompt):
            text, tokens = (prompt, None) if isinstance(prompt, str) else ("", prompt)
            marked = translate(text) if self.suffix is None and not self.echo else None
            prefix, suffix = marked or (text, self.suffix)
            made.append(
                Request(
                    prefix, suffix, tokens=tokens, params=params, raw=self.raw, echo=self.echo,
                    stop_at=None if self.stop_at == "none" else self.stop_at, language=self.language,
                    heal=self.token_healing, suggest=self.suggest,
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


class TextChoice(Struct):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason
    codegen2: Json | UnsetType = UNSET


class Message(Struct):
    """An answer as chat clients read it."""

    content: str
    role: Literal["assistant"] = "assistant"


class ChatChoice(Struct):
    """One answer, or a piece of it, in Mistral's shape."""

    index: int
    finish_reason: FinishReason
    message: Message | UnsetType = UNSET
    delta: Message | UnsetType = UNSET
    codegen2: Json | UnsetType = UNSET


class Usage(Struct):
    """Tokens of all prompts and answers, and how many of the prompts' were known from before."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[Literal["cached_tokens"], int]


class Completion(Struct, Generic[C]):
    """The reply, or an event of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[C]
    usage: Usage | UnsetType | None = UNSET
    codegen2: Json | UnsetType = UNSET


def mistral_error(problem: Problem) -> Json:
    """Return an error's body as Mistral's clients read it."""
    more = {"type": problem.kind, "param": problem.param, "code": problem.code}
    return {"object": "error", "message": problem.message, **more}


# ---- answering


async def completions(call: Call[CompletionBody]) -> Any:
    """Answer in the shape of OpenAI, or of Mistral, which is that of a chat."""
    requests = call.body.requests(call)
    writer = Writer(call, requests)
    if call.body.stream:
        return await call.streamed(requests, writer.stream)
    results = await call.whole(*requests)
    return writer.whole(results) if call.body.logprobs is None else await call.replied(writer.whole, results)


class Writer:
    """Write the results of one call's requests."""

    def __init__(self, call: Call[CompletionBody], requests: Sequence[Request]) -> None:
        self._call, self._body, self._requests = call, call.body, requests
        self._mistral = call.operation.error is mistral_error
        self._prompts = schema.prompts_of("prompt", call.body.prompt)  # as they were sent
        self._id = ("fim-" if self._mistral else "cmpl-") + uuid.uuid4().hex
        self._created = int(time.time())
        self._offsets: dict[tuple[int, int], int] = {}  # of the next token, by prompt and answer

    def whole(self, results: Sequence[Result]) -> Completion[Any]:
        """Return the reply in one piece."""
        choices = [
            self._choice(p, i, choice.text, choice.logprobs, result)
            for p, result in enumerate(results)
            for i, choice in enumerate(result.choices)
        ]
        return self._completion(choices, usage=_usage(results), codegen2=_work(results))

    async def stream(self, items: Items) -> AsyncIterator[Completion[Any]]:
        """Yield the reply in pieces."""
        results: dict[int, Result] = {}
        usage = self._mistral or (self._body.stream_options or StreamOptions()).include_usage
        unknown = None if usage and not self._mistral else UNSET
        async for p, chunk in items:
            if chunk.result is not None:
                results[p] = chunk.result
                for i in range(len(chunk.result.choices)):
                    yield self._completion([self._choice(p, i, "", (), chunk.result)], usage=unknown)
            elif chunk.text or chunk.logprobs:
                piece = self._choice(p, chunk.index, chunk.text, chunk.logprobs)
                yield self._completion([piece], usage=unknown)
        if usage:
            done = [results[p] for p in sorted(results)]
            yield self._completion([], usage=_usage(done), codegen2=_work(done))

    def _completion(self, choices: list[Any], **more: Any) -> Completion[Any]:
        kind = "chat.completion" if self._mistral else "text_completion"
        kind += ".chunk" if self._mistral and self._body.stream else ""
        return Completion(self._id, kind, self._created, self._call.settings.model_name, choices, **more)

    def _choice(
        self, p: int, i: int, text: str, drawn: Sequence[TokenLogprob], result: Result | None = None
    ) -> TextChoice | ChatChoice:
        """Return answer i to prompt p, or a piece of it; the first begins with the prompt where echo is asked.

        result: where it has ended.
        """
        if self._body.echo and (p, i) not in self._offsets:
            text = self._prompt(p) + text
        logprobs = self._logprobs(p, i, drawn)
        index = p * self._body.n + i
        reason: FinishReason = None
        words: Json | UnsetType = UNSET
        if result is not None:
            # What ended it from outside is "length", too.
            reason = "stop" if result.choices[i].finish_reason == "stop" else "length"
            words = about(result, result.choices[i])
        if not self._mistral:
            return TextChoice(index, text, logprobs, reason, words)
        name = "delta" if self._body.stream else "message"
        return ChatChoice(index, reason, codegen2=words, **{name: Message(text)})

    def _prompt(self, p: int) -> str:
        """Return a prompt as text, control tokens as their own."""
        prompt = self._prompts[p]
        if isinstance(prompt, str):
            return prompt
        return b"".join(map(self._bytes_of, prompt)).decode("utf-8", errors="replace")

    def _bytes_of(self, token: int) -> bytes:
        tokenizer = self._call.worker.tokenizer
        assert tokenizer is not None  # the model has answered
        return tokenizer.decode_bytes([token]) if token in tokenizer.known else f"<token_{token}>".encode()

    # ---- log-probabilities

    def _logprobs(self, p: int, i: int, drawn: Sequence[TokenLogprob]) -> Logprobs | None:
        """Return the table of newly drawn tokens, of an echoed prompt's before the first ones."""
        table, echo, request = Logprobs([], [], [], []), self._body.echo, self._requests[p]
        if first := (p, i) not in self._offsets:
            self._offsets[p, i] = len(self._prompt(p))
        if self._body.logprobs is None:
            return None
        if first and echo:
            self._add(table, 0, self._call.handles[p].prompt_logprobs, "\n")
        line_end = "\n" if echo else line_end_of(request.prefix, request.suffix or "")
        self._offsets[p, i] = self._add(table, self._offsets[p, i], drawn, line_end)
        return None if self._body.stream and not table.tokens else table

    def _add(self, table: Logprobs, at: int, entries: Sequence[TokenLogprob], line_end: str) -> int:
        """Add entries whose first token's new text begins at a character; return where the next one begins."""
        n = self._body.logprobs or 0
        for entry in entries:
            raw = self._bytes_of(entry.token)
            at -= _characters(raw[: entry.n_spelled], line_end)
            top = {schema.shown(self._bytes_of(token)): value for token, value in entry.top[:n]}
            if entry.logprob is not None:
                top[schema.shown(raw)] = entry.logprob
            table.tokens.append(schema.shown(raw))
            table.token_logprobs.append(entry.logprob)
            table.top_logprobs.append(top if entry.logprob is not None else None)
            table.text_offset.append(at)
            at += _characters(raw, line_end)
        return at


def _characters(raw: bytes, line_end: str) -> int:
    """Count the characters that begin in bytes: all but continuation bytes of UTF-8; a line end has its own length."""
    return sum(1 for b in raw if b & 0xC0 != 0x80) + raw.count(b"\n") * (len(line_end) - 1)


def _work(results: Sequence[Result]) -> Json:
    """Return milliseconds and tokens of the slowest prompt, and what the model did not see of all."""
    slowest = max((r.timings for r in results), key=lambda t: t.queued_ms + t.prompt_ms + t.predicted_ms)
    return {
        "timings": {name: round(value, 3) for name, value in vars(slowest).items()},
        "dropped_prefix_chars": sum(r.dropped.prefix_chars for r in results),
        "dropped_suffix_chars": sum(r.dropped.suffix_chars for r in results),
    }


def _usage(results: Sequence[Result]) -> Usage:
    read, written = sum(r.prompt_tokens for r in results), sum(r.completion_tokens for r in results)
    cached = sum(r.timings.cached_n for r in results)
    return Usage(read, written, read + written, {"cached_tokens": cached})


_EVENTS = dataclasses.replace(schema.EVENTS, end=b"data: [DONE]\n\n")
_SHAPES: dict[str, tuple[Any, Callable[[Problem], Json]]] = {
    "/v1/completions": (Completion[TextChoice], schema.openai_error),
    "/beta/completions": (Completion[TextChoice], schema.openai_error),
    "/v1/fim/completions": (Completion[ChatChoice], mistral_error),
}
OPERATIONS = tuple(
    Operation("POST", path, completions, CompletionBody, *shape, stream=_EVENTS)
    for path, shape in _SHAPES.items()
)
