"""What every dialect is translated into (Ask), and how a JSON body is read with errors by field name. Pure.

Not here: HTTP (app.py and the dialects), the work (worker.py), the shapes of answers (each dialect's own).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..config import EOT
from ..generation.sampling import SamplingParams
from ..text.infill import is_control


class BadField(ValueError):
    """Say what is wrong with a field of a request; `param` names it in the client's own words, None for the whole."""

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Ask:
    """What is wanted, whatever the dialect it was asked in.

    prefix: the text before the cursor. suffix: the text after it; None asks for a plain continuation of prefix.
    tokens: ids to continue instead of prefix. params: budget, sampling, stop, n, best_of, logprobs (top_logprobs); the
    worker lowers a budget that the context or the server's limit does not allow, and sets `cancel` itself.
    raw: no post-processing. stop_at: of an infill that is post-processed, where to end: after the line, where the
    block closes, or nowhere. min_tokens: the model may not end the answer before. session: the key of an editor's
    session: a newer Ask with the same key supersedes an older one. client: whom scheduling is fair to, when there is no
    session. deadline_s: from the end of the prompt's reading; counts only after one whole line exists.
    echo_logprobs: the prompt's own log-probabilities are wanted too.
    """

    prefix: str = ""
    suffix: str | None = None
    tokens: tuple[int, ...] | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    raw: bool = False
    stop_at: Literal["line", "block"] | None = "block"
    min_tokens: int = 0
    session: str | None = None
    client: str = ""
    deadline_s: float | None = None
    echo_logprobs: bool = False


@dataclass(frozen=True)
class TokenInfo:
    """One token: its id, its bytes, log p (nats; None for a prompt's first), and the likeliest alternatives."""

    token: int
    raw: bytes
    logprob: float | None = None
    top: tuple[tuple[bytes, float], ...] = ()

    @property
    def text(self) -> str:
        """Return the token as text."""
        return shown(self.raw)


def shown(raw: bytes) -> str:
    r"""Return a token's bytes as text, those of half a character as OpenAI writes them.

    >>> shown(b"def"), shown(b"\xe6")
    ('def', 'bytes:\\xe6')
    """
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)


class Body:
    """Read the fields of a JSON object one by one; null counts as absent, and fields nobody asks for are passed over.

    Every method raises BadField naming the field, its limit and what came.

    >>> body = Body({"n": 3, "top_p": "x"})
    >>> body.whole("n", 1, low=1, high=8)
    3
    >>> body.number("top_p", 1.0, low=0, high=1)
    Traceback (most recent call last):
    ...
    codegen2.serve.schema.BadField: top_p must be a number from 0 to 1, got 'x'
    """

    def __init__(self, content: Any) -> None:
        """Raise BadField unless content is a JSON object."""
        if not isinstance(content, dict):
            raise BadField(None, f"the body must be a JSON object, got {_kind(content)}")
        self.content: dict[str, Any] = content

    @classmethod
    def of(cls, raw: bytes) -> Body:
        """Read raw bytes as JSON in UTF-8."""
        try:
            return cls(json.loads(raw.decode("utf-8"), parse_constant=_no_constant))
        except BadField:
            raise
        except RecursionError:
            raise BadField(None, "the body is nested too deeply") from None
        except ValueError as e:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            raise BadField(None, f"the body is no JSON: {e}") from None

    def get(self, name: str) -> Any:
        """Return a field as it came, None when absent."""
        return self.content.get(name)

    def text(self, name: str, default: str | None = None) -> str | None:
        """Return a string, `default` when absent."""
        value = self.get(name)
        return default if value is None else check_text(name, value)

    def whole(self, name: str, default: int, low: int, high: float = math.inf) -> int:
        """Return a whole number; 5.0 is one too."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise BadField(name, f"{name} must be a whole number {_limits(low, high)}, got {short(value)}")
        return value

    def number(self, name: str, default: float, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a number."""
        value = self.get(name)
        if value is None:
            return default
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not low <= value <= high or abs(value) > 1e300:
            raise BadField(name, f"{name} must be a number {_limits(low, high)}, got {short(value)}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadField(name, f"{name} must be true or false, got {short(value)}")
        return value

    def strings(self, name: str, most: int = 64, default: Sequence[str] = ()) -> tuple[str, ...]:
        """Return a string or a list of strings as a tuple; empty strings, which clients send for none, are left out."""
        value = self.get(name)
        if value is None:
            return tuple(default)
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise BadField(name, f"{name} must be a string or a list of strings, got {short(value)}")
        found = tuple(check_text(name, v) for v in value if v)
        if len(found) > most:
            raise BadField(name, f"{name} may hold at most {most} strings, got {len(found)}")
        return found

    def object(self, name: str) -> Body:
        """Return an object's own Body, an empty one when absent."""
        value = self.get(name)
        if value is None:
            return Body({})
        if not isinstance(value, dict):
            raise BadField(name, f"{name} must be an object, got {short(value)}")
        return Body(value)


def check_text(name: str, value: object) -> str:
    """Return value. Raises BadField unless it is text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise BadField(name, f"{name} must be a string, got {short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise BadField(name, f"{name} has half a character (a lone surrogate) at {e.start}") from None
    return value


def short(value: object) -> str:
    """Show a value in an error, in no more than 60 characters.

    >>> short({"a": [1, 2]}), short("x" * 99)
    ('an object', "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'")
    """
    if isinstance(value, dict | list):
        return _kind(value)
    if isinstance(value, str) and len(value) > 40:
        return repr(value[:36] + "...")
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)[:60]


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "true or false"}
    return kinds.get(type(value), "a number")


def _limits(low: float, high: float) -> str:
    if low == -math.inf:
        return "that is finite"
    return f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


@dataclass(frozen=True)
class OpenAIRequest:
    """A body of POST /v1/completions: one Ask a prompt, and how to show the answers.

    texts: each prompt as text. logprobs: None for none, else how many alternatives.
    """

    asks: tuple[Ask, ...]
    texts: tuple[str | None, ...]
    stream: bool
    include_usage: bool
    logprobs: int | None
    echo: bool


def openai_request(body: Body, temperature: float) -> OpenAIRequest:
    """Read a body of OpenAI's legacy completions, or of Mistral's and DeepSeek's; temperature: where it says none.

    Beside their fields: top_k, min_p, repetition_penalty, min_tokens; raw (no post-processing) and stop_at ("line",
    "block" or "none") for an infill.
    """
    n = body.whole("n", 1, 1, MOST_ANSWERS)
    best_of = body.whole("best_of", n, n, MOST_ANSWERS) if body.get("best_of") is not None else None
    logprobs = body.whole("logprobs", 0, 0, 5) if body.get("logprobs") is not None else None
    stream, echo = body.flag("stream"), body.flag("echo")
    suffix = body.text("suffix")
    if stream and best_of is not None and best_of > n:
        raise BadField("best_of", f"best_of must be n ({n}) in a stream, got {best_of}; leave stream out")
    if echo and suffix is not None:
        raise BadField("echo", "echo must be false with a suffix; the answer stands between the two")
    seed = "seed" if body.get("random_seed") is None else "random_seed"
    params = SamplingParams(
        max_new_tokens=body.whole("max_tokens", 16, 0, 10**9),
        temperature=body.number("temperature", temperature, 0, 2),
        top_k=body.whole("top_k", 0, 0, 10**9),
        top_p=body.number("top_p", 1.0, 0, 1),
        min_p=body.number("min_p", 0.0, 0, 1),
        repetition_penalty=body.number("repetition_penalty", 1.0, 0.01, 100),
        presence_penalty=body.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=body.number("frequency_penalty", 0.0, -2, 2),
        logit_bias=_logit_bias(body),
        seed=None if body.get(seed) is None else body.whole(seed, 0, -(2**63), 2**64),
        stop=body.strings("stop", most=32),
        n=n,
        best_of=best_of if best_of is not None and best_of > n else None,
        top_logprobs=0 if logprobs is None else max(1, logprobs),
    )
    stop_at = body.text("stop_at", "block")
    if stop_at not in ("line", "block", "none"):
        raise BadField("stop_at", f"stop_at must be line, block or none, got {short(stop_at)}")
    prompts = _prompts(body)
    asks = tuple(
        Ask(
            prefix=prompt if isinstance(prompt, str) else "",
            suffix=suffix,
            tokens=None if isinstance(prompt, str) else prompt,
            params=params,
            raw=body.flag("raw"),
            stop_at=None if stop_at == "none" else stop_at,  # type: ignore[arg-type]
            min_tokens=body.whole("min_tokens", 0, 0, 10**9),
            echo_logprobs=echo and logprobs is not None,
        )
        for prompt in prompts
    )
    body.text("user"), body.text("model")
    usage = body.object("stream_options").flag("include_usage")
    texts = tuple(p if isinstance(p, str) else None for p in prompts)
    return OpenAIRequest(asks, texts, stream, usage, logprobs, echo)


MOST_ANSWERS = 20
_MOST_PROMPTS = 64


def _prompts(body: Body) -> list[str | tuple[int, ...]]:
    """Read a string, a list of strings, a list of tokens or a list of such lists."""
    value = body.get("prompt")
    if value is None:
        return [""]
    wrong = BadField("prompt", f"prompt must be text, tokens, or a list of either, got {short(value)}")
    if isinstance(value, str):
        return [check_text("prompt", value)]
    if not isinstance(value, list) or not value:
        raise wrong
    if all(_is_token(v) for v in value):
        return [_tokens(value)]
    if len(value) > _MOST_PROMPTS:
        raise BadField("prompt", f"prompt may hold at most {_MOST_PROMPTS} prompts, got {len(value)}")
    found: list[str | tuple[int, ...]] = []
    for one in value:
        if isinstance(one, str):
            found.append(check_text("prompt", one))
        elif isinstance(one, list) and all(_is_token(v) for v in one):
            found.append(_tokens(one))
        else:
            raise wrong
    return found


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tokens(value: list[int]) -> tuple[int, ...]:
    """Check ids: text only, and <|endoftext|>, with which tools begin a document."""
    wrong = next((i for i in value if i < 0 or (is_control(i) and i != EOT)), None)
    if wrong is not None:
        raise BadField("prompt", f"prompt: token {wrong} is no text; give tokens from 0 to 50294")
    return tuple(value)


def _logit_bias(body: Body) -> dict[int, float]:
    found = {}
    for key, value in body.object("logit_bias").content.items():
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10):
            raise BadField(
                "logit_bias", f"logit_bias must map token ids to numbers, got the key {short(key)}"
            )
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not -100 <= value <= 100:
            raise BadField("logit_bias", f"logit_bias must hold numbers from -100 to 100, got {short(value)}")
        found[int(key)] = float(value)
    return found
