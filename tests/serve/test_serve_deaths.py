"""What dies: an engine's call, a load, the worker's thread, the process. The next request is answered or told why."""

import asyncio
import http.client
import json
import signal
import threading
import time

import pytest
from serve_tools import TOK, Process, Says, ask, client, running, says, until

from codegen2.api import Model
from codegen2.serve.answers import NoModel
from codegen2.serve.worker import Worker

ASKED = {
    "/v1/completions": {"prompt": "a:"},
    "/v1/fim/completions": {"prompt": "a:"},
    "/infill": {"input_prefix": "a:", "input_suffix": ""},
    "/completion": {"prompt": "a:"},
    "/api/generate": {"prompt": "a:", "stream": False},
}
BODY = {"prompt": "import os\n\n\ndef read(path):\n    ", "suffix": "\n", "max_tokens": 8}
LONG = {"prompt": "x = 1\n" * 300, "max_tokens": 250, "min_tokens": 250, "n": 8, "temperature": 1.0}
LATE_TO_LOAD = """
import sys, time
import codegen2.serve.run
from codegen2.cli.main import main
codegen2.serve.run.loader = lambda args: lambda: time.sleep(60)
sys.exit(main(sys.argv[1:]))
"""


# ---- a call of the engine


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("fault", [RuntimeError, MemoryError, SystemExit])
def test_a_fault_is_answered_in_the_dialect_and_the_next_request_works(path, fault):
    engine = Says("x", end=":")
    with client(Model(engine, TOK, "")) as found:
        assert found.post(path, json=ASKED[path]).status_code == 200
        engine.fail = [fault("SECRET")]
        reply = found.post(path, json=ASKED[path])
        assert reply.status_code == 500 and "SECRET" not in reply.text
        said = reply.json()
        if path == "/v1/fim/completions":
            assert said["object"] == "error" and said["message"]
        elif path == "/api/generate":
            assert isinstance(said["error"], str)
        else:
            assert said["error"]["message"] and said["error"]["type"] == "server_error"
        assert found.post(path, json=ASKED[path]).status_code == 200
        assert found.get("/health").status_code == 200


class Breaks(Says):
    """It breaks in its twelfth pass."""

    def extend(self, ids, cache):
        self.fail = [RuntimeError("SECRET")] if self.passes == 11 else []
        return super().extend(ids, cache)


@pytest.mark.parametrize("path", ASKED)
def test_a_fault_in_a_stream_ends_it_with_an_error(path):
    engine = Breaks("one two three four " * 9, end=":")
    with client(Model(engine, TOK, "")) as found:
        body = {**ASKED[path], "stream": True, "raw": True}
        body |= {"options": {"num_predict": 50}} if path.startswith("/api") else {"max_tokens": 50}
        reply = found.post(path, json=body)
        assert reply.status_code == 200 and "SECRET" not in reply.text
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
        last = json.loads([line for line in lines if line != "[DONE]"][-1])
        assert last.get("object") == "error" if "fim" in path else last["error"]
        assert len(lines) > 3 and found.post(path, json=ASKED[path]).status_code == 200


def test_what_waits_and_cannot_be_worked_on_is_told_and_not_tried_without_end(monkeypatch):
    async def run():
        with running(says("x", end=":")) as worker:
            await worker.submit(ask("a:")).whole()
            monkeypatch.setattr(worker, "_admit", lambda: 1 // 0)
            with pytest.raises(RuntimeError, match="ZeroDivisionError"):
                await asyncio.wait_for(worker.submit(ask("a:")).whole(), 10)
            monkeypatch.undo()
            assert (await worker.submit(ask("a:")).whole()).choices[0].text == "x"
            assert worker.metrics.value("codegen2_faults_total") == 1

    asyncio.run(run())


# ---- a load


def test_a_load_that_exits_and_a_cache_that_does_not_fit_are_told_and_tried_again(monkeypatch):
    def exits():
        raise SystemExit("no")

    async def run():
        with running(exits) as worker:
            worker.start()
            await until(lambda: worker.state == "failed")
            with pytest.raises(NoModel, match="cannot be loaded: no"):
                await worker.submit(ask("a:")).whole()
            worker._load = lambda: says("x", end=":")
            with monkeypatch.context() as patch:
                patch.setattr("codegen2.serve.worker.Loaded", lambda *_: bytearray(2**62))
                with pytest.raises(NoModel, match="MemoryError"):
                    await asyncio.wait_for(worker.submit(ask("a:")).whole(), 10)
            assert (await worker.submit(ask("a:")).whole()).choices[0].text == "x"

    asyncio.run(run())


def test_sigterm_while_the_model_loads_ends_the_process():
    server = Process(code=LATE_TO_LOAD)
    assert server.get("/health")[0] == 503
    started = time.monotonic()
    assert server.end(signal.SIGTERM) == 0
    assert time.monotonic() - started < 30


def test_a_keep_alive_of_ages_is_no_fault():
    with client(says("x", end=":")) as found:
        for age in ("99999999999999h", 1e9):
            assert found.post("/api/generate", json={"prompt": "", "keep_alive": age}).status_code == 200
            time.sleep(0.05)  # the worker waits for that long now, or as long as a wait can be
            assert found.post("/completion", json={"prompt": "a:"}).json()["content"] == "x"
        assert found.app.state.worker.metrics.value("codegen2_faults_total") == 0


# ---- the worker's thread


def test_a_dead_thread_is_said_and_nobody_waits(monkeypatch):
    def broken(self, error):
        raise RuntimeError("SECRET")

    monkeypatch.setattr(Worker, "_fault", broken)
    engine = Says("x", end=":")
    with client(Model(engine, TOK, "")) as found:
        engine.fail = [RuntimeError("SECRET")]
        for _ in range(2):  # the one that it dies of, and one that comes later
            reply = found.post("/v1/completions", json={"prompt": "a:"})
            assert reply.status_code == 500 and reply.json()["error"]["code"] == "no_model"
            assert "the worker has died (RuntimeError); start the server again" in reply.text
        reply = found.get("/health")
        assert reply.status_code == 503 and "start the server again" in reply.text


# ---- the process


def ends(server, content, seen):
    """Ask, and note how the connection ended."""
    connection = server.connection(timeout=30)
    try:
        connection.request("POST", "/v1/completions", json.dumps(content))
        connection.getresponse().read()
        seen.append("answered")
    except (http.client.HTTPException, ConnectionError) as e:
        seen.append(type(e).__name__)
    finally:
        connection.close()


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
        while not server.metric("codegen2_running"):
            time.sleep(0.005)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        for thread in asking:
            thread.join(30)
        assert len(seen) == 6 and seen.count("answered") == 0, seen
        port = server.port
    with Process("--port", str(port), env=env) as server:
        assert server.port == port
        assert server.post(BODY)[1]["choices"][0]["text"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == made


def test_a_server_killed_in_its_first_conversion_leaves_nothing_that_harms(tmp_path):
    server = Process(env={"CODEGEN2_CACHE": str(tmp_path)})
    while not list(tmp_path.rglob("*.part")):
        assert server.process.poll() is None and server.get("/health")[0] == 503, (
            "it was too quick to be killed"
        )
    server.end(signal.SIGKILL)
    assert not [path for path in (tmp_path / "native").iterdir() if not path.name.startswith(".")]
    with Process(env={"CODEGEN2_CACHE": str(tmp_path)}) as server:
        assert server.post(BODY)[1]["choices"][0]["text"]
    (entry,) = (tmp_path / "native").iterdir()  # the remains are gone
    assert not entry.name.startswith(".")
