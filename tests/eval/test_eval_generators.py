"""Who answers: our own model, a server with OpenAI's completions interface, a directory that transformers loads."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny import ScriptedEngine

from codegen2.api import Model
from codegen2.eval.generators.base import Decoding, Task, cut_completion
from codegen2.eval.generators.endpoint import Endpoint
from codegen2.eval.generators.own import OwnModel
from codegen2.text.tokenizer import Tokenizer

TOK = Tokenizer()
COMPLETE = Task("t/0", "def f(x):\n")
HOLE = Task("t/1", "x = (", ")\n")


def scripted(text: str) -> OwnModel:
    return OwnModel(Model(ScriptedEngine(TOK.encode(text, allow_control=True)), TOK, "scripted"))


# ---- our own


def test_a_completion_ends_at_the_next_top_level_statement() -> None:
    [answer] = scripted("    return x\n\n\ndef g():\n    pass\n" * 3).answer(
        COMPLETE, range(1), Decoding(200)
    )
    assert answer.raw == "    return x\n\n"
    assert answer.finish_reason == "stop"
    assert answer.tokens is not None and answer.tokens < 12  # the rest was not even generated
    assert cut_completion("    return x\nclassy = 1\n") == "    return x\nclassy = 1\n"


def test_raw_ends_at_eom_only_and_shown_is_cut() -> None:
    [answer] = scripted("1)\ny = 2\n<eom>").answer(HOLE, range(1), Decoding(20, stop_at="line"))
    assert (answer.raw, answer.shown, answer.finish_reason) == ("1)\ny = 2\n", "1", "stop")
    [answer] = scripted("1)\ny = 2\n<eom>").answer(HOLE, range(1), Decoding(3, stop_at="line"))
    assert answer.finish_reason == "length"


def test_early_ends_generation_where_an_editor_would() -> None:
    [answer] = scripted("1 + 2,\n3,\n4\n<eom>").answer(
        HOLE, range(1), Decoding(50, stop_at="line", early=True)
    )
    assert answer.raw == "1 + 2,\n"
    assert answer.shown == "1 + 2,"


def test_the_fingerprint_is_of_what_the_model_computes() -> None:
    one, same, other = scripted("a"), scripted("a"), scripted("b")
    assert one.describe() == same.describe()
    assert one.describe()["fingerprint"] != other.describe()["fingerprint"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -1.0, "temperature must be"),
        ("top_p", 2.0, "top_p must be"),
        ("max_new_tokens", 0, "at least 1"),
    ],
)
def test_decoding_is_checked(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**{field: value})  # type: ignore[arg-type]


# ---- a server


class Server(ThreadingHTTPServer):
    """A stub: answers with what `replies` has, the last one for ever; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[tuple[int, dict[str, str], bytes]] = []
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), json.loads(body)))
        at = min(len(self.server.asked), len(self.server.replies)) - 1
        status, headers, data = self.server.replies[at]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as stub:
        thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield stub
        stub.shutdown()
        thread.join()


def said(text: str, **more: Any) -> tuple[int, dict[str, str], bytes]:
    choice = {"text": text, "finish_reason": "stop"}
    return 200, {}, json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}, **more}).encode()


def test_an_endpoint_is_asked_as_openai_says(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    server.replies = [said("1)\nmore")]
    peer = Endpoint(server.url + "/v1/", "m", "SOME_KEY")
    how = Decoding(9, 0.8, 0.95, stop_at="line")
    answers = peer.answer(HOLE, range(2), how)
    assert [(a.raw, a.shown, a.tokens, a.finish_reason) for a in answers] == [
        ("1)\nmore", "1", 3, "stop")
    ] * 2
    (path, headers, first), (_, _, second) = server.asked
    assert path == "/v1/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert first["seed"] != second["seed"]
    assert first | {"seed": 0} == {
        "prompt": "x = (", "suffix": ")\n", "max_tokens": 9, "temperature": 0.8, "top_p": 0.95, "model": "m", "seed": 0,
    }  # fmt: skip
    assert "secret" not in json.dumps(peer.describe())


def test_an_endpoint_s_completion_is_cut(server: Server) -> None:
    server.replies = [said("    return x\nprint(f(1))\n")]
    [answer] = Endpoint(server.url + "/completions").answer(COMPLETE, range(1), Decoding(9))
    assert answer.raw == "    return x"
    path, headers, body = server.asked[0]
    assert (path, len(body["stop"]), "suffix" in body) == ("/completions", 4, False)
    assert "Authorization" not in headers


def test_an_endpoint_is_asked_again_after_what_passes(server: Server) -> None:
    waits: list[float] = []
    server.replies = [(429, {"Retry-After": "7"}, b"slow down"), (503, {}, b""), (500, {}, b"x"), said("1")]
    [answer] = Endpoint(server.url, sleep=waits.append).answer(HOLE, range(1), Decoding())
    assert answer.raw == "1"
    assert waits == [7.0, 2.0, 4.0]


def test_an_endpoint_that_stays_down_is_given_up(server: Server) -> None:
    waits: list[float] = []
    server.replies = [(500, {}, b"broken")]
    with pytest.raises(
        ValueError, match="6 tries failed, the last with HTTP 500 Internal Server Error: broken"
    ):
        Endpoint(server.url, sleep=waits.append).answer(HOLE, range(1), Decoding())
    assert waits == [1, 2, 4, 8, 16]
    server.server_close()
    with pytest.raises(ValueError, match="6 tries failed, the last with .*refused"):
        Endpoint(server.url, sleep=waits.append).answer(HOLE, range(1), Decoding())


def test_a_slow_endpoint_times_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(Handler, "do_POST", lambda self: done.wait(300))
    try:
        with pytest.raises(ValueError, match="the last with .*timed out"):
            Endpoint(server.url, timeout_s=0.05, sleep=lambda s: None).answer(HOLE, range(1), Decoding())
    finally:
        done.set()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {}, b'{"error": "no key"}'), "HTTP 401 Unauthorized: .*no key.*--api-key-env"),
        ((404, {}, b"what?"), "HTTP 404 Not Found: what\\?; check the URL"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "HTTP 302"),
        ((200, {}, b"<html>"), "the answer is no JSON: <html>"),
        ((200, {}, b'{"choices": []}'), "the answer is no completion"),
        ((200, {}, b'{"choices": [{"text": 3}]}'), "the answer is no completion"),
        ((200, {}, b"[]"), "the answer is no completion"),
    ],
)
def test_an_endpoint_s_errors_are_said_at_once(server: Server, reply: Any, message: str) -> None:
    server.replies = [reply]
    with pytest.raises(ValueError, match=message):
        Endpoint(server.url).answer(HOLE, range(1), Decoding())
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://user:pass@host/v1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="--endpoint"):
        Endpoint(url)


def test_a_key_that_is_not_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ValueError, match="NO_SUCH_KEY: no such variable is set"):
        Endpoint("http://127.0.0.1:1", None, "NO_SUCH_KEY")


# ---- transformers


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from codegen2.eval.generators.transformers_model import TransformersModel

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ValueError, match=r"needs torch; install it: pip install 'codegen2\[train\]' transformers"
    ):
        TransformersModel("x")


@pytest.fixture(scope="module")
def both_forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a small model of random weights as a directory that we load and as one that transformers loads."""
    from checkpoint_files import SNIPPET_CONFIG, random_tensors, write_checkpoint

    from codegen2.checkpoint.convert import convert

    folder = tmp_path_factory.mktemp("both")
    own = write_checkpoint(folder / "own", SNIPPET_CONFIG.to_dict(), random_tensors(SNIPPET_CONFIG))
    convert(own, folder / "hf", "hf", dtype="float32", check=False)
    return own, folder / "hf"


@pytest.mark.torch
@pytest.mark.slow  # transformers prepares each call's stop strings with all of the vocabulary, two seconds
def test_a_transformers_directory_answers_as_our_engine_does(both_forms: tuple[Path, Path]) -> None:
    from codegen2 import load
    from codegen2.eval.generators.transformers_model import TransformersModel

    ours_at, theirs_at = both_forms
    peer = TransformersModel(str(theirs_at), threads=1)
    assert peer.describe()["infill"] == "codegen2"
    own = OwnModel(load(ours_at, engine="reference", dtype="float32", threads=1, cache_gib=0.05))
    how = Decoding(16, stop_at="line")
    for request in (
        Task("a", "import os\n\n\ndef add(a, b):\n"),
        Task("b", "def add(a, b):\n", "\n\n\ndef sub(a, b):\n    return a - b\n"),
    ):
        [theirs], [ours] = peer.answer(request, range(1), how), own.answer(request, range(1), how)
        assert (theirs.raw, theirs.shown) == (ours.raw, ours.shown)
    warm = Decoding(8, 0.8, 0.95, seed=1)
    hot = Task("c", "def f(")
    first = peer.answer(hot, range(3), warm)
    assert [a.raw for a in peer.answer(hot, range(1, 2), warm)] == [first[1].raw]
    assert len({a.raw for a in first}) > 1


@pytest.mark.torch
def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    from codegen2.eval.generators.transformers_model import TransformersModel

    with pytest.raises(ValueError, match="no such directory"):
        TransformersModel(str(tmp_path / "no"))
    with pytest.raises(ValueError, match="transformers cannot load it as a causal model"):
        TransformersModel(str(tmp_path))


def test_formats_of_families() -> None:
    from codegen2.eval.generators.transformers_model import choose_format, cut_ids

    assert choose_format({"a": 1}.get) is None
    qwen = {"<|fim_prefix|>": 1, "<|fim_suffix|>": 2, "<|fim_middle|>": 3, "<|endoftext|>": 4}
    found = choose_format(qwen.get)
    assert found is not None and found[0].begin == "<|fim_prefix|>"
    del qwen["<|fim_middle|>"]
    assert choose_format(qwen.get) is None
    for before, after, room in ((5, 5, 20), (50, 5, 20), (5, 50, 20), (50, 50, 20), (0, 50, 7), (50, 0, 7)):
        kept, rest = cut_ids(range(before), range(100, 100 + after), room)
        assert len(kept) + len(rest) == min(room, before + after)
        assert kept == list(range(before))[before - len(kept) :]
        assert rest == list(range(100, 100 + len(rest)))
