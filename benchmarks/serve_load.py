"""codegen2 serve under load: editors that type, and how soon the processor is idle after a client is gone.

    python benchmarks/serve_load.py [--clients 64] [--requests 10000] [--key-ms 200] [--max-tokens 24] [--cancels 50]
                                    [--keys SECONDS] [--synthetic 1B --dtype int4] [--out RESULT.json]
                                    [-- ARGUMENTS OF SERVE]

A real server in a process of its own, on this machine, whose cores the clients share. Each client has a file of
Python's standard library open, types eight lines of it again at a random place, and asks for an infill at every key
without waiting for the last one's answer: every second client closes its connection first, as llama.vim does, the
others leave the older request to be superseded. At a line's end a client pauses six keys long. --cancels: closes
sockets at random times in requests of long prompts and watches the server's processor time until it stands still.
--keys: a server with keys instead, one of which types while another floods it: what the quiet one waits, alone and
beside the other, and what the two learn of each other. --synthetic: random weights of that size (`box`: of the box's)
instead of the model in the box. Before the clock starts, twice as many prompts as there are slots are read, so that
memory is as large as it gets; it is compared from a fifth of the requests on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SEED = 20261124
LINES_IN_A_ROW = 8
MOST_SLOTS = 64
FILL = 192  # tokens, behind the longest prompt
QUIET_S, QUIET_CPU_S = 0.03, 0.003  # idle: less processor time than this in so long


class Server:
    """The server's process."""

    def __init__(self, arguments: list[str], synthetic: str | None, dtype: str) -> None:
        command = [sys.executable, "-m", "codegen2"]
        if synthetic:
            command = [sys.executable, __file__, "--inner", synthetic, dtype]
        self.process = subprocess.Popen(
            [*command, "serve", "--port", "0", *arguments], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"http://127.0.0.1:(\d+)", line)
        if not found:
            sys.exit(line + self.process.stderr.read())
        self.port = int(found[1])
        self.log = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)
        for _ in range(1200):
            with contextlib.suppress(OSError):
                if self.get("/health"):
                    return
            time.sleep(0.1)
        sys.exit("the server never became ready")

    def stop(self) -> None:
        """End it in order."""
        self.process.terminate()
        self.process.wait(60)
        self.log.wait(10)

    def get(self, path: str) -> str:
        """Ask once."""
        return str(self.ask(path, None, "operator")[1])

    def ask(self, path: str, content: Any, key: str, **headers: str) -> tuple[int, str]:
        """Return status and text of one answer."""
        body = None if content is None else json.dumps(content).encode()
        headers |= {"Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=600) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def metrics(self) -> dict[str, float]:
        """Return all metrics, labels and all."""
        lines = [line for line in self.get("/metrics").splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def rss(self) -> int:
        """Return the process's memory, bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    def cpu_s(self) -> float:
        """Return the processor time that all threads have had, seconds."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9


def files() -> list[str]:
    """Return texts of the standard library, 5 to 60 KB each."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(p for p in folder.glob("*.py") if 5_000 < p.stat().st_size < 60_000)
    return [p.read_text("utf-8") for p in found]


class Client:
    """One editor."""

    def __init__(
        self, number: int, port: int, text: str, counts: dict[str, Any], args: argparse.Namespace
    ) -> None:
        self.number, self.port, self.counts, self.args = number, port, counts, args
        self.rng = random.Random(SEED + number)
        self.lines = text.splitlines(keepends=True)

    async def run(self) -> None:
        """Type until all requests were sent."""
        running: set[asyncio.Task[None]] = set()
        await asyncio.sleep(self.rng.random() * self.args.key_ms / 1000)
        while self.counts["sent"] < self.args.requests:
            at = self.rng.randrange(len(self.lines))
            typed = "".join(self.lines[at : at + LINES_IN_A_ROW]).rstrip("\n")
            before, after = "".join(self.lines[:at]), "\n" + "".join(self.lines[at + LINES_IN_A_ROW :])
            for end in range(1, len(typed) + 1):
                if self.counts["sent"] >= self.args.requests:
                    break
                self.counts["sent"] += 1
                if self.closes:
                    for task in running:
                        task.cancel()
                task = asyncio.ensure_future(self.ask(before, typed[:end], after))
                running.add(task)
                task.add_done_callback(running.discard)
                await asyncio.sleep(self.rng.expovariate(1000 / self.args.key_ms))
                if typed[end - 1] == "\n":
                    await asyncio.sleep(6 * self.args.key_ms / 1000)
        await asyncio.gather(*running, return_exceptions=True)

    @property
    def closes(self) -> bool:
        """Return whether it closes its connection before it asks again."""
        return self.number % 2 == 0

    def request(self, before: str, typed: str, after: str) -> tuple[str, dict[str, Any]]:
        """Return path and body."""
        return "/v1/completions", {
            "prompt": before + typed,
            "suffix": after,
            "max_tokens": self.args.max_tokens,
        }

    async def fill(self, text: str) -> None:
        """Let the server read and write as much for one slot as it ever will here."""
        self.request = lambda *_: (  # type: ignore[method-assign]
            "/v1/completions", {"prompt": text, "max_tokens": FILL, "min_tokens": FILL, "temperature": 1},
        )  # fmt: skip
        await self.ask("", "", "")

    def note(self, answer: dict[str, Any], seconds: float) -> None:
        """Write an answer down."""
        if answer["choices"][0]["codegen2"]["finish_reason"] == "superseded":
            self.counts["superseded_s"].append(seconds)
        else:
            self.counts["answered_s"].append(seconds)
            self.counts["read"].append(answer["codegen2"]["timings"]["prompt_n"])
            self.counts["written"] += answer["usage"]["completion_tokens"]

    async def ask(self, before: str, typed: str, after: str) -> None:
        """Ask once and count how it went."""
        started = time.monotonic()
        writer = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            path, content = self.request(before, typed, after)
            body = json.dumps(content).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Session-Id: editor-{self.number}\r\n"
            writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            reply = await reader.read()
            status = int(reply.split(b" ", 2)[1])
            if status != 200:
                self.counts["errors"].append(f"{status} {reply[-200:]!r}")
                return
            self.note(json.loads(reply.partition(b"\r\n\r\n")[2]), time.monotonic() - started)
        except asyncio.CancelledError:
            self.counts["closed"] += 1
        except (OSError, ValueError, LookupError) as e:
            self.counts["errors"].append(f"{type(e).__name__}: {e}")
        finally:
            if writer is not None:
                writer.close()


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def fresh_counts() -> dict[str, Any]:
    """Return nothing yet."""
    return {
        "sent": 0, "closed": 0, "written": 0, "errors": [], "superseded_s": [], "answered_s": [], "read": [],
    }  # fmt: skip


async def load(server: Any, args: argparse.Namespace, kind: type[Client] = Client) -> dict[str, Any]:
    """Let all clients type, and watch the server's memory."""
    counts = fresh_counts()
    texts = files()
    clients = [kind(i, server.port, texts[i % len(texts)], counts, args) for i in range(args.clients)]
    for start in range(0, 2 * MOST_SLOTS, 16):  # fill all slots, with more than a typing client's prompt has
        some = range(start, start + 16)
        fill = [kind(-1 - i, server.port, "", fresh_counts(), args) for i in some]
        await asyncio.gather(
            *(c.fill(texts[i % len(texts)][i * 50 :]) for i, c in zip(some, fill, strict=True))
        )
    started = time.monotonic()
    work = [asyncio.ensure_future(c.run()) for c in clients]
    memory: list[tuple[int, int]] = []
    while not all(w.done() for w in work):
        memory.append((counts["sent"], server.rss()))
        await asyncio.sleep(0.25)
    await asyncio.gather(*work)
    seconds = time.monotonic() - started
    memory.append((counts["sent"], server.rss()))
    early = next(rss for sent, rss in memory if sent >= args.requests * 0.2)
    steps = [next(rss for sent, rss in memory if sent >= args.requests * k / 10) for k in range(11)]
    return {
        "requests": counts["sent"],
        "seconds": round(seconds, 1),
        "answered": len(counts["answered_s"]),
        "superseded": len(counts["superseded_s"]),
        "closed_by_client": counts["closed"],
        "errors": len(counts["errors"]),
        "first_errors": counts["errors"][:3],
        "written_tokens": counts["written"],
        "answer_median_ms": round(1e3 * percentile(counts["answered_s"], 0.5), 1),
        "answer_p99_ms": round(1e3 * percentile(counts["answered_s"], 0.99), 1),
        "superseded_p99_ms": round(1e3 * percentile(counts["superseded_s"], 0.99), 1),
        "prompt_tokens_read_median": percentile(counts["read"], 0.5),
        "rss_mib_by_tenths": [round(rss / 2**20, 1) for rss in steps],
        "rss_growth_from_a_fifth": round(memory[-1][1] / early - 1, 4),
    }


def idle_after_s(server: Server) -> float:
    """Watch the server's processor time and return the seconds from now until it stands still."""
    begun = last = time.monotonic()
    cpu = server.cpu_s()
    while time.monotonic() - last < QUIET_S:
        time.sleep(0.001)
        now = server.cpu_s()
        if now - cpu > QUIET_CPU_S:
            last, cpu = time.monotonic(), now
    return last - begun


def cancels(server: Server, times: int) -> dict[str, Any]:
    """Close sockets at random times and wait for an idle processor; give milliseconds."""
    rng, found = random.Random(SEED), []
    before = {k: v for k, v in server.metrics().items() if k.startswith("codegen2_cancelled_total")}
    text = "".join(files()[:3])
    for number in range(times):
        start = rng.randrange(len(text) - 20_000)
        content = {
            "prompt": f"# {number}\n" + text[start : start + 20_000],
            "max_tokens": 200,
            "n": 4,
            "temperature": 1,
        }
        body = json.dumps(content).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.sendall(
                f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            )
            s.sendall(body)
            time.sleep(rng.uniform(0.02, 0.3))
        found.append(1e3 * idle_after_s(server))
    after = server.metrics()
    phases = {k: v - before.get(k, 0) for k, v in after.items() if k.startswith("codegen2_cancelled_total")}
    return {
        "closed": times,
        "cancelled": {
            re.sub(r'.*phase="(\w+)".*', r"\1", k): v for k, v in phases.items() if 'reason="cancelled"' in k
        },
        "idle_median_ms": round(percentile(found, 0.5), 1),
        "idle_p99_ms": round(percentile(found, 0.99), 1),
        "idle_max_ms": round(max(found), 1),
    }


def typed(server: Server, seconds: float, seed: int) -> list[float]:
    """Type lines of the standard library with the quiet key, a key at a time; return the seconds of each answer."""
    rng, found, until = random.Random(seed), [], time.monotonic() + seconds
    lines = files()[seed].splitlines(keepends=True)
    while time.monotonic() < until:
        at = rng.randrange(len(lines) - 1)
        for end in range(1, len(lines[at]) + 1):
            prompt, suffix = "".join(lines[:at]) + lines[at][:end], "\n" + "".join(lines[at + 1 :])
            began = time.monotonic()
            status, text = server.ask(
                "/v1/completions", {"prompt": prompt, "suffix": suffix, "max_tokens": 16}, "quiet"
            )
            assert status == 200, text
            found.append(time.monotonic() - began)
            time.sleep(0.05)
            if time.monotonic() > until:
                break
    return found


def flood(server: Server, number: int, ended: threading.Event, statuses: list[int]) -> None:
    """Ask for twenty answers to a long prompt, again and again, with the flooder's key."""
    rng, texts = random.Random(number), files()
    while not ended.is_set():
        content = {
            "prompt": rng.choice(texts)[rng.randrange(2000) :],
            "n": 20,
            "max_tokens": 64,
            "temperature": 1,
        }
        statuses.append(server.ask("/v1/completions", content, "flooder")[0])


def crossings(server: Server) -> dict[str, Any]:
    """Return what one key learns of another's prompts, and what it can do to it."""

    def cached(key: str) -> int:
        text = server.ask("/v1/completions", {"prompt": "def secret(token):\n" * 20, "max_tokens": 1}, key)[1]
        return int(json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"])

    found: dict[str, Any] = {"cached": [cached("quiet"), cached("quiet"), cached("flooder")]}
    long = {"prompt": "x = ", "max_tokens": 200, "min_tokens": 200, "temperature": 1}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.ask, "/v1/completions", long, "quiet", **{"X-Session-Id": "mine"})
        time.sleep(0.1)
        server.ask(
            "/v1/completions",
            long | {"max_tokens": 1, "min_tokens": 1},
            "flooder",
            **{"X-Session-Id": "mine"},
        )
        found["ended_by_other"] = json.loads(asked.result()[1])["choices"][0]["codegen2"]["finish_reason"]
    found["unload"] = [server.ask("/api/generate", {"keep_alive": 0}, key)[0] for key in ("quiet", "flooder")]
    found["metrics"] = [server.ask("/metrics", None, key)[0] for key in ("operator", "quiet", "flooder")]
    return found


def keys(server: Server, seconds: float, connections: int = 32) -> dict[str, Any]:
    """Let one key type, alone and while another floods, and print a table."""
    result: dict[str, Any] = {"crossings": crossings(server)}
    ended, statuses = threading.Event(), list[int]()
    print(f"{'the quiet key':24} {'answers':>8} {'p50 ms':>8} {'p95 ms':>8}")
    with ThreadPoolExecutor(connections) as pool:
        for name in ("alone", f"beside {connections} x n=20"):
            if name != "alone":
                for i in range(connections):
                    pool.submit(flood, server, i, ended, statuses)
                time.sleep(2)
            took = typed(server, seconds, len(result))
            p50, p95 = (round(1e3 * percentile(took, share), 1) for share in (0.5, 0.95))
            result[name] = {"answers": len(took), "p50_ms": p50, "p95_ms": p95}
            print(f"{name:24} {len(took):8} {p50:8} {p95:8}")
        ended.set()
    result["flooder"] = {str(status): statuses.count(status) for status in sorted(set(statuses))}
    result["written"] = {k: v for k, v in server.metrics().items() if k.startswith("codegen2_written_tokens")}
    return result


def tell(result: dict[str, Any], out: Path | None) -> None:
    """Print a result, and write it where that is asked for."""
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


def inner(preset: str, dtype: str, arguments: list[str]) -> None:
    """Be the server, with random weights."""
    import codegen2.serve.run
    from codegen2.api import Model
    from codegen2.box import box_dir
    from codegen2.cli.bench import synthetic
    from codegen2.cli.main import main
    from codegen2.config import PRESETS, ModelConfig
    from codegen2.engine.native import NativeEngine
    from codegen2.text.tokenizer import Tokenizer

    if preset == "box":
        config = ModelConfig.from_dict(json.loads((box_dir() / "config.json").read_text("utf-8")))
    else:
        config = PRESETS[preset]

    def loader(args: argparse.Namespace) -> Any:
        weights = synthetic(config, lambda name: "int8" if "wte" in name or "lm_head" in name else dtype)
        return lambda: Model(NativeEngine(weights), Tokenizer(), preset)

    codegen2.serve.run.loader = loader
    sys.exit(main(arguments))


def main() -> None:
    """Start a server, load it, print."""
    if sys.argv[1:2] == ["--inner"]:
        inner(sys.argv[2], sys.argv[3], sys.argv[4:])
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--key-ms", type=float, default=200)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--cancels", type=int, default=50)
    parser.add_argument("--synthetic", default=None)
    parser.add_argument("--dtype", default="int4")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--keys", type=float, default=0, metavar="SECONDS", help="of each half")
    parser.add_argument("serve", nargs="*", help="arguments of codegen2 serve, behind --")
    args = parser.parse_args()
    if args.keys:
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
            file.write("operator\nquiet\nflooder\n")
            file.flush()
            server = Server(["--api-key-file", file.name, *args.serve], args.synthetic, args.dtype)
        try:
            tell({"model": args.synthetic or "box", "keys": keys(server, args.keys)}, args.out)
        finally:
            server.stop()
        return
    server = Server(args.serve, args.synthetic, args.dtype)
    try:
        result: dict[str, Any] = {
            "model": args.synthetic or "box",
            "clients": args.clients,
            "key_ms": args.key_ms,
        }
        if args.requests:
            result["load"] = asyncio.run(load(server, args))
        if args.cancels:
            result["cancel"] = cancels(server, args.cancels)
        metrics = server.metrics()
        passes = max(1.0, metrics.get("codegen2_passes_total", 1.0))
        result["rows_a_pass"] = round(metrics.get("codegen2_pass_rows_total", 0.0) / passes, 2)
        result["faults"] = metrics.get("codegen2_faults_total", 0.0)
    finally:
        server.stop()
    tell(result, args.out)


if __name__ == "__main__":
    main()
