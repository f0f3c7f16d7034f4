"""What dies: an engine's call, a load, the worker's thread, the process. The next request is answered or told why."""

import http.client
import json
import signal
import threading

import pytest
from serve_tools import Process, client, says, wait_until

from codegen2.generation.worker import Worker

ASKED = {"/v1/completions": {"prompt": "a:"}, "/v1/fim/completions": {"prompt": "a:"}}
BODY = {"prompt": "import os\n\n\ndef read(path):\n    ", "suffix": "\n", "max_tokens": 8}
LONG = {"prompt": "x = 1\n" * 60, "max_tokens": 250, "min_tokens": 250, "n": 8, "temperature": 1.0}
LATE_TO_LOAD = """
import sys, threading
import codegen2.serve.run
from codegen2.cli.main import main
codegen2.serve.run.loader = lambda args: lambda: threading.Event().wait()
sys.exit(main(sys.argv[1:]))
"""

# A server that never ends its first conversion: it waits before it gives the directory its name.
CONVERTS = """
import os, sys, threading
from codegen2.cli.main import main
os.rename = lambda *names: threading.Event().wait()
sys.exit(main(sys.argv[1:]))
"""


# ---- a call of the engine


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("fault", [RuntimeError, MemoryError, SystemExit])
def test_a_fault_is_answered_in_the_dialect_and_the_next_request_works(path, fault):
    with client(lambda: says("x")) as found:
        assert found.post(path, json=ASKED[path]).status_code == 200
        found.app.state.worker.model.engine.fail = [fault("SECRET")]
        reply = found.post(path, json=ASKED[path])
        assert reply.status_code == 500 and "SECRET" not in reply.text
        said = reply.json()
        if path == "/v1/fim/completions":
            assert said["object"] == "error" and said["message"]
        else:
            assert said["error"]["message"] and said["error"]["type"] == "server_error"
        assert found.post(path, json=ASKED[path]).status_code == 200
        assert found.get("/health").status_code == 200


@pytest.mark.parametrize("path", ASKED)
def test_a_fault_in_a_stream_ends_it_with_an_error(path):
    model = says("one two three four " * 9)
    real, n = model.engine.forward, iter(range(10**6))
    model.engine.forward = lambda pieces, cache: 1 // 0 if next(n) == 11 else real(pieces, cache)
    with client(model) as found:
        reply = found.post(path, json={**ASKED[path], "stream": True, "raw": True, "max_tokens": 50})
        assert reply.status_code == 200 and "division" not in reply.text
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
        last = json.loads([line for line in lines if line != "[DONE]"][-1])
        assert last.get("object") == "error" if "fim" in path else last["error"]
        assert len(lines) > 3 and found.post(path, json=ASKED[path]).status_code == 200


# ---- a load


def test_sigterm_while_the_model_loads_ends_the_process():
    server = Process(code=LATE_TO_LOAD)
    assert server.get("/health")[0] == 503
    assert server.end(signal.SIGTERM) == 0


# ---- the worker's thread


def test_a_dead_thread_is_said_and_nobody_waits(monkeypatch):
    def broken(self, error):
        raise RuntimeError("SECRET")

    monkeypatch.setattr(Worker, "_fault", broken)
    model = says("x")
    with client(model) as found:
        model.engine.fail = [RuntimeError("SECRET")]
        reply = found.post("/v1/completions", json={"prompt": "a:"})  # the one that it dies of
        assert reply.status_code == 500 and "SECRET" not in reply.text
        wait_until(lambda: found.app.state.worker.state == "dead")
        reply = found.post("/v1/completions", json={"prompt": "a:"})
        assert reply.status_code == 500 and reply.json()["error"]["code"] == "no_model"
        assert "the worker has died (RuntimeError); start the server again" in reply.text
        reply = found.get("/health")
        assert reply.status_code == 503 and "start the server again" in reply.text


# ---- the process


def ends(server, content, seen):
    """Ask, and note how the connection ended."""
    connection = server.connection()
    try:
        connection.request("POST", "/v1/completions", json.dumps(content))
        connection.getresponse().read()
        seen.append("answered")
    except (http.client.HTTPException, ConnectionError) as e:
        seen.append(type(e).__name__)
    finally:
        connection.close()


@pytest.mark.slow
def test_a_killed_server_closes_its_connections_and_the_next_has_its_port_at_once(tmp_path):
    env = {"CODEGEN2_CACHE": str(tmp_path)}
    with Process(env=env) as server:
        made = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        seen = []
        asking = [
            threading.Thread(target=ends, args=(server, {**LONG, "stream": i % 2 == 0}, seen))
            for i in range(6)
        ]
        for thread in asking:
            thread.start()
        wait_until(lambda: server.metric("codegen2_running"), pause_s=0.02)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        for thread in asking:
            thread.join(300)
        assert len(seen) == 6 and seen.count("answered") == 0, seen
        port = server.port
    with Process("--port", str(port), env=env) as server:
        assert server.port == port
        assert server.post(BODY)[1]["choices"][0]["text"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == made


@pytest.mark.slow  # what such a kill leaves in the cache: test_native_form.py
def test_a_server_killed_in_its_first_conversion_leaves_nothing_that_harms(tmp_path):
    server = Process(code=CONVERTS, env={"CODEGEN2_CACHE": str(tmp_path)})
    wait_until(lambda: server.process.poll() is not None or list(tmp_path.rglob("*.part")), pause_s=0.005)
    assert server.process.poll() is None and server.get("/health")[0] == 503
    server.end(signal.SIGKILL)
    assert not [path for path in (tmp_path / "native").iterdir() if not path.name.startswith(".")]
    with Process(env={"CODEGEN2_CACHE": str(tmp_path)}) as server:
        assert server.post(BODY)[1]["choices"][0]["text"]
    (entry,) = (tmp_path / "native").iterdir()  # the remains are gone
    assert not entry.name.startswith(".")
