"""Tabby's body on OpenAI's path, and what its plugins ask besides; all recorded bodies of that path are here."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from serve_protocols import RECORDED, events, recorded, saying

SEGMENTS = {"prefix": "def f():\n    return ", "suffix": "\n\nf()\n"}


def test_told_apart_from_openais_by_its_body() -> None:
    with saying("1") as client:
        reply = client.post("/v1/completions", json={"language": "python", "segments": SEGMENTS})
        assert client.asked == "def f():\n<mask_1>\n\nf()\n<|endoftext|><sep><mask_1>    return "
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
        assert client.asked.startswith("last\n\nsecond\n\nbest\n\ndef f():\n<mask_1>")


def test_a_missing_suffix_is_an_end_of_file() -> None:
    with saying("1") as client:
        client.post("/v1/completions", json={"segments": {"prefix": "x = "}})
        assert client.asked == "<mask_1><|endoftext|><sep><mask_1>x = "


def test_a_raw_prompt_has_markers() -> None:
    with saying("1") as client:
        marked = {"raw_prompt": "<fim_prefix>a = <fim_suffix>b<fim_middle>"}
        client.post("/v1/completions", json={"debug_options": marked})
        assert client.asked == "<mask_1>b<|endoftext|><sep><mask_1>a = "


def test_the_language_reaches_the_cuts() -> None:
    """In Ruby # begins a comment and its bracket closes nothing; in C it does."""
    with saying("x # )\n") as client:
        bodies = [{"language": name, "segments": {"prefix": "f(", "suffix": ")\n"}} for name in ("ruby", "c")]
        texts = [client.post("/v1/completions", json=b).json()["choices"][0]["text"] for b in bodies]
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"segments": {}}, "segments.prefix is missing"),
        ({"segments": []}, "segments must be an object"),
        ({"segments": {**SEGMENTS, "declarations": [1]}}, "segments.declarations.* must be"),
        ({"segments": SEGMENTS, "mode": "next_edit_suggestion"}, "mode must be standard"),
        ({"segments": SEGMENTS, "seed": "x"}, "seed must be a whole number"),
    ],
)
def test_wrong_fields_are_answered_by_name(body: dict[str, Any], says: str) -> None:
    with saying("1") as client:
        reply = client.post("/v1/completions", json=body)
    assert reply.status_code == 400 and re.search(says, reply.json()["error"]["message"]), reply.text


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
        assert "<mask_1>\n\n\nprint(area(2))\n<|endoftext|>" in client.asked
