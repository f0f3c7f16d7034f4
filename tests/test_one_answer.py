"""The same request gets the same text wherever it is asked: Python, command line, server (each protocol), language
server, evaluation. Each way of asking sends what it can express of 200 requests; the scheduler says what is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx2", reason="needs codegen2[test]")
pytest.importorskip("pygls", reason="needs codegen2[lsp]")

import httpx2 as httpx
from one_answer_cases import N_NEW, cases

from codegen2.api import HOLE, Model
from codegen2.cli.main import main
from codegen2.eval.generators.base import COMPLETION_STOPS, Decoding, Task, cut_completion
from codegen2.eval.generators.own import OwnModel
from codegen2.generation.request import Request
from codegen2.generation.results import Choice, Result
from codegen2.loading import load
from codegen2.lsp.backend import LocalBackend, RemoteBackend
from codegen2.lsp.documents import Document, split_lines
from codegen2.lsp.request import Cursor
from codegen2.serve.app import create_app
from codegen2.serve.settings import Settings

EVERY_CASE = cases()
CASES: list[tuple[str, Request]] = []  # those that this run asks
Texts = list[str]
Asked = tuple[str, Request]  # a case as far as somebody can express it


@pytest.fixture(scope="module", autouse=True, params=[4, pytest.param(1, marks=pytest.mark.slow)])
def share(request: pytest.FixtureRequest) -> Iterator[int]:
    """Ask every fourth request, of each kind and at each cursor in turn; `make test-slow` asks them all."""
    CASES[:] = EVERY_CASE[:: request.param]
    CASES[-2:] = EVERY_CASE[-2:]  # of which there is one each
    yield request.param


@pytest.fixture(scope="module")
def model() -> Model:
    """Return the model in the box."""
    return load(engine="native")


class Right:
    """What the scheduler says, each request once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known: dict[str, Result] = {}

    def __call__(self, requests: list[Request]) -> list[Result]:
        """Return the results of requests."""
        new = [*{repr(r): r for r in requests if repr(r) not in self.known}.items()]
        for kind in range(
            11
        ):  # one kind after the other, so that a prompt is read once and known to the next kinds
            some = dict(new[kind::11])
            self.known |= dict(zip(some, self.model.answer(list(some.values())), strict=True))
        return [self.known[repr(r)] for r in requests]


@pytest.fixture(scope="module")
def right(model: Model) -> Right:
    """Return the right answers."""
    return Right(model)


def same(
    right: Right,
    asked: list[Asked],
    got: list[Texts],
    least: int,
    shown: Callable[[Choice], str] = lambda c: c.text,
) -> None:
    """Compare texts; `least` requests must have been asked. shown: what is shown of a right answer."""
    assert len(asked) >= least * len(CASES) // len(EVERY_CASE), len(asked)
    results = right([request for _, request in asked])
    expected = [[shown(c) for c in result.choices] for result in results]
    wrong = [(name, g, e) for (name, _), g, e in zip(asked, got, expected, strict=True) if g != e]
    wrong.sort(key=lambda w: len(str(w)))
    assert not wrong, f"{len(wrong)} of {len(asked)} differ; the shortest: {wrong[0]}"


def test_the_cases_are_two_hundred_and_of_every_kind(right: Right) -> None:
    assert len(EVERY_CASE) == len({name for name, _ in EVERY_CASE}) == 200
    kinds = {name.rpartition(" ")[2] for name, _ in EVERY_CASE}
    assert {name.rpartition(" ")[2] for name, _ in CASES} == kinds
    results = right([request for _, request in CASES])
    assert sum(bool(r.choices[0].text) for r in results) > 0.75 * len(CASES)


def test_an_answer_stays_on_the_cursor_s_line_where_text_follows(right: Right) -> None:
    asked = [
        (name, q) for name, q in CASES if q.suffix and q.suffix[0] not in "\r\n" and not (q.raw or q.between)
    ]
    results = right([q for _, q in asked])
    longer = {
        name: r.text for (name, _), r in zip(asked, results, strict=True) if re.search(r"[\r\n]", r.text)
    }
    assert len(asked) >= len(CASES) // 10 and not longer


# ---- Python


def test_the_methods_of_a_model(model: Model, right: Right) -> None:
    def ask(q: Request) -> Result:
        if q.tokens is not None:
            return model.generate(q.tokens, params=q.params)
        if q.suffix is None:
            return model.complete(q.prefix, params=q.params)
        if q.between:
            pieces = [q.prefix, HOLE, *[p for text in q.between for p in (text, HOLE)], q.suffix]
            return model.infill_spans(pieces, together=True, language=q.language, params=q.params)
        return model.infill(q.prefix, q.suffix, stop_at=q.stop_at, language=q.language, params=q.params)

    asked = [(name, q) for i, (name, q) in enumerate(CASES) if not q.raw and (i % 4 == 1 or q.between)]
    same(right, asked, [[c.text for c in ask(q).choices] for _, q in asked], least=45)


def test_streams_join_to_the_whole(model: Model, right: Right) -> None:
    def ask(q: Request) -> Texts:
        texts = [""] * q.params.n
        for chunk in model.stream(q):
            texts[chunk.index] += chunk.text
        return texts

    asked = [(name, q) for name, q in CASES if not q.between and q.params.best_of is None][::6]
    same(right, asked, [ask(q) for _, q in asked], least=30)


# ---- the command line


def test_the_command_line(
    model: Model, right: Right, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codegen2.cli.generate.from_args", lambda args, **more: model)
    monkeypatch.setattr(model, "together", True)  # as a Request with several holes asks

    def ask(q: Request, language: str | None) -> Texts:
        file = tmp_path / f"a{EXTENSIONS.get(language or '', '')}"
        kind = "complete" if q.suffix is None else "infill"
        holes = [] if q.suffix is None else [*q.between, q.suffix]
        file.write_bytes("<FILL>".join([q.prefix, *holes]).encode())
        argv = [kind, str(file), "--json", "--max-new-tokens", str(q.params.max_new_tokens)]
        if q.stop_at and q.suffix is not None:
            argv += ["--stop-at", q.stop_at]
        for name in ("n", "best_of", "seed", "temperature", "top_p"):
            if (value := getattr(q.params, name)) is not None:
                argv += ["--" + name.replace("_", "-"), str(value)]
        for stop in q.params.stop:
            argv += ["--stop", stop]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(argv) == 0, argv
        return [c["text"] for c in json.loads(out.getvalue())["choices" if q.suffix is None else "holes"]]

    asked = [(name, q) for name, q in CASES if not q.raw and q.tokens is None]
    asked = [both for i, both in enumerate(asked) if i % 5 == 0 or both[1].between]
    same(right, asked, [ask(q, q.language) for _, q in asked], least=30)


EXTENSIONS = {"python": ".py", "c++": ".cc", "go": ".go", "javascript": ".js", "rust": ".rs", "ruby": ".rb"}

# ---- the server


Post = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def app(model: Model) -> Iterator[Any]:
    """Return a server on the model."""
    app = create_app(lambda: model, Settings(max_queue=1000))
    yield app
    app.state.worker.stop()


def ask_all(
    app: Any, asked: list[Asked], ask: Callable[[Post, Request, bool], Awaitable[Texts]]
) -> list[Texts]:
    """Ask 16 at once, every second one as a stream."""

    async def run() -> list[Texts]:
        gate = asyncio.Semaphore(16)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", timeout=600
        ) as client:

            async def post(path: str, body: dict[str, Any], q: Request) -> str:
                headers = {"X-Session-Id": q.session} if q.session else {}
                reply = await client.post(path, json=body, headers=headers)
                assert reply.status_code == 200, (path, reply.text)
                return str(reply.text)

            async def one(i: int, q: Request) -> Texts:
                async with gate:
                    return await ask(post, q, bool(i % 2) and q.params.best_of is None)

            return await asyncio.gather(*[one(i, q) for i, (_, q) in enumerate(asked)])

    return asyncio.run(run())


def sampling(q: Request, **names: str) -> dict[str, Any]:
    """Return the sampling fields of a body; names: a protocol's own."""
    given = {"temperature": q.params.temperature, "top_p": q.params.top_p, "stop": list(q.params.stop)}
    given |= {} if q.params.seed is None else {"seed": q.params.seed}
    return given | {theirs: getattr(q.params, ours) for ours, theirs in names.items()}


def events(text: str) -> list[dict[str, Any]]:
    """Return the objects of server-sent events."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [json.loads(d) for d in data if d != "[DONE]"]


def joined(n: int, pieces: list[tuple[int, str]]) -> Texts:
    """Join the pieces of a stream by their answer's index."""
    return ["".join(text for index, text in pieces if index == i) for i in range(n)]


def test_openai_s_protocol(app: Any, right: Right) -> None:
    async def ask(post: Post, q: Request, stream: bool) -> Texts:
        body = {**sampling(q, max_new_tokens="max_tokens", n="n", best_of="best_of"), "stream": stream}
        body |= {"prompt": q.prefix if q.tokens is None else list(q.tokens), "suffix": q.suffix}
        body |= {"stop_at": q.stop_at or "none", "raw": q.raw, "language": q.language}
        text = await post("/v1/completions", body, q)
        if stream:
            return joined(q.params.n, [(c["index"], c["text"]) for e in events(text) for c in e["choices"]])
        return [c["text"] for c in json.loads(text)["choices"]]

    asked = [(name, q) for name, q in CASES if not q.between]
    same(right, asked, ask_all(app, asked, ask), least=199)


def test_mistral_s_protocol(app: Any, right: Right) -> None:
    async def ask(post: Post, q: Request, stream: bool) -> Texts:
        body = {**sampling(q, max_new_tokens="max_tokens"), "stream": stream}
        body |= {"prompt": q.prefix, "suffix": q.suffix, "language": q.language}
        text = await post("/v1/fim/completions", body, q)
        if stream:
            parts = [c for e in events(text) for c in e["choices"]]
            return joined(1, [(0, c["delta"].get("content") or "") for c in parts])
        return [c["message"]["content"] for c in json.loads(text)["choices"]]

    asked = [
        (name, q) for name, q in CASES
        if q.tokens is None and not (q.between or q.raw) and q.params.n_drawn == 1
        and (q.suffix is None or q.stop_at == "block")
    ]  # fmt: skip
    asked = asked[::5]
    same(right, asked, ask_all(app, asked, ask), least=18)


def test_llama_cpp_s_protocol(app: Any, right: Right) -> None:
    async def ask(post: Post, q: Request, stream: bool) -> Texts:
        body = {**sampling(q, max_new_tokens="n_predict", n="n_cmpl"), "stream": stream}
        body |= {"raw": q.raw, "language": q.language}
        if q.suffix is None:
            path, body["prompt"] = "/completion", q.prefix if q.tokens is None else list(q.tokens)
        else:
            line = q.prefix.rpartition("\n")[2]
            path, body["prompt"] = "/infill", line
            body |= {"input_prefix": q.prefix.removesuffix(line), "input_suffix": q.suffix}
        text = await post(path, body, q)
        if stream:
            return joined(q.params.n, [(e["index"], e["content"]) for e in events(text)])
        reply = json.loads(text)
        return [r["content"] for r in (reply if isinstance(reply, list) else [reply])]

    asked = [
        (name, dataclasses.replace(q, suggest=q.suffix is not None)) for name, q in CASES
        if not q.between and q.params.best_of is None and (q.suffix is None or q.stop_at == "block")
    ]  # fmt: skip
    asked = asked[::2]
    same(right, asked, ask_all(app, asked, ask), least=75)


def test_ollama_s_protocol(app: Any, right: Right) -> None:
    async def ask(post: Post, q: Request, stream: bool) -> Texts:
        body = {"model": "x", "prompt": q.prefix, "suffix": q.suffix, "stream": stream}
        text = await post("/api/generate", body | {"options": sampling(q, max_new_tokens="num_predict")}, q)
        return joined(1, [(0, json.loads(line)["response"]) for line in text.splitlines()])

    asked = [
        (name, dataclasses.replace(q, language=None, suggest=True)) for name, q in CASES
        if q.tokens is None and not (q.between or q.raw) and q.params.n_drawn == 1
        and (q.suffix is None or (q.suffix and q.stop_at == "block"))
    ]  # fmt: skip
    asked = asked[::3]
    same(right, asked, ask_all(app, asked, ask), least=30)


def test_tabby_s_protocol(app: Any, right: Right) -> None:
    async def ask(post: Post, q: Request, stream: bool) -> Texts:
        body = {"language": q.language, "segments": {"prefix": q.prefix, "suffix": q.suffix}}
        text = await post("/v1/completions", {**body, "temperature": q.params.temperature}, q)
        return [c["text"] for c in json.loads(text)["choices"]]

    asked = [
        (name, dataclasses.replace(q, suggest=True, params=dataclasses.replace(q.params, max_new_tokens=64)))
        for name, q in CASES if name.endswith("1 block")
    ]  # fmt: skip
    same(right, asked, ask_all(app, asked, ask), least=6)


# ---- the language server


def in_editor(q: Request) -> bool:
    """Whether an editor's language server asks so."""
    return q.suffix is not None and not (q.between or q.raw) and q.params.n_drawn == 1


def test_the_language_server_with_its_own_model(model: Model, right: Right) -> None:
    asked = [(name, q) for name, q in CASES if in_editor(q)][::2]
    backend = LocalBackend(lambda: model)

    async def run() -> list[Texts]:
        choices = await asyncio.gather(*[backend.complete(q) for _, q in asked])
        return [[c.text] if c is not None else [] for c in choices]

    try:
        same(right, asked, asyncio.run(run()), least=35)
    finally:
        backend.close()


def test_the_language_server_before_a_server(app: Any, right: Right, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = httpx.AsyncClient
    monkeypatch.setattr(
        httpx, "AsyncClient", lambda **more: connect(**more, transport=httpx.ASGITransport(app))
    )
    asked = [(name, q) for name, q in CASES if in_editor(q)][::3]
    backend = RemoteBackend("127.0.0.1")

    async def run() -> list[Texts]:
        choices = await asyncio.gather(*[backend.complete(q) for _, q in asked])
        return [[c.text] if c is not None else [] for c in choices]

    same(right, asked, asyncio.run(run()), least=25)


def test_a_document_of_the_language_server_is_the_file() -> None:
    from lsprotocol.types import Position

    for name, q in CASES:
        if not in_editor(q):
            continue
        document = Document(q.prefix + (q.suffix or ""), q.language or "", "utf-32")
        before = split_lines(q.prefix)
        cursor = Cursor.of(document, Position(len(before) - 1, len(before[-1])))
        assert (cursor.prefix, cursor.suffix) == (q.prefix, q.suffix), name


# ---- evaluation


def test_evaluation_s_generator(model: Model, right: Right) -> None:
    generator = OwnModel(model)

    def as_asked(q: Request) -> Request:
        stops = COMPLETION_STOPS if q.suffix is None else ()
        return dataclasses.replace(
            q, params=dataclasses.replace(q.params, stop=stops, seed=None), session=None
        )

    def ask(q: Request) -> Texts:
        how = Decoding(max_new_tokens=N_NEW, stop_at=q.stop_at, early=True)
        (answer,) = generator.answer(Task("t", q.prefix, q.suffix, q.language), range(1), how)
        return [answer.raw if q.suffix is None else answer.shown]

    asked = [
        (name, as_asked(q)) for name, q in CASES
        if q.tokens is None and not (q.between or q.raw or q.params.temperature or q.params.stop)
    ]  # fmt: skip
    plain, holes = (
        [a for a in asked if a[1].suffix is None][::3],
        [a for a in asked if a[1].suffix is not None][::3],
    )
    same(right, plain, [ask(q) for _, q in plain], least=8, shown=lambda c: cut_completion(c.raw))
    same(right, holes, [ask(q) for _, q in holes], least=20)
