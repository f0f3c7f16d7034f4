"""llama.cpp's /infill and /completion, trap by trap as its clients' sources show them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from serve_helpers import RECORDED, Client, asked, box, events, recorded, saying

from codegen2.serve.protocols.llamacpp import within_indent
from codegen2.serve.protocols.llamacpp_ask import completion_request, infill_request
from codegen2.serve.schema import BadField, Body
from codegen2.serve.settings import Settings

BODY: dict[str, Any] = {"input_prefix": "def f():\n", "input_suffix": "\n\nf()\n", "prompt": "    return "}
SETTINGS = Settings()


def infill(client: Client, **more: Any) -> dict[str, Any]:
    reply = client.post("/infill", json={**BODY, **more})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_a_whole_reply() -> None:
    with saying("1") as client:
        found = infill(client, n_predict=16, stop=["STOP"], temperature=0, id_slot=3)
        prompt = asked(client)
    assert prompt == "def f():\n<mask_1>\n\nf()\n<|endoftext|><sep><mask_1>    return "
    assert (found["content"], found["stop"], found["stop_type"], found["stopping_word"]) == (
        "1",
        True,
        "eos",
        "",
    )
    assert (found["truncated"], found["id_slot"], found["index"], found["tokens_cached"]) == (False, 3, 0, 0)
    assert (found["tokens_predicted"], found["tokens_evaluated"]) == (1, found["timings"]["prompt_n"])
    timings = found["timings"]
    assert timings["predicted_n"] == 1 and timings["prompt_n"] > 10
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
    extra = [{"text": "def g(a, b):\n    return a * b\n" * 4, "time": [1, 2], "filename": "g.py"}]
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
    def session(**more: Any) -> str | None:
        return infill_request(Body({**BODY, "id_slot": 0, **more}), SETTINGS, client="here").ask.session

    assert session(n_predict=0) != session(n_predict=9) == "here#0"
    assert session(id_slot=1) == "here#1" and session(id_slot=-1) is None
    given = infill_request(Body({**BODY, "id_slot": 0}), SETTINGS, session="mine", client="here").ask.session
    assert given == "mine"


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
        assert asked(client).startswith("x = 1\n\ndef f():\n<mask_1>")


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


@pytest.mark.parametrize(
    "text", ["a", "a\n", "a\n    b\n\n    c", "a\r\n    b\r\nc", "a\n  \n    b\n   c\nd", "\n\n\nx"]
)
def test_growing_text_is_never_taken_back(text: str) -> None:
    whole = within_indent(text, 4)[0]
    shown = ""
    for n in range(len(text) + 1):
        part = within_indent(text[:n], 4, final=False)[0]
        assert whole.startswith(part.rstrip("\r")), (text[:n], part)
        shown = max(shown, part, key=len)
    assert within_indent(whole, 4)[0] == whole


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
    ask = infill_request(Body({**BODY, "t_max_predict_ms": 250}), SETTINGS).ask
    assert ask.deadline_s == 0.25
    assert (
        infill_request(Body({**BODY, "t_max_predict_ms": 250}), SETTINGS, deadline_s=0.1).ask.deadline_s
        == 0.1
    )
    assert infill_request(Body({**BODY, "t_max_prompt_ms": 1}), SETTINGS).ask.deadline_s is None


def test_samplers_choose_what_counts() -> None:
    def filters(**more: Any) -> tuple[float, ...]:
        given = {"top_k": 40, "top_p": 0.9, "min_p": 0.05, **more}
        params = infill_request(Body({**BODY, **given}), SETTINGS).ask.params
        return params.top_k, params.top_p, params.min_p

    assert filters() == (40, 0.9, 0.05)
    assert filters(samplers=["top_k", "top_p", "infill"]) == (40, 0.9, 0.0)
    assert filters(samplers=[]) == (0, 1.0, 0.0)
    assert filters(samplers="kt") == (40, 1.0, 0.0)


@pytest.mark.parametrize(("given", "meant"), [(-1, 256), (-2, 256), (0, 0), (7, 7), (None, 256)])
def test_n_predict(given: int | None, meant: int) -> None:
    assert infill_request(Body({**BODY, "n_predict": given}), SETTINGS).ask.params.max_new_tokens == meant


def test_log_probabilities_and_tokens_on_request() -> None:
    with saying("1") as client:
        found = infill(client, n_probs=2, return_tokens=True)
        (first, *_) = found["completion_probabilities"]
        assert (
            first["token"] == "1"
            and first["bytes"] == [49]
            and first["logprob"] == pytest.approx(0, abs=1e-6)
        )
        assert len(first["top_logprobs"]) == 2 and first["id"] == found["tokens"][0]
        assert infill(client)["tokens"] == []


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("input_prefix", None, "input_prefix is missing"),
        ("input_suffix", 3, "input_suffix must be a string"),
        ("prompt", ["a"], "prompt must be a string"),
        ("input_extra", [{"filename": "x"}], r"input_extra\[0\] must be an object with a text"),
        ("input_extra", "x", "input_extra must be a list"),
        ("n_predict", 1.5, "n_predict must be a whole number"),
        ("n_predict", -3, "n_predict must be a whole number"),
        ("response_fields", "content", "response_fields must be a list"),
        ("top_p", 2, "top_p must be a number from 0 to 1"),
        ("samplers", {"a": 1}, "samplers must be a string or a list"),
        ("grammar", "root ::= x", "grammar is not supported"),
        ("logit_bias", [[1]], "logit_bias must be a list of"),
        ("t_max_predict_ms", "1", "t_max_predict_ms must be a number"),
        ("n_cmpl", 999, "n_cmpl must be a whole number"),
        ("stream", 1, "stream must be true or false"),
    ],
)
def test_wrong_fields_are_answered_by_name(field: str, value: Any, says: str) -> None:
    with pytest.raises(BadField, match=says) as caught:
        infill_request(Body({**BODY, field: value}), SETTINGS)
    assert caught.value.param == field


def test_errors_in_llama_cpps_shape() -> None:
    with saying("1", api_keys=("secret",)) as client:
        reply = client.post("/infill", json=BODY)
        assert reply.status_code == 401 and reply.json()["error"]["type"] == "authentication_error"
        reply = client.post("/infill", json={"input_prefix": 1}, headers={"Authorization": "Bearer secret"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"]) == (400, 400, "invalid_request_error")


def test_logit_bias_bans_a_token() -> None:
    params = infill_request(
        Body({**BODY, "logit_bias": [[5, False], [6, 1.5], [7, 10**400]]}), SETTINGS
    ).ask.params
    assert params.logit_bias == {5: -100.0, 6: 1.5, 7: 100.0}


def test_completion_continues_and_reads_markers() -> None:
    with saying("1") as client:
        reply = client.post("/completion", json={"prompt": "a = ", "max_tokens": 4}).json()
        assert (reply["content"], asked(client)) == ("1", "a = ")
    with saying("1") as client:
        client.post("/completions", json={"prompt": "<fim_prefix>a = <fim_suffix>\nb<fim_middle>"})
        assert asked(client).endswith("<mask_1>\nb<|endoftext|><sep><mask_1>a = ")
    assert completion_request(Body({"prompt": "", "max_tokens": 4}), SETTINGS).ask.params.max_new_tokens == 4
    with pytest.raises(BadField, match="prompt is missing"):
        completion_request(Body({}), SETTINGS)


def test_no_control_token_is_taken_from_text_or_shown() -> None:
    with saying("1") as client:
        infill(client, input_prefix="<mask_1><|endoftext|>")
        ids = client.engine.prompt
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
        assert "<mask_1>\n\n\nprint(area(2))\n<|endoftext|>" in asked(client)
