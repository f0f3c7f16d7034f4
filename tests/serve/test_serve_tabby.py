"""Tabby's body on OpenAI's path, and what its plugins ask besides; all recorded bodies of that path are here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serve_helpers import RECORDED, asked, events, recorded, saying

from codegen2.serve.protocols.tabby import tabby_request
from codegen2.serve.schema import BadField, Body
from codegen2.serve.settings import Settings

SEGMENTS = {"prefix": "def f():\n    return ", "suffix": "\n\nf()\n"}


def test_told_apart_from_openais_by_its_body() -> None:
    with saying("1") as client:
        reply = client.post("/v1/completions", json={"language": "python", "segments": SEGMENTS})
        assert asked(client) == "def f():\n<mask_1>\n\nf()\n<|endoftext|><sep><mask_1>    return "
        assert set(reply.json()) == {"id", "choices"} and reply.json()["choices"] == [
            {"index": 0, "text": "1"}
        ]
        other = client.post("/v1/completions", json={"prompt": "x = ", "language": "python"}).json()
        assert other["object"] == "text_completion"
        both = client.post("/v1/completions", json={"prompt": "x = ", "segments": SEGMENTS}).json()
        assert both["object"] == "text_completion"


def test_snippets_come_before_the_prefix_the_best_nearest() -> None:
    segments = {
        **SEGMENTS,
        "declarations": [{"filepath": "a.py", "body": "best"}, {"filepath": "b.py", "body": "second"}],
        "relevant_snippets_from_recently_opened_files": [{"filepath": "c.py", "body": "last", "score": 0.1}],
    }
    with saying("1") as client:
        client.post("/v1/completions", json={"language": "python", "segments": segments})
        assert asked(client).startswith("last\n\nsecond\n\nbest\n\ndef f():\n<mask_1>")


def test_a_missing_suffix_is_an_end_of_file() -> None:
    with saying("1") as client:
        client.post("/v1/completions", json={"segments": {"prefix": "x = "}})
        assert asked(client) == "<mask_1><|endoftext|><sep><mask_1>x = "


def test_a_raw_prompt_has_markers() -> None:
    body = Body({"debug_options": {"raw_prompt": "<fim_prefix>a<fim_suffix>b<fim_middle>"}})
    ask = tabby_request(body, Settings(), room=999)
    assert (ask.prefix, ask.suffix) == ("a", "b")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"segments": {}}, "segments.prefix is missing"),
        ({"segments": []}, "segments must be an object"),
        ({"segments": {**SEGMENTS, "declarations": [1]}}, "segments.declarations must be a list of objects"),
        ({"segments": SEGMENTS, "mode": "next_edit_suggestion"}, "mode must be standard"),
        ({"segments": SEGMENTS, "seed": "x"}, "seed must be a whole number"),
    ],
)
def test_wrong_fields_are_answered_by_name(body: dict[str, Any], says: str) -> None:
    with pytest.raises(BadField, match=says):
        tabby_request(Body(body), Settings(), room=999)


def test_health_and_no_telemetry() -> None:
    with saying("1") as client:
        for reply in (client.get("/v1/health"), client.post("/v1/health", json={})):
            assert reply.status_code == 200 and reply.json()["model"] == "codegen2"
            assert (
                reply.json()["version"]["git_describe"].startswith("v") and reply.json()["cuda_devices"] == []
            )
        assert client.get("/v1beta/server_setting").json() == {"disable_client_side_telemetry": True}
        assert client.post("/v1/events", json={"type": "view", "text": "secret"}).status_code == 200


@pytest.mark.parametrize(
    "path", [p for p in RECORDED if recorded(p)["path"] == "/v1/completions"], ids=lambda p: p.stem
)
def test_recorded_bodies(path: Any) -> None:
    request = recorded(path)
    with saying("3.14 * radius ** 2") as client:
        reply = client.post("/v1/completions", content=json.dumps(request["body"]))
        assert reply.status_code == 200, reply.text
        if request["says"] == "events":
            text = "".join(e["choices"][0]["text"] for e in events(reply.text) if e["choices"])
            assert reply.text.endswith("data: [DONE]\n\n")
        else:
            text = reply.json()["choices"][0]["text"]
        assert text.startswith("3.14")
        assert "<mask_1>\n\n\nprint(area(2))\n<|endoftext|>" in asked(client)
