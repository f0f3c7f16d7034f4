"""OpenAI's legacy completions field by field, what is told of tokens, Mistral's and DeepSeek's shells, the model."""

import base64
import json
import threading
import warnings

import numpy as np
import pytest
from few import few
from serve_tools import TOK, client, says, wait_until
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


def refused(http, url=URL, **content):
    reply = http.post(url, json=content)
    assert reply.status_code == 400, reply.text
    return reply.json()["error"]


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
    assert post(http, prompt="a")["usage"]["completion_tokens"] == 16


def test_an_infill_and_its_post_processing():
    text = "x + 1\n\nprint(f(2))\nq"
    with client(says(text)) as http:
        asked = {"prompt": "def f(x):\n", "suffix": SUFFIX, "max_tokens": 40}
        choice = post(http, **asked, stop_at="none")["choices"][0]
        assert choice["text"] == "x + 1"
        assert choice["finish_reason"] == "stop"
        assert "suffix_overlap" in [c["reason"] for c in choice["codegen2"]["cuts"]]
        assert post(http, **asked, raw=True)["choices"][0]["text"] == text
        line = post(http, **{**asked, "suffix": ""}, stop_at="line")["choices"][0]
        assert line["text"].rstrip("\n") == "x + 1"


def test_prompts_in_all_forms_and_n(http, model):
    alone = [post(http, prompt=p, max_tokens=4)["choices"][0]["text"] for p in ("a =\n", "b =\n")]
    for prompts in (["a =\n", "b =\n"], [TOK.encode("a =\n"), TOK.encode("b =\n")]):
        got = post(http, prompt=prompts, max_tokens=4, n=2)
        assert [c["text"] for c in got["choices"]] == [alone[0], alone[0], alone[1], alone[1]]
        assert [c["index"] for c in got["choices"]] == [0, 1, 2, 3]
        assert got["usage"]["completion_tokens"] == 16
    assert post(http, prompt=TOK.encode("a =\n"), max_tokens=4)["choices"][0]["text"] == alone[0]
    sampled = {"temperature": 1.0, "seed": 3, "max_tokens": 5}
    got = post(http, prompt="a", n=2, best_of=4, **sampled)
    want = model.complete("a", n=2, best_of=4, temperature=1.0, seed=3, max_new_tokens=5)
    assert [c["text"] for c in got["choices"]] == [c.text for c in want.choices]
    assert post(http, prompt="a", **sampled)["choices"] == post(http, prompt="a", **sampled)["choices"]


def test_language_and_token_healing_arrive(http, model, monkeypatch):
    seen = []
    real = model.scheduler.add
    monkeypatch.setattr(
        model.scheduler, "add", lambda request, *rest: seen.append(request) or real(request, *rest)
    )
    post(http, prompt="a", suffix="b", max_tokens=1, language="python")
    post(http, prompt="retu", max_tokens=1, token_healing=False)
    assert [(r.language, r.heal, r.raw) for r in seen] == [("python", True, False), (None, False, False)]


# ---- what is told of tokens


def test_logprobs_and_their_offsets(http):
    prompt = "a = 漢\n"
    got = post(http, prompt=prompt, max_tokens=8, logprobs=3)["choices"][0]
    table = got["logprobs"]
    assert len(table["tokens"]) == len(table["token_logprobs"]) == len(table["text_offset"]) == 8
    for token, offset in zip(table["tokens"], table["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert (prompt + got["text"])[offset : offset + len(token)] == token
    for token, logprob, top in zip(
        table["tokens"], table["token_logprobs"], table["top_logprobs"], strict=True
    ):
        assert len(top) == 3 and max(top.values()) == top[token] == logprob  # greedy


def test_no_logprobs_but_the_chosen_tokens_own(http):
    chosen = post(http, prompt="a\n", max_tokens=9, logprobs=0, temperature=2, seed=1)["choices"][0][
        "logprobs"
    ]
    for n in (1, 5):
        more = post(http, prompt="a\n", max_tokens=9, logprobs=n, temperature=2, seed=1)["choices"][0][
            "logprobs"
        ]
        assert more["token_logprobs"] == chosen["token_logprobs"]
        tables = list(zip(more["tokens"], more["token_logprobs"], more["top_logprobs"], strict=True))
        assert all(top[token] == logprob and len(top) in (n, n + 1) for token, logprob, top in tables)
        assert any(len(top) == n + 1 for _, _, top in tables), "all were the likeliest"
    told = zip(chosen["tokens"], chosen["token_logprobs"], strict=True)
    assert chosen["top_logprobs"] == [{token: logprob} for token, logprob in told]


def test_every_drawn_token_is_told_the_ending_one_too():
    with client(says("one two three")) as http:
        asked = {"prompt": "a:", "max_tokens": 8, "logprobs": 1}
        whole = post(http, **asked)
        assert whole["choices"][0]["logprobs"]["tokens"] == ["one", " two", " three", "<|endoftext|>"]
        assert whole["choices"][0]["logprobs"]["text_offset"] == [2, 5, 9, 15]
        assert whole["usage"]["completion_tokens"] == 4
        cut = post(http, **asked, stop=" tw")["choices"][0]
        assert (cut["text"], cut["logprobs"]["tokens"]) == ("one", ["one", " two"])
        parts = [c["logprobs"] for e in events(http, **asked) for c in e["choices"] if c["logprobs"]]
        assert [t for p in parts for t in p["tokens"]] == whole["choices"][0]["logprobs"]["tokens"]


def test_a_healed_token_begins_before_the_prompts_end():
    model = says("\n")
    real = model.engine._forward
    foot = TOK.encode(" foot")

    def spelled(piece):  # the word " foo" is spelled " foot"
        logits = real(piece)
        if piece.n_prompt:
            logits[0, foot[0]] = 99.0
        return logits

    assert len(foot) == 1
    model.engine._forward = spelled
    with client(model) as http:
        got = post(http, prompt="a\r\nx = foo", max_tokens=2, logprobs=1)["choices"][0]
    assert got["text"] == "t\r\n"
    table = got["logprobs"]
    assert (table["tokens"], table["text_offset"]) == ([" foot", "\n"], [6, 11])
    text = "a\r\nx = foo" + got["text"]
    assert text[6:11] == " foot" and text[11:] == "\r\n"


def test_echo_scores_the_prompt(http, model):
    prompt = "a = b + c\n" * 15  # more than one pass
    got = post(http, prompt=prompt, max_tokens=0, echo=True, logprobs=1)["choices"][0]
    assert got["text"] == prompt
    table = got["logprobs"]
    assert table["token_logprobs"][0] is None and table["top_logprobs"][0] is None
    assert "".join(table["tokens"]) == prompt
    ids = TOK.encode(prompt)
    want = model.engine.token_logprobs(np.array([ids]))[0]
    assert max(abs(a - b) for a, b in zip(table["token_logprobs"][1:], want, strict=True)) < 1e-4
    both = post(http, prompt=ids, max_tokens=3, echo=True, logprobs=1)["choices"][0]
    assert both["text"].startswith(prompt) and len(both["logprobs"]["tokens"]) == len(ids) + 3
    assert both["logprobs"]["text_offset"][len(ids)] == len(prompt)
    assert post(http, prompt=prompt, max_tokens=2, echo=True)["choices"][0]["logprobs"] is None
    n = post(http, prompt="a b", max_tokens=1, echo=True, logprobs=1, n=2)["choices"]
    assert n[0]["logprobs"] == n[1]["logprobs"] and n[0]["text"].startswith("a b")


def test_echo_of_a_documents_start_and_of_nothing(http):
    got = post(http, prompt=[50256, *TOK.encode("a b")], max_tokens=1, echo=True, logprobs=0)["choices"][0]
    assert got["text"].startswith("<|endoftext|>a b")
    table = got["logprobs"]
    assert table["tokens"][:3] == ["<|endoftext|>", "a", " b"] and table["text_offset"] == [0, 13, 14, 16]
    assert [p is None for p in table["token_logprobs"]] == [True, False, False, False]
    got = post(http, prompt="", max_tokens=1, echo=True, logprobs=0)
    assert got["usage"]["prompt_tokens"] == 1 == len(got["choices"][0]["logprobs"]["tokens"]) - 1


def test_offsets_of_token_prompts(http):
    ids = TOK.encode("a = 漢\n")
    for prompt in (ids, "a = 漢\n"):
        table = post(http, prompt=prompt, max_tokens=3, logprobs=1)["choices"][0]["logprobs"]
        assert table["text_offset"][0] == 6


def test_a_prompt_that_would_be_cut_is_refused_where_echo_is_asked(http):
    for prompt in ("x = 1\n" * 200, TOK.encode("x = 1\n" * 200)):
        assert "tokens" in refused(http, prompt=prompt, echo=True, max_tokens=1)["message"]
    assert post(http, prompt="x = 1\n" * 200, max_tokens=1)["codegen2"]["dropped_prefix_chars"] > 0


@pytest.mark.parametrize(
    "content",
    few([
        {"prompt": "a = b\n"}, {"prompt": "a = b\n", "n": 2, "temperature": 1.0, "seed": 1},
        {"prompt": PREFIX, "suffix": SUFFIX}, {"prompt": ["a", "b"], "logprobs": 1}, {"prompt": "a", "echo": True},
        {"prompt": "a b\n" * 40, "echo": True, "logprobs": 2}, {"prompt": [50256, 5], "echo": True, "logprobs": 0},
        {"prompt": ["a b", [5, 6]], "echo": True, "logprobs": 1, "n": 2, "max_tokens": 2},
        {"prompt": "a b", "echo": True, "logprobs": 1, "max_tokens": 0},
        {"prompt": PREFIX, "suffix": SUFFIX, "raw": True}, {"prompt": "a", "max_tokens": 0},
    ], 3),
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
        assert (choice["logprobs"] is None) == all(c["logprobs"] is None for c in mine)
        for name, column in (choice["logprobs"] or {}).items():
            assert [t for c in mine if c["logprobs"] for t in c["logprobs"][name]] == column
    assert all(p["usage"] is None for p in parts[:-1])
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert parts[-1]["usage"][name] == whole["usage"][name]
    assert parts[-1]["choices"] == []
    assert all("usage" not in p for p in events(http, **content))


def test_a_stream_comes_piece_by_piece():
    model = says(" ".join(f"x{i}" for i in range(20)), passes=4)
    asked = {"prompt": "a:", "max_tokens": 20, "stream": True}
    with client(model) as http, http.stream("POST", URL, json=asked) as reply:
        lines = reply.iter_lines()
        assert "x" in json.loads(next(lines)[6:])["choices"][0]["text"], "before the model is done"
        model.engine.allow()
        assert len([line for line in lines if line]) > 5


# ---- errors


def test_errors_have_openai_s_shape(http):
    for content, param in (({"temperature": 9}, "temperature"), ({"logit_bias": {"51300": 1}}, None)):
        for stream in (False, True):  # an error before the first token has its own status in a stream too
            error = refused(http, prompt="a", stream=stream, **content)
            assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)
            assert next(iter(content)) in error["message"]
    assert http.post(URL, content=b"{").json()["error"]["param"] is None


def test_an_error_inside_a_stream_is_an_event():
    model = says("x = 1\n" * 60, passes=4)
    with client(model) as http:
        content = {"prompt": "a:", "max_tokens": 200, "stream": True}
        with http.stream("POST", URL, json=content) as reply:
            lines = reply.iter_lines()
            next(lines)
            model.engine.fail = [RuntimeError("broken")]
            model.engine.allow()
            rest = [line for line in lines if line]
        assert '"type":"server_error"' in rest[-2] and rest[-1] == "data: [DONE]"
        assert post(http, prompt="a:", max_tokens=3)["choices"][0]["text"]


def test_damaged_weights_are_the_servers_fault():
    model = says("x")
    real = model.engine.forward
    model.engine.forward = lambda pieces, cache: [np.full_like(f, np.nan) for f in real(pieces, cache)]
    with client(model) as http:
        reply = http.post(URL, json={"prompt": "a"})
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "damaged_weights" and "weights are damaged" in reply.text


# ---- other shapes


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
    assert all(p["object"] == "chat.completion.chunk" for p in parts)
    assert parts[-1]["usage"]["completion_tokens"] > 0
    error = http.post(url, json={"prompt": 5}).json()
    assert (error["object"], error["param"]) == ("error", "prompt")


def test_deepseek_s_shell(http):
    got = post(http, "/beta/completions", prompt=PREFIX, suffix=SUFFIX, max_tokens=5)
    assert got["object"] == "text_completion" and got["choices"][0]["text"] is not None


def test_models(http):
    listed = http.get("/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["tiny"] and listed["object"] == "list"
    card = http.get("/v1/models/tiny").json()
    assert (card["max_model_len"], card["max_prompt_tokens"]) == (256, 256)
    assert http.get("/v1/models/gpt-4").status_code == 404
    assert "gpt-4" in http.get("/v1/models/gpt-4").json()["error"]["message"]


def test_models_are_what_mistral_s_client_reads(http):
    pytest.importorskip("mistralai", reason="needs codegen2[test-clients]")
    with warnings.catch_warnings():  # theirs, at import
        warnings.simplefilter("ignore")
        from mistralai.client.models import BaseModelCard, ModelList
    (card,) = ModelList.model_validate(http.get("/v1/models").json()).data
    assert isinstance(card, BaseModelCard) and card.max_context_length == 256
    assert card.capabilities.completion_fim and not card.capabilities.completion_chat


def test_the_tokenizer_as_harnesses_and_llama_cpp_s_clients_ask(http):
    info = http.get("/tokenizer_info").json()
    end = post(http, "/tokenize", prompt=info["eos_token"], add_special_tokens=False)
    assert end["tokens"] == [50256] and end["max_model_len"] == 256
    text = "a = <|endoftext|> 漢"
    for body in ({"prompt": text}, {"content": text, "parse_special": False}):
        got = post(http, "/tokenize", **body)
        assert got["tokens"] == TOK.encode(text) and got["count"] == len(got["tokens"])
    pieces = post(http, "/tokenize", content="漢 a", with_pieces=True)["tokens"]
    assert [p["id"] for p in pieces] == TOK.encode("漢 a") and pieces[-1]["piece"] == " a"
    assert b"".join(bytes(p["piece"]) for p in pieces[:-1]) == "漢".encode()
    assert post(http, "/tokenize", content="a<mask_1>", parse_special=True)["tokens"][-1] == 51199
    back = post(http, "/detokenize", tokens=TOK.encode(text))
    assert back["prompt"] == back["content"] == text
    assert refused(http, "/tokenize")["param"] == "prompt"
    assert refused(http, "/detokenize", tokens=[10**6])["param"] == "tokens"


def test_embeddings_are_the_models(http, model):
    texts = ["a = b", "import os\n", "x = f(1)\n" * 25]  # the last is read in pieces
    got = post(http, "/v1/embeddings", input=texts, model="x")
    for text, entry in zip(texts, got["data"], strict=True):
        want = model.embed(text, "mean")
        assert np.allclose(entry["embedding"], want, atol=1e-6)
        coded = post(http, "/v1/embeddings", input=text, encoding_format="base64")["data"][0]["embedding"]
        assert np.array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), want)
    assert got["usage"]["prompt_tokens"] == sum(len(TOK.encode(t)) for t in texts)
    assert post(http, "/v1/embeddings", input=TOK.encode(texts[0]))["data"][0] == got["data"][0]
    for wrong in ("", "x = 1\n" * 500, [51300], []):
        assert refused(http, "/v1/embeddings", input=wrong)["param"] == "input"
    assert refused(http, "/v1/embeddings", input="a", dimensions=3)["param"] == "dimensions"


def test_chat_is_refused_with_what_to_do(http):
    reply = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert reply.status_code == 404 and "completions only" in reply.json()["error"]["message"]
    assert "/v1/completions" in reply.json()["error"]["message"]


def test_long_files_are_no_error(http):
    got = post(http, prompt="x = 1\n" * 20_000, suffix="y = 2\n" * 20_000, max_tokens=4096)["codegen2"]
    assert got["dropped_prefix_chars"] > 100_000 and got["dropped_suffix_chars"] > 100_000


def test_a_session_s_key_comes_in_a_header():
    model = says("x = 1\n" * 60, passes=4)
    asked = {"prompt": "a:", "max_tokens": 100, "stream": True}
    with client(model) as http:
        worker = http.app.state.worker
        with http.stream("POST", URL, json=asked, headers={"X-Session-Id": "e"}) as old:
            lines = old.iter_lines()
            next(lines)
            newer = threading.Thread(
                target=post, args=(http,), kwargs={"prompt": "a:", "headers": {"X-Session-Id": "e"}}
            )
            newer.start()
            wait_until(lambda: worker.n_requests == 2 or not newer.is_alive())
            model.engine.allow()
            last = [json.loads(line[6:]) for line in lines if line.startswith("data: {")][-1]
            newer.join()
        assert last["choices"][0]["codegen2"]["finish_reason"] == "superseded"
        assert last["choices"][0]["finish_reason"] == "length"


def test_a_deadline_comes_in_a_header():
    model = says("x = 1\ny = 2\nz = 3\nq = 4\n")
    now = iter(range(10**9))  # a second between any two looks at the clock
    model.scheduler.clock = lambda: next(now)
    with client(model) as http:
        asked = {"prompt": "", "suffix": "\nend", "max_tokens": 60}
        choice = post(http, **asked, headers={"X-Deadline-Ms": "1"})["choices"][0]
        assert choice["codegen2"]["finish_reason"] == "deadline" and choice["text"] == "x = 1"
        wrong = http.post(URL, json={}, headers={"X-Deadline-Ms": "x"})
        assert wrong.json()["error"]["param"] == "x-deadline-ms"


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
