"""The language server: documents, what is asked for at a cursor, the protocol before set answers, the box, a server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pygls", reason="needs codegen2[lsp]")

from lsp_client import Client, Process, position
from lsprotocol.types import Position, Range, SelectedCompletionInfo

from codegen2.api import Model
from codegen2.cli.main import main
from codegen2.generation.params import SamplingParams
from codegen2.generation.request import Request
from codegen2.generation.results import Choice
from codegen2.loading import load
from codegen2.lsp import documents
from codegen2.lsp.backend import LocalBackend, RemoteBackend
from codegen2.lsp.documents import Document, count_units, split_lines
from codegen2.lsp.request import Cursor, Settings, opens_block, read_settings, request_at
from codegen2.lsp.server import serve_io
from codegen2.text.cursor import Place

URI = "file:///a.py"


@pytest.fixture(scope="module")
def model() -> Model:
    """Return the model in the box."""
    return load(engine="native")


ENCODINGS = ("utf-8", "utf-16", "utf-32")
TEXTS = st.text(st.sampled_from("ab é\u20ac\U0001f600\r\n\x0c\u2028"), max_size=12)

# ---- documents


def naive_index(text: str, at: Position, encoding: str) -> int:
    """Return the index in text of a position, counted character by character."""
    index, line = 0, 0
    for match in re.finditer(r"\r\n|\r|\n", text):
        if line == at.line:
            break
        line, index = line + 1, match.end()
    if line < at.line:
        return len(text)
    units = 0
    while index < len(text) and text[index] not in "\r\n":
        units += count_units(text[index], encoding)
        if units > at.character:
            break
        index += 1
    return index


@given(
    TEXTS,
    st.lists(st.tuples(*[st.integers(0, 6)] * 4, TEXTS), max_size=4),
    st.sampled_from(ENCODINGS),
    st.sampled_from([0, 2, 2**14]),
)
def test_changes_are_those_of_a_whole_text(
    text: str, changes: list[tuple[int, int, int, int, str]], encoding: str, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_BLOCK", block)
        changes_are_those_of_a_whole_text(text, changes, encoding)


def changes_are_those_of_a_whole_text(text, changes, encoding) -> None:
    document = Document(text, encoding=encoding)
    for a, b, c, d, new in changes:
        start, end = Position(a, b), Position(c, d)
        i, j = sorted((naive_index(text, start, encoding), naive_index(text, end, encoding)))
        text = text[:i] + new + text[j:]
        document.change(start, end, new)
        assert "".join(document.blocks) == text
        assert [document.locate(Position(i, 0)).text for i in range(len(split_lines(text)))] == split_lines(
            text
        )
        cursor = Cursor.of(document, start)
        index = naive_index(text, start, encoding)
        assert (cursor.prefix, cursor.suffix) == (text[:index], text[index:])


def test_lines_end_where_the_protocol_says_and_nowhere_else() -> None:
    document = Document("a\x0cb\u2028c\r\nd")
    document.change(Position(1, 0), Position(1, 1), "X")
    assert "".join(document.blocks) == "a\x0cb\u2028c\r\nX"


def test_a_line_end_that_comes_in_two_changes_is_one() -> None:
    document = Document("a\rb\nc")
    document.change(Position(1, 0), Position(1, 1), "")
    assert split_lines("".join(document.blocks)) == ["a\r\n", "c"]
    document.change(Position(1, 0), Position(1, 0), "\n")
    assert split_lines("".join(document.blocks)) == ["a\r\n", "\n", "c"]


def test_halves_of_a_character_become_one_and_a_lone_half_reaches_no_tokenizer() -> None:
    document = Document("x")
    document.change(Position(0, 1), Position(0, 1), "\ud83d")
    assert Cursor.of(document, Position(0, 9)).prefix == "x\ufffd"
    document.change(Position(0, 2), Position(0, 2), "\ude00")
    assert "".join(document.blocks) == "x\U0001f600"


def test_a_huge_document_is_cut_the_same_while_somebody_types() -> None:
    line = "x = 1\n"
    document = Document(line * 500_000)
    first = Cursor.of(document, Position(400_000, 0))
    for i in range(50):
        document.change(Position(400_000 + i, 0), Position(400_000 + i, 0), "y\n")
    second = Cursor.of(document, Position(400_050, 0))
    assert len(first.prefix) <= 2**20 and len(first.suffix) <= 2**20 + len(line)
    assert second.prefix == first.prefix + "y\n" * 50
    assert second.suffix == first.suffix


# ---- what is asked for


@pytest.mark.parametrize(
    ("before", "after", "language", "opens"),
    [
        ("def f(x):", "\n", "python", True),
        ("def f(x):  # why", "\n", "python", True),
        ("def f(x):\n    ", "\n", "python", True),
        ("def f(x):\n    a = 1\n    ", "\n", "python", False),
        ("x = ", "\n", "python", False),
        ("print(", ")\n", "python", False),
        ("f = {\n", "\n}\n", "javascript", True),
        ("f = {", "}\n", "javascript", False),  # an editor's own bracket stays where it is
        ("const f = () => ", "\n", "javascript", True),
        ("if (a) {\n\t", "\n}\n", "c", True),
        ("a = b", "\n", "c", False),
        ("", "", "python", False),
        ("", "def f():\n", "python", False),
        ("if x then", "\n", "lua", True),
    ],
)
def test_where_a_block_opens(before: str, after: str, language: str, opens: bool) -> None:
    document = Document(before + after, language)
    lines = before.split("\n")
    cursor = Cursor.of(document, Position(len(lines) - 1, len(lines[-1])))
    place = Place.of(cursor.prefix, cursor.suffix, language)
    assert opens_block(place) is opens

    def asked(settings: Settings, invoked: bool) -> Request:
        return request_at(cursor, settings, invoked=invoked, session="s")

    whole = not place.rest
    assert asked(Settings(), False).stop_at == ("block" if opens else "line")
    assert asked(Settings(), True).stop_at == ("block" if whole else "line")
    assert asked(Settings(multiline="always"), False).stop_at == ("block" if whole else "line")
    assert asked(Settings(multiline="never"), True).stop_at == "line"
    request = asked(Settings(), False)
    assert (request.prefix, request.suffix, request.language) == (before, after, language)


def test_settings_that_are_wrong_are_named_and_passed_over() -> None:
    given = {"maxTokens": 0, "debounceMs": "x", "multiline": "always", "colour": 1, "temperature": 0.5}
    settings, wrong = read_settings(given, Settings())
    assert (settings.max_new_tokens, settings.multiline, settings.temperature) == (128, "always", 0.5)
    assert len(wrong) == 3
    assert "codegen2.maxTokens must be a whole number from 1 to 4096, got 0" in wrong
    assert any("codegen2.colour is unknown" in sentence for sentence in wrong)
    assert read_settings(None, Settings()) == (Settings(), [])
    assert read_settings([1], Settings())[1] == ["codegen2 must be an object of settings, got a list"]


def test_an_item_replaces_the_blanks_that_must_go() -> None:
    document = Document("if \U0001f600:\n    x()\n    \n")
    item = Cursor.of(document, Position(2, 4)).item(Choice("else:\n    y()", unindent=4))
    assert item is not None
    assert item.range == Range(Position(2, 0), Position(2, 4)) and item.insert_text == "else:\n    y()"
    assert item.filter_text == "    else:\n    y()"
    assert Cursor.of(document, Position(2, 4)).item(Choice(" \n ")) is None


def test_an_item_goes_on_from_the_menu_s_entry() -> None:
    document = Document("x = pri\ny\n")
    entry = SelectedCompletionInfo(Range(Position(0, 4), Position(0, 7)), "print")
    cursor = Cursor.of(document, Position(0, 7), entry)
    assert (cursor.prefix, cursor.suffix) == ("x = print", "\ny\n")
    item = cursor.item(Choice("(1)"))
    assert item is not None and (item.insert_text, item.range) == ("print(1)", entry.range)
    entry = SelectedCompletionInfo(Range(Position(1, 0), Position(1, 1)), "z")
    elsewhere = Cursor.of(document, Position(0, 7), entry)
    assert elsewhere.prefix == "x = pri" and elsewhere.selected is None


# ---- the protocol


@dataclass
class Fake:
    """A backend that says set things, once it may."""

    text: str = "ANSWER"
    unindent: int = 0
    answers: bool = True  # whether requests are answered yet
    loads: bool = True  # whether the model is loaded yet
    fault: Exception | None = None
    requests: list[Request] = field(default_factory=list)
    ended: int = 0  # requests broken off
    opened: list[Settings] = field(default_factory=list)

    async def start(self) -> None:
        while not self.loads:
            await asyncio.sleep(0.001)
        if self.fault is not None:
            raise self.fault

    async def complete(self, request: Request) -> Choice | None:
        self.requests.append(request)
        try:
            while not self.answers:
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.ended += 1
            raise
        return Choice(self.text, unindent=self.unindent)

    def close(self) -> None:
        pass


class Talk(Client):
    """A client of a server in a thread of this process, before a Fake."""

    def __init__(
        self, fake: Fake, editor: Any = None, settings: Settings | None = None, sleep: Any = asyncio.sleep
    ) -> None:
        ours, theirs = os.pipe(), os.pipe()
        stdin, stdout = os.fdopen(ours[0], "rb"), os.fdopen(theirs[1], "wb")

        def opened(now: Settings) -> Fake:
            fake.opened.append(now)
            return fake

        self.status: int | None = None

        def run() -> None:
            self.status = serve_io(opened, settings or Settings(), stdin, stdout, sleep)
            stdin.close()
            stdout.close()

        self.server = threading.Thread(target=run, daemon=True)
        self.server.start()
        super().__init__(os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb"), editor)

    def close(self) -> None:
        """Go away."""
        self._out.close()
        self.server.join(300)
        self._thread.join(300)
        self._in.close()


@pytest.fixture
def talk() -> Iterator[Callable[..., Talk]]:
    made: list[Talk] = []

    def begin(*args: Any, **more: Any) -> Talk:
        made.append(Talk(*args, **more))
        return made[-1]

    yield begin
    for one in made:
        one.close()
        assert one.broken is None and not one.server.is_alive()


def eventually(condition: Callable[[], object], within_s: float = 300) -> None:
    last = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < last, "never true"
        time.sleep(0.01)


def test_capabilities_and_end(talk: Callable[..., Talk]) -> None:
    client = talk(Fake())
    capabilities = client.begin()
    assert capabilities["positionEncoding"] == "utf-16"
    assert capabilities["inlineCompletionProvider"] is not None
    assert capabilities["textDocumentSync"]["change"] == 2 and capabilities["textDocumentSync"]["openClose"]
    client.end()
    client.server.join(300)
    assert client.status == 0


def test_exit_without_shutdown_is_an_error(talk: Callable[..., Talk]) -> None:
    client = talk(Fake())
    client.begin()
    client.notify("exit")
    client.server.join(300)
    assert client.status == 1


@pytest.mark.parametrize(("offered", "character"), [("utf-8", 5), ("utf-16", 3), ("utf-32", 2)])
def test_positions_in_the_encoding_that_the_client_offers(
    talk: Callable[..., Talk], offered: str, character: int
) -> None:
    client, fake = talk(fake := Fake(unindent=0)), fake
    capabilities = client.begin({"general": {"positionEncodings": [offered]}})
    assert capabilities["positionEncoding"] == offered
    client.open("\U0001f600x y\r\nz")
    number = client.want(0, character)
    assert client.items(number)[0]["range"] == {
        "start": position(0, character),
        "end": position(0, character),
    }
    assert (fake.requests[0].prefix, fake.requests[0].suffix) == ("\U0001f600x", " y\r\nz")


def test_documents_are_followed(talk: Callable[..., Talk]) -> None:
    fake = Fake()
    client = talk(fake)
    client.begin()
    client.open("")
    assert client.items(client.want(7, 7))[0]["range"]["start"] == position(0, 0)
    client.change(((0, 0), (0, 0), "a\r\n"), ((1, 0), (1, 0), "bc"), ((1, 1), (1, 2), ""))
    client.items(client.want(1, 99))
    assert (fake.requests[-1].prefix, fake.requests[-1].suffix) == ("a\r\nb", "")
    client.notify(
        "textDocument/didChange",
        {"textDocument": {"uri": URI, "version": 3}, "contentChanges": [{"text": "whole"}]},
    )
    client.items(client.want(0, 99))
    assert fake.requests[-1].prefix == "whole"
    client.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
    assert client.answer(client.want(0, 0))["result"] is None


def test_the_answer_is_to_the_text_as_it_was_asked(talk: Callable[..., Talk]) -> None:
    fake = Fake()
    client = talk(fake)
    client.begin()
    client.open("one")
    number = client.want(0, 3)
    client.change(((0, 0), (0, 3), "two"))
    client.items(number)
    assert fake.requests[0].prefix == "one"


def test_triggers_and_what_they_ask_for(talk: Callable[..., Talk]) -> None:
    fake = Fake()
    client = talk(fake)
    client.begin()
    client.open("x = \nname\n")
    client.items(client.want(0, 4, kind=2))
    client.items(client.want(0, 4, kind=1))
    assert {r.language for r in fake.requests} == {"python"}
    assert [r.stop_at for r in fake.requests] == ["line", "block"]
    assert fake.requests[0].params.max_new_tokens < fake.requests[1].params.max_new_tokens == 128
    assert client.items(client.want(1, 2, kind=2)) == [] and len(fake.requests) == 2  # inside a name
    assert client.items(client.want(1, 2, kind=1)) != []


def test_the_menu_s_entry_is_respected(talk: Callable[..., Talk]) -> None:
    fake = Fake(text="(1)")
    client = talk(fake)
    client.begin()
    client.open("pri")
    entry = {"range": {"start": position(0, 0), "end": position(0, 3)}, "text": "print"}
    item = client.items(client.want(0, 3, kind=2, selectedCompletionInfo=entry))[0]
    assert item["insertText"] == item["filterText"] == "print(1)" and item["range"] == entry["range"]
    assert fake.requests[0].prefix == "print"


def test_cancelling_ends_the_work(talk: Callable[..., Talk]) -> None:
    fake = Fake(answers=False)
    client = talk(fake)
    client.begin()
    client.open("x")
    number = client.want(0, 1)
    eventually(lambda: fake.requests)
    client.notify("$/cancelRequest", {"id": number})
    assert client.answer(number)["error"]["code"] == -32800
    eventually(lambda: fake.ended == 1)


def test_a_newer_request_of_a_document_ends_the_older_one(talk: Callable[..., Talk]) -> None:
    fake = Fake(answers=False)
    client = talk(fake)
    client.begin()
    client.open("x")
    client.open("y", uri="file:///b.py")
    other = client.want(0, 1, uri="file:///b.py")
    first, second = client.want(0, 1), client.want(0, 1)
    assert client.answer(first)["result"] is None
    fake.answers = True
    assert client.items(second) and client.items(other)
    assert fake.ended == 1 and len({r.session for r in fake.requests}) == 2


def test_automatic_requests_wait_for_a_pause(talk: Callable[..., Talk]) -> None:
    fake, waited, over = Fake(), [], threading.Event()

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        while not over.is_set():
            await asyncio.sleep(0.001)

    client = talk(fake, settings=Settings(debounce_ms=300), sleep=sleep)
    client.begin()
    client.open("x = ")
    *older, last = [client.want(0, 4, kind=2) for _ in range(5)]
    assert [client.items(n) for n in older] == [[]] * 4
    eventually(lambda: len(waited) == 5)
    assert fake.requests == []
    over.set()
    assert client.items(last) and len(fake.requests) == 1 and set(waited) == {0.3}


def test_settings_are_asked_for_and_changes_followed(talk: Callable[..., Talk]) -> None:
    fake = Fake()
    client = talk(fake, {"maxTokens": 7, "model": "one"})
    can = {"configuration": True, "didChangeConfiguration": {"dynamicRegistration": True}}
    client.begin({"workspace": can})
    client.open("x")
    client.items(client.want(0, 1))
    assert fake.requests[-1].params.max_new_tokens == 7 and [s.model for s in fake.opened] == ["one"]
    eventually(lambda: any(m["method"] == "client/registerCapability" for m in client.heard))
    client.settings = {"maxTokens": 9, "model": "two"}
    client.notify("workspace/didChangeConfiguration", {"settings": None})
    eventually(lambda: len(fake.opened) == 2)
    client.items(client.want(0, 1))
    assert fake.requests[-1].params.max_new_tokens == 9 and fake.opened[-1].model == "two"
    client.settings = {"maxTokens": 0}
    client.notify("workspace/didChangeConfiguration", {"settings": None})
    eventually(lambda: any("maxTokens must be" in json.dumps(m) for m in client.heard))


def test_settings_by_options_and_by_pushed_changes(talk: Callable[..., Talk]) -> None:
    fake = Fake()
    client = talk(fake)
    client.begin(options={"maxTokens": 5, "automatic": False})
    client.open("x")
    client.items(client.want(0, 1))
    assert fake.requests[-1].params.max_new_tokens == 5
    assert client.items(client.want(0, 1, kind=2)) == []
    client.notify("workspace/didChangeConfiguration", {"settings": {"codegen2": {"automatic": True}}})
    assert client.items(client.want(0, 1, kind=2))
    assert fake.requests[-1].params.max_new_tokens == 5


def test_while_the_model_loads(talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codegen2.lsp.server._LOADING_S", 0.01)
    fake = Fake(loads=False)
    client = talk(fake)
    client.begin({"window": {"workDoneProgress": True}})
    client.open("x")
    assert client.items(client.want(0, 1, kind=2)) == []
    invoked = client.want(0, 1, kind=1)  # somebody who asks waits
    fake.loads = True
    assert client.items(invoked)
    eventually(lambda: sum(m["method"] == "$/progress" for m in client.heard) == 2)
    kinds = [m["params"]["value"]["kind"] for m in client.heard if m["method"] == "$/progress"]
    assert kinds == ["begin", "end"]


def test_a_model_that_cannot_be_loaded_is_said_once_and_tried_again_on_request(
    talk: Callable[..., Talk],
) -> None:
    fake = Fake(fault=ValueError("no such model"))
    client = talk(fake)
    client.begin()
    client.open("x = ")
    assert client.items(client.want(0, 4, kind=2)) == client.items(client.want(0, 4, kind=2)) == []
    shown = [m["params"] for m in client.heard if m["method"] == "window/showMessage"]
    assert shown == [{"type": 1, "message": "codegen2: no such model"}]
    fake.fault = None
    assert client.items(client.want(0, 4, kind=1))


def test_a_fault_is_said_once_and_answered_with_nothing(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(request: Request) -> None:
        raise OSError("no server")

    fake = Fake()
    monkeypatch.setattr(fake, "complete", broken)
    client = talk(fake)
    client.begin()
    client.open("x")
    assert client.items(client.want(0, 1)) == client.items(client.want(0, 1)) == []
    shown = [m["params"]["message"] for m in client.heard if m["method"] == "window/showMessage"]
    assert shown == ["codegen2: no server"]


def test_unknown_documents_and_methods_are_answered(talk: Callable[..., Talk]) -> None:
    client = talk(Fake())
    client.begin()
    assert client.answer(client.want(0, 0, uri="file:///never"))["result"] is None
    client.change(((0, 0), (0, 0), "x"), uri="file:///never")
    assert client.answer(client.ask("no/such"))["error"]["code"] == -32601
    assert "error" in client.answer(client.ask("textDocument/inlineCompletion", {"position": 1}))
    client.open("x")
    assert client.items(client.want(0, 1))


# ---- the engine


def test_the_box_answers_in_a_process_and_says_nothing_else() -> None:
    client = Process()
    try:
        client.begin()
        text = "def add(a, b):\r\n    return a +\r\n\r\n\r\nprint(add(1, 2))\r\n"
        client.open(text)
        got = client.items(client.want(1, 14))
        assert got and "\n" not in got[0]["insertText"].replace("\r\n", "")
        for i, key in enumerate(" b"):
            client.change(((1, 14 + i), (1, 14 + i), key))
            client.items(client.want(1, 15 + i, kind=2))
        client.open("", uri="file:///empty.py")
        client.answer(client.want(0, 0, uri="file:///empty.py"))
        client.end()
        assert client.process.wait(300) == 0
        client._thread.join(300)
        assert client.broken is None
        assert client.process.stderr is not None and client.process.stderr.read() == b""
    finally:
        client.close()


@pytest.mark.parametrize(
    "arguments",
    [["--adapter", "x"], ["--dtype", "int4"], ["--threads", "1"], ["--device", "cuda"], ["--no-check"]],
)
def test_options_of_a_model_are_not_for_a_server(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lsp", "--server", "127.0.0.1:1", *arguments]) == 2
    told = capsys.readouterr().err
    assert (
        told
        == f"codegen2: {arguments[0]}: the model runs at 127.0.0.1:1; give that to codegen2 serve there\n"
    )


def test_a_wrong_option_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--max-new-tokens", "0"], ["--server", "ftp://x"], ["--cache-gib", "-1"]):
        assert main(["lsp", *arguments]) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1, told


def request(
    prefix: str, suffix: str = "\n", stop_at: Any = "block", session: str = "s", tokens: int = 64
) -> Request:
    return Request(
        prefix, suffix, params=SamplingParams(max_new_tokens=tokens), stop_at=stop_at, language="python",
        session=session,
    )  # fmt: skip


LINES = "".join(f"value_{i} = compute({i}, other={i * 7})\n" for i in range(3000))


@contextmanager
def local(model: Model) -> Iterator[LocalBackend]:
    """Run a backend on a model."""
    backend = LocalBackend(lambda: model)
    yield backend
    backend._worker.stop()


def test_cancelling_ends_the_engine_s_work(model: Model) -> None:
    async def run(backend: LocalBackend) -> None:
        await backend.start()
        task = asyncio.ensure_future(backend.complete(request(LINES, tokens=1024)))
        while not model.scheduler.running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while backend._worker.busy():
            await asyncio.sleep(0.001)
        assert not model.scheduler.running and not model.scheduler.waiting

    with local(model) as backend:
        asyncio.run(run(backend))


def test_a_newer_request_of_a_session_takes_an_older_one_s_place(model: Model) -> None:
    async def run(backend: LocalBackend) -> list[Choice | None]:
        older = asyncio.ensure_future(backend.complete(request(LINES, tokens=1024)))
        while not model.scheduler.running:
            await asyncio.sleep(0.001)
        return [await backend.complete(request("x = ", tokens=2)), await older]

    with local(model) as backend:
        newer, older = asyncio.run(run(backend))
    assert newer is not None and older is None


def test_a_line_is_one_line_and_what_the_backend_gives_is_what_the_library_gives(model: Model) -> None:
    text = "def add(a, b):\n    "

    async def run(backend: LocalBackend) -> list[Choice | None]:
        return [await backend.complete(request(text, "\n", stop)) for stop in ("line", "block")]

    with local(model) as backend:
        line, block = asyncio.run(run(backend))
    assert line is not None and line.text and "\n" not in line.text
    expected = model.infill(text, "\n", stop_at="block", max_new_tokens=64, language="python")
    assert block == expected.choices[0]


# ---- a server


class Server:
    """A server of set bytes on a socket; it keeps what it was sent."""

    def __init__(self, answer: bytes = b"", wait_s: float = 0.0) -> None:
        self.answer, self.wait_s = answer, wait_s
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.asked: list[tuple[bytes, dict[str, Any]]] = []
        self.gone = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        raw = b""
        while b"\r\n\r\n" not in raw:
            part = connection.recv(2**16)
            if not part:
                return
            raw += part
        head, _, body = raw.partition(b"\r\n\r\n")
        found = re.search(rb"Content-Length: (\d+)", head)
        assert found is not None
        while len(body) < int(found[1]):
            body += connection.recv(2**16)
        self.asked.append((head, json.loads(body)))
        if self.wait_s:
            connection.settimeout(self.wait_s)
            if connection.recv(1) == b"":
                self.gone.set()
            return
        connection.sendall(self.answer)


def reply(content: Any, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n\r\n".encode() + json.dumps(content).encode()


def test_a_server_is_asked_and_its_answer_processed() -> None:
    server = Server(reply({"choices": [{"text": "a + b\n\n\ndef other():\n    pass"}]}))
    backend = RemoteBackend(server.address + "/v1", "some-model", "key")
    got = asyncio.run(backend.complete(request("def add(a, b):\n    return ", "\n\nprint(1)\n")))
    assert got == Choice("a + b")
    head, body = server.asked[0]
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n") and b"Authorization: Bearer key" in head
    assert b"X-Session-Id: s" in head
    assert body["prompt"] == "def add(a, b):\n    return " and body["suffix"] == "\n\nprint(1)\n"
    assert (body["model"], body["max_tokens"], body["stop_at"]) == ("some-model", 64, "block")
    assert body["language"] == "python"
    server.listening.close()


def test_cancelling_closes_the_connection() -> None:
    server = Server(wait_s=300)

    async def run() -> None:
        task = asyncio.ensure_future(RemoteBackend(server.address).complete(request("x")))
        while not server.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert server.gone.wait(10)
    server.listening.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply({"error": {"message": "too much"}}, "413 No"), "answered 413: too much"),
        (reply({"choices": []}), "gave no"),
        (reply([1]), "gave no"),
        (reply({"choices": [{"text": 1}]}), "gave no"),
        (b"HTTP/1.1 200 OK\r\n\r\nnot json", "gave no"),
        (b"SSH-2.0-x\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
    ],
)
def test_what_servers_do_wrong_is_said(answer: bytes, message: str) -> None:
    server = Server(answer)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        asyncio.run(RemoteBackend(server.address).complete(request("x")))
    server.listening.close()


def test_no_server_is_said_with_the_remedy() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    listening.close()
    with pytest.raises(OSError, match="start codegen2 serve"):
        asyncio.run(RemoteBackend(f"127.0.0.1:{port}").start())
    for address in ("ftp://x", "http://", "http://a:b", "http://a/?q=1"):
        with pytest.raises(ValueError, match="must be an address"):
            RemoteBackend(address)


@pytest.mark.slow  # in this process: test_one_answer.py
def test_the_process_asks_our_server_and_ends_when_the_editor_does(model: Model) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="needs codegen2[serve]")
    from codegen2.serve.app import create_app
    from codegen2.serve.settings import Settings as ServerSettings

    app = create_app(lambda: model, ServerSettings())
    listening = socket.create_server(("127.0.0.1", 0))
    serving = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    run = serving.serve([listening])
    thread = threading.Thread(target=lambda: asyncio.run(run), daemon=True)
    thread.start()
    client = Process("--server", f"127.0.0.1:{listening.getsockname()[1]}")
    try:
        client.begin()
        client.open("def add(a, b):\n    return \n")
        assert client.items(client.want(1, 11))
        assert client.process.stdin is not None
        client.process.stdin.close()
        assert client.process.wait(300) == 0
    finally:
        client.close()
        serving.should_exit = True
        thread.join(300)
        listening.close()


# ---- other clients

NODE = shutil.which("node")
NODE_PACKAGE = "vscode-languageserver-protocol@3.18.5"
NODE_CLIENT = Path(__file__).parents[1] / "lsp_client.mjs"


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """Return the folder of vscode-languageserver-protocol, which is fetched once."""
    if NODE is None or shutil.which("npm") is None:
        pytest.skip("needs Node")
    folder = Path(__file__).parents[2] / "build" / "node-lsp"  # git knows nothing of it
    if not (folder / "node_modules" / "vscode-languageserver-protocol").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run([*npm, NODE_PACKAGE], capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm has no {NODE_PACKAGE}: {done.stderr[-200:]}")
    return folder / "node_modules"


@pytest.mark.slow
def test_the_client_of_vs_code_s_library(node_modules: Path) -> None:
    assert NODE is not None
    command = [NODE, str(NODE_CLIENT), str(node_modules), sys.executable, "-m", "codegen2", "lsp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["provider"] and said["encoding"] == "utf-16"
    assert said["items"] and said["range"] == {"start": position(1, 11), "end": position(1, 11)}
    assert said["cancelled"] == -32800


def neovim() -> str | None:
    found = os.environ.get("CODEGEN2_NVIM") or shutil.which("nvim")
    return found if found and os.access(found, os.X_OK) else None


@pytest.mark.slow
@pytest.mark.skipif(neovim() is None, reason="needs nvim")
def test_neovim_is_answered(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("s = '\U0001f600'\ndef add(a, b):\n    return \n", "utf-8")
    out = tmp_path / "out.json"
    environment = {
        **os.environ,
        "OUT": str(out),
        "SERVER": json.dumps([sys.executable, "-m", "codegen2", "lsp"]),
    }
    environment |= {"XDG_STATE_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    script = Path(__file__).parents[1] / "lsp_client.lua"
    command = [str(neovim()), "--headless", "--clean", "-c", f"luafile {script}", str(tmp_path / "a.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert out.exists(), done.stderr
    said = json.loads(out.read_text("utf-8"))
    assert said["text"] and said["range"]["start"] == position(2, 11), said
    assert said["after_edit"], said


GHOST = Path(__file__).parents[1] / "lsp_client.ghost.lua"


def recipe(command: list[str]) -> str:
    """Return the configuration that the docs show, with another command."""
    docs = Path(__file__).parents[2] / "docs" / "editors.md"
    found = re.search(r"### Built in, from 0.12 on\n\n```lua\n(.*?)```", docs.read_text("utf-8"), re.DOTALL)
    assert found is not None and found[1].count('{ "codegen2", "lsp" }') == 1
    return found[1].replace('{ "codegen2", "lsp" }', "{ " + ", ".join(json.dumps(c) for c in command) + " }")


def shows_ghost_text(program: str | None) -> bool:
    """Return whether a Neovim has inline completion: from 0.12 on."""
    ask = [
        "--headless",
        "--clean",
        "-c",
        "lua io.stdout:write(tostring(vim.lsp.inline_completion ~= nil))",
        "-c",
        "q",
    ]
    if program is None:
        return False
    done = subprocess.run([program, *ask], capture_output=True, text=True, timeout=300)
    return done.stdout.endswith("true")


@pytest.mark.slow
def test_neovim_shows_the_answer_as_ghost_text(tmp_path: Path) -> None:
    if not shows_ghost_text(neovim()):
        pytest.skip("needs nvim 0.12 or later, or CODEGEN2_NVIM with its path")
    (tmp_path / "a.py").write_text("s = '\U0001f600'\ndef add(a, b):\n    return \n", "utf-8")
    out = tmp_path / "out.json"
    home = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("STATE", "DATA", "CONFIG")}
    program = {"NVIM_PROGRAM": str(neovim()), "RECIPE": recipe([sys.executable, "-m", "codegen2", "lsp"])}
    command = [str(neovim()), "--headless", "--clean", "-c", f"luafile {GHOST}"]
    environment = {**os.environ, **home, **program, "OUT": str(out)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert out.exists(), done.stderr
    said = json.loads(out.read_text("utf-8"))
    assert "problem" not in said, said
    typed, block = said["typed"], said["block"]
    assert typed["buffer"][2] == "    return a +" and typed["cursor"] == [3, 14]
    assert (typed["row"], typed["column"], typed["lines"]) == (
        2,
        14,
        [],
    )  # at the cursor, the rest of the line
    accepted = typed["buffer"][2] + typed["text"]
    assert said["accepted"] == [*typed["buffer"][:2], accepted, *typed["buffer"][3:]], said
    assert said["after_tab"] == [3, len(accepted)]
    assert block["row"] == block["cursor"][0] - 1 and block["text"].strip()
    assert said["left"]


@pytest.mark.parametrize("text", ["\n" * 8_000_000, "a\n" * 4_000_000, "x" * 8_000_000, "\ud83d" * 2_600_000])
def test_a_large_document_is_opened_and_typed_in_soon(text: str) -> None:
    began = time.thread_time()  # a loop over characters or lines, or a codec's error handler, takes seconds
    document = Document(text)
    document.change(Position(0, 1), Position(0, 1), "y")
    document.around(document.locate(Position(0, 2)))
    assert time.thread_time() - began < 0.75
    first = text.partition("\n")[0]
    assert document.locate(Position(0, 0)).text.removesuffix("\n") == first[:1] + "y" + first[1:]
