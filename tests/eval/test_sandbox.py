"""Model-written code stays shut in: every attack fails, leaves nothing behind, and does not harm the next sample.

Where Linux forbids namespaces these tests fail; say CODEGEN2_NO_NAMESPACES=1 to leave out what needs them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import math
import os
import platform
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from eval_attacks import ADD, ATTACKS, FOR_A_USER, HARMLESS, IN_A_TEST, RIGHT, SHORT, SHORTEST, wins_if
from few import few
from hypothesis import given
from hypothesis import strategies as st

from codegen2.eval.judge import Judge, Limits
from codegen2.eval.sandbox import guest, sandbox
from codegen2.eval.sandbox import linux as sandbox_linux
from codegen2.eval.sandbox.check import Candidate
from codegen2.eval.sandbox.launcher import _CHECKER_UID
from codegen2.eval.sandbox.turns import Turns, run_fairly

ROOT = Path(__file__).parents[2]
strong = pytest.mark.skipif(
    sys.platform != "linux" or bool(os.environ.get("CODEGEN2_NO_NAMESPACES")), reason="no namespaces here"
)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1, limits=SHORT, allow_code_execution=True) as judge:
        yield judge


@pytest.fixture(scope="module")
def hasty() -> Iterator[Judge]:
    """Return a judge for what ends by a limit of time."""
    with Judge(workers=1, limits=SHORTEST, allow_code_execution=True) as judge:
        yield judge


def launcher_of(judge: Judge) -> int:
    return judge._all[0]._helper._process.pid


def processes() -> dict[int, tuple[int, int]]:
    """Return (parent, user) of every process that is no zombie."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = dict(
                x.split(":\t", 1) for x in (folder / "status").read_text().splitlines() if ":\t" in x
            )
        except OSError:
            continue
        if not lines["State"].startswith("Z"):
            found[int(folder.name)] = int(lines["PPid"]), int(lines["Uid"].split()[0])
    return found


def left_over(keeper: int) -> list[int]:
    """Return the processes that a judgement left: children of keeper and launcher, users that only candidates have."""
    ours, found = (_CHECKER_UID + keeper, _CHECKER_UID + keeper + (1 << 23)), processes()
    launchers = [pid for pid, (parent, _) in found.items() if parent == keeper]
    return launchers[1:] + [p for p, (parent, user) in found.items() if parent in launchers or user in ours]


@strong
@pytest.mark.parametrize("name", few(ATTACKS, 5))
def test_attacks_fail_and_are_contained(judge: Judge, hasty: Judge, name: str) -> None:
    attack = ATTACKS[name]
    judge = hasty if attack.slow else judge
    launcher = launcher_of(judge)
    verdict = judge.judge(ADD, attack.program)
    assert not verdict.passed, verdict
    assert re.search(attack.result, verdict.result), verdict
    assert launcher_of(judge) == launcher, "the launcher did not survive"
    assert left_over(launcher) == []
    library = Path(os.__file__).parent
    assert not any(p.exists() for p in (Path("/mark"), library / "codegen2_attack.py"))


@strong
@pytest.mark.parametrize("name", few(IN_A_TEST, 6))
def test_a_problems_test_is_shut_in_as_well(judge: Judge, name: str) -> None:
    problem = dataclasses.replace(ADD, test=ATTACKS[name].program + "assert won")
    result = judge.judge(problem, RIGHT).result
    assert re.search("failed: AssertionError|died", result) or "signal" in result, result
    assert left_over(launcher_of(judge)) == []


@strong
def test_a_problems_test_has_nothing_open_but_its_pipes(judge: Judge) -> None:
    look = (
        "import os, stat\nkinds = []\nfor fd in range(3, 300):\n"
        "    try: kinds.append(stat.S_ISFIFO(os.fstat(fd).st_mode))\n"
        "    except OSError: pass\nassert kinds == [True] * 3, kinds"
    )
    assert judge.judge(dataclasses.replace(ADD, test=look), RIGHT).result == "passed"


def test_some_right_answers_pass_in_weak_mode() -> None:
    with Judge(workers=1, limits=SHORT, sandbox="weak", allow_code_execution=True) as judge:
        assert [judge.judge(ADD, HARMLESS[n]).result for n in ("threads", "many imports")] == ["passed"] * 2
        assert judge.judge(ADD, "def add(a, b): return -1").result.startswith("failed: AssertionError")


@strong
def test_a_right_answer_passes_after_all_attacks(judge: Judge, hasty: Judge) -> None:
    """After each of them it does in the slow test of a normal user."""
    assert judge.judge(ADD, RIGHT).result == hasty.judge(ADD, RIGHT).result == "passed"


@pytest.fixture(scope="module")
def weaker() -> Iterator[dict[str, Judge]]:
    """Return the judges that some attacks beat."""
    with (
        Judge(workers=1, limits=SHORT, sandbox="weak", allow_code_execution=True) as weak,
        Judge(workers=1, limits=SHORT, published_semantics=True, allow_code_execution=True) as published,
    ):
        yield {"weak": weak, "published": published}


@strong
@pytest.mark.parametrize("name", few((n for n, a in ATTACKS.items() if a.beats), 5))
def test_attacks_work_where_nothing_stops_them(name: str, weaker: dict[str, Judge]) -> None:
    """Else the test above would prove nothing."""
    attack = ATTACKS[name]
    assert weaker[attack.beats].judge(ADD, attack.program).result == "passed"


@strong
@pytest.mark.parametrize("name", HARMLESS)
def test_right_answers_pass(judge: Judge, name: str) -> None:
    assert judge.judge(ADD, HARMLESS[name]).result == "passed"


@strong
@pytest.mark.parametrize(
    ("mode", "published"),
    [
        pytest.param("weak", False, marks=pytest.mark.slow),
        pytest.param("weak", True, marks=pytest.mark.slow),
        pytest.param("strong", True, marks=pytest.mark.slow),
    ],
)
def test_right_answers_pass_in_other_modes(mode: str, published: bool) -> None:
    with Judge(
        workers=2, limits=SHORT, sandbox=mode, published_semantics=published, allow_code_execution=True
    ) as judge:
        verdicts = [judge.submit(ADD, program) for program in HARMLESS.values()]
        assert [v.result().result for v in verdicts] == ["passed"] * len(HARMLESS)
        assert judge.judge(ADD, "def add(a, b): return -1").result.startswith("failed: AssertionError")


def test_weak_mode_ends_what_does_not_end() -> None:
    ends = ("endless loop in a call", "endless sleep", "sys.exit(0) in a call", "os._exit(0) in a call")
    with Judge(workers=1, limits=SHORTEST, sandbox="weak", allow_code_execution=True) as judge:
        for name in ends:
            verdict = judge.judge(ADD, ATTACKS[name].program)
            assert not verdict.passed and re.search(ATTACKS[name].result, verdict.result), verdict
        assert judge.judge(ADD, RIGHT).passed
        said = judge.judge(ADD, "import os\ndef add(a, b):\n    raise ValueError(os.getcwd())\n").result
        home = Path(said.removeprefix("failed: ValueError: "))
        folder = home.parent
        assert folder.name.startswith("codegen2-judge-"), said
        assert folder.is_dir() and not home.exists()
    assert not folder.exists()


@strong
def test_nothing_is_left_for_the_next_candidate(judge: Judge) -> None:
    leave = "import os, ctypes\nopen('/tmp/mark', 'w').write('x')\nopen('mark', 'w').write('x')\n" + RIGHT
    find = wins_if("import os\nwon = bool(os.listdir('/tmp'))")
    assert judge.judge(ADD, leave).passed
    assert judge.judge(ADD, leave + find).passed, "the second program cannot find what it left itself"
    assert judge.judge(ADD, find).result.startswith("failed: AssertionError")


@strong
def test_a_listener_outside_is_not_reached(judge: Judge) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = wins_if(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\nwon = True")
        assert judge.judge(ADD, code).result.startswith("failed: AssertionError")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        with Judge(workers=1, sandbox="weak", allow_code_execution=True) as weak:
            assert weak.judge(ADD, code).passed


@strong
def test_limits_are_those_of_the_candidate(judge: Judge) -> None:
    wanted = {
        "RLIMIT_AS": SHORT.memory_bytes, "RLIMIT_FSIZE": SHORT.disk_bytes, "RLIMIT_NOFILE": SHORT.open_files,
        "RLIMIT_NPROC": SHORT.threads, "RLIMIT_CORE": 0, "RLIMIT_CPU": 2,
    }  # fmt: skip
    lines = [f"resource.getrlimit(resource.{k}) == ({v}, {v})" for k, v in wanted.items()]
    assert judge.judge(ADD, wins_if("import resource\nwon = " + " and ".join(lines))).passed
    low = [f"resource.setrlimit(resource.{k}, ({v + 1}, {v + 1}))" for k, v in wanted.items()]
    for line in low:
        assert not judge.judge(ADD, wins_if(f"import resource\n{line}\nwon = True")).passed
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > SHORT.open_files


@strong
def test_cpu_seconds_count_and_not_waiting() -> None:
    """Waiting longer than the CPU seconds allowed, and with some work longer than the wall clock of a first try, is no
    fault."""
    once = "import time\ntime.sleep(0.6)\n" + RIGHT
    often = "import time\nfor _ in range(60):\n    time.sleep(0.05)\n" + RIGHT
    with Judge(workers=1, limits=Limits(timeout_s=0.3, wall_s=2.0), allow_code_execution=True) as judge:
        assert judge.judge(ADD, once).passed
        assert judge.judge(ADD, often).passed
        assert judge.judge(ADD, "for _ in range(10**9): pass\n").result.startswith("timed out")


def test_what_was_starved_is_tried_again_alone() -> None:
    turns, tries, inside = Turns(), [], threading.Event()
    running = 0

    def run(alone: bool) -> str:
        nonlocal running
        running += 1
        tries.append((alone, running))
        if not alone and not inside.is_set():
            inside.set()
            beside.result()  # begins beside the others, and ends when one has come and gone
        running -= 1
        return "passed" if alone else "starved"

    with ThreadPoolExecutor(3) as pool:
        beside: Future[None] = Future()
        first = pool.submit(run_fairly, run, lambda outcome: outcome == "starved", turns)
        assert inside.wait(300)
        second = pool.submit(run_fairly, run, lambda outcome: outcome == "starved", turns)
        assert wait_until(lambda: len(tries) == 2)
        assert not second.done()  # its second try waits for the first program, which still runs
        beside.set_result(None)
        assert first.result(300) == second.result(300) == "passed"
    assert tries[:2] == [(False, 1), (False, 2)]
    assert tries[2:] == [(True, 1), (True, 1)], "a second try was not alone"


@strong
def test_a_launcher_that_was_killed_is_replaced() -> None:
    with Judge(workers=1, limits=SHORT, allow_code_execution=True) as judge:
        before = launcher_of(judge)
        os.kill(before, signal.SIGKILL)
        assert judge.judge(ADD, RIGHT).passed
        assert launcher_of(judge) != before


SOME_KILLS = (
    ("judge", "candidate", "strong"),
    ("keeper", "test", "strong"),
    ("launcher", "candidate", "weak"),
)
STAYS = """
import ctypes, os, time
prctl = ctypes.CDLL(None).prctl
prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            prctl(1, 0, 0, 0, 0)
            time.sleep(10**6)
        os._exit(0)
except OSError:
    pass
time.sleep(10**6)
"""


@strong
@pytest.mark.parametrize(
    ("victim", "side", "mode"),
    [
        pytest.param(*c, marks=() if c in SOME_KILLS else pytest.mark.slow)
        for c in itertools.product(("judge", "keeper", "launcher"), ("candidate", "test"), ("strong", "weak"))
    ],
)
def test_nothing_outlives_who_was_killed(victim: str, side: str, mode: str) -> None:
    """What was there is gone; unless it was killed itself, the judge starts others once, and is killed after that."""
    program = (
        "from eval_attacks import *\nimport dataclasses, os, sys, time\n"
        f"judge = Judge(workers=1, limits=Limits(timeout_s=600), sandbox={mode!r}, allow_code_execution=True)\n"
        "print(judge._all[0]._helper._process.pid, flush=True)\n"
        "if os.fork() == 0:\n    os.close(1)\n    time.sleep(600)\n"  # it holds the judge's end of the pipes
        f"problem = dataclasses.replace(ADD, test={STAYS if side == 'test' else 'assert add(1, 2)'!r})\n"
        f"judge.judge(problem, {STAYS if side == 'candidate' else RIGHT!r})"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=env, text=True, start_new_session=True
    )
    assert child.stdout is not None
    keeper = int(child.stdout.readline())
    wanted = 3 if mode == "weak" else 2  # in weak mode what was forked
    assert wait_until(lambda: len(left_over(keeper)) >= wanted), "candidate and test did not start"
    launcher = next(pid for pid, (parent, _) in processes().items() if parent == keeper)
    family = {keeper, launcher, *left_over(keeper)}
    os.kill({"judge": child.pid, "keeper": keeper, "launcher": launcher}[victim], signal.SIGKILL)
    try:
        assert wait_until(lambda: not family & set(processes())), family & set(processes())
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()


def wait_until(true: Any, seconds: float = 300.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.02)
    return False


def _be_a_user() -> None:
    """In a child: hide what only root may enter, but for the interpreter and the repository, and become a user."""
    libc = ctypes.CDLL(None, use_errno=True)
    ways = [os.path.realpath(p) for p in (sys.base_prefix, sys.prefix, str(ROOT))]
    closed = {str(above) for p in ways for above in Path(p).parents if not os.stat(above).st_mode & 0o001}

    def mount(source: str, at: str, kind: str, flags: int, data: str) -> None:
        assert libc.mount(source.encode(), at.encode(), kind.encode(), flags, data.encode()) == 0, at

    assert libc.unshare(0x00020000) == 0
    mount("none", "/", "", 16384 | 1 << 18, "")
    handles = {p: os.open(p, os.O_PATH) for p in ways}  # of this namespace's mounts; others cannot be bound
    for above in sorted(closed):
        if not any(above.startswith(other + "/") for other in closed):
            mount("none", above, "tmpfs", 0, "mode=755")
    for path in sorted(ways):  # the repository before the environment inside it
        if not os.path.exists(path):
            os.makedirs(path)
            mount(f"/proc/self/fd/{handles[path]}", path, "", 4096 | 16384, "")
    os.setgroups([])
    os.setresgid(12345, 12345, 12345)
    os.setresuid(12345, 12345, 12345)
    os.chdir("/")


@strong
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="the other tests run as a user")
@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_attacks_fail_for_a_normal_user_too(which: str) -> None:
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "eval_attacks.py"), which], preexec_fn=_be_a_user, env=env,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    attacks = {n: a for n, a in ATTACKS.items() if which == "all" or n in FOR_A_USER}
    after = {*HARMLESS, *(f"after {n}" for n in attacks)} if which == "all" else {"right"}
    tests = {f"test {n}" for n in attacks if n in IN_A_TEST}
    assert set(results) == {*attacks, *after, *tests}
    wrong = {n: r for n, r in results.items() if n not in ATTACKS and (r == "passed") == (n in tests)}
    wrong |= {n: results[n] for n, a in attacks.items() if not re.search(a.result, results[n])}
    assert wrong == {}


def test_it_refuses_where_it_cannot_shut_in(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid = (
        "import sys; sys.path.append(sys.argv[1]); from codegen2.eval.sandbox import linux as s\n"
        "def no(*a): raise OSError(1, 'making a namespace: operation not permitted')\n"
        "s.View = no\nfrom codegen2.eval.sandbox.launcher import main; main()"
    )
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "_BOOT", forbid)
        if sys.platform == "linux":
            with pytest.raises(
                OSError, match="not permitted; --sandbox weak runs the code with less protection"
            ):
                Judge(workers=1, allow_code_execution=True)
        with Judge(workers=1, sandbox="weak", allow_code_execution=True) as judge:
            assert judge.judge(ADD, RIGHT).passed
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="no namespaces on darwin; --sandbox weak"):
        Judge(workers=1, allow_code_execution=True)


def test_a_sandbox_that_cannot_be_made_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial at the start sees it; later it is an error and not a failed sample."""
    broken = (
        "import sys; sys.path.append(sys.argv[1]); from codegen2.eval.sandbox import launcher as l\n"
        "real, count = l.Launcher._become_guest, [0]\n"
        "def become(*a):\n    if l.os.getppid() and len(open('/dev/null').read()) == 0 and a[0].n > 1:\n"
        "        raise OSError('no room')\n    real(*a)\n"
        "start = l.Launcher._start_guest\n"
        "def start_guest(self, *a):\n    self.n = getattr(self, 'n', 0) + 1\n    return start(self, *a)\n"
        "l.Launcher._become_guest, l.Launcher._start_guest = become, start_guest\nl.main()"
    )
    monkeypatch.setattr(sandbox, "_BOOT", broken)
    with (
        Judge(workers=1, sandbox="weak", allow_code_execution=True) as judge,
        pytest.raises(OSError, match="a sandbox could not be made: no room"),
    ):
        judge.judge(ADD, RIGHT)


@strong
def test_descriptions_say_what_holds(judge: Judge) -> None:
    said = judge.describe()
    assert json.loads(json.dumps(said)) == said
    assert said["mode"] == "strong" and said["semantics"] == "trusted check"
    assert said["limits"]["timeout_s"] == SHORT.timeout_s and said["limits"]["wall_s"] == SHORT.wall_s
    assert any("root" in line for line in said["holds"]) == (os.geteuid() == 0)
    weak = sandbox.describe("weak", Limits(), True, True)
    assert "network" in " ".join(weak["does_not_hold"]) and "forged" in weak["does_not_hold"][0]
    assert not any("network" in line or "check runs in another" in line for line in weak["holds"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timeout_s": 0}, "timeout_s must be above 0"),
        ({"timeout_s": math.nan}, "timeout_s must be above 0 and finite, got nan"),
        ({"wall_s": -1}, "wall_s must be above 0"),
        ({"memory_bytes": 1 << 20}, "at least 134217728, which an interpreter needs"),
    ],
)
def test_limits_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**fields)
    assert dataclasses.replace(Limits(), timeout_s=2).backstop_s == 8


def run_filter(audit: int, number: int, argument: int = 0, second: int = 0) -> int:
    """Interpret the filter's program as the kernel does."""
    data = struct.pack("<iIQ6Q", number, audit, 0, argument, second, 0, 0, 0, 0)
    program = sandbox_linux.filter_program()
    code = list(struct.iter_unpack("HBBI", program))
    at, value = 0, 0
    while True:
        kind, yes, no, k = code[at]
        at += 1
        match kind:
            case 0x20:
                value = struct.unpack_from("<I", data, k)[0]
            case 0x15:
                at += yes if value == k else no
            case 0x35:
                at += yes if value >= k else no
            case 0x45:
                at += yes if value & k else no
            case 0x06:
                return k


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_refuses_what_it_should(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    allow, refuse, missing, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
    audit, table = sandbox_linux._AUDIT[machine], sandbox_linux.calls()
    harmless = {"x86_64": (0, 1, 9, 59, 60, 231, 318), "aarch64": (63, 64, 222, 221, 93, 94, 278)}[machine]
    assert {run_filter(audit, n) for n in harmless} == {allow}
    assert {run_filter(audit, n) for name, n in table.items() if name != "clone"} == {refuse}
    assert {run_filter(audit, n) for n in (425, 428, 442)} == {refuse}
    assert run_filter(audit, table["clone"], 17) == refuse
    assert run_filter(audit, table["clone"], 0x10000011) == refuse
    assert run_filter(audit, table["clone"], 0x003D0F00) == allow, "a thread as libc makes it"
    fcntl, (kill_, tgkill, prlimit) = sandbox_linux._FCNTL[machine], sandbox_linux._OF_A_PROCESS[machine]
    assert {run_filter(audit, fcntl, 3, n) for n in sandbox_linux._LOCKS} == {refuse}
    assert {run_filter(audit, fcntl, 3, n) for n in (0, 1, 2, 3, 4, 5, 1030)} == {allow}
    assert {run_filter(audit, n, x) for n in (kill_, tgkill, prlimit) for x in (0, os.getpid())} == {allow}
    assert {run_filter(audit, n, x) for n in (kill_, tgkill, prlimit) for x in (1, 2**64 - 1)} == {refuse}
    assert run_filter(audit, 435) == missing
    assert run_filter(audit, 0x40000000 + 57) == kill
    assert run_filter(0x40000003, 57) == kill, "a 32-bit call"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**5000), 2**5000) | st.floats() | st.binary()
    | st.complex_numbers(allow_nan=True) | st.text(st.characters(codec=None, exclude_categories=())),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner)
    | st.sets(st.integers() | st.text()) | st.frozensets(st.integers() | st.none()),
    max_leaves=8,
)  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Compare exactly: types, signs of zero, NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b if isinstance(a, set | frozenset | int) else repr(a) == repr(b)


@given(PLAIN)
def test_plain_data_comes_back_the_same(value: Any) -> None:
    message = guest.Peer(-1, -1, {}, ())._pack("ok", value)
    word, found = Candidate(-1, -1, {})._unpack(message)
    assert word == "ok" and same(found, value)


PIECES = (
    b"[", b"]", b",", b'"', b"{", b"}", b":", b"null", b"true", b"1", b"-", b"e9", b".5", b"NaN", b"Infinity", b" ",
    b"\\u", b"d800", b"\xed\xa0\x80", b"\xff", b"9" * 5000,
)  # fmt: skip


@given(st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join))
def test_other_bytes_are_refused_or_mean_lists_and_scalars(data: bytes) -> None:
    try:
        value = guest.decode(data)
    except ValueError:
        return
    assert same(guest.decode(guest.encode(value)), value)
    todo = [value]
    while todo:
        item = todo.pop()
        assert type(item) in (list, str, int, float, bool, type(None))
        todo += item if type(item) is list else []


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[", b"[1", b"[1,]", b"[1]]", b"nul", b'"', b'"\xff"', b"{}", b'[{"a": 1}]', b"[" * 10**5,
        b"9" * 10**5, b"01", b"0x1", b"'a'", b" 1",
    ],
)  # fmt: skip
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        guest.decode(data)


@pytest.mark.parametrize(
    "reference",
    [
        [], [7], [[]], ["int"], ["int", 5], ["int", "x"], ["complex", "1", 2.0], ["bytes", "\u0100"], ["float", "1"],
        [0, 0],
    ],
)  # fmt: skip
def test_forged_references_mean_nothing(reference: list[Any]) -> None:
    with pytest.raises(ValueError, match=":"):
        Candidate(-1, -1, {})._unpack(guest.encode(["ok", [reference], [], [], []]))


@pytest.mark.parametrize(
    "nodes",
    [
        [["import", ["os", "system"], []]],
        [["class", ["builtins.int", "int", "", ""], []], ["object", [[0]], []]],
        [["class", ["builtins.int", "int", "", ""], []], ["member", [[0]], [3]]],
        [["enum", ["X", "partial", "object", ""], ["a", 1]]],
        [["class", ["", "Y", "", ""], [[0]]]],
        [["class", ["", "Y", "a=__import__('os')", ""], []]],
        [["data", ["builtins.list", None], []], ["data", ["builtins.dict", None], [[0], 1]]],
        [["data", ["builtins.int", 5], [1]]],
        [["data", ["subprocess.Popen", None], ["true"]]],
        [["data", ["collections.deque", None, 10**30], []]],
        [["data", ["decimal.Decimal", None], ["zz"]]],
        [["error", [[7], []], [None]]],
        [["own", ["int"], []]],
        [["function", [3, None], []]],
        [["view", ["builtins.dict_keys"], [3]]],
    ],
)
def test_forged_messages_make_nothing(nodes: list[Any]) -> None:
    data = guest.encode(["ok", [[0]], nodes, [], []])
    with pytest.raises(ValueError, match=":"):
        Candidate(-1, -1, {})._unpack(data)


def test_a_forged_class_decides_nothing() -> None:
    """What a subclass of int says of equality, or that an object is an int, is not taken over."""
    own = " ".join(guest.DUNDERS)
    nodes = [
        ["class", ["builtins.int", "int", "", ""], []], ["class", ["", "Y", "", own], [[0]]],
        ["data", ["builtins.int", [1]], [7]], ["class", ["int", "int", "", ""], []], ["object", [[3]], []],
    ]  # fmt: skip
    _, seven, thing = Candidate(-1, -1, {})._unpack(guest.encode(["ok", [[2], [4]], nodes, [], []]))
    assert seven == 7 and seven != 3 and seven in {7} and len({seven, 7}) == 1 and seven - 7 == 0
    assert not isinstance(thing, int)


def test_too_much_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "MAX_FRAME", 100)
    assert guest.encode("x" * 98)
    for value in ("x" * 99, [1] * 50, 1 << 800):
        with pytest.raises(ValueError, match="too large"):
            guest.Peer(-1, -1, {}, ())._pack("ok", value)
