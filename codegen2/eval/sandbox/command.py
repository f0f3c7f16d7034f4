"""Run a repository's own command on a copy of it, shut in: what `eval repo --test-command` does to each answer.

The copy lies in memory and stands where the repository stands, so that editable installs find it. The command sees,
read-only, the system's programs and libraries and what PATH leads to; its /tmp is its own; it has no network, no home,
no /proc and no privileges. Other than a problem's candidate (sandbox.py) it may start processes, as test runners do, so
no filter of system calls stands before the kernel.
Not here: what is asked (../repo.py). Run as a process of its own, since what is unshared is unshared for good.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import linux
from .keeper import keep, say
from .limits import become
from .sandbox import Helper, Verdict
from .turns import run_fairly

_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf",
    "/etc/ld.so.conf.d", "/etc/localtime", "/etc/mime.types", "/etc/nsswitch.conf", "/dev/null", "/dev/zero",
    "/dev/full", "/dev/random", "/dev/urandom", "/dev/shm",
)  # fmt: skip
_BESIDE_BIN = ("lib", "lib64", "libexec", "include", "pyvenv.cfg")
_TAIL = 1 << 14
_LONGER = 4  # the wall clock of a second try, in that of the first
_SOURCES = "/dev/shm/.sources"
_BEFORE = "/dev/shm/.tmp"
_UID = 0x78000000  # + the keeper's pid: an id that nobody has


class Commands:
    """Run a command on copies of a folder's files, each time with some files changed."""

    def __init__(
        self, folder: Path, names: Sequence[str], command: str, sandbox: str = "strong",
        *, wall_s: float = 120.0, memory_bytes: int = 8 << 30, disk_bytes: int = 1 << 30, processes: int = 512,
        show: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """names: the files to copy. show: more paths that the command may read.

        wall_s: wall-clock seconds of a first try (turns.py), and of each process as many CPU seconds. Raises OSError
        where strong mode is not possible.
        """
        if sandbox == "strong" and sys.platform != "linux":
            raise OSError(
                f"there are no namespaces on {sys.platform}; --sandbox weak runs the command without them"
            )
        shown = map(os.path.abspath, show)
        self._config: dict[str, Any] = {
            "folder": str(folder.resolve()), "names": list(names), "command": command,
            "path": os.environ.get("PATH", ""),
            "binds": list(dict.fromkeys([*_SYSTEM, *tools(os.environ.get("PATH", ""), str(Path.home())), *shown])),
            "strong": sandbox == "strong", "cpu_s": wall_s, "wall_s": wall_s, "memory_bytes": memory_bytes,
            "disk_bytes": disk_bytes, "processes": processes,
        }  # fmt: skip

    def run(self, changed: dict[str, str]) -> Verdict:
        """Run the command with these files' contents changed. Raises OSError where no sandbox can be made."""
        started = time.monotonic()
        wall_s = self._config["cpu_s"]
        outcome = run_fairly(
            lambda alone: self._launch({"changed": changed, "wall_s": _LONGER * wall_s if alone else wall_s}),
            lambda outcome: bool(outcome.get("starved")),
        )
        if "error" in outcome:
            advice = "" if not self._config["strong"] else "; --sandbox weak runs the command without one"
            raise OSError(f"no sandbox for the command can be made here: {outcome['error']}{advice}")
        return Verdict(outcome["result"] == "passed", outcome["result"], round(time.monotonic() - started, 3))

    def _launch(self, job: dict[str, Any]) -> dict[str, Any]:
        helper = Helper("command", self._config | job)
        try:
            return helper.receive(job["wall_s"] + 60)
        except OSError as e:
            return {"error": str(e)}
        finally:
            helper.stop()

    def describe(self) -> dict[str, Any]:
        """Return what holds and what does not: a JSON object for reports."""
        strong = self._config["strong"]
        holds = [
            "the command runs on a copy",
            "a limit of wall clock; limits of CPU time and address space of each process",
        ]
        leaves = ["an answer can make the command pass: the repository's tests are what it is judged by"]
        if strong:
            holds += [
                "user, pid, net, mount, ipc and uts namespaces of its own; no network, no home, no /proc",
                "sees read-only the system's programs and libraries and what PATH leads to",
                "writes only to memory: the copy and /tmp; killed as a whole",
            ]
            leaves += ["it may start processes, so no filter of system calls stands before the kernel"]
        else:
            leaves += ["the command is the user: it can read and delete files and use the network"]
        return {"mode": "strong" if strong else "weak", "semantics": "the repository's command",
                "command": self._config["command"], "holds": holds, "does_not_hold": leaves}  # fmt: skip


def tools(path: str, home: str) -> list[str]:
    """Return what the folders of PATH need beside them: libraries, and the interpreter behind a virtual environment."""
    found: list[str] = []
    for folder in path.split(":"):
        if not os.path.isabs(folder) or not os.path.isdir(folder):
            continue
        homes = [folder, os.path.realpath(folder)]
        homes += [os.path.dirname(os.path.realpath(f"{folder}/{n}")) for n in ("python", "python3") if
                  os.path.exists(f"{folder}/{n}")]  # fmt: skip
        for one in homes:
            above = os.path.dirname(one)
            found.append(one)
            if above not in ("/", home):  # never a home as a whole
                found += [f"{above}/{name}" for name in _BESIDE_BIN if os.path.exists(f"{above}/{name}")]
    return list(dict.fromkeys(found))


# ---- in the process of its own


def main() -> None:
    """Read a job, run it, write the outcome."""
    keep(lambda folder, config: say(_strong(config) if config["strong"] else _weak(config, folder)))


def _strong(config: dict[str, Any]) -> dict[str, Any]:
    folder = config["folder"]
    view = linux.View([folder, *config["binds"]], [], {})
    output = os.pipe()

    def child(broken: int) -> NoReturn:
        _shut_in(config)
        _copy(config, folder)
        os.chdir(folder)
        linux.drop_privileges()
        _exec(config, output[1], broken, "/tmp")

    pid = linux.start(view, _UID + config["keeper"], child)
    os.close(output[1])
    return _wait(pid, output[0], config, os.kill)


def _shut_in(config: dict[str, Any]) -> None:
    os.setsid()
    folder = config["folder"]
    os.setresgid(*[linux.INNER_ID] * 3)
    os.setresuid(*[linux.INNER_ID] * 3)
    size = config["disk_bytes"]
    _mount_memory("/dev/shm", size)
    os.mkdir(_SOURCES)
    linux.bind(folder, _SOURCES)  # what is copied, before other things cover it
    os.mkdir(_BEFORE)
    linux.bind("/tmp", _BEFORE)
    _mount_memory("/tmp", size)
    for path in config["binds"]:  # a virtual environment in /tmp
        if path.startswith("/tmp/"):
            linux.show(_BEFORE + path.removeprefix("/tmp"), path)
    linux.unmount(_BEFORE)
    os.makedirs(folder, exist_ok=True)  # it may lie in /tmp
    _mount_memory(folder, size)
    for path in config["binds"]:  # a virtual environment inside the repository
        if path.startswith(folder + "/"):
            linux.show(_SOURCES + path.removeprefix(folder), path)


def _mount_memory(at: str, size: int) -> None:
    linux.mount("memory", at, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"size={size},mode=755")


def _copy(config: dict[str, Any], folder: str) -> None:
    """Copy the files into a folder, from where they are now, and change some."""
    covered = config["strong"]
    sources = _SOURCES if covered else config["folder"]
    for name in config["names"]:
        source, target = os.path.join(sources, name), os.path.join(folder, name)
        if not os.path.lexists(source) or (os.path.isdir(source) and not os.path.islink(source)):
            continue  # deleted and still tracked; a submodule
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(source, target, follow_symlinks=False)
        if not os.path.islink(source):
            os.chmod(target, 0o755 if os.stat(source).st_mode & 0o111 else 0o644)
    for name, text in config["changed"].items():
        Path(folder, name).write_bytes(text.encode("utf-8", "replace"))
    if covered:
        linux.unmount(sources)
        os.rmdir(sources)


def _exec(config: dict[str, Any], output: int, broken: int, home: str) -> NoReturn:
    null = os.open(os.devnull, os.O_RDONLY)
    env = {
        "PATH": config["path"],
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    processes = config["processes"] if config["strong"] else None  # else all of the user's would count
    become(["/bin/sh", "-c", config["command"]], env, [null, output, output], broken, {
        "RLIMIT_AS": config["memory_bytes"], "RLIMIT_CPU": int(config["cpu_s"]) + 1, "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": config["disk_bytes"], "RLIMIT_NPROC": processes,
    })  # fmt: skip


def _weak(config: dict[str, Any], at: str) -> dict[str, Any]:
    folder, home = f"{at}/copy", f"{at}/home"
    os.mkdir(folder)
    os.mkdir(home)
    _copy(config, folder)
    read, write = os.pipe()

    def child(broken: int) -> NoReturn:
        os.setsid()
        os.chdir(folder)
        _exec(config, write, broken, home)

    pid = linux.start(None, 0, child)
    os.close(write)
    return _wait(pid, read, config, os.killpg)


def _wait(pid: int, output: int, config: dict[str, Any], kill: Callable[[int, int], None]) -> dict[str, Any]:
    """Wait for the command, keeping the end of what it writes; kill ends it with all that it started."""
    until, tail = time.monotonic() + config["wall_s"], b""
    poll = select.poll()
    poll.register(output, select.POLLIN)
    poll.register(0, 0)  # that nobody waits for us any more
    while time.monotonic() < until:
        ready = dict(poll.poll(50))
        if 0 in ready:
            break
        if output in ready:
            piece = os.read(output, 1 << 16)
            tail = (tail + piece)[-_TAIL:]
            if not piece:
                poll.unregister(output)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            lines = [line for line in tail.decode("utf-8", "replace").splitlines() if line.strip()]
            last = f": {' '.join(lines[-1].split())[:200]}" if lines else ""
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            return {"result": "passed" if code == 0 else f"failed: {how}{last}"}
    kill(pid, signal.SIGKILL)
    _, _, used = os.wait4(
        pid, 0
    )  # of all that it started, too, which in strong mode its namespace has waited for
    starved = used.ru_utime + used.ru_stime < config["cpu_s"]
    return {"result": f"timed out: {config['wall_s']:g} s of wall clock", "starved": starved}
