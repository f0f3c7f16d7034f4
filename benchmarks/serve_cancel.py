"""codegen2 serve: how soon the processor is idle when a client goes away while its prompt is being read.

    python benchmarks/serve_cancel.py [--times 50] [--at-once 1 4] [--one-of 4] [--synthetic 1B --dtype int4]
                                      [--longest-s 1.5] [--out RESULT.json] [-- ARGUMENTS OF SERVE]

Sends prompts of 20,000 characters that share nothing, closes the sockets at a random time while they are being read
(up to nine tenths of what the reading takes when nobody goes away, and no later than --longest-s), and watches the
processor time of the server's threads until it stands still: less than 3 ms of it in 30. A time counts if the server's
metric says that a prompt was being read. --at-once: so many clients ask together and all go away at once. own_ms is
the server's own word, codegen2_cancel_seconds, from the wish to the end of the row's work: a processor that others
keep busy may seem idle too soon. --one-of: one of so many goes away and the others stay, so that nothing is idle and
own_ms is all there is. --synthetic is serve_load.py's.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import time
from pathlib import Path
from typing import Any

from serve_load import SEED, Server, files, idle_after_s, percentile, tell

CHARACTERS = 20_000
READ = 'codegen2_cancelled_total{phase="read",reason="cancelled"}'
SECONDS = ("codegen2_cancel_seconds_sum", "codegen2_cancel_seconds_count")


class Prompts:
    """Bodies whose prompts have no token in common at their start."""

    def __init__(self) -> None:
        self._text, self._rng, self._number = "".join(files()[:3]), random.Random(SEED), 0

    def next(self, max_tokens: int) -> bytes:
        """Return a whole request."""
        self._number += 1
        start = self._rng.randrange(len(self._text) - CHARACTERS)
        # The head says "other file" to the server, however it cuts the text.
        text = self._text[start : start + CHARACTERS].replace("\n", f"  # {self._number}\n")
        body = json.dumps({"prompt": text, "max_tokens": max_tokens}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def ask(server: Server, request: bytes) -> socket.socket:
    """Send a request and return its socket."""
    s = socket.create_connection(("127.0.0.1", server.port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.sendall(request)
    return s


def reply(s: socket.socket) -> bytes:
    """Return all that comes until the other side closes."""
    with s:
        return b"".join(iter(lambda: s.recv(65536), b""))


def reading_s(server: Server, prompts: Prompts, n: int) -> tuple[float, int]:
    """Return the seconds that n prompts take to read together, the tokens of one."""
    for _ in range(2):  # the server learns how much it can read in a pass
        started = time.monotonic()
        sockets = [ask(server, prompts.next(0)) for _ in range(n)]
        replies = [reply(s) for s in sockets]
        seconds = time.monotonic() - started
    usage = json.loads(replies[0].partition(b"\r\n\r\n")[2])["usage"]
    return seconds, int(usage["prompt_tokens"])


def wait_until_idle(server: Server) -> None:
    """Wait until nobody is answered."""
    while any(server.metrics()[f"codegen2_{what}"] for what in ("running", "waiting")):
        time.sleep(0.01)


def cancels(
    server: Server, prompts: Prompts, times: int, n: int, stay: int, longest_s: float
) -> dict[str, Any]:
    """Let n clients ask, and all but `stay` of them go away at a random time; give milliseconds."""
    rng, tried = random.Random(SEED), 0
    found: list[float] = []
    own: list[float] = []  # the server's own word, which a busy machine cannot make too small
    takes, tokens = reading_s(server, prompts, n)
    while len(found) < times and tried < 4 * times:
        tried += 1
        wait_until_idle(server)
        before = server.metrics()
        sockets = [ask(server, prompts.next(200 if i >= stay else 0)) for i in range(n)]
        time.sleep(rng.uniform(0.0, min(0.9 * takes, longest_s)))
        for s in sockets[stay:]:
            s.close()
        idle_s = 0.0 if stay else idle_after_s(server)
        for s in sockets[:stay]:
            reply(s)
        wait_until_idle(server)
        after = server.metrics()
        if after.get(READ, 0.0) > before.get(READ, 0.0):
            total, count = (after[name] - before.get(name, 0.0) for name in SECONDS)
            found.append(1e3 * (total / count if stay else idle_s))
            own.append(1e3 * total / count)
    return {
        "clients": n,
        "gone": n - stay,
        "prompt_tokens": tokens,
        "reading_takes_ms": round(1e3 * takes),
        "tried": tried,
        "times": len(found),
        "median_ms": round(percentile(found, 0.5), 1),
        "p99_ms": round(percentile(found, 0.99), 1),
        "max_ms": round(max(found, default=float("nan")), 1),
        "own_median_ms": round(percentile(own, 0.5), 1),
        "own_max_ms": round(max(own, default=float("nan")), 1),
    }


def main() -> None:
    """Start a server, go away, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--one-of", type=int, nargs="*", default=[4])
    parser.add_argument("--longest-s", type=float, default=1.5)
    parser.add_argument("--synthetic", default=None)
    parser.add_argument("--dtype", default="int4")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("serve", nargs="*", help="arguments of codegen2 serve, behind --")
    args = parser.parse_args()
    server, prompts = Server(args.serve, args.synthetic, args.dtype), Prompts()
    result: dict[str, Any] = {
        "model": args.synthetic or "box",
        "serve": args.serve,
        "idle": [],
        "one_gone": [],
    }
    try:
        for n in args.at_once:
            result["idle"].append(cancels(server, prompts, args.times, n, 0, args.longest_s))
        for n in args.one_of:
            result["one_gone"].append(cancels(server, prompts, args.times, n, n - 1, args.longest_s))
        result["faults"] = server.metrics().get("codegen2_faults_total", 0.0)
    finally:
        server.stop()
    tell(result, args.out)


if __name__ == "__main__":
    main()
