"""The page at /: a small place to try the model in a browser, three files that ask nothing of any other host.

Not here: what it does (page/page.js) and what answers it (openai.py).
"""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .http import Endpoint
from .settings import Settings
from .worker import Worker

_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes(worker: Worker, settings: Settings) -> list[Route]:
    """Return the page's routes; no key is asked for, since nothing of anybody's is in it."""
    return [Route(path, _endpoint(name, kind), methods=["GET"]) for path, (name, kind) in _FILES.items()]


def _endpoint(name: str, kind: str) -> Endpoint:
    content = resources.files(__package__).joinpath("page", name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return endpoint
