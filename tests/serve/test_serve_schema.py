"""Bodies are read with errors by name; what is described in OpenAPI is what is checked."""

import json
import sys
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen2.serve import app, schema
from codegen2.serve.protocols import openai
from codegen2.serve.protocols.openai import CompletionBody
from codegen2.serve.schema import BadField, document
from codegen2.serve.settings import Settings

CALL = SimpleNamespace(settings=Settings(), session=None, client="", deadline_s=None)
FIELDS = {f.encode_name for f in msgspec.structs.fields(CompletionBody)}


def body_of(**content):
    return schema.read(content, CompletionBody)


def read(**content):
    return body_of(**content).requests(CALL)


def test_defaults_are_openai_s_but_for_the_temperature():
    (request,) = read(prompt="a")
    assert (request.prefix, request.suffix, request.tokens) == ("a", None, None)
    assert (request.raw, request.stop_at, request.heal, request.echo) == (False, "block", True, False)
    params = request.params
    assert (params.max_new_tokens, params.temperature, params.top_p, params.n) == (16, 0.2, 1.0, 1)
    body = body_of(prompt="a")
    assert (body.stream, body.stream_options, body.logprobs, body.echo) == (False, None, None, False)
    assert read()[0].prefix == ""


def test_every_field_arrives():
    (request,) = read(
        prompt="a", suffix="b", max_tokens=5, min_tokens=2, temperature=0.5, top_p=0.9, top_k=4, min_p=0.1,
        repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={"50256": -100},
        logprobs=0, n=2, best_of=3, seed=7, stop=["x", ""], stream_options={"include_usage": True}, raw=True,
        stop_at="none", user="somebody", model="any", language="go", token_healing=False,
    )  # fmt: skip
    params = request.params
    assert (request.prefix, request.suffix, request.raw, request.stop_at) == ("a", "b", True, None)
    assert (request.language, request.heal) == ("go", False)
    assert (params.max_new_tokens, params.min_new_tokens, params.temperature) == (5, 2, 0.5)
    assert (params.top_p, params.top_k, params.min_p) == (0.9, 4, 0.1)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, 0.5, -0.5)
    assert (params.logit_bias, params.top_logprobs, params.n, params.best_of) == ({50256: -100.0}, 1, 2, 3)
    assert (params.seed, params.stop) == (7, ("x",))
    assert read(random_seed=9)[0].params.seed == 9
    assert read(n=3, best_of=3)[0].params.best_of is None  # nothing to choose from
    assert read(echo=True)[0].echo


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("prompt", 5, "must be text, tokens, or a list of either, got 5"),
        ("prompt", {"a": 1}, "got an object"),
        ("prompt", [], "got a list"),
        ("prompt", ["a", 5], "got a list"),
        ("prompt", [[1], [True]], "got a list"),
        ("prompt", ["a"] * 65, "at most 64 prompts, got 65"),
        ("prompt", [51199], "token 51199 is no text"),
        ("prompt", [-1], "token -1 is no text"),
        ("suffix", ["a"], "must be a string, got a list"),
        ("max_tokens", -1, "whole number from 0 to 1e+09, got -1"),
        ("max_tokens", 1.5, "got 1.5"),
        ("max_tokens", True, "got true"),
        ("max_tokens", "5", "got '5'"),
        ("temperature", 2.1, "from 0 to 2, got 2.1"),
        ("temperature", 10**400, "from 0 to 2"),
        ("top_p", -0.1, "from 0 to 1"),
        ("presence_penalty", 3, "from -2 to 2, got 3"),
        ("frequency_penalty", "x", "got 'x'"),
        ("repetition_penalty", 0, "above 0, got 0"),
        ("logit_bias", [1], "must be an object"),
        ("logit_bias", {"a": 1}, "must be an object"),
        ("logit_bias", {"1": 101}, "from -100 to 100"),
        ("logprobs", 6, "from 0 to 5, got 6"),
        ("n", 0, "from 1 to 20, got 0"),
        ("best_of", 0, "from 1 to 20"),
        ("seed", "x", "whole number"),
        ("stop", [1], "a string or a list"),
        ("stop", ["a"] * 65, "at most 64, each a string, got a list of 65"),
        ("stream", "yes", "true or false, got 'yes'"),
        ("stream_options", 1, "must be an object, got 1"),
        ("echo", 1, "true or false, got 1"),
        ("raw", "x", "true or false"),
        ("token_healing", 0, "true or false"),
        ("stop_at", "word", "got 'word'"),
        ("user", 3, "must be a string"),
    ],
)
def test_what_is_wrong_is_said_by_name(field, value, words):
    with pytest.raises(BadField) as e:
        read(**{field: value})
    assert (e.value.param or "").split(".")[0].split("[")[0] == field
    assert words in str(e.value) and field in str(e.value)
    assert len(str(e.value)) < 200


def test_fields_that_contradict_each_other():
    for content, param in (
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 1, "best_of": 2, "stream": True}, "best_of"),
        ({"echo": True, "suffix": ""}, "echo"),
    ):
        with pytest.raises(BadField) as e:
            read(**content)
        assert e.value.param == param


def test_prompts_in_all_forms():
    assert [r.prefix for r in read(prompt=["a", "b"])] == ["a", "b"]
    assert [r.tokens for r in read(prompt=[5, 50256])] == [(5, 50256)]
    assert [r.tokens for r in read(prompt=[[5], [6, 7]])] == [(5,), (6, 7)]


def test_unknown_fields_are_passed_over_and_null_is_absent():
    everything = dict.fromkeys([*FIELDS, "dry_multiplier"])
    assert read(**everything) == read()
    assert read(prompt="a", whatever={"x": 1}) == read(prompt="a")
    assert read(max_tokens=5.0) == read(max_tokens=5)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "no JSON"), (b"{", "no JSON"), (b"\xff{}", "no JSON"), (b"[]", "JSON object, got a list"),
        (b"null", "got null"), (b'{"a": NaN}', "no JSON"), (b"[" * 200_000, "nested too deeply"),
        (b"1" * 5000, "no JSON|JSON object"), (b'{"prompt":"\\ud800"}', "no JSON"),
    ],
)  # fmt: skip
def test_bodies_that_are_no_object(raw, words):
    with pytest.raises(BadField, match=words) as e:
        schema.parse(raw)
    assert e.value.param is None and len(str(e.value)) < 300


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), JSON, max_size=4))
def test_any_body_is_read_or_refused_by_name(content):
    try:
        read(**schema.parse(json.dumps(content).encode()))
    except BadField as e:
        assert e.param is not None and e.param.split(".")[0].split("[")[0] in content


def test_the_description_has_the_limits_that_are_checked():
    described = json.loads(msgspec.json.encode(document(openai.OPERATIONS)))
    properties = described["components"]["schemas"]["CompletionBody"]["properties"]
    assert set(properties) == FIELDS
    seen = 0
    for name, field in properties.items():
        for kind in field["anyOf"]:
            for key, step in (("minimum", -1), ("maximum", 1)):
                if key not in kind:
                    continue
                read(**{name: kind[key], **({"best_of": 20} if name == "n" else {})})
                with pytest.raises(BadField):
                    read(**{name: kind[key] + step * (1 if kind["type"] == "integer" else 0.001)})
                seen += 1
    assert seen > 20


def test_the_description_has_each_operation_and_its_own_errors():
    described = document([o for protocol in app.PROTOCOLS for o in protocol.OPERATIONS])
    for path in (
        "/v1/completions",
        "/v1/fim/completions",
        "/v1/models/{name}",
        "/tokenize",
        "/v1/embeddings",
    ):
        assert path in described["paths"]
    reply = described["paths"]["/v1/fim/completions"]["post"]["responses"]
    assert "ChatChoice" in json.dumps(reply["200"])
    errors = {
        path: described["paths"][path]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
        for path in ("/v1/fim/completions", "/v1/completions", "/completion", "/api/generate")
    }
    assert {path: shape["required"] for path, shape in errors.items()} == {
        "/v1/fim/completions": ["object", "message", "type", "param", "code"],
        **{path: ["error"] for path in ("/v1/completions", "/completion", "/api/generate")},
    }
    inside = {path: shape["properties"].get("error") for path, shape in errors.items()}
    assert inside["/completion"]["required"] == ["code", "message", "type"]
    assert inside["/v1/completions"]["required"] == ["message", "type", "param", "code"]
    assert inside["/api/generate"] == {"type": "string"}


def test_settings_say_what_is_wrong():
    with pytest.raises(ValueError, match="max_queue must be from 1 to 1e\\+06, got 0"):
        Settings(max_queue=0)
    with pytest.raises(ValueError, match="api_keys"):
        Settings(api_keys=("",))


MANY = 200_001


@pytest.mark.parametrize(
    "junk", ["[" + "[]," * MANY + "1]", "[" + '"",' * 900_000 + "1]", '{"a":1' + ',"a":1' * MANY + "}"]
)
def test_a_body_of_too_many_values_is_refused_before_any_is_made(junk):
    with pytest.raises(BadField, match="more than 200,000 values"):
        schema.parse(b'{"prompt":"x","junk":' + junk.encode() + b"}")


@pytest.mark.parametrize("text", ["[]{},\\" * MANY, '\\"[,' * MANY, "\\\\" * MANY, "a, b\n" * MANY])
def test_what_stands_in_strings_is_no_value(text):
    assert schema.parse(json.dumps({"prompt": text}).encode()) == {"prompt": text}


def test_deep_and_odd_json_that_nobody_declared_is_passed_over():
    deep = b'{"a":' * 900 + b"1.5" + b"}" * 900
    assert read(**schema.parse(b'{"max_tokens":5.0,"junk":' + deep + b"}")) == read(max_tokens=5)
    assert schema.parse(b'{"a":[1e300,-0.5,2.0]}') == {"a": [1e300, -0.5, 2]}
    with pytest.raises(BadField, match="out of range"):
        schema.parse(b'{"a":1e999}')


def test_long_lists_and_strings_have_limits():
    for field, value, words in (
        ("logit_bias", {str(i): 1 for i in range(1025)}, "an object of at most 1024"),
        ("language", "x" * 65, "strings of at most 64 characters, got 65"),
        ("stop", "x" * 1025, "strings of at most 1024 characters, got 1025"),
        ("stop", ["x" * 1025], "strings of at most 1024 characters, got 1025"),
    ):
        with pytest.raises(BadField, match=words) as e:
            read(**{field: value})
        assert len(str(e.value)) < 200


def test_a_request_s_fields_are_looked_up_once_not_at_each_request():
    # Evaluating the annotations anew took half of the event loop's time: 2 ms of 200 requests each.
    body, calls = body_of(prompt="x"), []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        body.params(CALL)
    finally:
        sys.setprofile(None)
    assert calls and not {"fields", "_eval_type", "get_class_annotations"} & set(calls)
    assert len(calls) < 100
