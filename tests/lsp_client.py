"""A small client of language servers over two pipes, which shares no code with ours."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

Message = dict[str, Any]


class Client:
    """Speak JSON-RPC; `settings` is what it answers to workspace/configuration."""

    def __init__(self, to_server: BinaryIO, from_server: BinaryIO, settings: Any = None) -> None:
        self._out, self._in = to_server, from_server
        self.settings = settings
        self.heard: list[Message] = []  # what the server said unasked
        self._answers: dict[int, queue.Queue[Message]] = {}
        self._number = 0
        self._lock = threading.Lock()
        self.broken: Exception | None = None  # anything but the protocol came
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while head := self._in.readline():
                length = None
                while head.strip():
                    name, _, value = head.partition(b":")
                    assert name in (b"Content-Length", b"Content-Type"), head
                    length = int(value) if name == b"Content-Length" else length
                    head = self._in.readline()
                assert length is not None
                self._take(json.loads(self._in.read(length)))
        except (AssertionError, ValueError) as e:
            self.broken = e

    def _take(self, message: Message) -> None:
        if "method" not in message:
            self._answers[message["id"]].put(message)
            return
        self.heard.append(message)
        if "id" in message:
            asked = message["method"] == "workspace/configuration"
            self._send({"id": message["id"], "result": [self.settings] if asked else None})

    def _send(self, message: Message) -> None:
        raw = json.dumps({"jsonrpc": "2.0", **message}).encode()
        with self._lock:
            self._out.write(b"Content-Length: %d\r\n\r\n%b" % (len(raw), raw))
            self._out.flush()

    def notify(self, method: str, params: Any = None) -> None:
        """Send a notification."""
        self._send({"method": method, "params": params if params is not None else {}})

    def ask(self, method: str, params: Any = None) -> int:
        """Send a request and return its number."""
        self._number += 1
        self._answers[self._number] = queue.Queue()
        message = {"id": self._number, "method": method}
        self._send(message if params is None else message | {"params": params})
        return self._number

    def answer(self, number: int, within_s: float = 300) -> Message:
        """Wait for the answer to a request."""
        return self._answers[number].get(timeout=within_s)

    def call(self, method: str, params: Any = None) -> Any:
        """Send a request and return its result."""
        answer = self.answer(self.ask(method, params))
        assert "error" not in answer, answer
        return answer["result"]

    # ---- what every test does

    def begin(self, capabilities: Message | None = None, options: Any = None) -> Message:
        """Shake hands and return the server's capabilities."""
        params = {"processId": None, "rootUri": None, "capabilities": capabilities or {}}
        if options is not None:
            params["initializationOptions"] = options
        result: Message = self.call("initialize", params)["capabilities"]
        self.notify("initialized")
        return result

    def open(self, text: str, uri: str = "file:///a.py", language: str = "python") -> None:
        """Open a document."""
        opened = {"uri": uri, "languageId": language, "version": 1, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": opened})

    def change(
        self, *changes: tuple[tuple[int, int], tuple[int, int], str], uri: str = "file:///a.py"
    ) -> None:
        """Change parts of a document."""
        made = [
            {"range": {"start": position(*start), "end": position(*end)}, "text": text}
            for start, end, text in changes
        ]
        self.notify(
            "textDocument/didChange", {"textDocument": {"uri": uri, "version": 2}, "contentChanges": made}
        )

    def want(
        self, line: int, character: int, kind: int = 1, uri: str = "file:///a.py", **context: Any
    ) -> int:
        """Ask for an inline completion; kind 1 is invoked, 2 automatic."""
        params = {
            "textDocument": {"uri": uri},
            "position": position(line, character),
            "context": {"triggerKind": kind, **context},
        }
        return self.ask("textDocument/inlineCompletion", params)

    def items(self, number: int) -> list[Message]:
        """Return the items of an answer, none for null."""
        answer = self.answer(number)
        assert "error" not in answer, answer
        return answer["result"]["items"] if answer["result"] else []

    def end(self) -> None:
        """Say goodbye."""
        self.call("shutdown")
        self.notify("exit")


def position(line: int, character: int) -> Message:
    """Return a position as the protocol writes it."""
    return {"line": line, "character": character}


class Process(Client):
    """A client with a server process of its own."""

    def __init__(
        self,
        *arguments: str,
        settings: Any = None,
        command: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [*(command or (sys.executable, "-m", "codegen2", "lsp")), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        super().__init__(self.process.stdin, self.process.stdout, settings)

    def close(self) -> None:
        """End the process if it runs, and close the pipes."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._thread.join(300)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
