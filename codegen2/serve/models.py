"""What the server says of its model: /v1/models, its tokenizer as vLLM and llama.cpp offer it, hidden states.

Not here: completions (protocols/).
"""

from __future__ import annotations

import asyncio
import base64
import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType, field

from ..api import Model
from ..config import EOT
from ..generation.request import check_size
from ..text.tokenizer import Tokenizer
from .http import Call
from .schema import BadField, Json, Operation, Problem, Prompt, prompts_of, shown

_END = "<|endoftext|>"
_PIECE = 128  # tokens of an embedding that are read before others have their turn
# What Mistral's clients ask of a model.
_CANNOT = ("completion_chat", "function_calling", "fine_tuning", "vision")
_CAPABILITIES = {"completion_fim": True} | dict.fromkeys(_CANNOT, False)


class Card(Struct):
    """A model. max_model_len: tokens of prompt and answer; max_prompt_tokens: of text that is read beside an answer."""

    id: str
    created: int
    capabilities: dict[str, bool] = field(default_factory=lambda: dict(_CAPABILITIES))
    object: Literal["model"] = "model"
    type: Literal["base"] = "base"  # Mistral's word for what nobody finetuned here
    owned_by: str = "codegen2"
    max_model_len: int | UnsetType = UNSET  # once the model was loaded
    max_prompt_tokens: int | UnsetType = UNSET
    max_context_length: int | UnsetType = UNSET  # Mistral's name


class Cards(Struct):
    """All models: one."""

    data: list[Card]
    object: Literal["list"] = "list"


def _card(call: Call[Any]) -> Card:
    worker = call.worker
    card = Card(call.settings.model_name, int(worker.loaded_at))
    if worker.rules is not None:
        card.max_model_len = card.max_context_length = worker.rules.config.n_ctx
        card.max_prompt_tokens = worker.rules.max_prompt_tokens
    return card


def models(call: Call[None]) -> Cards:
    """List the one model."""
    return Cards([_card(call)])


def model(call: Call[None]) -> Card:
    """Return the model by its name."""
    name, ours = call.request.path_params["name"], call.settings.model_name
    if name != ours:
        message = f"the model {name[:60]!r} is not here; this server has {ours!r}"
        raise Problem(404, message, code="model_not_found")
    return _card(call)


# ---- the tokenizer


async def tokenizer_info(call: Call[None]) -> Json:
    """Return what evaluation harnesses ask of a tokenizer."""
    tokenizer = await call.tokenizer()
    end = _END if _END in tokenizer.control else None
    assert call.worker.rules is not None
    return {
        "tokenizer_class": "CodeGenTokenizer",
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": call.worker.rules.config.n_ctx,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), end),
    }


# More takes a second and more to cut, and no context holds it.
Text = Annotated[str, Meta(max_length=2**18)]


class TokenizeBody(Struct):
    """prompt (vLLM) or content (llama.cpp): the text. parse_special: control tokens by their letters.

    Where it is absent it is true for llama.cpp's form, as there; for vLLM's, text is text.
    """

    prompt: Text | None = None
    content: Text | None = None
    parse_special: bool | None = None
    with_pieces: bool = False
    return_token_strs: bool = False


class DetokenizeBody(Struct):
    """The ids of a text."""

    tokens: list[int]


async def tokenize(call: Call[TokenizeBody]) -> Json:
    """Return the tokens of a text; a control token's letters are that token where they are all that was sent."""
    tokenizer = await call.tokenizer()
    assert call.worker.rules is not None
    limit: Json = {"max_model_len": call.worker.rules.config.n_ctx}
    return limit | await asyncio.to_thread(_tokens_of, call.body, tokenizer)


def _tokens_of(body: TokenizeBody, tokenizer: Tokenizer) -> Json:
    text = body.content if body.prompt is None else body.prompt
    if text is None:
        raise BadField("prompt", "prompt is missing; it must be a string")
    special = body.prompt is None if body.parse_special is None else body.parse_special
    tokens = tokenizer.encode(text, allow_control=special or text in tokenizer.control)
    reply: Json = {"count": len(tokens), "tokens": tokens}
    raw = [tokenizer.decode_bytes([t]) for t in tokens] if body.with_pieces or body.return_token_strs else []
    if body.with_pieces:
        reply["tokens"] = [{"id": t, "piece": _piece(r)} for t, r in zip(tokens, raw, strict=True)]
    if body.return_token_strs:
        reply["token_strs"] = list(map(shown, raw))
    return reply


def _piece(raw: bytes) -> str | list[int]:
    """Return a token's text, or its bytes where they are none."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


async def detokenize(call: Call[DetokenizeBody]) -> Json:
    """Return the text of tokens."""
    try:
        text = (await call.tokenizer()).decode(call.body.tokens)
    except ValueError as e:
        raise BadField("tokens", f"tokens: {e}") from None
    return {"prompt": text, "content": text}


# ---- hidden states


class EmbeddingsBody(Struct):
    """OpenAI's embeddings."""

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None


async def embeddings(call: Call[EmbeddingsBody]) -> Json:
    """Return the mean of each text's last hidden states, text by text, so that others have their turn between."""
    data, n_tokens, body, tokenizer = [], 0, call.body, await call.tokenizer()
    for i, text in enumerate(prompts_of("input", body.input)):
        tokens = text if isinstance(text, tuple) else await asyncio.to_thread(_cut, call, tokenizer, text)
        vector = await call.worker.run_in_steps(
            functools.partial(_embedding, tokens=tokens, dimensions=body.dimensions)
        )
        n_tokens += len(tokens)
        coded: Any = vector.tolist()
        if body.encoding_format == "base64":
            coded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": i, "embedding": coded})
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "model": call.settings.model_name, "data": data, "usage": usage}


def _cut(call: Call[Any], tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Return the tokens of a text. Raises BadField for one that no context holds, before it is cut."""
    assert call.worker.rules is not None
    try:
        check_size("input", text, call.worker.rules)
    except ValueError as e:
        raise BadField("input", str(e)) from None
    return tuple(tokenizer.encode(text))


def _embedding(model: Model, tokens: tuple[int, ...], dimensions: int | None) -> Iterator[np.ndarray]:
    """Yield nothing after each piece that is read, at last the mean state (C,) of all tokens. Raises BadField."""
    config = model.engine.config
    if not 0 < len(tokens) < config.n_ctx:
        raise BadField("input", f"input must have from 1 to {config.n_ctx - 1} tokens, got {len(tokens)}")
    if max(tokens) >= config.vocab_size:
        raise BadField("input", f"input: token {max(tokens)} is not in the vocabulary")
    if dimensions not in (None, config.n_embd):
        raise BadField("dimensions", f"dimensions must be the model's {config.n_embd}, got {dimensions}")
    ids, states = [EOT, *tokens], list[np.ndarray]()
    cache = model.engine.new_cache(1, len(ids))
    for at in range(0, len(ids), _PIECE):
        states.append(model.engine.hidden(np.array([ids[at : at + _PIECE]]), cache, at)[0])
        yield np.empty(0, np.float32)
    yield np.concatenate(states)[1:].mean(0)


def chat(call: Call[None]) -> Json:
    """Refuse whatever a chat client sends: the model continues text and knows no chat."""
    remedy = "POST /v1/completions with prompt, and suffix for an infill"
    raise Problem(404, f"this model has completions only, no chat; {remedy}", code="completions_only")


OPERATIONS = (
    Operation("GET", "/v1/models", models, reply=Cards),
    Operation("GET", "/v1/models/{name:path}", model, reply=Card),
    Operation("GET", "/tokenizer_info", tokenizer_info),
    Operation("POST", "/tokenize", tokenize, TokenizeBody),
    Operation("POST", "/detokenize", detokenize, DetokenizeBody),
    Operation("POST", "/v1/embeddings", embeddings, EmbeddingsBody),
    Operation("POST", "/v1/chat/completions", chat),
)
