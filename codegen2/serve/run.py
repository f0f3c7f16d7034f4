"""The run of codegen2 serve: socket, signals, uvicorn.

Not here: its arguments (cli.py), what is served (app.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import functools
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.paths import check_regular

if TYPE_CHECKING:
    from ..api import Model
    from ..generation.worker import Worker
    from .connections import Listening
    from .settings import Settings

_POLL_SECONDS = 0.05


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM and return 0. Raises ValueError for wrong arguments, a port in use."""
    try:
        import uvicorn
    except ModuleNotFoundError as e:
        raise ValueError("the server needs starlette and uvicorn; install codegen2[serve]") from e
    from .app import create_app
    from .connections import Connection, Listening
    from .logs import log, to_stderr

    settings = settings_of(args)
    listening = listen(args.host, args.port)
    host, port = listening.getsockname()[:2]
    to_stderr()
    app = create_app(loader(args), settings)
    config = uvicorn.Config(
        app, http=Connection, log_level="error", access_log=False, lifespan="on", timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.drain_s) + 5, h11_max_incomplete_event_size=64 * 1024,
    )  # fmt: skip
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"codegen2: listening on {url}", file=sys.stderr, flush=True)
    if not (settings.api_keys or settings.only_local_names):
        print(
            "codegen2: whoever reaches this address may use the model; --api-key-file asks for a key",
            file=sys.stderr,
        )
    log("start", host=host, port=port, model=settings.model_name)

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are ours

    accepting = Listening(fileno=listening.detach())
    asyncio.run(_serve(Server(config), app.state.worker, settings, accepting))
    log("end")
    return 0


async def _serve(server: Any, worker: Worker[Model], settings: Settings, listening: Listening) -> None:
    """Run uvicorn; on a first signal answer what was asked and end, on a second end at once."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(listening.on_fault)
    asked = asyncio.Event()

    def end() -> None:
        if asked.is_set():
            worker.stop()
        asked.set()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end)
    serving = asyncio.ensure_future(server.serve([listening]))
    wanted = asyncio.ensure_future(asked.wait())
    await asyncio.wait({serving, wanted}, return_when=asyncio.FIRST_COMPLETED)
    if asked.is_set():
        worker.drain()
        last = loop.time() + settings.drain_s
        while worker.busy() and loop.time() < last:
            await asyncio.sleep(_POLL_SECONDS)
        worker.cancel_all()
        server.should_exit = True
    wanted.cancel()
    await serving


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises ValueError saying what is wrong with the address."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    except OSError as e:
        raise ValueError(f"--host {host!r} is no address of this machine ({e.strerror})") from e
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # "::" is every address, of IPv4 too
    try:
        return socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            taken = f"port {port} of {host} is taken, maybe by another codegen2 serve"
            raise ValueError(f"{taken}; end it or give another --port") from e
        raise ValueError(f"cannot listen on {host} port {port}: {os.strerror(e.errno or 0).lower()}") from e


def settings_of(args: argparse.Namespace) -> Settings:
    """Read settings; arguments are called as their fields. Raises ValueError."""
    from .settings import OPTIONS, Settings, seconds_of

    try:
        keep_alive_s = seconds_of(args.keep_alive)
    except ValueError as e:
        raise ValueError(f"--keep-alive {e}") from None
    return Settings(
        model_name=Path(args.model).name if args.model else "codegen2-box",
        keep_alive_s=keep_alive_s,
        api_keys=_keys(args.api_key_file),
        cors=tuple(args.cors),
        log_prompts=args.log_prompts,
        only_local_names=_is_loopback(args.host),
        **{name: getattr(args, name) for name in OPTIONS},
    )


def _keys(path: str | None) -> tuple[str, ...]:
    """Read keys; never from the command line, which everybody on the machine can see."""
    found = [os.environ.get("CODEGEN2_API_KEY", "").strip()]
    if path is not None:
        found += [line.strip() for line in check_regular(Path(path)).read_text("utf-8").splitlines()]
        if not any(found[1:]):
            raise ValueError(f"{path}: no key in it; write one a line")
    return tuple(key for key in found if key)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def loader(args: argparse.Namespace) -> Callable[[], Model]:
    """Return the function that loads the model which the arguments name."""
    from ..loading import from_args

    return functools.partial(from_args, args, cache_gib=args.cache_gib)
