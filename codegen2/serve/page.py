"""The page at /: a small place to try the model in a browser, three files that ask nothing of any other host.

Not here: what it does (page/page.js) and what answers it (protocols/openai.py).
"""

from __future__ import annotations

from importlib import resources

from starlette.responses import Response

from .http import Call
from .schema import Operation

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


def _operation(path: str, name: str, media: str) -> Operation:
    """Return the operation that sends a file; no key is asked for, since nothing of anybody's is in it."""
    content = resources.files(__package__).joinpath("page", name).read_bytes()

    def answer(call: Call[None]) -> Response:
        return Response(content, headers=HEADERS, media_type=media)

    return Operation("GET", path, answer, reply=str, keyless=True, media=media)


OPERATIONS = tuple(_operation(path, *file) for path, file in _FILES.items())
