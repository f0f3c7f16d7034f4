"""What a protocol declares: bodies as msgspec Structs, from which reading, refusing and /openapi.json follow. Pure.

Not here: HTTP (http.py), the fields of a protocol (protocols/). Sampling fields take their limits, defaults and help
from generation.params.PARAMS. In every body null counts as absent, 5.0 as 5, and fields that nobody declared are
passed over, since clients send many.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Unpack

import msgspec
from msgspec import Meta, Struct, inspect

from .._version import __version__
from ..config import EOT
from ..generation.params import PARAMS, SamplingOptions, SamplingParams
from ..text.infill import is_control

T = TypeVar("T", bound=Struct)
Json = dict[str, Any]
MOST_PROMPTS = 64
MOST_BIASES = 1024  # as OpenAI; each draw adds them all
_MOST_VALUES = 200_000  # of a body: more than 64 prompts of tokens have
_DEPTH = 4  # of what a body declares
_NO_MARK = bytes(set(range(256)) - set(b'",[{'))
_STATUSES = (400, 401, 403, 404, 408, 413, 429, 500, 503)


class BadField(ValueError):
    """What is wrong with a field of a body; `param` is the field in the client's own words, None for the whole."""

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(message)
        self.param = param


# ---- errors


@dataclass(eq=False)  # not frozen: Python notes in an exception where it was raised
class Problem(Exception):
    """An error before it takes a protocol's shape; kind is OpenAI's word for it."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None


def openai_error(problem: Problem) -> Json:
    """Return an error's body as OpenAI's clients read it."""
    about = {"param": problem.param, "code": problem.code}
    return {"error": {"message": problem.message, "type": problem.kind, **about}}


# ---- fields


def limits(name: str, **others: Any) -> Meta:
    """Return the limits and the help of a sampling field; others replace or add to them, by Meta's names."""
    entry, bounds = PARAMS[name], PARAMS[name]["limits"]
    found: Json = {"description": f"{entry['help']}; {entry['off']}"}
    if bounds.low is not None:
        found["gt" if bounds.above else "ge"] = bounds.low
    if bounds.high < float("inf"):
        found["le"] = bounds.high
    return Meta(**{**found, **others})


def default(name: str) -> Any:
    """Return a sampling field's default."""
    return PARAMS[name]["default"]


Prompt = Annotated[
    str | list[str | int | list[int]], Meta(extra={"words": "text, tokens, or a list of either"})
]


def prompts_of(field: str, value: str | Sequence[Any], mixed: bool = False) -> list[Any]:
    """Return the prompts that a field has: each text, or a tuple of tokens. Raises BadField.

    Tokens are text or <|endoftext|>; where that is `mixed`, any tokens, with texts among them.

    >>> prompts_of("prompt", [5, 6]), prompts_of("prompt", ["a", [5]]), prompts_of("prompt", [1, "a"], mixed=True)
    ([(5, 6)], ['a', (5,)], [(1, 'a')])
    """
    if isinstance(value, str):
        return [value]
    is_one = any(isinstance(v, int) for v in value)
    if not value or (is_one and not all(isinstance(v, str | int if mixed else int) for v in value)):
        others = "ids, a list of both, or a list of such prompts" if mixed else "tokens, or a list of either"
        raise BadField(field, f"{field} must be text, {others}, got {short(value)}")
    several = [one if isinstance(one, str) else tuple(one) for one in ([value] if is_one else value)]
    if len(several) > MOST_PROMPTS:
        raise BadField(field, f"{field} may have at most {MOST_PROMPTS} prompts, got {len(several)}")
    for token in () if mixed else (t for one in several if isinstance(one, tuple) for t in one):
        if token < 0 or (is_control(token) and token != EOT):
            raise BadField(field, f"{field}: token {token} is no text; give tokens from 0 to 50294")
    return several


def shown(raw: bytes) -> str:
    r"""Return a token's bytes as text, in OpenAI's way where they are no whole characters.

    >>> shown(b" a"), shown(b"\xe6\xbc")
    (' a', 'bytes:\\xe6\\xbc')
    """
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)


RepetitionPenalty = Annotated[float, limits("repetition_penalty")]
Stop = Annotated[str, Meta(max_length=1024)]
SuggestAbove = Annotated[float, limits("suggest_above")]
Language = Annotated[str, Meta(max_length=64, description="of the file: python, or what an editor calls it")]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1, description="the same seed gives the same answer")]
NAnswers = Annotated[int, Meta(ge=1, le=20)]
Budget = Annotated[int, Meta(ge=-2, le=10**9, description="-1 and -2: as many as the server allows")]


class SamplingFields(Struct, kw_only=True):
    """The sampling fields that all protocols call by the same name.

    A protocol's further ones are called as in PARAMS here, and by its own word in JSON: field(name="max_tokens"). A
    budget below 0 is as much as the server allows.
    """

    temperature: Annotated[float, limits("temperature")] | None = None  # None: as the operator chose
    # -1 is off too, as for vLLM and llama.cpp
    top_k: Annotated[int, limits("top_k", ge=-1)] = default("top_k")
    top_p: Annotated[float, limits("top_p")] = default("top_p")
    min_p: Annotated[float, limits("min_p")] = default("min_p")
    presence_penalty: Annotated[float, limits("presence_penalty")] = default("presence_penalty")
    frequency_penalty: Annotated[float, limits("frequency_penalty")] = default("frequency_penalty")
    seed: Seed | None = None
    suggest_above: SuggestAbove | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=64)] = []

    def params(self, call: Any, **others: Unpack[SamplingOptions]) -> SamplingParams:
        """Return the sampling parameters of a Call's body; others take the place of its fields. Raises BadField.

        Empty stop strings, which clients send for none, are left out.
        """
        names = dict(zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True))
        options = {name: getattr(self, name) for name in names if name in PARAMS}
        options |= {"stop": [s for s in ([self.stop] if isinstance(self.stop, str) else self.stop) if s]}
        options |= {"deadline_s": call.deadline_s, **others}
        if options["max_new_tokens"] < 0:
            options["max_new_tokens"] = call.settings.max_new_tokens
        heat = call.settings.temperature if self.temperature is None else self.temperature
        options |= {"temperature": max(0.0, heat), "top_k": max(0, options["top_k"])}
        try:
            return SamplingParams(**options)
        except ValueError as e:
            field, rest = re.fullmatch(r"(\w*)(.*)", str(e), re.DOTALL).groups()  # type: ignore[union-attr]
            raise BadField(names.get(field), names.get(field, field) + rest) from None


# ---- reading


def parse(raw: bytes) -> Json:
    """Return the JSON object that the bytes hold. Raises BadField."""
    if len(raw) > _MOST_VALUES and _n_values(raw) > _MOST_VALUES:
        words = f"the body has more than {_MOST_VALUES:,} values (fields and items of lists); send fewer"
        raise BadField(None, words)
    try:
        content = _JSON.decode(raw)
    except RecursionError:
        raise BadField(None, "the body is nested too deeply") from None
    except ValueError as e:
        raise BadField(None, f"the body is no JSON: {e}") from None
    if not isinstance(content, dict):
        raise BadField(None, f"the body must be a JSON object, got {short(content)}")
    return content


def _n_values(raw: bytes) -> int:
    r"""Return about how many values a JSON text has, before any is made: commas and openings outside of strings.

    8 MB of them take seconds to read, in which no other thread runs; this takes less than a tenth of one.

    >>> _n_values(rb'{"a": [1, {}], "b": ", [\\\", ["}'), _n_values(rb'{"a\\": [1, 2]}')
    (5, 3)
    """
    marks = raw.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_MARK)
    if (n_strings := marks.count(b'"') // 2) > 2 * _MOST_VALUES:
        return n_strings // 2  # a field has two
    return sum(map(len, marks.split(b'"')[::2]))


def _number(text: str) -> float:
    """Read what is not written as an int; msgspec itself takes 13 microseconds for the largest and smallest."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


_JSON = msgspec.json.Decoder(float_hook=_number)


def read(content: Json, kind: type[T]) -> T:
    """Return a JSON object as a Struct. Raises BadField naming the field, its limit and what came.

    >>> read({"top_p": None, "top_k": 5.0}, SamplingFields).top_k
    5
    >>> read({"top_p": 7}, SamplingFields)
    Traceback (most recent call last):
    ...
    codegen2.serve.schema.BadField: top_p must be a number from 0 to 1, got 7
    """
    content = _plain(content)
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as e:
        raise _refusal(str(e), content, kind) from None


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    """Return JSON without the fields that are null, and with whole numbers as int."""
    if isinstance(value, dict) and depth:
        return {k: _plain(v, depth - 1) for k, v in value.items() if v is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict) and depth:
        return [_plain(v, depth - 1) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refusal(message: str, content: Json, kind: type[Struct]) -> BadField:
    """Turn msgspec's message, which ends in a path such as `$.options.stop[0]`, into a sentence about a field."""
    path = re.search(r"`\$([^`]*)`\Z", message)
    steps = re.findall(r"\w+|\.{3}", path.group(1)) if path else []
    missing = re.match(r"Object missing required field `(\w+)`", message)
    if missing is not None:
        steps.append(missing.group(1))
    name, words, at = "", "an object", ""
    value: Any = content
    got: Any = content
    here: inspect.Type | None = inspect.type_info(kind)
    for step in steps:
        in_list = isinstance(value, list)
        here = here and _inside(here, "" if in_list else step)
        if here is None or step == "...":  # msgspec does not say which key of an object
            break
        at += f"[{step}]" if in_list else f".{step}"
        value = value[int(step)] if in_list else value.get(step)
        if not in_list:
            name, words, got = at.removeprefix("."), in_words(here), value
    if missing is not None:
        return BadField(name, f"{name} is missing; it must be {words}")
    if most := re.match(r"Expected `str` of length <= (\d+)", message):
        return BadField(name, f"{name} may have strings of at most {most[1]} characters, got {len(value)}")
    return BadField(name or None, f"{name or 'the body'} must be {words}, got {short(got)}")


def _inside(kind: inspect.Type, field: str) -> inspect.Type | None:
    """Return the type of an object's field, or of a list's items; None where there is no such thing."""
    if isinstance(kind, inspect.Metadata):
        return _inside(kind.type, field)
    if isinstance(kind, inspect.UnionType):
        return next((t for one in kind.types if (t := _inside(one, field)) is not None), None)
    if field and isinstance(kind, inspect.StructType):
        return next((f.type for f in kind.fields if f.encode_name == field), None)
    return kind.item_type if not field and isinstance(kind, inspect.ListType) else None


def in_words(kind: inspect.Type) -> str:
    """Return what a type takes, in words. A Meta with extra={"words": ...} has its own."""
    if isinstance(kind, inspect.Metadata):
        return (kind.extra or {}).get("words") or in_words(kind.type)
    if isinstance(kind, inspect.IntType):
        return f"a whole number{_range(kind)}"
    if isinstance(kind, inspect.FloatType):
        return f"a number{_range(kind)}"
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(str(v) for v in kind.values)
    if isinstance(kind, inspect.UnionType):
        return " or ".join(in_words(t) for t in kind.types if not isinstance(t, inspect.NoneType))
    if isinstance(kind, inspect.ListType):
        most = "" if kind.max_length is None else f" of at most {kind.max_length}"
        return f"a list{most}, each {in_words(kind.item_type)}"
    if isinstance(kind, inspect.DictType):
        most = "" if kind.max_length is None else f" of at most {kind.max_length}"
        return f"an object{most}, each value {in_words(kind.value_type)}"
    return {inspect.StrType: "a string", inspect.BoolType: "true or false"}.get(type(kind), "an object")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = "" if kind.ge is None else f"{kind.ge:g}"
    if kind.gt is not None:
        return f" above {kind.gt:g}"
    if kind.le is not None:
        return f" from {low} to {kind.le:g}"
    return f" of at least {low}" if low and kind.lt is None else ""


def short(value: object) -> str:
    """Show a value in an error, in no more than 60 characters.

    >>> short({"a": [1, 2]}), short("x" * 99), short([1, 2]), short(True)
    ('an object', "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'", 'a list of 2', 'true')
    """
    if isinstance(value, str) and len(value) > 40:
        value = value[:36] + "..."
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    return {"True": "true", "False": "false", "None": "null"}.get(repr(value), repr(value)[:60])


# ---- operations and their description


@dataclass(frozen=True)
class Framing:
    """How the parts of a reply in pieces, each JSON, follow each other."""

    media: str
    before: bytes = b""
    after: bytes = b"\n"
    end: bytes = b""

    def frame(self, part: Any) -> bytes:
        """Return one part."""
        return self.before + msgspec.json.encode(part) + self.after


EVENTS = Framing("text/event-stream", b"data: ", b"\n\n")
LINES = Framing("application/x-ndjson")


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    answer: called with an http.Call, whose body is what came, read as `body`; returns a Response or what is sent as
    JSON, or an awaitable of it. reply: of status 200. stream: of a reply in pieces, where one may be asked for. when:
    whether an object is meant for this operation, of several on one path; the last has none. keyless: no API key is
    asked for. media: of a reply that is no JSON.
    """

    method: str
    path: str
    answer: Callable[[Any], Any]
    body: type[Struct] | None = None
    reply: Any = Json
    error: Callable[[Problem], Json] = openai_error
    stream: Framing | None = None
    when: Callable[[Mapping[str, Any]], bool] | None = None
    keyless: bool = False
    media: str = "application/json"


def document(operations: Iterable[Operation]) -> Json:
    """Return the OpenAPI description of all operations."""
    described = list(operations)
    bodies = list(dict.fromkeys(o.body for o in described if o.body is not None))
    (body_refs, body_parts), (reply_refs, reply_parts) = (
        msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
        for kinds in (bodies, [o.reply for o in described])
    )
    for part in body_parts.values():
        fields = part.get("properties", {})
        part["properties"] = {n: f if n in part["required"] else _or_null(f) for n, f in fields.items()}
    paths: Json = {}
    body_of = dict(zip(bodies, body_refs, strict=True))
    for o, reply in zip(described, reply_refs, strict=True):
        made = _described(o, reply)
        if o.body is not None:
            content = {"application/json": {"schema": body_of[o.body]}}
            made["requestBody"] = {"required": True, "content": content}
        methods = paths.setdefault(re.sub(r":\w+\}", "}", o.path), {})
        other = methods.setdefault(o.method.lower(), made)
        if other is not made and o.body is not None:  # another body on the same path
            content = other["requestBody"]["content"]["application/json"]
            content["schema"] = {"anyOf": [content["schema"], body_of[o.body]]}
            other["responses"]["200"]["content"][o.media] = {"schema": {}}
    schemes = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "codegen2 serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": reply_parts | body_parts, "securitySchemes": schemes},
    }


def _described(o: Operation, reply: Json) -> Json:
    names = re.findall(r"\{(\w+)", o.path)
    content = {o.media: {"schema": reply}}
    if o.stream is not None:  # lines or events, each a document
        content[o.stream.media] = {}
    error = {"application/json": {"schema": _schema_like(o.error(Problem(400, "what is wrong")))}}
    wrong = {"description": "an error", "content": error}
    made: Json = {
        "operationId": re.sub(r"\W+", "_", f"{o.method.lower()}{o.path}").strip("_"),
        "responses": {"200": {"description": "the answer", "content": content}}
        | {str(status): wrong for status in _STATUSES},
    }
    if names:
        text = {"in": "path", "required": True, "schema": {"type": "string"}}
        made["parameters"] = [{"name": name, **text} for name in names]
    return made


def _schema_like(value: Any) -> Json:
    """Return the schema of values like this one; None stands for text that may be absent.

    >>> _schema_like({"code": 400, "param": None})["properties"]
    {'code': {'type': 'integer'}, 'param': {'type': ['string', 'null']}}
    """
    if isinstance(value, dict):
        parts = {name: _schema_like(one) for name, one in value.items()}
        return {"type": "object", "properties": parts, "required": list(parts)}
    return {"type": {str: "string", int: "integer"}.get(type(value), ["string", "null"])}


def _or_null(field: Json) -> Json:
    """Return the schema of an optional field, which may be null as well."""
    kept = {k: v for k, v in field.items() if k in ("default", "description")}
    rest = {k: v for k, v in field.items() if k not in kept}
    choices = rest.get("anyOf", [rest])
    return {**kept, "anyOf": choices if {"type": "null"} in choices else [*choices, {"type": "null"}]}
