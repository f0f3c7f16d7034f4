"""The run of codegen2 serve: socket, signals, uvicorn.

Not here: its arguments (cli.py), what is served (app.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..api import Model
    from ..generation.worker import Worker
    from .settings import Settings

_POLL_SECONDS = 0.05


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM and return 0. Raises ValueError for wrong arguments, a port in use."""
    try:
        import uvicorn
    except ModuleNotFoundError as e:
        raise ValueError("the server needs starlette and uvicorn; install codegen2[serve]") from e
    from .app import create_app
    from .logs import log, to_stderr

    settings = settings_of(args)
    listening = listen(args.host, args.port)
    host, port = listening.getsockname()[:2]
    to_stderr()
    app = create_app(loader(args), settings)
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="on",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.drain_s) + 5,
        h11_max_incomplete_event_size=64 * 1024,
    )
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"codegen2: listening on {url}", file=sys.stderr, flush=True)
    log("start", host=host, port=port, model=settings.model_name)

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are ours

    asyncio.run(_serve(Server(config), app.state.worker, settings, listening))
    log("end")
    return 0


async def _serve(server: Any, worker: Worker[Model], settings: Settings, listening: socket.socket) -> None:
    """Run uvicorn; on a first signal answer what was asked and end, on a second end at once."""
    loop = asyncio.get_running_loop()
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
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as e:
        raise ValueError(f"--host {host!r} is no address of this machine ({e.strerror})") from e
    listening = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":  # elsewhere it lets two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as e:
        listening.close()
        if e.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} of {host} is taken, maybe by another codegen2 serve; end it or give another --port"
            ) from e
        raise ValueError(f"cannot listen on {host} port {port}: {(e.strerror or '').lower()}") from e
    return listening


def settings_of(args: argparse.Namespace) -> Settings:
    """Read settings. Raises ValueError."""
    from .settings import Settings

    given = {
        "temperature": args.temperature,
        "max_new_tokens": args.max_new_tokens,
        "max_body_mib": args.max_body_mib,
        "max_queue": args.max_queue,
        "max_parallel": args.parallel,
        "cache_gib": args.cache_gib,
        "drain_s": args.drain,
    }
    return Settings(
        model_name=Path(args.model).name if args.model else "codegen2-box",
        keep_alive_s=seconds_of(args.keep_alive),
        api_keys=_keys(args.api_key_file),
        cors=tuple(args.cors),
        log_prompts=args.log_prompts,
        only_local_names=_is_loopback(args.host),
        **{name: value for name, value in given.items() if value is not None},
    )


def seconds_of(text: str) -> float:
    """Read a time: seconds, or a number with s, m or h; negative is never.

    >>> seconds_of("90"), seconds_of("5m"), seconds_of("-1")
    (90.0, 300.0, -1.0)
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e12:
        raise ValueError(f"--keep-alive {text!r} is no time; write seconds, 5m or 1h, or -1 for never")
    return value


def _keys(path: str | None) -> tuple[str, ...]:
    """Read keys; never from the command line, which everybody on the machine can see."""
    found = [os.environ.get("CODEGEN2_API_KEY", "").strip()]
    if path is not None:
        lines = Path(path).read_text("utf-8").splitlines()
        found += [line.strip() for line in lines]
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

    def load() -> Model:
        from ..loading import from_args

        return from_args(args, cache_gib=1.0 if args.cache_gib is None else args.cache_gib)

    return load
