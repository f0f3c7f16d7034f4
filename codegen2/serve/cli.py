"""codegen2 serve's arguments. Imports next to nothing: every --help comes by here.

Not here: the run (run.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .settings import OPTIONS


def add_serve(parser: argparse.ArgumentParser, add_model: Callable[[argparse.ArgumentParser], None]) -> None:
    """Describe the arguments."""
    p = parser.add_argument_group("server")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    p.add_argument("--port", type=int, default=8012, help="0: any free one (default: %(default)s)")
    idle = "unload a model idle so long: 300, 5m, 1h"
    p.add_argument("--keep-alive", default="-1", metavar="TIME", help=idle)
    for name, o in OPTIONS.items():
        kind, text = type(o["default"]), f"{o['help']} (default: {o['default']:g})"
        metavar = "N" if kind is int else "X"
        p.add_argument(o["flag"], dest=name, type=kind, default=o["default"], metavar=metavar, help=text)
    keys = "keys, one a line; or CODEGEN2_API_KEY in the environment"
    p.add_argument("--api-key-file", metavar="FILE", help=keys)
    origins = "pages that may ask; * for all, repeatable"
    p.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help=origins)
    p.add_argument("--log-prompts", action="store_true", help="log what is asked: everybody's code")
    add_model(parser)
