"""A real server and clients that misbehave: always an answer or a clean close, and the next request works."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from serve_tools import LIMITED, Process, left, wait_until

from codegen2.cli.main import main

resource = pytest.importorskip("resource", reason="needs limits a process can have")

PREFIX = "import os\n\n\ndef read(path):\n    with open(path) as f:\n        "
BODY = {"prompt": PREFIX, "suffix": "\n\ndef write(path):\n    pass\n", "max_tokens": 8}
LONG = {"prompt": "x = 1\n" * 60, "max_tokens": 200}


@pytest.fixture(scope="module")
def server():
    with Process() as found:
        yield found


def works(server):
    status, content = server.post(BODY)
    assert status == 200 and content["choices"][0]["text"], content


def idle(server):
    """Wait until nothing runs."""
    wait_until(
        lambda: not server.metric("codegen2_running") and not server.metric("codegen2_waiting"), pause_s=0.02
    )


def raw(server, content, **headers):
    """Return the bytes of a request."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{k.replace('_', '-')}: {v}" for k, v in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def talk(server, sent):
    """Send bytes and return the first of the reply, empty when the other side closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=300) as s:
        s.sendall(sent)
        try:
            return s.recv(65536)
        except ConnectionResetError:
            return b""


def close_at_random(server, times, seed):
    rng = random.Random(seed)
    for number in range(times):
        long = number % 3 == 0
        content = {**(LONG if long else BODY), "stream": bool(number % 2), "temperature": 1.0}
        sent = raw(server, content, X_Session_Id="e") if number % 5 == 0 else raw(server, content)
        with socket.create_connection(("127.0.0.1", server.port), timeout=300) as s:
            s.sendall(sent if rng.random() < 0.9 else sent[: rng.randrange(len(sent))])
            if rng.random() < 0.5:
                s.settimeout(rng.random() * 0.05 + 1e-4)
                with contextlib.suppress(OSError):
                    s.recv(rng.choice([1, 100, 65536]))
            else:
                time.sleep(rng.random() * 0.03)
            if rng.random() < 0.3:  # a reset instead of an end
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        if number % 50 == 49:
            works(server)


def check_sockets(server, times, seed):
    before = server.metric("codegen2_cancelled_total")
    threads = [
        threading.Thread(target=close_at_random, args=(server, times // 4, seed + i)) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    idle(server)
    works(server)
    assert server.metric("codegen2_faults_total") == 0
    assert server.metric("codegen2_cancelled_total") > before + times / 20
    assert not server.events("fault")
    assert not [line for line in server.lines if not line.startswith("{")], "a traceback"


def test_sockets_closed_at_random_points_24(server):
    check_sockets(server, 24, 1)


@pytest.mark.slow
def test_sockets_closed_at_random_points_1000(server):
    check_sockets(server, 1000, 2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_closed_socket_ends_the_work(server, stream):
    sent = raw(server, {**LONG, "stream": stream, "n": 4, "temperature": 1.0})
    for _ in range(2):  # it may be noticed while a piece is sent, or between two
        before = server.metric("codegen2_cancelled_total")
        with socket.create_connection(("127.0.0.1", server.port), timeout=300) as s:
            s.sendall(sent)
            wait_until(lambda: server.metric("codegen2_running"), pause_s=0.02)
        idle(server)
        assert server.metric("codegen2_cancelled_total") == before + 1


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00garbage\r\n\r\n", b"GET\r\n\r\n", b"POST /v1/completions HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=["tls", "no path", "version", "length", "chunks", "long path", "long header"],
)  # fmt: skip
def test_what_is_no_http(server, sent):
    reply = talk(server, sent)
    assert reply[:12] in (
        b"",
        b"HTTP/1.1 400",
        b"HTTP/1.1 404",
        b"HTTP/1.1 405",
        b"HTTP/1.1 431",
        b"HTTP/1.1 414",
    )
    works(server)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400), (b"{", 400), (b"[]", 400), (b"\xff\xfe", 400), (b"[" * 500_000, 400),
        (b'{"prompt":"\\ud800"}', 400),
        (b'{"max_tokens":' + b"9" * 5000 + b"}", 400), (json.dumps({"prompt": "x" * 17 * 2**20}).encode(), 413),
    ],
    ids=["empty", "half", "list", "bytes", "deep", "surrogate", "digits", "huge"],
)  # fmt: skip
def test_malformed_and_huge_bodies(server, content, status):
    connection = server.connection()
    try:
        connection.request("POST", "/v1/completions", content)
        reply = connection.getresponse()
        assert reply.status == status
        assert json.loads(reply.read())["error"]["message"]
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413  # refused before all of it was sent
    finally:
        connection.close()
    works(server)


@pytest.mark.slow  # a file is cut to a context in test_context.py, a body of 17 MB is refused above
def test_a_megabyte_of_file_is_answered(server):
    status, content = server.post(
        {"prompt": "x = 1\n" * 200_000, "suffix": "y = 2\n" * 2_000, "max_tokens": 9999}
    )
    assert status == 200 and content["codegen2"]["dropped_prefix_chars"] > 10**6


def test_slow_readers_hold_nobody_up(server):
    slow = []
    for _ in range(4):
        s = socket.create_connection(("127.0.0.1", server.port), timeout=300)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        s.sendall(
            raw(server, {**LONG, "max_tokens": 40, "stream": True, "logprobs": 5, "n": 2, "temperature": 1.0})
        )
        slow.append(s)
    works(server)
    idle(server)  # the work ends though nobody reads
    for s in slow:
        s.close()
    works(server)


def test_bodies_that_never_end_hold_nobody_up(server):
    waiting = []
    for _ in range(20):
        s = socket.create_connection(("127.0.0.1", server.port), timeout=300)
        s.sendall(raw(server, BODY)[:-5])
        waiting.append(s)
    works(server)
    for s in waiting:
        s.close()
    works(server)


def test_a_second_server_on_the_port_says_so(server, capsys):
    assert main(["serve", "--port", str(server.port)]) == 2
    assert capsys.readouterr().err == (
        f"codegen2: port {server.port} of 127.0.0.1 is taken, maybe by another codegen2 serve; end it or give another"
        " --port\n"
    )
    works(server)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--keep-alive", "soon"], "--keep-alive must be seconds or a duration such as 5m"),
        (["--max-queue", "0"], "max_queue must be from 1"),
        (["--api-key-file", os.devnull], "it is no regular file; name one"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, words, capsys):
    assert main(["serve", "--port", "0", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


# A server whose answers wait, from their third pass on, until a file appears.
WAITS = """
import os, sys, time
sys.path.insert(0, "tests")
import codegen2.serve.run
from codegen2.api import Model
from codegen2.cli.main import main
from serve_tools import TOK, Says
class Waits(Says):
    def forward(self, pieces, cache):
        while self.passes >= 3 and not os.path.exists(os.environ["GO_ON"]):
            if self._cancel is not None and self._cancel.is_set():
                break
            time.sleep(0.005)
        return super().forward(pieces, cache)
codegen2.serve.run.loader = lambda args: lambda: Model(Waits("x" * 99), TOK, "waits")
sys.exit(main(sys.argv[1:]))
"""


def streaming(server):
    """Begin a long streamed answer and return the connection's reply once its first line is there."""
    connection = server.connection(timeout=300)
    body = {"prompt": "a:", "max_tokens": 30, "stream": True, "temperature": 1.0, "n": 8}
    connection.request("POST", "/v1/completions", json.dumps(body))
    reply = connection.getresponse()
    assert reply.readline().startswith(b"data: ")
    connection.sock.close() if connection.sock else None  # the reply keeps its own hold of the socket
    return reply


def test_sigterm_answers_what_was_asked_and_ends(tmp_path):
    with Process("--drain", "6000", code=WAITS, env={"GO_ON": str(tmp_path / "go")}) as server:
        reply = streaming(server)
        server.process.send_signal(signal.SIGTERM)
        # Nothing new is taken.
        wait_until(lambda: server.post({"prompt": "a", "max_tokens": 0})[0] == 503, pause_s=0.02)
        (tmp_path / "go").touch()
        rest = reply.read()
        assert (
            rest.endswith(b"data: [DONE]\n\n") and rest.count(b'"codegen2":') == 8 and b"stopping" not in rest
        )
        assert server.end() == 0
        assert server.lines[-1].startswith("{") and server.events("end")


@pytest.mark.slow
def test_sigterm_waits_no_longer_than_it_was_told(tmp_path):
    with Process("--drain", "0", code=WAITS, env={"GO_ON": str(tmp_path / "never")}) as server:
        reply = streaming(server)
        assert server.end() == 0
        assert b'"finish_reason":"stopping"' in reply.read()


FAULTY = """
import sys, codegen2.engine.native as native
from codegen2.cli.main import main
real, n = native.NativeEngine.forward, [0]
def forward(self, pieces, cache):
    n[0] += 1
    if n[0] % 20 == 10:
        raise RuntimeError("broken on purpose")
    return real(self, pieces, cache)
native.NativeEngine.forward = forward
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow  # in this process: test_serve_deaths.py
def test_a_worker_that_breaks_answers_the_next():
    with Process(code=FAULTY) as server:
        seen = [server.post({"prompt": "a = ", "max_tokens": 4})[0] for _ in range(12)]
        assert {200, 500} == set(seen)
        assert all(b == 200 for a, b in itertools.pairwise(seen) if a == 500)
        assert server.metric("codegen2_faults_total") == seen.count(500)
        assert server.end() == 0


SLOW_TO_READ = """
import sys
sys.path.insert(0, "tests")
import codegen2.serve.run
from codegen2.api import Model
from codegen2.cli.main import main
from serve_tools import TOK, Says
class Slow(Says):  # it never ends reading a long prompt by itself
    def forward(self, pieces, cache):
        self._left = 0 if any(len(p.tokens) > 20 for p in pieces) else None
        return super().forward(pieces, cache)
codegen2.serve.run.loader = lambda args: lambda: Model(Slow("x"), TOK, "slow")
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow  # closed while answers are written: above; in this process while prompts are read: test_worker.py
def test_sockets_closed_while_the_prompts_are_read_end_the_reading():
    with Process(code=SLOW_TO_READ) as server:
        for n, stream in ((1, False), (3, True)):
            before = server.metric("codegen2_cancelled_total")
            content = {"prompt": f"{n} " * 60 + ":", "stream": stream}
            asked = [socket.create_connection(("127.0.0.1", server.port), timeout=300) for _ in range(n)]
            for s in asked:
                s.sendall(raw(server, content))
            # The first may be read alone, which does not end; the others then wait.
            wait_until(
                lambda n=n: (
                    server.metric("codegen2_running") + server.metric("codegen2_waiting") == n
                    and server.metric("codegen2_running") > 0
                ),
                pause_s=0.02,
            )
            for s in asked:
                s.close()
            idle(server)  # benchmarks/serve_cancel.py says how soon
            assert server.metric("codegen2_cancelled_total") == before + n
            assert server.post({"prompt": "a:"})[1]["choices"][0]["text"] == "x"
        assert 'reason="cancelled"' in server.get("/metrics")[1]
        assert 'phase="write"' not in server.get("/metrics")[1]


TMPFS = """
import os, sys
mount = 'mount -t tmpfs -o size=8m none "$CODEGEN2_CACHE" && exec "$@"'
command = ["unshare", "-Urm", "sh", "-c", mount, "sh", sys.executable, "-m", "codegen2", *sys.argv[1:]]
os.execvp(command[0], command)
"""


def can_mount():
    """Return whether a user may have mounts of his own here."""
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


def no_model(server):
    """Wait until loading has failed; return every route's sentence of it."""
    wait_until(lambda: server.get("/health")[0] != 503, pause_s=0.05)
    assert server.get("/health")[0] == 500
    said = []
    for path, content in (
        ("/v1/completions", BODY),
        ("/v1/completions", {**BODY, "stream": True}),
        ("/v1/fim/completions", BODY),
    ):
        status, answered = server.post(content, path)
        assert status == 500
        said.append(json.dumps(answered))
    return said


@pytest.mark.slow  # the sentence and the next try: test_native_form.py; a load that fails: test_serve_app.py
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_a_cache_that_cannot_be_written_is_said_with_the_remedy_and_the_next_try_works(tmp_path):
    server = Process(code=LIMITED, env={"CODEGEN2_CACHE": str(tmp_path)})
    try:
        for sentence in no_model(server):
            assert "cannot be written (File too large); set CODEGEN2_CACHE to a folder that can" in sentence
        assert left(tmp_path) == []
        most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, most)  # somebody made room
        works(server)
        assert server.get("/health")[0] == 200
    finally:
        server.end()
    made = {path: path.stat().st_mtime_ns for path in left(tmp_path) if path.name != "source.json"}
    with Process(env={"CODEGEN2_CACHE": str(tmp_path)}) as server:
        works(server)
    assert all(path.stat().st_mtime_ns == then for path, then in made.items()) and made


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs mounts of one's own")
def test_a_cache_on_a_small_disk_is_said_with_the_remedy(tmp_path):
    if not can_mount():
        pytest.skip("needs mounts of one's own")
    server = Process(code=TMPFS, env={"CODEGEN2_CACHE": str(tmp_path)})
    try:
        for sentence in no_model(server):
            assert "free; set CODEGEN2_CACHE to a folder on another disk, or free some with" in sentence
        assert left(Path(f"/proc/{server.process.pid}/root{tmp_path}")) == []
    finally:
        server.end()
