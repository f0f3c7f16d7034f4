"""llama.cpp's /infill and /completion, trap by trap as its clients' sources show them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from serve_protocols import RECORDED, TOKENIZER, Client, box, events, recorded, saying

from codegen2.config import EOT
from codegen2.generation.request import Request
from codegen2.serve.protocols.llamacpp import InfillBody, template
from codegen2.serve.schema import BadField, read
from codegen2.serve.settings import Settings
from codegen2.text.infill import EOM

BODY: dict[str, Any] = {"input_prefix": "def f():\n", "input_suffix": "\n\nf()\n", "prompt": "    return "}


@dataclass
class Asked:
    """What a call knows of a request, without HTTP."""

    body: InfillBody
    session: str | None = None
    client: str = ""
    deadline_s: float | None = None
    settings: Settings = field(default_factory=Settings)


def request_of(session: str | None = None, deadline_s: float | None = None, **more: Any) -> Request:
    """Return what a body asks for."""
    body = read({**BODY, **more}, InfillBody)
    return template(Asked(body, session, "here", deadline_s), TOKENIZER.encode)  # type: ignore[arg-type]


def infill(client: Client, **more: Any) -> dict[str, Any]:
    reply = client.post("/infill", json={**BODY, **more})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_a_whole_reply() -> None:
    with saying("1") as client:
        found = infill(client, n_predict=16, stop=["STOP"], temperature=0, id_slot=3)
        prompt = client.asked
    assert prompt == "def f():\n<mask_1>\n\nf()\n<|endoftext|><sep><mask_1>    return "
    assert (found["content"], found["stop"], found["stop_type"], found["stopping_word"]) == (
        "1",
        True,
        "eos",
        "",
    )
    assert (found["truncated"], found["id_slot"], found["index"], found["tokens_cached"]) == (False, 3, 0, 0)
    assert found["tokens_predicted"] == 2 and found["tokens_evaluated"] >= found["timings"]["prompt_n"]
    timings = found["timings"]
    assert timings["predicted_n"] == 2 and timings["prompt_n"] > 10
    for kind in ("prompt", "predicted"):
        n, ms = timings[f"{kind}_n"], timings[f"{kind}_ms"]
        assert ms > 0 and timings[f"{kind}_per_token_ms"] == pytest.approx(ms / n, abs=2e-3)
        assert timings[f"{kind}_per_second"] == pytest.approx(1000 * n / ms, rel=0.1)
    settings = found["generation_settings"]
    assert (settings["n_predict"], settings["stop"], settings["temperature"]) == (16, ["STOP"], 0)


def test_no_blank_after_a_colon() -> None:
    """llama.vim looks for `"content":"` in the text before it reads it as JSON."""
    with saying("a: b, c") as client:
        text = client.post("/infill", json=BODY).text
        streamed = client.post("/infill", json={**BODY, "stream": True}).text
    assert '"content":"a: b, c"' in text and not re.search(r'": |", "', text.replace("a: b, c", ""))
    assert '"content":"a: b, c"' in streamed


def test_response_fields_are_literal_keys_at_top_level() -> None:
    with saying("1") as client:
        names = [
            "content",
            "timings/prompt_n",
            "timings/nothing",
            "tokens_cached",
            "generation_settings/n_predict",
        ]
        found = infill(client, response_fields=names)
        assert list(found) == [
            "content",
            "timings/prompt_n",
            "tokens_cached",
            "generation_settings/n_predict",
        ]
        assert infill(client, response_fields=[""]) == {}
        assert "timings" in infill(client, response_fields=[])


def test_the_warm_up_fills_the_cache_and_writes_nothing() -> None:
    extra = [{"text": "def g(a, b):\n    return a * b\n" * 3, "time": [1, 2], "filename": "g.py"}]
    with box() as client:
        body = {
            **recorded(next(p for p in RECORDED if p.stem == "llama_vim_warm_up"))["body"],
            "input_extra": extra,
        }
        reply = client.post("/infill", json=body)
        assert reply.text == "{}"
        found = infill(client, input_extra=extra, n_predict=4)
    assert found["tokens_cached"] >= 20, "the extra context was read again"


def test_a_warm_up_does_not_end_the_answer_of_the_same_slot() -> None:
    assert (
        request_of(id_slot=0, n_predict=0).session != request_of(id_slot=0, n_predict=9).session == "here#0"
    )
    assert request_of(id_slot=1).session == "here#1" and request_of(id_slot=-1).session is None
    assert request_of("mine", id_slot=0).session == "mine"


def test_an_empty_model_and_unknown_fields_are_taken() -> None:
    with saying("1") as client:
        assert (
            infill(client, model="", samplers=[], lora=[{"id": 0, "scale": 0.5}], dry_base=1.75)["content"]
            == "1"
        )


def test_a_blank_line_gets_its_indentation_back() -> None:
    """llama.vim hides the blanks of such a line and takes them out of the answer again."""
    with saying("    return 1") as client:
        found = infill(client, prompt="", n_indent=0)
        assert found["content"] == "    return 1"
    with saying("    return 1") as client:
        assert infill(client, prompt="    ", n_indent=4)["content"] == "return 1"  # these stand there already


def test_input_extra_comes_before_the_prefix() -> None:
    with saying("1") as client:
        infill(client, input_extra=[{"text": "x = 1\n", "filename": "x.py", "time": [1, 2]}])
        assert client.asked.startswith("x = 1\n\ndef f():\n<mask_1>")


def test_stop_words_and_limits_are_told_apart() -> None:
    with saying("a b STOP c") as client:
        found = infill(client, stop=["STOP", "zzz"])
        assert (found["content"], found["stop_type"], found["stopping_word"]) == ("a b", "word", "STOP")
    with saying("a b c d") as client:
        found = infill(client, n_predict=2)
        assert (found["stop_type"], found["tokens_predicted"], found["stopping_word"]) == ("limit", 2, "")


def test_n_indent_ends_before_a_line_that_stands_further_left() -> None:
    text = "1\n    b = 2\n  c = 3"
    with saying(text) as client:
        found = infill(client, prompt="    a = ", n_indent=4, raw=True)
        assert (found["content"], found["stop_type"]) == ("1\n    b = 2", "limit")
        assert infill(client, prompt="    a = ", raw=True)["content"] == text
        parts = events(client.post("/infill", json={**BODY, "n_indent": 4, "raw": True, "stream": True}).text)
        assert "".join(p["content"] for p in parts) == "1\n    b = 2"


def test_a_stream_is_data_lines_and_the_last_tells_the_rest() -> None:
    with saying("1\n    if x:\n        y()\n    z()\n    w()\n") as client:
        reply = client.post(
            "/infill", json={**BODY, "stream": True, "response_fields": ["content", "stop", "stop_type"]}
        )
        whole = infill(client)
    assert reply.headers["content-type"].startswith("text/event-stream")
    parts = events(reply.text)
    assert len(parts) > 2 and "".join(p["content"] for p in parts) == whole["content"]
    assert [p["stop"] for p in parts] == [*[False] * (len(parts) - 1), True]
    assert parts[-1] == {"content": "", "stop": True, "stop_type": "eos"}
    assert "[DONE]" not in reply.text  # OpenAI's clients alone expect it


def test_several_answers_come_as_a_list() -> None:
    with box() as client:
        reply = client.post(
            "/infill", json={**BODY, "n_cmpl": 3, "n_predict": 8, "seed": 1, "temperature": 1}
        )
        streamed = events(
            client.post("/infill", json={**BODY, "n_cmpl": 2, "n_predict": 8, "stream": True}).text
        )
    assert [r["index"] for r in reply.json()] == [0, 1, 2]
    assert all(0 < r["tokens_predicted"] <= 8 for r in reply.json())
    assert {p["index"] for p in streamed if p["stop"]} == {0, 1}


def test_a_time_limit_counts_once_a_line_is_whole() -> None:
    with saying("a" * 40 + " b c d e f g h i j k") as client:  # one line: the limit has to wait
        assert infill(client, t_max_predict_ms=1)["content"].endswith("k")
    assert request_of(t_max_predict_ms=250).params.deadline_s == 0.25
    assert request_of(t_max_predict_ms=250, deadline_s=0.1).params.deadline_s == 0.1
    assert request_of(t_max_prompt_ms=1).params.deadline_s is None


def test_samplers_choose_what_counts() -> None:
    def filters(**more: Any) -> tuple[float, ...]:
        given = {"top_k": 40, "top_p": 0.9, "min_p": 0.05, **more}
        params = request_of(**given).params
        return params.top_k, params.top_p, params.min_p

    assert filters() == (40, 0.9, 0.05)
    assert filters(samplers=["top_k", "top_p", "infill"]) == (40, 0.9, 0.0)
    assert filters(samplers=[]) == (0, 1.0, 0.0)
    assert filters(samplers="kt") == (40, 1.0, 0.0)


@pytest.mark.parametrize(("given", "meant"), [(-1, 256), (-2, 256), (0, 0), (7, 7), (None, 256)])
def test_n_predict(given: int | None, meant: int) -> None:
    assert request_of(n_predict=given).params.max_new_tokens == meant


def test_log_probabilities_and_tokens_on_request() -> None:
    with saying("1") as client:
        found = infill(client, n_probs=2, return_tokens=True)
        first, end = found["completion_probabilities"]
        assert (
            first["token"] == "1"
            and first["bytes"] == [49]
            and first["logprob"] == pytest.approx(0, abs=1e-6)
        )
        assert len(first["top_logprobs"]) == 2 and first["id"] == found["tokens"][0]
        assert set(first["top_logprobs"][0]) == {"id", "token", "bytes", "logprob"}
        assert (end["token"], end["bytes"], end["id"]) == ("", [], EOM) and found["tokens"][-1] == EOM
        assert infill(client)["tokens"] == []


def test_what_is_said_of_tokens_is_said_in_streams_too() -> None:
    body = {"prompt": "def f(x):\n    return", "n_predict": 6, "n_probs": 3, "return_tokens": True}
    body |= {"temperature": 0.8, "seed": 1}
    with box() as client:
        whole = client.post("/completion", json=body).json()
        parts = events(client.post("/completion", json={**body, "stream": True}).text)
    assert "".join(p["content"] for p in parts) == whole["content"]
    assert [t for p in parts for t in p["tokens"]] == whole["tokens"] and len(whole["tokens"]) >= 6
    streamed = [entry for p in parts for entry in p["completion_probabilities"]]
    assert streamed == whole["completion_probabilities"]


def test_probabilities_after_sampling() -> None:
    body = {"prompt": "def f(x):\n    return", "n_predict": 6, "n_probs": 50, "post_sampling_probs": True}
    with box() as client:

        def entries(**more: Any) -> list[dict[str, Any]]:
            found = client.post("/completion", json={**body, "seed": 1, **more}).json()
            kept: list[dict[str, Any]] = found["completion_probabilities"]
            assert all(set(e) == {"id", "token", "bytes", "prob", "top_probs"} for e in kept)
            return kept

        for entry in entries(temperature=0):
            assert entry["prob"] == 1.0 and [t["id"] for t in entry["top_probs"]] == [entry["id"]]
        spelled, *drawn = entries(temperature=1.0, top_k=3)  # the first spells the word before the cursor
        assert spelled["prob"] in [t["prob"] for t in spelled["top_probs"] if t["id"] == spelled["id"]]
        for entry in drawn:
            assert 1 <= len(entry["top_probs"]) <= 3
            assert sum(t["prob"] for t in entry["top_probs"]) == pytest.approx(1)
            assert entry["prob"] in [t["prob"] for t in entry["top_probs"] if t["id"] == entry["id"]]
        assert any(len(e["top_probs"]) == 3 for e in drawn)


def test_a_healed_token_has_a_probability_and_stands_in_its_table() -> None:
    """The word "retur" is drawn as another token than filters keep: the likeliest after the text before it."""
    body = {"prompt": "def f(x):\n    retur", "n_predict": 3, "n_probs": 1, "temperature": 0}
    with box() as client:
        for drawn, name in ((True, "prob"), (False, "logprob")):
            reply = client.post("/completion", json={**body, "post_sampling_probs": drawn}).json()
            for entry in reply["completion_probabilities"]:
                table = {t["id"]: t[name] for t in entry[f"top_{name}s"]}
                assert table[entry["id"]] == entry[name]
                assert 0 < entry["prob"] <= 1 if drawn else entry["logprob"] <= 0


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("input_prefix", None, "input_prefix is missing"),
        ("input_suffix", 3, "input_suffix must be a string"),
        ("prompt", ["a"], "prompt must be a string"),
        ("input_extra", [{"filename": "x"}], r"input_extra\[0\].text is missing"),
        ("input_extra", "x", "input_extra must be a list"),
        ("n_predict", 1.5, "n_predict must be a whole number"),
        ("n_predict", -3, "n_predict must be a whole number"),
        ("response_fields", "content", "response_fields must be a list"),
        ("top_p", 2, "top_p must be a number from 0 to 1"),
        ("samplers", {"a": 1}, "samplers must be a string or a list"),
        ("grammar", "root ::= x", "grammar is not supported"),
        ("logit_bias", [[1]], "logit_bias must be a list of"),
        ("logit_bias", [[1, True]], "logit_bias must give"),
        ("logit_bias", {"x": "y"}, "logit_bias"),
        ("logit_bias", [[5, 1]] * 1025, "logit_bias must be a list of .* of 1024"),
        ("logit_bias", {str(i): 1 for i in range(1025)}, "logit_bias must be a list of .* of 1024"),
        ("samplers", ["top_k"] * 65, "list of at most 64"),
        ("response_fields", ["content"] * 65, "response_fields must be a list of at most 64"),
        ("response_fields", ["/" * 65], "strings of at most 64 characters, got 65"),
        ("t_max_predict_ms", "1", "t_max_predict_ms must be a number"),
        ("n_cmpl", 999, "n_cmpl must be a whole number"),
        ("stream", 1, "stream must be true or false"),
    ],
)
def test_wrong_fields_are_answered_by_name(field: str, value: Any, says: str) -> None:
    with pytest.raises(BadField, match=says) as caught:
        request_of(**{field: value})
    assert caught.value.param is not None and caught.value.param.startswith(field)


def test_errors_in_llama_cpps_shape() -> None:
    with saying("1", api_keys=("secret",)) as client:
        reply = client.post("/infill", json=BODY)
        assert reply.status_code == 401 and reply.json()["error"]["type"] == "authentication_error"
        reply = client.post("/infill", json={"input_prefix": 1}, headers={"Authorization": "Bearer secret"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"]) == (400, 400, "invalid_request_error")


def test_logit_bias_in_its_three_forms() -> None:
    (return_id,), (x_id,) = TOKENIZER.encode("return"), TOKENIZER.encode("x")
    two = TOKENIZER.encode("foo_bar")
    assert len(two) > 1
    assert request_of(logit_bias=[[5, False], [6, 1.5], [7, 1e300]]).params.logit_bias == {
        5: -100.0,
        6: 1.5,
        7: 100,
    }
    by_text = request_of(logit_bias=[["return", 2], ["foo_bar", False]]).params.logit_bias
    assert by_text == {return_id: 2.0, **dict.fromkeys(two, -100.0)}
    assert request_of(logit_bias={"5": -1, "x": False}).params.logit_bias == {5: -1.0, x_id: -100.0}
    assert request_of().params.logit_bias == {}
    with saying("x = 1") as client:
        assert infill(client, logit_bias={"x": False}, n_predict=1)["content"] != "x"


def test_ignore_eos() -> None:
    assert request_of(ignore_eos=True).params.logit_bias == {EOT: -100.0, EOM: -100.0}
    with saying("1") as client:
        assert infill(client, n_predict=8, raw=True)["tokens_predicted"] == 2
        found = infill(client, n_predict=8, raw=True, ignore_eos=True)
    assert (found["tokens_predicted"], found["stop_type"]) == (8, "limit")


@pytest.mark.parametrize(
    ("more", "language"),
    [
        ({}, None),
        ({"language": "ruby"}, "ruby"),
        ({"filename": "a/b.rs"}, "rust"),
        ({"input_extra": [{"text": "x", "filename": "a.go"}, {"text": "y", "filename": "b.go"}]}, "go"),
        ({"input_extra": [{"text": "x", "filename": "a.go"}, {"text": "y", "filename": "b.py"}]}, None),
        ({"filename": "a.c", "input_extra": [{"text": "x", "filename": "a.go"}]}, "c"),
    ],
)
def test_language_by_file_names(more: dict[str, Any], language: str | None) -> None:
    body = read({**BODY, **more}, InfillBody)
    names = [e.filename for e in body.input_extra]
    assert template(Asked(body), TOKENIZER.encode, names).language == language  # type: ignore[arg-type]


def test_completion_continues_and_reads_markers() -> None:
    with saying("1") as client:
        reply = client.post("/completion", json={"prompt": "a = ", "max_tokens": 4}).json()
        assert (reply["content"], client.asked) == ("1", "a = ")
    with saying("1") as client:
        client.post("/completions", json={"prompt": "<fim_prefix>a = <fim_suffix>\nb<fim_middle>"})
        assert client.asked.endswith("<mask_1>\nb<|endoftext|><sep><mask_1>a = ")
        assert client.post("/completion", json={"prompt": "", "max_tokens": 0}).json()["content"] == ""
        reply = client.post("/completion", json={})
    assert reply.status_code == 400 and "prompt is missing" in reply.json()["error"]["message"]


def test_prompts_as_tokens_mixed_and_in_lists() -> None:
    ids = TOKENIZER.encode("def f(x):\n    return")
    body = {"n_predict": 4, "temperature": 0, "return_tokens": True}
    with box() as client:

        def ask(prompt: Any, **more: Any) -> Any:
            reply = client.post("/completion", json={**body, "prompt": prompt, **more})
            assert reply.status_code == 200, reply.text
            return reply.json()

        by_ids = ask(ids)
        assert by_ids["prompt"] == ids and by_ids["tokens_evaluated"] == len(ids)
        assert TOKENIZER.decode(by_ids["tokens"]) == by_ids["content"] != ""
        mixed = ask(["def f(x):\n", *TOKENIZER.encode("    return")])
        assert mixed["content"] == by_ids["content"]
        several = ask([ids, "import os\nimport ", [ids[0], TOKENIZER.decode(ids[1:])]])
        assert [r["index"] for r in several] == [0, 1, 2]
        assert several[0]["content"] == several[2]["content"] == by_ids["content"]
        assert several[1] | {"timings": 0} == ask("import os\nimport ") | {"index": 1, "timings": 0}
        twice = ask([ids, ids], n_cmpl=2)
        assert [r["index"] for r in twice] == [0, 1, 2, 3]
        streamed = events(
            client.post("/completion", json={**body, "prompt": ["a = ", "b = "], "stream": True}).text
        )
        assert {e["index"] for e in streamed if e["stop"]} == {0, 1}
        assert client.post("/completion", json={"prompt": [1, [2]]}).status_code == 400
        assert client.post("/completion", json={"prompt": [99999999]}).status_code == 400


def test_tokenize_and_detokenize_for_llama_cpp_and_vllm() -> None:
    text = "def f():\n    return 'é\U0001f600'<|endoftext|>"
    with box() as client:

        def post(path: str, **body: Any) -> dict[str, Any]:
            reply = client.post(path, json=body)
            assert reply.status_code == 200, reply.text
            found: dict[str, Any] = reply.json()
            return found

        plain = post("/tokenize", content=text, parse_special=False)["tokens"]
        assert plain == TOKENIZER.encode(text) and EOT not in plain
        special = post("/tokenize", content=text)  # true where it is absent, as in llama.cpp's server
        assert post("/tokenize", content=text, parse_special=True) == special
        assert post("/tokenize", prompt=text)["tokens"] == plain  # vLLM's form has no such field
        assert special["tokens"][-1] == EOT and special["count"] == len(special["tokens"])
        assert post("/tokenize", prompt=text, parse_special=True)["tokens"] == special["tokens"]
        pieces = post("/tokenize", content=text, parse_special=True, with_pieces=True)["tokens"]
        assert [p["id"] for p in pieces] == special["tokens"]
        raw = [p["piece"] if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces]
        assert b"".join(map(bytes, raw)).decode() == text and any(
            isinstance(p["piece"], list) for p in pieces
        )
        assert post("/detokenize", tokens=special["tokens"]) == {"content": text, "prompt": text}
        assert client.post("/tokenize", json={}).status_code == 400
        assert client.post("/detokenize", json={"tokens": [10**6]}).status_code == 400
        long = client.post("/tokenize", json={"content": "x" * (2**18 + 1)})
        assert long.status_code == 400 and "at most 262144 characters" in long.json()["error"]["message"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([1, *["a"] * 1025], "1024 texts among ids"), ([[1, "a" * 65_537]], "65536 characters together"),
        (["a"] * 65, "at most 64 prompts, got 65"), ([[1]] * 65, "at most 64 prompts, got 65"),
    ],
)  # fmt: skip
def test_prompts_of_too_many_parts_are_refused_before_they_are_cut(prompt: Any, words: str) -> None:
    with saying("1") as client:
        reply = client.post("/completion", json={"prompt": prompt})
    assert reply.status_code == 400 and words in reply.json()["error"]["message"]


def test_no_control_token_is_taken_from_text_or_shown() -> None:
    with saying("1") as client:
        infill(client, input_prefix="<mask_1><|endoftext|>")
        ids = client.worker.model.engine.rows[0]
    assert ids.count(51199) == 2 and ids.count(50256) == 1, "markers of a client's text became control tokens"


def test_props_tell_the_context() -> None:
    with saying("1") as client:
        infill(client)
        found = client.get("/props").json()
    assert found["default_generation_settings"]["n_ctx"] == 256 and found["model_alias"] == "codegen2"
    assert found["total_slots"] == 16


@pytest.mark.parametrize(
    "path", [p for p in RECORDED if recorded(p)["path"] in ("/infill", "/completion")], ids=lambda p: p.stem
)
def test_recorded_bodies(path: Any) -> None:
    request = recorded(path)
    with saying("3.14 * radius ** 2") as client:
        reply = client.post(request["path"], content=json.dumps(request["body"]))
        assert reply.status_code == 200, reply.text
        if request["says"] == "data":
            assert "".join(e["content"] for e in events(reply.text)).startswith("3.14")
            return
        if request["says"] == "nothing":
            assert reply.text == "{}"
            return
        found = reply.json()
        found = found[0] if isinstance(found, list) else found
        assert found["content"].startswith("3.14") == (request["says"] != "empty")
        wanted = request["body"].get("response_fields")
        assert wanted is None or set(found) == set(wanted)
        assert "<mask_1>\n\n\nprint(area(2))\n<|endoftext|>" in client.asked
