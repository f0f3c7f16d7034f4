"""llama.cpp's server, as llama.vim, llama.vscode, twinny and llm-ls use it: /infill, /completion, /props.

Not here: what a marked prompt means (fim_markers.py), /tokenize (models.py), GET /health (app.py). Passed over:
cache_prompt (always on), t_max_prompt_ms (llama.cpp has no such limit either), samplers that we do not have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from ..._version import __version__
from ...config import EOT
from ...generation.params import BAN
from ...generation.request import Request
from ...generation.results import Result, TokenLogprob
from ...text.infill import EOM
from ...text.languages import language_of
from .. import schema
from ..fim_markers import characters, translate, with_extras
from ..http import Call, Items, json_response
from ..schema import BadField, Json, Operation, Problem, SamplingFields, limits
from . import about

_FILTERS = ("top_k", "top_p", "min_p")
_LETTERS = {"k": "top_k", "p": "top_p", "m": "min_p", "t": "temperature"}  # samplers in one string
_STOP_TYPES = {"stop": "eos", "length": "limit", "deadline": "limit"}  # else "none"
_UNAVAILABLE = "unavailable_error"
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: _UNAVAILABLE, 503: _UNAVAILABLE}
_MOST_TEXTS, _MOST_CHARS = 1024, 65_536  # among ids; no context holds more
TokenOrText = int | str
Short = Annotated[str, Meta(max_length=64)]
Encode = Callable[[str], list[int]]
Prompt = Annotated[
    str | Annotated[list[int | str | list[TokenOrText]], Meta(min_length=1)],
    Meta(extra={"words": "text, ids, a list of both, or a list of such prompts"}),
]
_Few = Meta(max_length=schema.MOST_BIASES)
Bias = Annotated[
    Annotated[dict[Short, float | bool], _Few] | Annotated[list[tuple[int | Short, float | bool]], _Few],
    Meta(
        extra={
            "words": f"a list of [id or text, number or false], or such an object, of {schema.MOST_BIASES}"
        }
    ),
]
Samplers = Annotated[
    Short | Annotated[list[Short], Meta(max_length=64)],
    Meta(extra={"words": "a string or a list of at most 64 names"}),
]

# ---- bodies


class Extra(Struct):
    """A piece of another file."""

    text: str
    filename: str = ""


class LlamaFields(SamplingFields, kw_only=True):
    """What /infill and /completion share; raw, language and filename are ours."""

    max_new_tokens: schema.Budget | None = field(default=None, name="n_predict")
    max_tokens: schema.Budget = -1
    temperature: Annotated[float, limits("temperature", ge=-100)] | None = None  # below 0 is greedy
    repetition_penalty: schema.RepetitionPenalty = field(default=1.0, name="repeat_penalty")
    logit_bias: Bias | None = None
    ignore_eos: bool = False
    n: schema.NAnswers = field(default=1, name="n_cmpl")
    n_indent: Annotated[int, Meta(ge=0, description="end before a line with fewer blanks")] = 0
    n_probs: Annotated[int, Meta(ge=0, le=100, description="likeliest tokens to report at each step")] = 0
    post_sampling_probs: bool = False
    return_tokens: bool = False
    samplers: Samplers | None = None
    t_max_predict_ms: float = -1
    id_slot: Annotated[int, Meta(ge=-1)] = -1
    stream: bool = False
    response_fields: Annotated[list[Short], Meta(max_length=64)] = field(default_factory=list)
    raw: bool = False
    language: schema.Language = ""
    filename: str = ""
    grammar: Any = None
    json_schema: Any = None


class InfillBody(LlamaFields, kw_only=True):
    """POST /infill. prompt: what is typed on the cursor's line, after input_prefix."""

    input_prefix: str
    input_suffix: str
    prompt: str = ""
    input_extra: list[Extra] = field(default_factory=list)


class CompletionBody(LlamaFields, kw_only=True):
    """POST /completion. prompt: text, ids, a list that mixes both, or a list of such prompts."""

    prompt: Prompt


def error_of(problem: Problem) -> Json:
    """Return an error's body as llama.cpp's clients read it."""
    kind = _KINDS.get(problem.status, problem.kind)
    return {"error": {"code": problem.status, "message": problem.message, "type": kind}}


# ---- from a body to requests


async def infill(call: Call[InfillBody]) -> Any:
    """Answer POST /infill."""
    body = call.body
    texts, names = [e.text for e in body.input_extra], [e.filename for e in body.input_extra]
    room = characters(call.worker.rules)
    prefix = with_extras(body.input_prefix + body.prompt, body.input_suffix, texts, room)
    shared = template(call, await _encoder(call), names)
    return await _reply(
        call, [dataclasses.replace(shared, prefix=prefix, suffix=body.input_suffix, suggest=True)]
    )


async def completion(call: Call[CompletionBody]) -> Any:
    """Answer POST /completion; a text with another model's markers is an infill."""
    encode = await _encoder(call)
    shared, requests = template(call, encode), []
    prompts = schema.prompts_of("prompt", call.body.prompt, mixed=True)
    texts = [t for one in prompts if not isinstance(one, str) for t in one if isinstance(t, str)]
    if len(texts) > _MOST_TEXTS or sum(map(len, texts)) > _MOST_CHARS:
        words = f"prompt may have at most {_MOST_TEXTS} texts among ids, of {_MOST_CHARS} characters together"
        raise BadField("prompt", words)
    for prompt in prompts:
        if isinstance(prompt, str):
            prefix, suffix = translate(prompt) or (prompt, None)
            requests.append(dataclasses.replace(shared, prefix=prefix, suffix=suffix))
        else:
            ids = [token for one in prompt for token in ([one] if isinstance(one, int) else encode(one))]
            requests.append(dataclasses.replace(shared, tokens=tuple(ids)))
    return await _reply(call, requests)


def template(call: Call[Any], encode: Encode, filenames: Iterable[str] = ()) -> Request:
    """Return what all requests of a body have in common. Raises BadField.

    top_k, top_p and min_p count where `samplers` names them, or is absent. filenames: of files beside the one at hand.
    """
    body: LlamaFields = call.body
    for name in ("grammar", "json_schema"):
        if getattr(body, name):
            raise BadField(name, f"{name} is not supported by this server; leave it out")
    limit_s = [s for s in (body.t_max_predict_ms / 1000, call.deadline_s) if s and s > 0]
    params = body.params(
        call,
        max_new_tokens=body.max_tokens if body.max_new_tokens is None else body.max_new_tokens,
        logit_bias=_bias(body, encode),
        seed=None if body.seed in (-1, 2**32 - 1) else body.seed,
        top_logprobs=max(body.n_probs, int(body.stream and body.return_tokens)),
        drawn_logprobs=body.post_sampling_probs,
        deadline_s=min(limit_s, default=None),
        **{f: schema.default(f) for f in _FILTERS if body.samplers is not None and f not in _samplers(body)},
    )
    session = call.session
    if session is None and body.id_slot >= 0:
        # Every llama.vim says slot 0, and its warm-up must not end the answer that somebody waits for.
        session = f"{call.client}#{body.id_slot}" + ("#warm-up" if params.max_new_tokens == 0 else "")
    languages = {language_of(body.filename)} if body.filename else {language_of(n) for n in filenames if n}
    return Request(
        params=params, stop_at="block", raw=body.raw, session=session,
        language=body.language or (languages.pop() if len(languages) == 1 else None),
    )  # fmt: skip


def _samplers(body: LlamaFields) -> list[str]:
    if isinstance(body.samplers, str):
        return [_LETTERS.get(c, c) for c in body.samplers]
    return [*_FILTERS, "temperature"] if body.samplers is None else body.samplers


def _bias(body: LlamaFields, encode: Encode) -> dict[int, float]:
    """Return logit_bias by id: an object, or a list of pairs; of a text all its tokens; false bans, as ignore_eos does.

    In an object a key of digits is an id.
    """
    given = body.logit_bias or []
    if isinstance(given, dict):
        given = [(int(k[:10]) if k.isascii() and k.isdecimal() else k, v) for k, v in given.items()]
    bias = dict.fromkeys((EOT, EOM), BAN) if body.ignore_eos else {}
    for token, value in given:
        if value is True or (isinstance(token, int) and token < 0):
            words = "logit_bias must give each token (an id or a text) a number or false"
            raise BadField("logit_bias", words)
        number = BAN if value is False else max(BAN, min(-BAN, value))
        bias |= dict.fromkeys([token] if isinstance(token, int) else encode(token), number)
    return bias


async def _encoder(call: Call[Any]) -> Encode:
    """Return how text becomes ids, where a body has text that must."""
    needed = call.body.logit_bias or not isinstance(call.body.prompt, str)
    return (await call.tokenizer()).encode if needed else lambda text: []


# ---- replies


async def _reply(call: Call[Any], requests: Sequence[Request]) -> Any:
    if call.body.stream:
        return await call.streamed(requests, lambda items: _events(call, requests, items))
    results = await call.whole(*requests)

    def write(results: Sequence[Result]) -> Json | Iterator[Json]:
        replies = (
            pick(_reply_of(call, requests[number], result, i, number), call.body.response_fields)
            for number, result in enumerate(results)
            for i in range(len(result.choices))
        )
        return next(replies) if len(requests) == call.body.n == 1 else replies

    return await call.replied(write, results) if call.body.n_probs else json_response(write(results))


async def _events(call: Call[Any], requests: Sequence[Request], items: Items) -> AsyncIterator[Json]:
    """Yield the reply in pieces; the last of each answer has no text and tells all the rest.

    With n_indent, which clients ask for that take an answer whole, all text comes in one piece at the end.
    """
    body: LlamaFields = call.body

    def part(index: int, text: str, logprobs: Sequence[TokenLogprob] = ()) -> list[Json]:
        event: Json = {"index": index, "content": text, "tokens": [t.token for t in logprobs]}
        event |= {"stop": False, "id_slot": body.id_slot}
        if body.n_probs:
            event["completion_probabilities"] = _probabilities(call, logprobs)
        return [event] if text or logprobs else []

    async for number, chunk in items:
        text = "" if body.n_indent else chunk.text
        for event in part(number * body.n + chunk.index, text, chunk.logprobs):
            yield event
        for i in range(len(chunk.result.choices) if chunk.result else 0):
            assert chunk.result is not None
            last = _reply_of(call, requests[number], chunk.result, i, number)
            for event in part(last["index"], last["content"]) if body.n_indent else ():
                yield event
            last |= {"content": "", "tokens": [], "completion_probabilities": []}  # they came in pieces
            yield pick(last, body.response_fields)


def _reply_of(call: Call[Any], request: Request, result: Result, i: int, number: int) -> Json:
    """Return the reply of one answer to prompt `number`, all fields."""
    body, choice = call.body, result.choices[i]
    text, cut = within_indent(choice.text, body.n_indent)
    # Where post-processing ended it, it is whole, as by "eos".
    kind = "word" if choice.stop_string is not None else _STOP_TYPES.get(choice.finish_reason, "none")
    kind = "limit" if cut else kind
    tokens = [*choice.tokens, *([] if choice.stop_token is None else [choice.stop_token])]
    reply: Json = {
        "index": number * body.n + i,
        "content": text,
        "tokens": tokens if body.return_tokens else [],
        "id_slot": body.id_slot,
        "stop": True,
        "model": call.settings.model_name,
        "tokens_predicted": result.completion_tokens if len(result.choices) == 1 else len(tokens),
        "tokens_evaluated": result.prompt_tokens,
        "generation_settings": _settings(body, request),
        "prompt": request.prefix if request.tokens is None else list(request.tokens),
        "has_new_line": "\n" in text,
        "truncated": bool(result.dropped),
        "stop_type": kind,
        "stopping_word": choice.stop_string or "" if kind == "word" else "",
        "tokens_cached": result.timings.cached_n,
        "timings": timings(result),
        "codegen2": about(result, choice),
    }
    if body.n_probs:
        reply["completion_probabilities"] = _probabilities(call, choice.logprobs)
    return reply


def _settings(body: LlamaFields, request: Request) -> Json:
    """Return the reply's generation_settings: what was asked, as it is used."""
    params = request.params
    same = ("temperature", *_FILTERS, "presence_penalty", "frequency_penalty", "stop")
    asked = ("n_indent", "n_probs", "ignore_eos", "t_max_predict_ms", "stream")
    return {name: getattr(params, name) for name in same} | {name: getattr(body, name) for name in asked} | {
        "n_predict": params.max_new_tokens,
        "n_cmpl": params.n,
        "repeat_penalty": params.repetition_penalty,
        "seed": -1 if params.seed is None else params.seed,
        "samplers": _samplers(body),
    }  # fmt: skip


def _probabilities(call: Call[Any], logprobs: Iterable[TokenLogprob]) -> list[Json]:
    """Return an entry a token, itself among its likeliest; the token that ended the answer has no text."""
    tokenizer, drawn, n = call.worker.tokenizer, call.body.post_sampling_probs, call.body.n_probs
    assert tokenizer is not None

    def one(token: int, logprob: float | None, n_spelled: int = 0) -> Json:
        raw = b"" if token in (EOT, EOM) else tokenizer.decode_bytes([token])[n_spelled:]
        value = math.exp(-math.inf if logprob is None else logprob) if drawn else logprob
        words = {"id": token, "token": raw.decode(errors="replace"), "bytes": list(raw)}
        return words | {"prob" if drawn else "logprob": value}

    def top(entry: TokenLogprob) -> list[Json]:
        # What filters took out is not among them.
        kept = [(token, logprob) for token, logprob in entry.top if logprob > -math.inf]
        kept = kept[:n] + [both for both in kept[n:] if both[0] == entry.token]
        return [one(*both) for both in kept]

    name = "top_probs" if drawn else "top_logprobs"
    return [{**one(entry.token, entry.logprob, entry.n_spelled), name: top(entry)} for entry in logprobs]


def timings(result: Result) -> Json:
    """Return milliseconds and rates; a rate over nothing is 0."""
    t = result.timings
    shown: Json = {"cache_n": t.cached_n}
    for name, n, ms in (("prompt", t.prompt_n, t.prompt_ms), ("predicted", t.predicted_n, t.predicted_ms)):
        shown |= {f"{name}_n": n, f"{name}_ms": round(ms, 3)}
        shown[f"{name}_per_token_ms"] = round(ms / n, 3) if n else 0.0
        shown[f"{name}_per_second"] = round(1000 * n / ms, 3) if ms > 0 else 0.0
    return shown


def pick(reply: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Keep the fields that were asked for, those of objects under their whole name; all where none was.

    >>> pick({"content": "x", "timings": {"prompt_n": 3}}, ("timings/prompt_n", "nothing", ""))
    {'timings/prompt_n': 3}
    """
    kept = {}
    for name in fields:
        value: Any = reply
        for key in name.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            kept[name] = value
    return kept if fields else reply


def within_indent(text: str, n_indent: int) -> tuple[str, bool]:
    """Cut before the first line, after the first one, that begins with fewer than n_indent blanks; and say whether.

    Empty lines do not count.

    >>> within_indent("a\\n\\n  b\\nc", 2)
    ('a\\n\\n  b', True)
    """
    lines = text.split("\n")
    for i, line in enumerate(lines[1:], start=1):
        code = line.lstrip(" \t")
        if code.strip("\r") and len(line) - len(code) < n_indent:
            return "\n".join(lines[:i]).rstrip("\r"), True
    return text, False


def props(call: Call[None]) -> Json:
    """Answer GET /props."""
    config, settings = call.worker.config, call.settings
    if config is None:
        raise Problem(503, "Loading model")
    params = {"n_predict": settings.max_new_tokens, "temperature": settings.temperature}
    return {
        "default_generation_settings": {"id": 0, "n_ctx": config.n_ctx, "params": params},
        "total_slots": settings.max_parallel,
        "model_path": settings.model_name,
        "model_alias": settings.model_name,
        "chat_template": "",
        "bos_token": "",
        "eos_token": "<|endoftext|>",
        "modalities": {"vision": False, "audio": False},
        "build_info": f"codegen2-{__version__}",
    }


_REPLY = Json | list[Json]  # a list of several answers
OPERATIONS = (
    Operation("POST", "/infill", infill, InfillBody, _REPLY, error_of, schema.EVENTS),
    Operation("POST", "/completion", completion, CompletionBody, _REPLY, error_of, schema.EVENTS),
    Operation("POST", "/completions", completion, CompletionBody, _REPLY, error_of, schema.EVENTS),
    Operation("GET", "/props", props, error=error_of),
)
