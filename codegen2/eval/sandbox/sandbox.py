"""Shut model-written code in: start and stop the launcher, a job at a time, and say what holds and what does not.

Not here: what happens in the launcher (launcher.py), what a job means (judge.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .limits import Limits

MODES = ("strong", "weak")
_START_S = 60.0  # for the launcher, and for its first trial
_END_S = 5.0  # for a keeper to end by itself, then once it was asked to
_GRACE_S = 60.0  # beyond a job's own wall clock, which the launcher itself keeps
_BOOT = "import sys; sys.path.append(sys.argv[1]); from codegen2.eval.sandbox.{} import main; main()"
# The base interpreter, since a virtual environment's needs its own folder to start.
EXECUTABLE = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
_TRIAL = {
    "kind": "check", "program": "def f(): return 1", "prompt": "", "test": "assert f() == 1", "entry_point": "f",
    "wall_s": _START_S, "longest_s": _START_S,
}  # fmt: skip

_STRONG_HOLDS = (
    "the check runs in another process and takes nothing but data from the candidate",
    "user, pid, net, mount, ipc, uts and cgroup namespaces of its own; no network, not even local",
    "sees, read-only, the interpreter and libraries; no home, no /proc, no other software's packages",
    "writes only to a small file system in memory that goes with it; the problem's test writes nowhere",
    "no capabilities, no new privileges; a filter of system calls refuses processes, namespaces, sockets, ptrace,"
    " locks and watches on files, signals to others, of the problem's test too",
    "candidate and test end with whoever asked, however that or the launcher is killed",
    "limits of CPU time, wall clock, address space, file size, open files and threads; killed as a whole",
)
_STRONG_OPEN = (
    "faults of the kernel itself can be attacked through the system calls that remain",
    "memory in files adds up: the small file system, and buffers of pipes, on top of the address space",
)
_WEAK_HOLDS = (
    "the check runs in another process and takes nothing but data from the candidate",
    "a fresh interpreter, an empty environment, a session and a temporary folder of its own",
    "limits of CPU time, wall clock, address space, file size and open files of one process",
)
_WEAK_OPEN = (
    "candidate and test are the user: they can read and delete the user's files and use the network",
    "processes that they start are ended with them on Linux, unless they kill who does that; elsewhere they may"
    " outlive them; there is no limit to their number",
    "it can kill and trace the user's other processes, the judge included, and so forge a verdict",
)
_PUBLISHED_OPEN = (
    "check and candidate share one interpreter, as in the published harness: verdicts can be forged"
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One judgement; result is "passed" or one line that says why not. cpu_s: the candidate's, of a command None."""

    passed: bool
    result: str
    wall_s: float
    cpu_s: float | None = None


class Helper:
    """A process of ours with its keeper (keeper.py), which answers a line of JSON by one."""

    def __init__(self, module: str, config: dict[str, Any]) -> None:
        """Start the main of a module of this folder with its configuration. Raises OSError."""
        package = Path(__file__).resolve().parents[3]
        self._process = subprocess.Popen(
            [EXECUTABLE, "-I", "-S", "-B", "-c", _BOOT.format(module), str(package)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/", start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # of one that ended at once, which receive says
            self._send(config)

    def _send(self, message: dict[str, Any]) -> None:
        self._stdin.write((json.dumps(message) + "\n").encode())
        self._stdin.flush()

    def exchange(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the answer to a message. Raises OSError."""
        self._send(message)
        return self.receive(timeout_s)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return what it says next. Raises OSError."""
        until, line = time.monotonic() + timeout_s, b""
        poll = select.poll()  # select cannot look at file numbers from 1,024 on
        poll.register(self._stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError(f"the sandbox's launcher did not answer within {timeout_s:g} s")
            piece = os.read(self._stdout.fileno(), 1 << 16)
            if not piece:
                raise OSError("the sandbox's launcher ended")
            line += piece
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End it and all that it started: wait, in the end ask the keeper to go, at last kill the keeper's session."""
        with contextlib.suppress(OSError):
            self._stdin.close()  # upon which it kills its children and goes
        process = self._process
        for kill in (process.terminate, lambda: os.killpg(process.pid, signal.SIGKILL)):
            try:
                process.wait(_END_S)
                break
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    kill()
        process.wait()
        self._stdout.close()


class Sandbox:
    """One launcher, replaced where it ends or hangs; not for two threads at once."""

    def __init__(self, mode: str, limits: Limits) -> None:
        """Start it. Raises OSError where the system does not allow the mode, ValueError for an unknown mode."""
        if mode not in MODES:
            raise ValueError(f"sandbox must be strong or weak, got {mode!r}")
        if os.name != "posix":
            raise OSError("judging needs a Unix system, strong mode Linux")
        if mode == "strong" and sys.platform != "linux":
            raise OSError(f"there are no namespaces on {sys.platform}; {_advice()}")
        self.mode, self.limits, self._closed = mode, limits, False
        self._start()

    def _start(self) -> None:
        first: dict[str, Any] = {}
        self._helper = Helper("launcher", {
            "strong": self.mode == "strong", "limits": dataclasses.asdict(self.limits),
            "guest": str(Path(__file__).with_name("guest.py").resolve()), "executable": EXECUTABLE,
        })  # fmt: skip
        try:
            first = self._helper.receive(_START_S)
            if "error" not in first:
                first |= self._helper.exchange(_TRIAL, _START_S + _GRACE_S)
                if first.get("result") != "passed":
                    first["error"] = first.get("error") or f"a first trial ended as: {first['result']}"
        except OSError as e:
            first = {"error": str(e)}
        except BaseException:
            self._helper.stop()
            raise
        if "error" in first:
            self._helper.stop()
            raise OSError(f"no {self.mode} sandbox can be made here: {first['error']}; {_advice()}")
        self.root = first["root"]

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return a job's outcome (Launcher.judge says what both are). Raises OSError when no sandbox can be made.

        A launcher that ended or hangs is replaced, and the job done once more.
        """
        for attempt in (1, 2):
            try:
                outcome = self._helper.exchange(job, job["longest_s"] + _GRACE_S)
            except (OSError, ValueError):  # ValueError: of a file that another thread closed
                if self._closed or attempt == 2:
                    raise OSError("the sandbox's launcher ended") from None
                self._helper.stop()
                self._start()
                continue
            if "error" in outcome:
                raise OSError(outcome["error"])
            return outcome
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the launcher and with it all that it started; another thread's run ends with an OSError."""
        self._closed = True
        self._helper.stop()


def describe(mode: str, limits: Limits, root: bool, published: bool) -> dict[str, Any]:
    """Return what a report says about how code was run: a JSON object."""
    strong = mode == "strong"
    open_ = list(_STRONG_OPEN if strong else _WEAK_OPEN)
    holds = list(_STRONG_HOLDS if strong else _WEAK_HOLDS)
    if published:
        open_.insert(0, _PUBLISHED_OPEN)
        del holds[0]
    elif strong and root:
        holds.append("started by root: candidate and check each run as a user id that nobody else has")
    return {
        "mode": mode,
        "semantics": "published" if published else "trusted check",
        "python": ".".join(map(str, sys.version_info[:3])),
        "limits": dataclasses.asdict(limits) | {"wall_s": limits.backstop_s},
        "holds": holds,
        "does_not_hold": open_,
    }


def _advice() -> str:
    return "--sandbox weak runs the code with less protection"
