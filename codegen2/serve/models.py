"""What the server says of its model: /v1/models, its tokenizer as vLLM and llama.cpp offer it, hidden states.

Not here: completions (protocols/).
"""

from __future__ import annotations

import asyncio
import base64
import functools
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from ..api import Model
from ..config import EOT
from ..text.tokenizer import Tokenizer
from .http import Call, Refused, json_response
from .schema import BadField, Operation, Problem, Prompt, prompts_of, shown

_END = "<|endoftext|>"


class Capabilities(Struct):
    """What Mistral's clients ask of a model."""

    completion_fim: bool = True
    completion_chat: bool = False
    function_calling: bool = False
    fine_tuning: bool = False
    vision: bool = False


class Card(Struct):
    """A model. max_model_len: tokens of prompt and answer; max_prompt_tokens: of text that is read beside an answer."""

    id: str
    created: int
    capabilities: Capabilities
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
    card = Card(call.settings.model_name, int(worker.loaded_at), Capabilities())
    if worker.rules is not None:
        card.max_model_len = card.max_context_length = worker.rules.config.n_ctx
        card.max_prompt_tokens = worker.rules.max_prompt_tokens
    return card


async def models(call: Call[None]) -> Response:
    """List the one model."""
    return json_response(Cards([_card(call)]))


async def model(call: Call[None]) -> Response:
    """Return the model by its name."""
    name, ours = call.request.path_params["name"], call.settings.model_name
    if name != ours:
        message = f"the model {name[:60]!r} is not here; this server has {ours!r}"
        raise Refused(Problem(404, message, code="model_not_found"))
    return json_response(_card(call))


# ---- the tokenizer


async def _tokenizer(call: Call[Any]) -> Tokenizer:
    """Return the model's tokenizer, after loading the model where it never was."""
    known = call.worker.tokenizer
    return await call.in_worker(lambda model: model.tokenizer) if known is None else known


async def tokenizer_info(call: Call[None]) -> Response:
    """Return what evaluation harnesses ask of a tokenizer."""
    tokenizer = await _tokenizer(call)
    end = _END if _END in tokenizer.control else None
    assert call.worker.rules is not None
    return json_response(
        {
            "tokenizer_class": "CodeGenTokenizer",
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": call.worker.rules.config.n_ctx,
            **dict.fromkeys(("bos_token", "eos_token", "unk_token"), end),
        }
    )


class TokenizeBody(Struct):
    """prompt (vLLM) or content (llama.cpp): the text. parse_special: control tokens by their letters."""

    prompt: str | None = None
    content: str | None = None
    parse_special: bool = False
    with_pieces: bool = False
    return_token_strs: bool = False


class DetokenizeBody(Struct):
    """The ids of a text."""

    tokens: list[int]


async def tokenize(call: Call[TokenizeBody]) -> Response:
    """Return the tokens of a text; letters of a control token are text, but where they are all that was sent."""
    body, tokenizer = call.body, await _tokenizer(call)
    text = body.content if body.prompt is None else body.prompt
    if text is None:
        raise BadField("prompt", "prompt is missing; it must be a string")
    control = body.parse_special or text in tokenizer.control
    tokens: list[Any] = await asyncio.to_thread(tokenizer.encode, text, allow_control=control)
    assert call.worker.rules is not None
    reply = {"count": len(tokens), "max_model_len": call.worker.rules.config.n_ctx, "tokens": tokens}
    raw = [tokenizer.decode_bytes([t]) for t in tokens] if body.with_pieces or body.return_token_strs else []
    if body.with_pieces:
        reply["tokens"] = [{"id": t, "piece": _piece(r)} for t, r in zip(tokens, raw, strict=True)]
    if body.return_token_strs:
        reply["token_strs"] = list(map(shown, raw))
    return json_response(reply)


def _piece(raw: bytes) -> str | list[int]:
    """Return a token's text, or its bytes where they are none."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


async def detokenize(call: Call[DetokenizeBody]) -> Response:
    """Return the text of tokens."""
    try:
        text = (await _tokenizer(call)).decode(call.body.tokens)
    except ValueError as e:
        raise BadField("tokens", f"tokens: {e}") from None
    return json_response({"prompt": text, "content": text})


# ---- hidden states


class EmbeddingsBody(Struct):
    """OpenAI's embeddings."""

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None


async def embeddings(call: Call[EmbeddingsBody]) -> Response:
    """Return the mean of each text's last hidden states, text by text, so that others have their turn between."""
    data, n_tokens, dimensions = [], 0, call.body.dimensions
    for i, text in enumerate(prompts_of("input", call.body.input)):
        vector, n = await call.in_worker(functools.partial(_embedding, text=text, dimensions=dimensions))
        n_tokens += n
        coded: Any = vector.tolist()
        if call.body.encoding_format == "base64":
            coded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": i, "embedding": coded})
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return json_response({"object": "list", "model": call.settings.model_name, "data": data, "usage": usage})


def _embedding(model: Model, text: str | tuple[int, ...], dimensions: int | None) -> tuple[np.ndarray, int]:
    """Return the mean state (C,) of a text's tokens, as Model.embed does, and their number. Raises BadField."""
    config = model.engine.config
    tokens = model.tokenizer.encode(text) if isinstance(text, str) else list(text)
    if not 0 < len(tokens) < config.n_ctx:
        raise BadField("input", f"input must have from 1 to {config.n_ctx - 1} tokens, got {len(tokens)}")
    if max(tokens) >= config.vocab_size:
        raise BadField("input", f"input: token {max(tokens)} is not in the vocabulary")
    if dimensions not in (None, config.n_embd):
        raise BadField("dimensions", f"dimensions must be the model's {config.n_embd}, got {dimensions}")
    vector: np.ndarray = model.engine.hidden(np.array([[EOT, *tokens]]))[0, 1:].mean(0)
    return vector, len(tokens)


async def chat(call: Call[Any]) -> Response:
    """Refuse: the model continues text and knows no chat."""
    message = (
        "this model has completions only, no chat; POST /v1/completions with prompt, and suffix for an infill"
    )
    raise Refused(Problem(404, message, code="completions_only"))


class ChatBody(Struct):
    """Whatever a chat client sends."""


OPERATIONS = (
    Operation("GET", "/v1/models", models, reply=Cards),
    Operation("GET", "/v1/models/{name:path}", model, reply=Card),
    Operation("GET", "/tokenizer_info", tokenizer_info),
    Operation("POST", "/tokenize", tokenize, TokenizeBody),
    Operation("POST", "/detokenize", detokenize, DetokenizeBody),
    Operation("POST", "/v1/embeddings", embeddings, EmbeddingsBody),
    Operation("POST", "/v1/chat/completions", chat, ChatBody),
)
