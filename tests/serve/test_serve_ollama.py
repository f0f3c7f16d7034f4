"""Ollama's API, trap by trap as its clients' sources show them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from serve_protocols import RECORDED, Client, box, recorded, saying

from codegen2.serve.protocols.ollama import GenerateBody, render, request_of
from codegen2.serve.schema import BadField, read
from codegen2.serve.settings import Settings, seconds_of


@dataclass
class Asked:
    """What a call knows of a request, without HTTP."""

    body: GenerateBody
    session: str | None = None
    client: str = ""
    deadline_s: float | None = None
    settings: Settings = field(default_factory=Settings)


BODY: dict[str, Any] = {"model": "some:name", "prompt": "def f():\n    return ", "suffix": "\n\nf()\n"}


def lines(client: Client, **more: Any) -> list[dict[str, Any]]:
    reply = client.post("/api/generate", json={**BODY, **more})
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.text.splitlines()]


def test_streams_unless_told_otherwise() -> None:
    with saying("1\n    if x:\n        y()\n    z()\n    w()\n") as client:
        reply = client.post("/api/generate", json=BODY)
        whole = client.post("/api/generate", json={**BODY, "stream": False}).json()
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    found = [json.loads(line) for line in reply.text.splitlines()]
    assert len(found) > 2 and [f["done"] for f in found] == [*[False] * (len(found) - 1), True]
    assert "".join(f["response"] for f in found) == whole["response"] != ""
    assert found[-1]["response"] == "" and {"total_duration", "eval_count"} <= set(found[-1])
    assert all(set(f) == {"model", "created_at", "response", "done"} for f in found[:-1])


def test_a_whole_reply() -> None:
    with saying("1") as client:
        found = client.post("/api/generate", json={**BODY, "stream": False}).json()
        prompt = client.asked
    assert prompt == "def f():\n<mask_1>\n\nf()\n<|endoftext|><sep><mask_1>    return "
    assert (found["model"], found["response"], found["done"], found["done_reason"]) == (
        "some:name",
        "1",
        True,
        "stop",
    )
    assert datetime.fromisoformat(found["created_at"]).tzinfo is not None
    assert (found["prompt_eval_count"], found["eval_count"]) == (16, 2)
    parts = [found[n] for n in ("load_duration", "prompt_eval_duration", "eval_duration")]
    assert all(isinstance(p, int) and p >= 0 for p in parts) and found["eval_duration"] > 10_000
    assert sum(parts) <= found["total_duration"] < 60e9


def test_an_empty_prompt_loads_the_model() -> None:
    with box() as client:
        found = client.post("/api/generate", json={"model": "x"})
        assert client.worker.state == "ready"
    assert found.json()["done_reason"] == "load" and found.json()["done"] is True
    assert found.json()["response"] == "" and len(found.text.splitlines()) == 1


def test_keep_alive_zero_unloads_and_the_next_request_loads_again() -> None:
    """cmp-ai does so when its editor closes; the server stays as its operator set it."""
    with box() as client:
        assert client.post("/api/generate", json={"model": "x"}).json()["done_reason"] == "load"
        assert len(client.get("/api/ps").json()["models"]) == 1
        assert (
            client.post("/api/generate", json={"model": "x", "keep_alive": 0}).json()["done_reason"]
            == "unload"
        )
        assert client.worker.model is None and client.get("/api/ps").json() == {"models": []}
        again = client.post(
            "/api/generate", json={**BODY, "stream": False, "options": {"num_predict": 2}}
        ).json()
        assert again["load_duration"] > 0
        assert client.post("/api/generate", json={**BODY, "stream": False}).json()["load_duration"] == 0


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (5, 5),
        (-1, -1),
        ("5m", 300),
        ("-1", -1),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("300", 300),
        ("0", 0),
        (None, None),
    ],
)
def test_keep_alive_in_every_form(given: Any, seconds: float | None) -> None:
    keep_alive = read({"keep_alive": given}, GenerateBody).keep_alive
    assert (seconds_of(keep_alive) if isinstance(keep_alive, str) else keep_alive) == seconds


def test_options() -> None:
    options = {
        "num_predict": 7,
        "temperature": 0,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "seed": 3,
        "stop": ["a", ""],
    }
    body = read({**BODY, "options": {**options, "num_ctx": 2048, "num_thread": 4}}, GenerateBody)
    params = request_of(Asked(body)).params
    assert (params.max_new_tokens, params.temperature, params.top_k, params.top_p) == (7, 0, 5, 0.5)
    assert (params.min_p, params.seed, params.stop) == (0.1, 3, ("a",))
    usual = request_of(Asked(read({**BODY, "options": {"num_predict": -1, "seed": -1}}, GenerateBody))).params
    assert (usual.max_new_tokens, usual.seed) == (256, None)


def test_the_language_is_among_the_options() -> None:
    """Ollama has no field for it; names of options that nobody knows are passed over as ever."""
    body = read({**BODY, "options": {"language": "typescript", "tongue": "x"}}, GenerateBody)
    asked = request_of(Asked(body))
    assert asked is not None and asked.language == "typescript"
    usual = request_of(Asked(read(BODY, GenerateBody)))
    assert usual is not None and usual.language is None
    with pytest.raises(BadField, match=r"options.language must be a string, got 3"):
        read({**BODY, "options": {"language": 3}}, GenerateBody)


def test_done_reason_length() -> None:
    with saying("a b c d") as client:
        assert lines(client, options={"num_predict": 2})[-1]["done_reason"] == "length"


def test_stop_strings_do_not_show() -> None:
    with saying("a b STOP c") as client:
        assert lines(client, stream=False, options={"stop": "STOP"})[0]["response"] == "a b"


def test_an_empty_suffix_is_none_as_in_ollama() -> None:
    with saying("1") as client:
        lines(client, suffix="")
        assert client.asked == BODY["prompt"]


def test_markers_are_read_and_raw_means_no_template() -> None:
    with saying("1") as client:
        lines(client, suffix=None, raw=True, template="{{ .System }}", prompt="<PRE> a = <SUF>\nb <MID>")
        assert client.asked.endswith("<mask_1>\nb<|endoftext|><sep><mask_1>a =")


def test_templates_of_the_request() -> None:
    with saying("1") as client:
        lines(
            client,
            suffix="S",
            template="{{ .System }}<PRE> {{ .Prompt }} <SUF>{{.Suffix}} <MID>",
            system="# s\n",
        )
        assert client.asked.endswith("<mask_1>S<|endoftext|><sep><mask_1>    return ")
        assert client.asked.startswith("# s\ndef f():")
    assert render("{{ .Prompt }}", "", "{{ .Suffix }}", "no") == "{{ .Suffix }}"  # a prompt is no template
    with pytest.raises(BadField, match="template may hold"):
        render("{{ if .System }}x{{ end }}", "", "", "")
    with pytest.raises(BadField, match="template may hold 8 variables, got more"):
        render("{{ .Prompt }}" * 1000, "", "x", "")


def test_show_keeps_continue_infilling() -> None:
    """It asks once when it starts, maybe before a model is there; an empty line in parameters ends its reading."""
    with saying("1") as client:
        found = client.post("/api/show", json={"name": "codegen2"}).json()
        client.post("/api/generate", json={"model": "x"})
        loaded = client.post("/api/show", json={"model": "codegen2"}).json()
    for card in (found, loaded):
        assert ".Suffix" in card["template"]
        assert card["capabilities"] == ["completion", "insert"]
        assert all(re.fullmatch(r"(\S+)\s+((?:\".*\")|\S+)", line) for line in card["parameters"].split("\n"))
    info = loaded["model_info"]
    assert info["codegen2.context_length"] == 256 and info["general.architecture"] == "codegen2"
    assert info["general.parameter_count"] > 1_000_000 and "num_ctx 256" in loaded["parameters"]


def test_tags_and_version() -> None:
    with saying("1", model_name="my-model") as client:
        (tag,) = client.get("/api/tags").json()["models"]
        version = client.get("/api/version").json()["version"]
    assert tag["name"] == tag["model"] == "my-model" and len(tag["digest"]) == 64 and tag["size"] == 0
    assert datetime.fromisoformat(tag["modified_at"]).tzinfo is not None
    assert {"format", "family", "families", "parameter_size", "quantization_level"} <= set(tag["details"])
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)  # what some clients insist on


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": 1}, "prompt must be a string"),
        ({"prompt": "x", "options": []}, "options must be an object"),
        ({"prompt": "x", "options": {"num_predict": "many"}}, "num_predict must be a whole number"),
        ({"prompt": "x", "options": {"top_p": 3}}, "top_p must be a number from 0 to 1"),
        ({"prompt": "x", "keep_alive": "soon"}, "keep_alive must be seconds or a duration"),
        ({"prompt": "x", "stream": "yes"}, "stream must be true or false"),
        ({"prompt": "x", "images": ["aGk="]}, "images is not supported"),
        ({"prompt": "x", "format": "json"}, "format is not supported"),
        (
            {"prompt": "x" * 2**21, "template": "{{ .Prompt }}" * 8 + "y"},
            "template makes 16777217 characters",
        ),
    ],
)
def test_errors_are_a_string_under_error(body: dict[str, Any], says: str) -> None:
    with saying("1") as client:
        reply = client.post("/api/generate", json=body)
        assert reply.status_code == 400 and set(reply.json()) == {"error"} and says in reply.json()["error"]
        assert lines(client)[-1]["done"] is True  # the next request works


def test_a_missing_path_has_ollamas_shape_too() -> None:
    with saying("1") as client:
        reply = client.post("/api/chat", json={})
    assert reply.status_code == 404 and isinstance(reply.json()["error"], str)


@pytest.mark.parametrize(
    "path", [p for p in RECORDED if recorded(p)["path"] == "/api/generate"], ids=lambda p: p.stem
)
def test_recorded_bodies(path: Any) -> None:
    request = recorded(path)
    with saying("3.14 * radius ** 2") as client:
        reply = client.post("/api/generate", content=json.dumps(request["body"]))
        assert reply.status_code == 200, reply.text
        found = [json.loads(line) for line in reply.text.splitlines()]
        assert (len(found) > 1) == (request["says"] == "lines")
        assert "".join(f["response"] for f in found).startswith("3.14")
        assert found[-1]["done"] and found[-1]["model"] == request["body"]["model"]
        assert re.search(r"<mask_1> ?\n\n\nprint\(area\(2\)\)\n<\|endoftext\|>", client.asked)
