"""What llama.cpp's clients ask: bodies of POST /infill and /completion, read into an Ask. Pure.

Not here: routes and replies (llamacpp.py), what a marked prompt means (dialects.py). Read and passed over, as they say
nothing to our model: cache_prompt (always on), t_max_prompt_ms (llama.cpp has no such limit either, and a warm-up sends
1), and samplers it does not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...generation.sampling import SamplingParams
from ..fim_markers import Extra, translate, with_extras
from ..schema import MOST_ANSWERS, Ask, BadField, Body, short
from ..settings import Settings

CHARS_PER_TOKEN = 3  # of code, a little less than the mean
USUAL_CONTEXT = 2048  # tokens; while no model has been loaded yet
_FILTERS = ("top_k", "top_p", "min_p")
_NOT_HERE = ("grammar", "json_schema")


@dataclass(frozen=True)
class Wanted:
    """An Ask and how its answer is shown. fields: the only ones of the reply, None for all of them."""

    ask: Ask
    stream: bool = False
    fields: tuple[str, ...] | None = None
    n_indent: int = 0
    id_slot: int = -1
    n_probs: int = 0
    return_tokens: bool = False
    settings: dict[str, Any] = field(default_factory=dict)  # the reply's generation_settings


def infill_request(
    body: Body,
    settings: Settings,
    *,
    room: int = CHARS_PER_TOKEN * USUAL_CONTEXT,
    session: str | None = None,
    client: str = "",
    deadline_s: float | None = None,
) -> Wanted:
    """Read a body of POST /infill; room: characters that the model can be shown. Raises BadField."""
    for name in ("input_prefix", "input_suffix"):
        if body.get(name) is None:
            raise BadField(
                name, f"{name} is missing; give the text {'before' if 'pre' in name else 'after'} the cursor"
            )
    prefix, suffix = body.text("input_prefix", "") or "", body.text("input_suffix", "") or ""
    prefix += body.text("prompt", "") or ""
    prefix = with_extras(prefix, suffix, _extras(body), room)
    return _wanted(body, settings, prefix, suffix, session, client, deadline_s)


def completion_request(
    body: Body,
    settings: Settings,
    *,
    session: str | None = None,
    client: str = "",
    deadline_s: float | None = None,
) -> Wanted:
    """Read a body of POST /completion; a prompt with another model's markers is an infill. Raises BadField."""
    prompt = body.text("prompt")
    if prompt is None:
        raise BadField("prompt", "prompt is missing; give the text to continue")
    prefix, suffix = translate(prompt) or (prompt, None)
    return _wanted(body, settings, prefix, suffix, session, client, deadline_s)


def _wanted(
    body: Body,
    settings: Settings,
    prefix: str,
    suffix: str | None,
    session: str | None,
    client: str,
    deadline_s: float | None,
) -> Wanted:
    for name in _NOT_HERE:
        if body.get(name):
            raise BadField(name, f"{name} is not supported by this server; leave it out")
    n_probs = body.whole("n_probs", 0, 0, 100)
    tokens = body.flag("return_tokens")
    params = _params(body, settings, n_probs, tokens)
    most_ms = body.number("t_max_predict_ms", -1, -1, 1e12)
    body.number("t_max_prompt_ms", -1, -1, 1e12), body.flag("cache_prompt"), body.text("model")
    if most_ms > 0:
        deadline_s = min(most_ms / 1000, deadline_s or most_ms)
    id_slot = body.whole("id_slot", -1, -1, 10**6)
    if session is None and id_slot >= 0:
        # Every llama.vim says slot 0, and its warm-up must not end the answer that somebody waits for.
        session = f"{client}#{id_slot}" + ("#warm-up" if params.max_new_tokens == 0 else "")
    fields = None if body.get("response_fields") is None else _fields(body)
    n_indent = body.whole("n_indent", 0, 0, 10**6)
    ask = Ask(
        prefix=prefix, suffix=suffix, params=params, raw=body.flag("raw"), session=session,
        client=session or client, deadline_s=deadline_s,
    )  # fmt: skip
    shown = _shown_settings(params, body, n_indent, most_ms)
    return Wanted(ask, body.flag("stream"), fields, n_indent, id_slot, n_probs, tokens, shown)


def _params(body: Body, settings: Settings, n_probs: int, tokens: bool) -> SamplingParams:
    """Read how tokens are chosen. top_k, top_p and min_p count where `samplers` names them, or is absent."""
    name = "n_predict" if body.get("n_predict") is not None else "max_tokens"
    n_predict = body.whole(name, -1, -2, 10**9)  # -1: endless, -2: until the context is full
    named = _samplers(body)
    on = {f: body.get("samplers") is None or f in named for f in _FILTERS}
    n = body.whole("n_cmpl", 1, 1, MOST_ANSWERS)
    seed = body.whole("seed", -1, -(2**63), 2**64)
    top_k = body.whole("top_k", 0, -1, 10**9)
    top_p, min_p = body.number("top_p", 1.0, 0, 1), body.number("min_p", 0.0, 0, 1)
    return SamplingParams(
        max_new_tokens=n_predict if n_predict >= 0 else settings.max_new_tokens,
        temperature=max(0.0, body.number("temperature", settings.temperature, -100, 100)),
        top_k=max(0, top_k) if on["top_k"] else 0,
        top_p=top_p if on["top_p"] else 1.0,
        min_p=min_p if on["min_p"] else 0.0,
        repetition_penalty=body.number("repeat_penalty", 1.0, 0.01, 100),
        presence_penalty=body.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=body.number("frequency_penalty", 0.0, -2, 2),
        logit_bias=_bias(body),
        seed=None if seed in (-1, 2**32 - 1) else seed,
        stop=body.strings("stop"),
        n=n,
        top_logprobs=max(n_probs, int(tokens or n > 1)),  # several answers: whose tokens are whose
    )


def _samplers(body: Body) -> tuple[str, ...]:
    """Read samplers: names, or a letter each in one string."""
    if isinstance(body.get("samplers"), str):
        letters = {"k": "top_k", "p": "top_p", "m": "min_p", "t": "temperature"}
        return tuple(letters.get(c, c) for c in body.text("samplers", "") or "")
    return body.strings("samplers")


def _bias(body: Body) -> dict[int, float]:
    """Read logit_bias: a list of [token, bias], where false bans the token."""
    value = body.get("logit_bias")
    found: dict[int, float] = {}
    for pair in [] if value is None else value if isinstance(value, list) else [value]:
        good = isinstance(pair, list) and len(pair) == 2 and not isinstance(pair[0], bool)
        if not (good and isinstance(pair[0], int) and pair[0] >= 0 and isinstance(pair[1], int | float)):
            raise BadField(
                "logit_bias", f"logit_bias must be a list of [token, number or false], got {short(value)}"
            )
        found[pair[0]] = -100.0 if pair[1] is False else float(max(-100, min(100, pair[1])))
    return found


def _extras(body: Body) -> list[Extra]:
    value = body.get("input_extra")
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadField(
            "input_extra", f"input_extra must be a list of objects with a text, got {short(value)}"
        )
    found = []
    for i, one in enumerate(value):
        if not (isinstance(one, dict) and isinstance(one.get("text"), str)):
            raise BadField("input_extra", f"input_extra[{i}] must be an object with a text, got {short(one)}")
        item = Body(one)
        found.append(Extra(item.text("filename", "") or "", item.text("text", "") or ""))
    return found


def _fields(body: Body) -> tuple[str, ...]:
    """Read response_fields, which keep their empty names: [""] asks for an empty reply."""
    value = body.get("response_fields")
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise BadField("response_fields", f"response_fields must be a list of strings, got {short(value)}")
    return tuple(value)


def _shown_settings(params: SamplingParams, body: Body, n_indent: int, most_ms: float) -> dict[str, Any]:
    return {
        "n_predict": params.max_new_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repeat_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "seed": -1 if params.seed is None else params.seed,
        "stop": list(params.stop),
        "samplers": [*_FILTERS, "temperature"] if body.get("samplers") is None else list(_samplers(body)),
        "n_indent": n_indent,
        "n_cmpl": params.n,
        "t_max_predict_ms": most_ms,
        "stream": body.flag("stream"),
    }
