"""OpenAI's legacy completions field by field, the shells of Mistral and DeepSeek, and /v1/models."""

import json

import pytest
from serve_tools import TOK, client, says
from tiny import random_model

URL = "/v1/completions"
PREFIX, SUFFIX = "def f(x):\n    return ", "\n\nprint(f(2))\n"


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def http(model):
    with client(model, model_name="tiny", temperature=0.0) as found:
        yield found


def post(http, url=URL, headers=None, **content):
    reply = http.post(url, json=content, headers=headers)
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(http, url=URL, **content):
    """Return a stream's events, without the last line, which must be [DONE]."""
    with http.stream("POST", url, json={**content, "stream": True}) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_completion(http, model):
    got = post(http, prompt="a = b\n", max_tokens=6)
    want = model.complete("a = b\n", max_new_tokens=6)
    assert (got["object"], got["model"]) == ("text_completion", "tiny")
    assert got["id"].startswith("cmpl-") and got["created"] > 1.7e9
    (choice,) = got["choices"]
    assert (choice["text"], choice["index"], choice["logprobs"]) == (want.text, 0, None)
    assert choice["finish_reason"] == "length"
    usage = got["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 6, 10)
    assert (
        len(post(http, prompt="a")["choices"][0]["text"])
        and post(http, prompt="a")["usage"]["completion_tokens"] == 16
    )


def test_an_infill_and_its_post_processing(model):
    text = "x + 1\n\nprint(f(2))\nq"
    with client(says(text)) as http:
        got = post(http, prompt="def f(x):\n", suffix=SUFFIX, max_tokens=40, stop_at="none")
        choice = got["choices"][0]
        assert choice["text"] == "x + 1"
        assert choice["finish_reason"] == "stop"
        assert "suffix_overlap" in [c["reason"] for c in choice["codegen2"]["cuts"]]
        assert (
            post(http, prompt="def f(x):\n", suffix=SUFFIX, max_tokens=40, raw=True)["choices"][0]["text"]
            == text
        )
        line = post(http, prompt="def f(x):\n", suffix="", max_tokens=40, stop_at="line")["choices"][0]
        assert line["text"].rstrip("\n") == "x + 1"


def test_prompts_in_all_forms_and_n(http, model):
    alone = [post(http, prompt=p, max_tokens=4)["choices"][0]["text"] for p in ("a = ", "b = ")]
    for prompts in (["a = ", "b = "], [TOK.encode("a = "), TOK.encode("b = ")]):
        got = post(http, prompt=prompts, max_tokens=4, n=2)
        assert [c["text"] for c in got["choices"]] == [alone[0], alone[0], alone[1], alone[1]]
        assert [c["index"] for c in got["choices"]] == [0, 1, 2, 3]
        assert got["usage"]["completion_tokens"] == 16
    assert post(http, prompt=TOK.encode("a = "), max_tokens=4)["choices"][0]["text"] == alone[0]
    sampled = {"temperature": 1.0, "seed": 3, "max_tokens": 5}
    got = post(http, prompt="a", n=2, best_of=4, **sampled)
    want = model.complete("a", n=2, best_of=4, temperature=1.0, seed=3, max_new_tokens=5)
    assert [c["text"] for c in got["choices"]] == [c.text for c in want.choices]
    assert post(http, prompt="a", **sampled)["choices"] == post(http, prompt="a", **sampled)["choices"]


def test_logprobs_and_their_offsets(http, model):
    prompt = "a = 漢\n"
    got = post(http, prompt=prompt, max_tokens=8, logprobs=3)["choices"][0]
    table = got["logprobs"]
    assert len(table["tokens"]) == len(table["token_logprobs"]) == len(table["text_offset"]) == 8
    for token, offset in zip(table["tokens"], table["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert (prompt + got["text"])[offset : offset + len(token)] == token
    for logprob, top in zip(table["token_logprobs"], table["top_logprobs"], strict=True):
        assert len(top) <= 3 and abs(max(top.values()) - logprob) < 1e-6  # greedy
    none = post(http, prompt=prompt, max_tokens=2, logprobs=0)["choices"][0]["logprobs"]
    assert none["top_logprobs"] is None and none["token_logprobs"] == table["token_logprobs"][:2]
    with client(says("one two three", end=":")) as telling:
        cut = post(telling, prompt="a:", max_tokens=8, logprobs=1, stop=" two")["choices"][0]
        assert (cut["text"], cut["logprobs"]["tokens"]) == ("one", ["one"])


def test_echo_scores_the_prompt(http, model):
    prompt = "a = b + c\n" * 15  # more than one pass
    got = post(http, prompt=prompt, max_tokens=0, echo=True, logprobs=1)["choices"][0]
    assert got["text"] == prompt
    table = got["logprobs"]
    assert table["token_logprobs"][0] is None and table["top_logprobs"][0] is None
    assert "".join(table["tokens"]) == prompt
    ids = TOK.encode(prompt)
    want = model.engine.token_logprobs(__import__("numpy").array([ids]))[0]
    assert max(abs(a - b) for a, b in zip(table["token_logprobs"][1:], want, strict=True)) < 1e-4
    both = post(http, prompt=ids, max_tokens=3, echo=True, logprobs=1)["choices"][0]
    assert both["text"].startswith(prompt) and len(both["logprobs"]["tokens"]) == len(ids) + 3
    assert both["logprobs"]["text_offset"][len(ids)] == len(prompt)
    assert post(http, prompt=prompt, max_tokens=2, echo=True)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    "content",
    [
        {"prompt": "a = b\n"}, {"prompt": "a = b\n", "n": 2, "temperature": 1.0, "seed": 1},
        {"prompt": PREFIX, "suffix": SUFFIX}, {"prompt": ["a", "b"], "logprobs": 1}, {"prompt": "a", "echo": True},
        {"prompt": PREFIX, "suffix": SUFFIX, "raw": True}, {"prompt": "a", "max_tokens": 0},
    ],
)  # fmt: skip
def test_a_stream_joins_to_the_same_answer(http, content):
    content = {"max_tokens": 12, **content}
    whole = post(http, **content)
    parts = events(http, stream_options={"include_usage": True}, **content)
    assert {p["id"] for p in parts} == {parts[0]["id"]} and all(
        p["object"] == "text_completion" for p in parts
    )
    for choice in whole["choices"]:
        mine = [c for p in parts for c in p["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        if choice["logprobs"] is not None:
            assert [t for c in mine if c["logprobs"] for t in c["logprobs"]["tokens"]] == choice["logprobs"][
                "tokens"
            ]
            offsets = [t for c in mine if c["logprobs"] for t in c["logprobs"]["text_offset"]]
            assert offsets == choice["logprobs"]["text_offset"]
    assert all(p["usage"] is None for p in parts[:-1])
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert parts[-1]["usage"][name] == whole["usage"][name]
    assert parts[-1]["choices"] == []
    assert all("usage" not in p for p in events(http, **content))


def test_a_stream_comes_piece_by_piece():
    with client(says("x" * 40, end=":")) as http:
        parts = events(http, prompt="a:", max_tokens=20)
        assert len([p for p in parts if p["choices"] and p["choices"][0]["text"]]) > 3


def test_errors_have_openai_s_shape(http):
    for content, param in (({"temperature": 9}, "temperature"), ({"logit_bias": {"51300": 1}}, "logit_bias")):
        for stream in (False, True):  # an error before the first token has its own status in a stream too
            reply = http.post(URL, json={"prompt": "a", "stream": stream, **content})
            assert reply.status_code == 400
            error = reply.json()["error"]
            assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)
            assert param in error["message"]
    assert http.post(URL, content=b"{").json()["error"]["param"] is None


def test_an_error_inside_a_stream_is_an_event():
    model = says("x = 1\n" * 60, end=":", delay=0.01)
    with client(model) as http:
        content = {"prompt": "a:", "max_tokens": 200, "stream": True}
        with http.stream("POST", URL, json=content) as reply:
            lines = reply.iter_lines()
            next(lines)
            model.engine.fail = [RuntimeError("broken")]
            rest = [line for line in lines if line]
        assert '"type":"server_error"' in rest[-2] and rest[-1] == "data: [DONE]"
        assert post(http, prompt="a:", max_tokens=3)["choices"][0]["text"]


def test_other_models_formats_are_infills(http):
    want = post(http, prompt=PREFIX, suffix=SUFFIX, max_tokens=6)
    for raw in (f"<fim_prefix>{PREFIX}<fim_suffix>{SUFFIX}<fim_middle>", f"[SUFFIX]{SUFFIX}[PREFIX]{PREFIX}"):
        got = post(http, prompt=raw, max_tokens=6)
        assert got["choices"][0]["text"] == want["choices"][0]["text"]
        assert got["usage"]["prompt_tokens"] == want["usage"]["prompt_tokens"]


def test_mistral_s_shell(http):
    url = "/v1/fim/completions"
    body = {"model": "codestral", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 5, "random_seed": 1}
    got = post(http, url, **body)
    choice = got["choices"][0]
    assert got["object"] == "chat.completion"
    want = post(http, prompt=PREFIX, suffix=SUFFIX, max_tokens=5)["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": want["text"]}
    parts = events(http, url, **body)
    assert "".join(c["delta"]["content"] for p in parts for c in p["choices"]) == want["text"]
    assert (
        all(p["object"] == "chat.completion.chunk" for p in parts)
        and parts[-1]["usage"]["completion_tokens"] > 0
    )
    error = http.post(url, json={"prompt": 5}).json()
    assert (error["object"], error["param"]) == ("error", "prompt")


def test_deepseek_s_shell(http):
    got = post(http, "/beta/completions", prompt=PREFIX, suffix=SUFFIX, max_tokens=5)
    assert got["object"] == "text_completion" and got["choices"][0]["text"] is not None


def test_models(http):
    listed = http.get("/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["tiny"] and listed["object"] == "list"
    assert http.get("/v1/models/tiny").json()["max_model_len"] == 256
    assert http.get("/v1/models/gpt-4").status_code == 404
    assert "gpt-4" in http.get("/v1/models/gpt-4").json()["error"]["message"]


def test_long_files_are_no_error(http):
    got = post(http, prompt="x = 1\n" * 20_000, suffix="y = 2\n" * 20_000, max_tokens=4096)
    assert (
        got["codegen2"]["dropped_prefix_chars"] > 100_000
        and got["codegen2"]["dropped_suffix_chars"] > 100_000
    )


def test_a_session_s_key_comes_in_a_header():
    with client(says("x = 1\n" * 60, end=":", delay=0.01)) as http:
        with http.stream(
            "POST",
            URL,
            json={"prompt": "a:", "max_tokens": 200, "stream": True},
            headers={"X-Session-Id": "e"},
        ) as old:
            lines = old.iter_lines()
            next(lines)
            post(http, prompt="a:", max_tokens=2, headers={"X-Session-Id": "e"})
            last = [json.loads(line[6:]) for line in lines if line.startswith("data: {")][-1]
        assert last["choices"][0]["codegen2"]["finish_reason"] == "superseded"
        assert last["choices"][0]["finish_reason"] == "length"


def test_a_deadline_comes_in_a_header():
    with client(says("x = 1\ny = 2\nz = 3\nq = 4\n", delay=0.005)) as http:
        choice = post(http, prompt="", suffix="\nend", max_tokens=60, headers={"X-Deadline-Ms": "1"})[
            "choices"
        ][0]
        assert choice["codegen2"]["finish_reason"] == "deadline" and choice["text"] == "x = 1"
        assert (
            http.post(URL, json={}, headers={"X-Deadline-Ms": "x"}).json()["error"]["param"]
            == "x-deadline-ms"
        )


@pytest.mark.slow
def test_schemathesis_finds_no_answer_outside_the_description(http):
    schemathesis = pytest.importorskip("schemathesis")
    import hypothesis

    schema = schemathesis.openapi.from_asgi("/openapi.json", http.app)
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(
            max_examples=60, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case):
            if isinstance(case.body, dict):
                case.body["max_tokens"] = 1
            reply = case.call()
            # A field may contradict another, which a description cannot say.
            checks = schemathesis.checks.load_all_checks() or schemathesis.checks.CHECKS.get_by_names(
                ["positive_data_acceptance"]
            )
            case.validate_response(reply, excluded_checks=checks)
            assert reply.status_code < 500

        check()
