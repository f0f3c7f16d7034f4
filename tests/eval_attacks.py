"""Attacks on the judge, as programs; run as a script it judges all that must be contained, for test_sandbox.py.

The task is add(a, b). An attack that reaches what it wants answers rightly from then on, so a judge that is beaten says
"passed". Where an attack works unprotected, the tests show that: in weak mode, or under the published semantics.
"""

# ruff: noqa: E501  (a program a line)

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from codegen2.eval.judge import Judge, Limits
from codegen2.problems.sets import Problem

RIGHT = "def add(a, b):\n    return a + b\n"
TEST = """
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(-5, 5) == 0
    assert candidate(20, 22) == 42
"""
ADD = Problem("attack/add", "add", "", RIGHT, TEST)
SHORT = Limits(timeout_s=1.0, wall_s=3.0)  # seconds
SHORTEST = Limits(timeout_s=0.3, wall_s=0.5)  # for what ends by a limit; what waits is tried again


@dataclass(frozen=True)
class Attack:
    """A program, a part of the result that it must get, and which weaker judge it beats ("" for none)."""

    program: str
    result: str
    beats: str = ""

    @property
    def slow(self) -> bool:
        """Return whether it may last until a limit of time."""
        return "timed out" in self.result


def wins_if(code: str) -> str:
    """Return a program that answers rightly only if `code` sets won, whatever it raises."""
    body = "".join(f"    {line}\n" for line in code.strip().split("\n"))
    return f"won = False\ntry:\n{body}except BaseException:\n    pass\ndef add(a, b):\n    return a + b if won else -1\n"


def c_call(expression: str) -> str:
    """Return a program that wins if a call of libc does not fail."""
    return wins_if(f"import ctypes\nlibc = ctypes.CDLL(None)\nwon = libc.{expression} >= 0")


def answers(expression: str, before: str = "") -> str:
    """Return a program whose add gives the expression."""
    return f"{before}\ndef add(a, b):\n    return {expression}\n"


_EQUAL = """
class Yes{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 1
    def __bool__(self): return True
"""
_HUNT = """
import gc, sys
def add(a, b):
    mark = " ".join(["assert", "candidate"])  # no constant of ours holds it whole
    todo = [sys.modules, gc.get_objects()]
    frame = sys._getframe()
    while frame is not None:
        todo += [frame.f_locals, frame.f_globals, frame.f_code.co_consts, frame.f_code.co_names]
        frame = frame.f_back
    for _ in range(3):
        inner = []
        for thing in todo:
            if isinstance(thing, str) and len(thing) > 40 and mark in thing:
                return a + b
            code = getattr(thing, "__code__", thing if type(thing).__name__ == "code" else None)
            if code is not None and getattr(code, "co_name", "") == "check" and 42 in getattr(code, "co_consts", ()):
                return a + b
            if isinstance(thing, (list, tuple, set)):
                inner += thing
            elif isinstance(thing, dict):
                inner += list(thing.values())
        todo = inner
    return -1
"""
_FRAME = "import posix, sys\nframe = lambda data: len(data).to_bytes(4, 'big') + data\nguest = sys.modules['__main__']\n"
_COLLIDE = """
import posix
items = ",".join(str(k * (2**61 - 1)) for k in range(1, 60000))
data = f'["ok",[],[["data",["builtins.set",null],[{items}]]],[],[]]'.encode()
def add(a, b):
    rest = len(data).to_bytes(4, "big") + data
    while rest:
        rest = rest[posix.write(4, rest):]
    return a + b
"""

ATTACKS: dict[str, Attack] = {
    # Leaving with a good exit status.
    "sys.exit(0) while loading": Attack("import sys\nsys.exit(0)\n" + RIGHT, "failed: SystemExit"),
    "sys.exit(0) in a call": Attack(answers("sys.exit(0)", "import sys"), "failed: SystemExit"),
    "raise SystemExit": Attack("def add(a, b):\n    raise SystemExit(0)\n", "failed: SystemExit"),
    "raise KeyboardInterrupt": Attack("def add(a, b):\n    raise KeyboardInterrupt\n", "failed: KeyboardInterrupt"),
    "os._exit(0) while loading": Attack("import os\nos._exit(0)\n", "candidate died: exit status 0"),
    "os._exit(0) in a call": Attack(answers("os._exit(0)", "import os"), "candidate died: exit status 0"),
    "a crash": Attack(answers("ctypes.string_at(0)", "import ctypes"), "candidate died: signal 11"),
    "becoming another program": Attack(
        answers("os.execv(sys.executable, [sys.executable, '-c', '0'])", "import os, sys"), "candidate died"
    ),
    # Taking for ever.
    "endless loop while loading": Attack("while True: pass\n", "timed out"),
    "endless loop in a call": Attack("def add(a, b):\n    while True: pass\n", "timed out"),
    "endless sleep": Attack(answers("time.sleep(10**6)", "import time"), "timed out: 0.5 s of wall clock"),
    "endless work in threads": Attack(
        "import threading\nfor _ in range(4):\n"
        "    threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()\n"
        "import time\ndef add(a, b):\n    time.sleep(100)\n", "timed out",
    ),
    "deaf to signals": Attack(
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass\n", "timed out",
    ),
    # Values that make the test say yes.
    "always equal": Attack(answers("Yes()", _EQUAL.format(base="")), "failed: AssertionError", "published"),
    **{
        f"always equal {kind}": Attack(
            answers(f"Yes({start})", _EQUAL.format(base=f"({kind})")), "failed: AssertionError", "published"
        )
        for kind, start in (("int", "7"), ("str", "''"), ("list", ""), ("dict", ""), ("float", "0"), ("bytes", ""))
    },
    "always equal inside a list": Attack(
        answers("[Yes()][0:] and Yes()", _EQUAL.format(base="(tuple)")), "failed: AssertionError", "published"
    ),
    "like an array": Attack(
        answers("Array()", "class Array:\n    def __eq__(self, other): return self\n    def all(self): return self\n"
                "    def __len__(self): return 1\n    def __array__(self, *a): return self\n"),
        "failed: AssertionError", "published",
    ),
    "a class that claims to be int": Attack(
        answers("Liar()", _EQUAL.format(base="").replace("Yes", "Liar") + "    __class__ = property(lambda s: int)\n"),
        "failed: AssertionError", "published",
    ),
    "changed builtins": Attack(
        "import builtins\nclass Quiet(Exception):\n    pass\nbuiltins.AssertionError = Quiet\n"
        "for n in ('all', 'any', 'abs', 'len', 'isinstance', 'type', 'int', 'str'):\n"
        "    setattr(builtins, n, lambda *a, **k: True)\n" + answers("-1"),
        "failed|died",
    ),
    "errors without effect": Attack(
        "import sys, posix\nsys.excepthook = lambda *a: posix._exit(0)\nimport builtins\n"
        "builtins.AssertionError = type('A', (), {})\n" + answers("-1"), "failed: AssertionError",
    ),
    "a check of its own": Attack("def check(candidate): pass\ndef add(a, b): return -1\n", "failed: AssertionError"),
    "an assertion error in the call": Attack("def add(a, b):\n    raise AssertionError\n", "failed: AssertionError"),
    # Looking for the answers.
    "hunting through frames and gc": Attack(_HUNT, "failed: AssertionError", "published"),
    "reading /proc": Attack(
        wins_if("import os\nwon = len(os.listdir('/proc')) > 0"), "failed: AssertionError", "weak"
    ),
    # Forged replies.
    "garbage on all pipes": Attack(
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'passed\\n' * 9)\n    except OSError: pass\n" + answers("-1"),
        "failed: a reply of",
    ),
    "a verdict on all pipes": Attack(
        'import os\nfor fd in range(1, 64):\n    try: os.write(fd, b\'{"result": "passed", "died": false}\\n\')\n'
        "    except OSError: pass\n" + answers("-1"), "failed",
    ),
    "empty replies": Attack(_FRAME + answers("posix.write(4, frame(b'') * 9) and -1"), "failed: a malformed reply"),
    "replies in advance": Attack(
        _FRAME + answers("-1", "posix.write(4, frame(guest.encode(['ok'])))\n"
                         "posix.write(4, frame(guest.encode(['ok', [True], [], [], []])) * 9)"), "failed: TypeError"
    ),
    "a reply of an unknown type": Attack(
        _FRAME + "guest.encode = lambda *a: b'[{}]'\n" + answers("-1"), "failed: a malformed reply"
    ),
    "a reply that names a dangerous exception": Attack(
        _FRAME + "real = guest.encode\nguest.encode = lambda *a: real(('raise', 'SystemExit', '0'))\n" + answers("-1"), "failed: SystemExit: 0"
    ),
    "a long reply announced": Attack(_FRAME + answers("posix.write(4, b'\\xff' * 4)"), "failed: a reply of 4294967295 bytes"),
    "half a reply": Attack(_FRAME + answers("posix.write(4, b'\\0\\0\\0\\x09ab') and posix._exit(0)"), "candidate died"),
    "pipes closed": Attack("import os\nos.closerange(3, 64)\nimport time\ntime.sleep(100)\n", "candidate died"),
    "work at exit": Attack(
        "import atexit, os, threading\natexit.register(lambda: os._exit(0))\n"
        "threading.Thread(target=lambda: [os.write(4, b'x') for _ in range(9)]).start()\n" + answers("-1"), "failed",
    ),
    # Too much of everything.
    "endless recursion": Attack(answers("add(a, b)"), "failed: RecursionError"),
    "recursion without a limit": Attack(
        answers("add(a, b)", "import sys\nsys.setrecursionlimit(10**9)"), "failed: MemoryError|candidate died|timed out"
    ),
    "a deeply nested reply": Attack("def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x\n", "failed: AssertionError|timed out"),
    "a deeply nested forged reply": Attack(
        _FRAME + answers("posix.write(4, frame(b'[' * 9000 + b']' * 9000))"), "failed: a malformed reply"
    ),
    "a reply that contains itself": Attack("def add(a, b):\n    x = []\n    x.append(x)\n    return x\n", "failed: AssertionError"),
    "a reply of doubled lists": Attack(
        "def add(a, b):\n    x = [0]\n    for _ in range(60): x = [x, x]\n    return x\n", "failed: AssertionError"
    ),
    "a giant text": Attack(answers("'x' * 10**8"), "cannot be sent"),
    "a giant number": Attack(answers("1 << 10**9"), "cannot be sent"),
    "colliding elements": Attack(_COLLIDE, "timed out: in the test"),
    "endless output": Attack("while True: print('x' * 10**6)\n", "timed out"),
    "much memory": Attack(answers("len(bytearray(1 << 36))"), "failed: MemoryError"),
    "growing memory": Attack("x = [b'']\nwhile True: x.append(bytes(10**7))\n", "failed: MemoryError|died|timed out"),
    "a full disk": Attack(
        wins_if("for i in range(9999):\n    with open(f'f{i}', 'wb') as f:\n        f.write(bytes(10**6))\nwon = True"),
        "failed: AssertionError|died: signal 25",
    ),
    "many files": Attack(
        wins_if("import os\nfor i in range(50000):\n    os.close(os.open(f'f{i}', os.O_CREAT))\nwon = True"), "failed: AssertionError"
    ),
    "many open files": Attack(wins_if("x = [open('/dev/null') for _ in range(100)]\nwon = True"), "failed: AssertionError"),
    "fork bomb": Attack(
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        break\n" + answers("-1"), "failed: AssertionError"
    ),
    "one fork": Attack(
        wins_if("import os\npid = os.fork()\nif pid == 0:\n    os._exit(0)\nos.waitpid(pid, 0)\nwon = True"),
        "failed: AssertionError", "weak",
    ),
    "a daemon": Attack(
        wins_if("import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3)'],"
                " start_new_session=True)\nwon = True"),
        "failed: AssertionError", "weak",
    ),
    "many threads": Attack(
        wins_if("import threading, time\nthreading.stack_size(1 << 16)\nfor _ in range(60):\n    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
                "won = True"),
        "failed: AssertionError", "weak",
    ),
    # The outside.
    **{
        f"seeing {name}": Attack(
            # The way to the interpreter is there, with nothing beside it.
            wins_if(f"import os, sys\nwon = any(not sys.executable.startswith(os.path.join({path!r}, n)) and n != 'ld.so.cache'"
                    f" for n in os.listdir({path!r}))"), "failed: AssertionError", "weak",
        )
        for name, path in (("the home", str(Path.home())), ("/etc", "/etc"), ("/sys", "/sys"),
                           ("the repository", str(Path(__file__).parents[1])))
    },
    "reading /etc/passwd": Attack(wins_if("won = 'root' in open('/etc/passwd').read()"), "failed: AssertionError", "weak"),
    "this repository": Attack(
        wins_if(f"won = bool(open({__file__!r}).read())"), "failed: AssertionError", "weak"
    ),
    "the environment": Attack(wins_if("import os\nwon = len(set(os.environ) - {'LC_CTYPE'}) > 0"), "failed: AssertionError"),
    "other users' processes": Attack(
        wins_if("import os\nwon = os.getppid() != 0 or os.getpid() > 9"), "failed: AssertionError", "weak"
    ),
    "writing to the library": Attack(
        wins_if("import os\nwith open(os.path.dirname(os.__file__) + '/codegen2_attack.py', 'w') as f: won = True"), "failed: AssertionError"
    ),
    "writing to /": Attack(wins_if("open('/mark', 'w')\nwon = True"), "failed: AssertionError"),
    "being root": Attack(wins_if("import os\nwon = 0 in (os.getuid(), os.geteuid(), os.getgid())"), "failed: AssertionError"),
    "becoming root": Attack(wins_if("import os\nos.setuid(0)\nwon = True"), "failed: AssertionError"),
    "killing everybody": Attack("import os\nos.kill(-1, 9)\n" + answers("-1"), "failed"),
    "killing the parent": Attack("import os\nos.kill(os.getppid(), 9)\n" + answers("-1"), "failed|died"),
    "a network of its own": Attack(
        wins_if("import socket\na = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(a.getsockname())\nwon = True"),
        "failed: AssertionError", "weak",
    ),
    "a datagram": Attack(
        wins_if("import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(b'x', ('127.0.0.1', 9))\nwon = True"),
        "failed: AssertionError", "weak",
    ),
    "a unix socket": Attack(
        wins_if("import socket\ns = socket.socket(socket.AF_UNIX)\nwon = True"), "failed: AssertionError", "weak"
    ),
    # What the filter of system calls refuses; each works for an ordinary process, but for those of root.
    "ptrace": Attack(c_call("ptrace(0, 0, 0, 0)"), "failed: AssertionError", "weak"),
    "a new user namespace": Attack(c_call("unshare(0x10000000)"), "failed: AssertionError", "weak"),
    "a new user namespace by clone": Attack(
        wins_if("import ctypes, os\nlibc = ctypes.CDLL(None)\npid = libc.syscall({'x86_64': 56, 'aarch64': 220}[os.uname().machine],"
                " 0x10000011, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\nwon = pid > 0"),
        "failed: AssertionError", "weak",
    ),
    "a mount": Attack(c_call("mount(b'none', b'/tmp', b'tmpfs', 0, None)"), "failed: AssertionError"),
    "files without a name": Attack(c_call("memfd_create(b'x', 0)"), "failed: AssertionError", "weak"),
    "shared memory that stays": Attack(c_call("shmget(0, 4096, 0o1600)"), "failed: AssertionError"),
    "io_uring": Attack(c_call("syscall(425, 8, (ctypes.c_char * 120)())"), "failed: AssertionError"),
    "a local descriptor table": Attack(
        wins_if("import ctypes, os\nwon = os.uname().machine == 'x86_64' and"
                " ctypes.CDLL(None).syscall(154, 0, ctypes.create_string_buffer(64), 64) >= 0"),
        "failed: AssertionError",
    ),
    "watching the library": Attack(
        wins_if("import ctypes, os\nlibc = ctypes.CDLL(None)\nfd = libc.inotify_init1(0)\n"
                "won = libc.inotify_add_watch(fd, os.path.dirname(os.__file__).encode(), 32) >= 0"),
        "failed: AssertionError", "weak",
    ),
    "locking the library": Attack(
        wins_if("import fcntl, os\nfcntl.flock(open(os.__file__), fcntl.LOCK_EX | fcntl.LOCK_NB)\nwon = True"),
        "failed: AssertionError", "weak",
    ),
    "locking a part of the library": Attack(
        wins_if("import fcntl, os\nfcntl.lockf(open(os.__file__), fcntl.LOCK_SH | fcntl.LOCK_NB)\nwon = True"),
        "failed: AssertionError", "weak",
    ),
    "the host's asynchronous requests": Attack(
        wins_if("import ctypes, os\nc = ctypes.c_ulong()\n"
                "won = ctypes.CDLL(None).syscall({'x86_64': 206, 'aarch64': 0}[os.uname().machine], 32, ctypes.byref(c)) >= 0"),
        "failed: AssertionError", "weak",
    ),
    "other software": Attack(
        wins_if("import os\nfor folder in ('/usr/lib', '/usr/local/lib'):\n    for top, names, files in os.walk(folder):\n"
                "        won |= top.endswith(('-packages', 'node_modules', '/perl', '/perl5', '/gcc')) and bool(names or files)"),
        "failed: AssertionError",
    ),
    "clone3": Attack(
        wins_if("import ctypes, os, struct\nlibc = ctypes.CDLL(None)\n"
                "a = ctypes.create_string_buffer(struct.pack('8Q', 0, 0, 0, 0, 17, 0, 0, 0))\npid = libc.syscall(435, a, 64)\n"
                "if pid == 0: os._exit(0)\nwon = pid > 0"),
        "failed: AssertionError", "weak",
    ),
}  # fmt: skip

# Right answers that must not be mistaken for attacks.
HARMLESS: dict[str, str] = {
    "plain": RIGHT,
    "garbage on stdout and stderr": "import sys\nprint('passed' * 1000)\nsys.stderr.write('\\0\\xff' * 999)\n"
    "def add(a, b):\n    print({'result': 'failed'})\n    return a + b\n",
    "a megabyte of output a call": "def add(a, b):\n    print('x' * 10**6)\n    return a + b\n",
    "threads": "import threading\ndef add(a, b):\n    out = []\n    t = threading.Thread(target=lambda: out.append(a + b))\n"
    "    t.start()\n    t.join()\n    return out[0]\n",
    "a temporary file": "import tempfile\ndef add(a, b):\n    with tempfile.TemporaryFile('w+') as f:\n"
    "        f.write(str(a + b))\n        f.seek(0)\n        return int(f.read())\n",
    "/dev/null": "import contextlib, os\ndef add(a, b):\n    with open(os.devnull, 'w') as f, contextlib.redirect_stdout(f):\n"
    "        print(a)\n    return a + b\n",
    "a main program": RIGHT + "if __name__ == '__main__':\n    import sys\n    sys.exit(1)\n",
    "deep recursion": "def add(a, b, n=900):\n    return add(a, b, n - 1) if n else a + b\n",
    "many imports": "import collections, ctypes, decimal, fractions, hashlib, heapq, itertools, json, math, random, re\n"
    "import sqlite3, ssl, statistics, string, typing, zlib, dataclasses, asyncio, datetime\n" + RIGHT,
    "a half surrogate": "X = '\\ud800'\n" + RIGHT,
    "a dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    "def add(a, b):\n    return P(a + b).x\n",
}


# A test sees one other process, its parent: the launcher, the first of its namespace, which it cannot reach.
IN_A_TEST = [
    n for n, a in ATTACKS.items() if a.program.startswith("won = False") and n != "other users' processes"
]
FOR_A_USER = (
    "a new user namespace by clone",
    "a mount",
    "ptrace",
    "a network of its own",
    "many threads",
    "a full disk",
    "pipes closed",
)


def main() -> None:
    """Judge in strong mode and print {name: result} as JSON; "all": all attacks, with a right answer after each."""
    results = {}
    every = sys.argv[1:] == ["all"]
    with (
        Judge(workers=1, limits=SHORT, allow_code_execution=True) as judge,
        Judge(workers=1, limits=SHORTEST, allow_code_execution=True) as hasty,
    ):
        for name in ATTACKS if every else FOR_A_USER:
            results[name] = (hasty if ATTACKS[name].slow else judge).judge(ADD, ATTACKS[name].program).result
            if name in IN_A_TEST:
                problem = replace(ADD, test=ATTACKS[name].program + "assert won")
                results[f"test {name}"] = judge.judge(problem, RIGHT).result
            if every:
                results[f"after {name}"] = judge.judge(ADD, RIGHT).result
        for name, program in HARMLESS.items() if every else [("right", RIGHT)]:
            results[name] = judge.judge(ADD, program).result
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
