"""Stay beside the process that judges until it ends, or who asked for it does, and end all that is left then.

Candidates and tests may clear their parent-death signal and leave their session; they cannot leave a pid namespace
(strong mode), and on Linux those whose parents ended become children of the keeper (weak mode).
Not here: what is judged (launcher.py, command.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import linux

_LOOK_S = 0.05


def keep(work: Callable[[str, dict[str, Any]], None]) -> None:
    """Run work(folder, config) in a child process; return when it has ended and nothing of it is left.

    config is a line of JSON on standard input, and gets the keeper's number. Where it says strong, the child is the
    first process of its pid namespace, without a network; otherwise folder is a temporary one. What work raises and
    what the system refuses is said as {"error": why}. SIGTERM ends all of it.
    """
    asker = os.getppid()
    config = json.loads(sys.stdin.buffer.readline()) | {"keeper": os.getpid()}
    strong = config["strong"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    folder = "" if strong else tempfile.mkdtemp(prefix="codegen2-judge-")
    try:
        if strong:
            linux.leave_host()
        adopt_orphans()
        child = os.fork()
        if child == 0:
            try:
                if sys.platform == "linux":  # without a namespace the child has to end what it started itself
                    linux.die_with_parent(signal.SIGKILL if strong else signal.SIGTERM)
                adopt_orphans()
                work(folder, config)
            except (OSError, ValueError) as e:
                say({"error": str(e)})
            finally:
                _clean(folder)
                os._exit(0)
        # Its standard input may stay open when who asked is killed: a process that it forked has a copy.
        while os.getppid() == asker and not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(_LOOK_S)
    except OSError as e:
        say({"error": str(e)})
    finally:
        _clean(folder)


def say(message: dict[str, Any]) -> None:
    """Write a line of JSON to who asked."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _clean(folder: str) -> None:
    end_children()
    shutil.rmtree(folder, ignore_errors=True)


def adopt_orphans() -> None:
    """Become the parent of what our children leave behind, on Linux."""
    if sys.platform == "linux":
        linux.set_process(36, 1, "PR_SET_CHILD_SUBREAPER")


def end_children() -> None:
    """End all our children and theirs, which become ours when their parents end (adopt_orphans); only on Linux."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(OSError):  # none are left, or they are another user's, or this is not Linux
        while pids := children.read_text().split():
            for pid in pids:
                os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)
