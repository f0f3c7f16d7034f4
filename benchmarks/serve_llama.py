"""codegen2 serve next to llama.cpp's server, on random weights of one shape, in one run; see serve_load.py.

    python benchmarks/serve_llama.py --server llama-server --gguf GGUF --preset box|1B --dtype int8|int4
                                     [--clients 64] [--requests 2000] [--keys 60] [--out RESULT.json]

The GGUF comes from gguf_shape.py --tokenizer. All get the same bodies on /infill, as llama.vim writes them: the lines
above, the cursor's line up to the cursor as `prompt`, the lines below. llama.cpp puts `prompt` before the lines below
and reads those again at each key, unless --spm-infill puts them first: it is measured both ways.

Load: every client closes its connection before it asks again. Keys: one client types, the servers take turns at each
key, and the time from sending to the first token of the stream is taken; the answer is read to its end (three tokens),
so that a server is idle when its next turn comes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from serve_load import Client, Server, files, load, percentile, tell


class Llama:
    """llama.cpp's server, two threads, 16 slots of 2,048 tokens."""

    def __init__(self, program: str, gguf: str, *more: str) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        options = f"-t 2 -tb 2 -np 16 -c {16 * 2048} --no-webui --port {self.port} --log-disable"
        self.process = subprocess.Popen(
            [program, "-m", gguf, *options.split(), *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(600):
            with contextlib.suppress(OSError):
                if Server.get(self, "/health"):  # type: ignore[arg-type]
                    return
            time.sleep(0.1)
        raise SystemExit("llama-server never became ready")

    rss = Server.rss

    def stop(self) -> None:
        """End it in order."""
        self.process.terminate()
        self.process.wait(60)


class LlamaClient(Client):
    """An editor that asks as llama.vim does."""

    closes = True  # type: ignore[assignment]

    def request(self, before: str, typed: str, after: str) -> tuple[str, dict[str, Any]]:
        """Return path and body."""
        return "/infill", body(before + typed, after, self.args.max_tokens)

    async def fill(self, text: str) -> None:
        """Warm the server up."""
        await self.ask(text, "", "")

    def note(self, answer: dict[str, Any], seconds: float) -> None:
        """Write an answer down."""
        self.counts["answered_s"].append(seconds)
        self.counts["read"].append(answer["timings"]["prompt_n"])
        self.counts["written"] += answer["timings"]["predicted_n"]


def body(prefix: str, suffix: str, n_predict: int, **more: Any) -> dict[str, Any]:
    """Return what llama.vim sends, with fewer lines: a prompt of some 300 tokens, which both servers read whole."""
    above, _, line = prefix.rpartition("\n")
    before = "".join(above.splitlines(keepends=True)[-20:])[-700:]
    after = "".join(suffix.splitlines(keepends=True)[:10])[:300]
    return {
        "input_prefix": before + "\n", "prompt": line, "input_suffix": after, "input_extra": [],
        "n_predict": n_predict, "temperature": 0.2, "top_k": 40, "samplers": ["top_k", "temperature"],
        "cache_prompt": True, "raw": True, **more,
    }  # fmt: skip


def first_token_s(port: int, content: dict[str, Any]) -> float:
    """Return the seconds from sending to the stream's first token, and read the stream to its end."""
    raw = json.dumps(content).encode()
    started, first = time.perf_counter(), 0.0
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = "POST /infill HTTP/1.1\r\nHost: localhost\r\nX-Session-Id: one\r\nConnection: close\r\n"
        s.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        seen = b""
        while part := s.recv(65536):
            seen += part
            if not first and b"data: {" in seen:
                first = time.perf_counter() - started
    if b" 200 " not in seen.partition(b"\r\n")[0] or not first:
        raise SystemExit(f"no answer: {seen[:300]!r}")
    return first


def keys(ports: dict[str, int], n: int) -> dict[str, Any]:
    """Type n keys, the servers taking turns, and return milliseconds by server."""
    text = files()[7]
    lines = text.splitlines(keepends=True)
    at = len(lines) // 2
    prefix, typed = "".join(lines[:at]), "".join(lines[at : at + 20])
    found: dict[str, list[float]] = {name: [] for name in ports}
    for end in range(n + 4):
        content = body(prefix + typed[:end], "\n" + "".join(lines[at + 21 :]), 3, stream=True)
        for name in sorted(ports, reverse=bool(end % 2)):
            seconds = first_token_s(ports[name], content)
            if end >= 4:  # until then both read the file
                found[name].append(1e3 * seconds)
    return {
        name: {k: round(percentile(ms, share), 1) for k, share in (("median_ms", 0.5), ("p90_ms", 0.9))}
        for name, ms in found.items()
    }


def main() -> None:
    """Run both, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--preset", default="box")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--key-ms", type=float, default=200)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--keys", type=int, default=60)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    result: dict[str, Any] = {"preset": args.preset, "dtype": args.dtype, "gguf": Path(args.gguf).name}
    servers: dict[str, Any] = {}
    try:
        servers["codegen2"] = Server([], args.preset, args.dtype)
        servers["llama.cpp"] = Llama(args.server, args.gguf)
        servers["llama.cpp --spm-infill"] = Llama(args.server, args.gguf, "--spm-infill")
        if args.keys:
            result["first_token"] = keys({name: s.port for name, s in servers.items()}, args.keys)
        if args.requests:
            result["load"] = {name: asyncio.run(load(s, args, LlamaClient)) for name, s in servers.items()}
    finally:
        for server in servers.values():
            server.stop()
    tell(result, args.out)


if __name__ == "__main__":
    main()
