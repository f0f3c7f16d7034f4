"""The launcher: a small process, one thread, that starts a fresh interpreter a judgement and ends it in time.

Started as `python -I -S` by sandbox.py, with a keeper beside it (keeper.py); reads a job a line as JSON, writes an
outcome a line. For each job it makes the candidate's process (guest.py, shut in) and a checker (check.py, forked from
here, so that tests leave nothing behind for each other; shut in as well), waits for the checker's verdict or a limit,
and kills both.
Not here: Judge and its workers (judge.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import marshal
import math
import os
import select
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import check, linux
from .keeper import end_children, keep, say
from .limits import Limits, become, set_rlimits

# Loaded for the checkers, which are forked from here: what tests import.
_IMPORTED = "bisect collections copy functools hashlib heapq itertools random string"
for _name in _IMPORTED.split():
    importlib.import_module(_name)

GUEST = "/guest.pyc"
TICK_S = 0.02  # between looks at the clocks
_PATIENCE_S = 2.0  # for a candidate that closed its pipes to end by itself
_CHECKER_UID = 0x70000000  # + the keeper's pid; the candidate's is one further up
_UID_STEP = 1 << 23  # more than the largest pid there can be
_LOADED = ("gconv", "glibc-hwcaps", "ossl-modules")  # folders that libraries look into, beside multiarch's


class Launcher:
    """Judge one job after the other; in strong mode from inside a view of the file system without the user's files."""

    def __init__(self, folder: str, uid: int, limits: Limits, guest: str, executable: str) -> None:
        """Shut ourselves in, or in weak mode work in a folder. Raises OSError where the system does not let us."""
        self.limits, self.executable, self.folder, self.uid = limits, executable, folder, uid
        source = Path(guest).read_bytes()
        code = marshal.dumps(compile(source, "<guest>", "exec", dont_inherit=True))
        pyc = importlib.util.MAGIC_NUMBER + bytes(12) + code
        self.null = os.open(os.devnull, os.O_RDWR)
        self.view = None
        if not folder:
            prefix = os.path.realpath(sys.base_prefix)
            library = [os.path.realpath(sysconfig.get_path(n)) for n in ("stdlib", "platstdlib")]
            packages = [f"{p}/{n}" for p in library for n in ("site-packages", "dist-packages")]
            shared = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", f"{prefix}/lib", f"{prefix}/lib64"]
            binds = [*shared, "/etc/ld.so.cache", os.devnull, *library, executable]
            self.view = linux.View(binds, [*packages, *_other_software(shared, library)], {GUEST: pyc})
            self.guest = GUEST
        else:
            self.guest = f"{folder}/guest.pyc"
            Path(self.guest).write_bytes(pyc)

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one job: {"kind": "check" or "run", "program", "prompt", "test", "entry_point", "wall_s",
        "longest_s"}. It ends after wall_s in which it did not work, and after longest_s whatever it did.

        Return {"result", "wall_s", "cpu_s", "starved"}: the seconds of CPU are the candidate's; starved says that the
        wall clock ran out before the CPU seconds did.
        """
        started = time.monotonic()
        home = tempfile.mkdtemp(dir=self.folder) if self.folder else None
        (theirs_in, requests), (replies, theirs_out), (verdicts, theirs_said) = (os.pipe() for _ in range(3))
        fds = {theirs_in, requests, replies, theirs_out, verdicts, theirs_said}
        guest = checker = 0
        outcome: dict[str, Any] = {}
        try:
            guest = self._start_guest(theirs_in, theirs_out, home)
            _close(fds, theirs_in, theirs_out)  # or the checker would wait for one that is dead
            checker = self._start_checker(job, requests, replies, theirs_said)
            _close(fds, theirs_said)
            outcome = self._wait(guest, checker, verdicts, job, started)
        finally:
            status, cpu_s = self._end(guest, patient=outcome.get("died", False))
            self._end(checker)
            _close(fds, *fds)
            if home:
                end_children()
                shutil.rmtree(home, ignore_errors=True)
        if outcome.pop("died", False):
            outcome["result"] = f"candidate died: {_how(status)}"
            if cpu_s >= self.limits.timeout_s:
                outcome["result"] = "timed out"
        if outcome.setdefault("starved", False):
            outcome["result"] = f"timed out: {job['wall_s']:g} s of wall clock"
        return outcome | {"wall_s": round(time.monotonic() - started, 4), "cpu_s": round(cpu_s, 4)}

    def _start_guest(self, requests: int, replies: int, home: str | None) -> int:
        # Higher numbers than those that the guest knows by heart.
        requests, replies = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 50) for fd in (requests, replies))
        try:
            return linux.start(
                self.view,
                self.uid + _UID_STEP,
                lambda broken: self._become_guest(requests, replies, broken, home),
            )
        except OSError as e:
            raise OSError(f"a sandbox could not be made: {e}") from None
        finally:
            os.close(requests)
            os.close(replies)

    def _become_guest(self, requests: int, replies: int, broken: int, home: str | None) -> NoReturn:
        os.setsid()
        if self.view:
            linux.shut_in(self.limits.disk_bytes)
        else:
            os.chdir(home or "/")
        argv = [self.executable, "-I", "-S", "-B", self.guest]
        files = [self.null, self.null, self.null, requests, replies]
        # Outside a view all of the user's processes would count.
        become(argv, {}, files, broken, self._rlimits(self.limits.threads if self.view else None))

    def _start_checker(self, job: dict[str, Any], requests: int, replies: int, verdicts: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            os.setsid()
            for number in (0, 1, 2):
                os.dup2(self.null, number)
            for fd in {*range(3, 256)} - {requests, replies, verdicts}:
                with contextlib.suppress(OSError):
                    os.close(fd)
            # Where we are no root, the kernel counts keeper, launcher and the candidate's threads too.
            set_rlimits(self._rlimits(2 * self.limits.threads + 3 if self.view else None))
            if self.view:
                if self.view.root:
                    os.setresgid(*[self.uid] * 3)
                    os.setresuid(*[self.uid] * 3)
                linux.drop_privileges()
                linux.install_filter()
            os.write(verdicts, json.dumps(check.run(job, requests, replies)).encode())
        finally:
            os._exit(0)

    def _rlimits(self, threads: int | None) -> dict[str, int | None]:
        """Return rlimits, soft and hard; the launcher's own clock is finer and comes first."""
        return {
            "RLIMIT_AS": self.limits.memory_bytes, "RLIMIT_CPU": math.ceil(self.limits.timeout_s) + 1,
            "RLIMIT_FSIZE": self.limits.disk_bytes, "RLIMIT_NOFILE": self.limits.open_files, "RLIMIT_NPROC": threads,
            "RLIMIT_CORE": 0, "RLIMIT_MSGQUEUE": 0, "RLIMIT_MEMLOCK": 0,
            "RLIMIT_SIGPENDING": 256,  # of which each timer takes one
        }  # fmt: skip

    def _wait(
        self, guest: int, checker: int, verdicts: int, job: dict[str, Any], started: float
    ) -> dict[str, Any]:
        poll = select.poll()
        poll.register(verdicts, select.POLLIN)
        poll.register(0, 0)  # that nobody waits for us any more
        worked, worked_at = 0.0, started
        while True:
            ready = dict(poll.poll(TICK_S * 1000))
            if 0 in ready:
                raise EOFError
            if verdicts in ready:
                data = os.read(verdicts, 1 << 16)  # a pipe keeps so short a message whole
                return json.loads(data) if data else {"result": "failed: the test's process died (memory?)"}
            guest_s, checker_s, now = _cpu_s(guest), _cpu_s(checker), time.monotonic()
            if guest_s > self.limits.timeout_s:
                return {"result": "timed out"}
            if checker_s > self.limits.timeout_s:
                return {"result": "timed out: in the test, over the candidate's answers"}
            if guest_s + checker_s > worked:
                worked, worked_at = guest_s + checker_s, now
            if now > started + job["longest_s"] or now > worked_at + job["wall_s"]:
                return {"result": "timed out", "starved": True}

    def _end(self, pid: int, patient: bool = False) -> tuple[int, float]:
        """Kill a child and, in strong mode, with it all its process-id namespace; give status and CPU seconds.

        patient: its pipes closed, so leave it a moment to end by itself and say how.
        """
        if not pid:
            return 0, 0.0
        until = time.monotonic() + (_PATIENCE_S if patient else 0)
        while time.monotonic() < until and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            if not self.view:
                os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        return status, usage.ru_utime + usage.ru_stime


def _other_software(shared: Sequence[str], library: Sequence[str]) -> list[str]:
    """Return the folders beside shared libraries that are other software's, whose packages nobody needs to see."""
    folders = {Path(os.path.realpath(p)) for p in shared if os.path.isdir(p)}
    folders |= {p for folder in folders for p in folder.glob("*-linux-*/")}
    return [
        str(p)
        for folder in folders
        for p in folder.iterdir()
        if p.is_dir() and not p.is_symlink() and p.name not in _LOADED and p not in folders
        and not any(Path(n).is_relative_to(p) for n in library)
    ]  # fmt: skip


def _close(fds: set[int], *which: int) -> None:
    for fd in which:
        fds.remove(fd)
        os.close(fd)


def _cpu_s(pid: int) -> float:
    if sys.platform != "linux":
        return 0.0  # RLIMIT_CPU and the wall clock remain
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the kernel's number of another process's CPU clock
    except OSError:
        return 0.0


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit status {os.WEXITSTATUS(status)}"


def main() -> None:
    """Answer jobs until nobody asks any more."""
    sys.path.remove(sys.argv[1])  # tests find the standard library and nothing of ours
    keep(_serve)


def _serve(folder: str, config: dict[str, Any]) -> None:
    uid, limits = _CHECKER_UID + config["keeper"], Limits(**config["limits"])
    launcher = Launcher(folder, uid, limits, config["guest"], config["executable"])
    with contextlib.suppress(EOFError, BrokenPipeError):
        say({"root": os.geteuid() == 0})
        while line := sys.stdin.buffer.readline():
            try:
                outcome = launcher.judge(json.loads(line))
            except OSError as e:
                outcome = {"error": str(e)}
            say(outcome)
