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
_BOOT = "import sys; sys.path.append(sys.argv[1]); from codegen2.eval.sandbox.launcher import main; main()"

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


class Sandbox:
    """One launcher and its keeper (keeper.py); not for two threads at once."""

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
        package = Path(__file__).resolve().parents[3]
        # The base interpreter, since a virtual environment's needs its own folder to start.
        executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
        self._process = subprocess.Popen(
            [executable, "-I", "-S", "-B", "-c", _BOOT, str(package)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/", start_new_session=True,
        )  # fmt: skip
        config = {
            "strong": self.mode == "strong", "limits": dataclasses.asdict(self.limits),
            "guest": str(Path(__file__).with_name("guest.py").resolve()), "executable": executable,
        }  # fmt: skip
        try:
            first = self._exchange(config, _START_S)
            if "error" not in first:
                trial = {
                    "kind": "check",
                    "program": "def f(): return 1",
                    "prompt": "",
                    "test": "assert f() == 1",
                    "entry_point": "f",
                    "wall_s": _START_S,
                    "longest_s": _START_S,
                }
                first |= self._exchange(trial, _START_S + _GRACE_S)
                if first.get("result") != "passed":
                    first["error"] = first.get("error") or f"a first trial ended as: {first['result']}"
        except OSError as e:
            first = {"error": str(e)}
        except BaseException:
            self._stop()
            raise
        if "error" in first:
            self._stop()
            raise OSError(f"no {self.mode} sandbox can be made here: {first['error']}; {_advice()}")
        self.root = first["root"]

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return a job's outcome (Launcher.judge says what both are). Raises OSError when no sandbox can be made.

        A launcher that ended or hangs is replaced, and the job done once more.
        """
        for attempt in (1, 2):
            try:
                outcome = self._exchange(job, job["longest_s"] + _GRACE_S)
            except (OSError, ValueError):  # ValueError: of a file that another thread closed
                if self._closed or attempt == 2:
                    raise OSError("the sandbox's launcher ended") from None
                self._stop()
                self._start()
                continue
            if "error" in outcome:
                raise OSError(outcome["error"])
            return outcome
        raise AssertionError("unreachable")

    def _exchange(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write((json.dumps(message) + "\n").encode())
        stdin.flush()
        until, line = time.monotonic() + timeout_s, b""
        poll = select.poll()  # select cannot look at file numbers from 1,024 on
        poll.register(stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError(f"the sandbox's launcher did not answer within {timeout_s:g} s")
            piece = os.read(stdout.fileno(), 1 << 16)
            if not piece:
                raise OSError("the sandbox's launcher ended")
            line += piece
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the launcher and with it all that it started; another thread's run ends with an OSError."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(OSError):
            stdin.close()  # upon which it kills its children and goes
        end_keeper(self._process)
        stdout.close()


def end_keeper(process: subprocess.Popen[bytes]) -> None:
    """Wait for a keeper, which leads its session; in the end ask it to go, and at last kill it and what it keeps."""
    for kill in (process.terminate, lambda: os.killpg(process.pid, signal.SIGKILL)):
        try:
            process.wait(_END_S)
            return
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                kill()
    process.wait()


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
