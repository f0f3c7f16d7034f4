"""codegen2 serve's arguments. Imports next to nothing: every --help comes by here.

Not here: the run (run.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_serve(parser: argparse.ArgumentParser, add_model: Callable[[argparse.ArgumentParser], None]) -> None:
    """Describe the arguments; imports nothing."""
    p = parser.add_argument_group("server")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    p.add_argument("--port", type=int, default=8012, help="0: any free one (default: %(default)s)")
    idle = "unload a model idle so long: 300, 5m, 1h"
    p.add_argument("--keep-alive", default="-1", metavar="TIME", help=idle)
    p.add_argument("--cache-gib", type=float, metavar="X", help="memory for what was read (default: 1)")
    at_once = "answers written at once (default: 16)"
    p.add_argument("--parallel", dest="max_parallel", type=int, metavar="N", help=at_once)
    p.add_argument("--max-new-tokens", type=int, metavar="N", help="limit of an answer (default: 256)")
    p.add_argument("--temperature", type=float, metavar="X", help="where a client says none (default: 0.2)")
    p.add_argument("--max-queue", type=int, metavar="N", help="requests that wait or run (default: 256)")
    p.add_argument("--max-body-mib", type=float, metavar="X", help="limit of a request's body (default: 16)")
    drain = "SIGTERM: time to end what runs (default: 20)"
    p.add_argument("--drain", dest="drain_s", type=float, metavar="SECONDS", help=drain)
    keys = "keys, one a line; or CODEGEN2_API_KEY in the environment"
    p.add_argument("--api-key-file", metavar="FILE", help=keys)
    origins = "pages that may ask; * for all, repeatable"
    p.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help=origins)
    p.add_argument("--log-prompts", action="store_true", help="log what is asked: everybody's code")
    add_model(parser)
