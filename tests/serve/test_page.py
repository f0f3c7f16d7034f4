"""The page at /: its policy, and in a headless Chromium what a person does with it, before a server of set answers."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs codegen2[serve]")

from browser import CHROMIUM, Browser
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from codegen2.serve import page
from codegen2.serve.http import endpoint
from codegen2.serve.settings import Settings

NOBODY: Any = None
ROUTES = [Route(o.path, endpoint([o], NOBODY, Settings())) for o in page.OPERATIONS]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


def fetch(path: str) -> tuple[dict[str, str], str]:
    found = next(route for route in ROUTES if route.path == path)
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    response: Response = asyncio.run(found.endpoint(Request(scope)))
    return dict(response.headers), response.body.decode()


def test_files_are_served_with_a_policy_that_allows_no_other_host() -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        headers, text = fetch(path)
        assert headers["content-type"].startswith(kind) and len(text) > 500
        policy = dict(part.split(None, 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|\burl\(|innerHTML|eval\(", text)


def test_html_has_no_inline_script_or_style_and_labels_all_fields() -> None:
    _, html = fetch("/")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\bsrc=)", html)
    for field in re.findall(r"<(?:input|select|textarea)\b[^>]*>", html):
        at = html.index(field)
        inside_label = html.rfind("<label", 0, at) > html.rfind("</label>", 0, at)
        assert inside_label or "aria-label" in field, field


def test_wheel_takes_the_files_along() -> None:
    root = Path(__file__).parents[2]
    assert '"serve/page/*"' in (root / "pyproject.toml").read_text("utf-8")
    assert {p.name for p in (root / "codegen2/serve/page").iterdir()} == {"index.html", "page.css", "page.js"}


class Site:
    """A server with the page and answers that a test sets: text in pieces, or an error."""

    def __init__(self) -> None:
        self.pieces: list[str] = ["return ", "a + b"]
        self.unindent = 0
        self.error: str | None = None
        self.wait_s = 0.0
        self.asked: list[dict[str, Any]] = []
        self.gone = 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self._thread: threading.Thread | None = None
        self._server: Any = None

    async def completions(self, request: Request) -> Response:
        self.asked.append(json.loads(await request.body()))
        if self.error is not None:
            return JSONResponse({"error": {"message": self.error}}, 400)

        async def lines() -> Any:
            try:
                for i, piece in enumerate(self.pieces):
                    logprobs = {
                        "tokens": [piece], "token_logprobs": [-0.1 - i],
                        "top_logprobs": [{piece: -0.1 - i, "other": -3.0}], "text_offset": [0],
                    }  # fmt: skip
                    last = i == len(self.pieces) - 1
                    choice: dict[str, Any] = {"index": 0, "text": piece, "logprobs": logprobs}
                    if last:
                        choice["codegen2"] = {"unindent": self.unindent}
                    yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                    await asyncio.sleep(self.wait_s)
                yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': 2}})}\n\ndata: [DONE]\n\n"
            except asyncio.CancelledError:
                self.gone += 1
                raise

        return StreamingResponse(lines(), media_type="text/event-stream")

    def start(self) -> None:
        import uvicorn

        async def health(request: Request) -> Response:
            return JSONResponse({"status": "ok"})

        async def models(request: Request) -> Response:
            return JSONResponse({"data": [{"id": "a-model"}]})

        made = [
            *ROUTES,
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/health", health),
            Route("/v1/models", models),
        ]
        config = uvicorn.Config(Starlette(routes=made), log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        run = self._server.serve([self.listening])
        self._thread = threading.Thread(target=lambda: asyncio.run(run), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join(300)
            self._thread = None


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def site(browser: Browser) -> Iterator[Site]:
    made = Site()
    made.start()
    browser.look(1000, 800)
    browser.complaints.clear()
    browser.open(f"http://127.0.0.1:{made.port}/")
    browser.wait("document.getElementById('server').textContent === 'a-model'")
    yield made
    made.stop()


def text_of(browser: Browser) -> str:
    return str(browser.run("document.getElementById('code').value"))


def seen(browser: Browser) -> str:
    """Return what stands in the editor, ghosts included."""
    return str(browser.run("document.getElementById('mirror').textContent")).rstrip("\u200b")


def begin(browser: Browser, text: str, at: int | None = None) -> None:
    """Put text into the editor and the cursor at a place."""
    browser.run(
        f"(() => {{ const c = document.getElementById('code'); c.focus(); c.value = {json.dumps(text)};"
        f" c.dispatchEvent(new Event('input')); c.setSelectionRange({at if at is not None else len(text)},"
        f" {at if at is not None else len(text)}) }})()"
    )
    browser.press("Escape")


GHOST = "document.querySelector('.ghost') && !document.getElementById('accept').disabled"
WRITTEN = "/First text/.test(document.getElementById('status').textContent)"


@needs_browser
@pytest.mark.slow
def test_typing_brings_a_ghost_that_tab_accepts(browser: Browser, site: Site) -> None:
    begin(browser, "def add(a, b):\n    ")
    browser.type("# x")
    browser.wait(WRITTEN)
    assert site.asked[-1]["prompt"] == "def add(a, b):\n    # x" and site.asked[-1]["suffix"] == ""
    assert site.asked[-1]["stream"] is True and site.asked[-1]["stop_at"] == "block"
    assert (
        text_of(browser) == "def add(a, b):\n    # x"
        and seen(browser) == "def add(a, b):\n    # xreturn a + b"
    )
    browser.press("Tab")
    assert text_of(browser) == "def add(a, b):\n    # xreturn a + b"
    assert browser.run("document.activeElement.id") == "code" and not browser.run(GHOST)
    browser.run("document.execCommand('undo')")
    assert text_of(browser) == "def add(a, b):\n    # x"
    assert browser.complaints == []


@needs_browser
@pytest.mark.slow
def test_escape_drops_and_tab_without_a_ghost_leaves_the_editor(browser: Browser, site: Site) -> None:
    begin(browser, "x = ")
    browser.press("Enter", 2)
    browser.wait(WRITTEN)
    browser.press("Escape")
    assert seen(browser) == text_of(browser) == "x = "
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "language" and text_of(browser) == "x = "


@needs_browser
@pytest.mark.slow
def test_typing_what_is_suggested_keeps_it_and_anything_else_drops_it(browser: Browser, site: Site) -> None:
    begin(browser, "")
    browser.press("Enter", 2)
    browser.wait(WRITTEN)
    browser.type("re")
    assert seen(browser) == "return a + b" and text_of(browser) == "re" and len(site.asked) == 1
    site.pieces = ["z"]
    browser.type("q")
    assert seen(browser) == "req"
    browser.wait(WRITTEN)
    assert seen(browser) == "reqz"


@needs_browser
@pytest.mark.slow
def test_all_holes_are_filled_in_turn(browser: Browser, site: Site) -> None:
    begin(browser, "a <FILL> b <FILL> c")
    site.pieces = ["1", "2"]
    browser.run("document.getElementById('complete').click()")
    browser.wait(WRITTEN)
    asked = [(one["prompt"], one["suffix"]) for one in site.asked]
    assert asked == [("a ", " b  c"), ("a 12 b ", " c")]
    assert seen(browser) == "a 12 b 12 c" and text_of(browser) == "a <FILL> b <FILL> c"
    browser.press("Tab")
    assert text_of(browser) == "a 12 b <FILL> c"
    browser.run("document.querySelector('.ghost').click()")  # as a finger would
    assert text_of(browser) == "a 12 b 12 c"


@needs_browser
@pytest.mark.slow
def test_unindent_takes_blanks_before_the_cursor_away(browser: Browser, site: Site) -> None:
    begin(browser, "if a:\n    x()\n    ")
    site.pieces, site.unindent = ["else:", "\n    y()"], 4
    browser.press("Enter", 2)
    browser.wait(WRITTEN)
    browser.press("Tab")
    assert text_of(browser) == "if a:\n    x()\nelse:\n    y()"


@needs_browser
@pytest.mark.slow
def test_hovering_shows_probabilities(browser: Browser, site: Site) -> None:
    begin(browser, "x = ")
    browser.press("Enter", 2)
    browser.wait(WRITTEN)
    browser.hover(".ghost span")
    browser.wait("!document.getElementById('tip').hidden")
    tip = browser.run("document.getElementById('tip').textContent")
    assert "90.5 %" in tip and "5.0 %  other" in tip
    browser.run("document.getElementById('details').open = true")
    browser.wait("document.querySelectorAll('#table tr').length === 2")


@needs_browser
@pytest.mark.slow
def test_errors_are_shown(browser: Browser, site: Site) -> None:
    begin(browser, "x = ")
    site.error = "max_tokens must be <b>less</b>"
    browser.press("Enter", 2)
    browser.wait("!document.getElementById('error').hidden")
    assert browser.run("document.getElementById('error').textContent") == site.error
    site.error = None
    browser.press("Enter", 2)
    browser.wait(WRITTEN)
    assert browser.run("document.getElementById('error').hidden")
    site.stop()
    browser.press("Enter", 2)
    browser.wait("/cannot be reached/.test(document.getElementById('error').textContent)")
    browser.wait("document.getElementById('server').textContent === 'the server is away'")


@needs_browser
@pytest.mark.slow
def test_escape_while_it_writes_closes_the_connection(browser: Browser, site: Site) -> None:
    begin(browser, "x = ")
    site.pieces, site.wait_s = ["a"] * 1000, 0.02
    browser.press("Enter", 2)
    browser.wait(GHOST)
    browser.press("Escape")
    last = time.monotonic() + 300
    while not site.gone:
        assert time.monotonic() < last, "the server still writes"
        time.sleep(0.02)
    assert seen(browser) == "x = "


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 1000])
@pytest.mark.parametrize("dark", [False, True])
def test_fits_the_screen_and_can_be_read(browser: Browser, site: Site, width: int, dark: bool) -> None:
    browser.look(width, 800, dark)
    begin(browser, "x = " + "y" * 300)
    browser.press("Enter", 2)
    browser.wait(WRITTEN)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    # WCAG's contrast of the ghost and of what is written against the editor's ground.
    contrast = browser.run("""(() => {
      const light = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
          .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
      const ground = light(getComputedStyle(document.getElementById('editor')).backgroundColor);
      return ['.ghost', '#mirror'].map((s) => light(getComputedStyle(document.querySelector(s)).color))
        .map((l) => (Math.max(l, ground) + 0.05) / (Math.min(l, ground) + 0.05));
    })()""")
    assert min(contrast) >= 4.5, contrast
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
