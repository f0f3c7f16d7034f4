"""The trusted side of a judgement: runs a problem's test, and asks the candidate's process for every answer.

Here are the test's own objects and the helper functions of the prompt; from the candidate come only values that
guest.Peer has built of data, and mirrors of what stays there.
Not here: the two processes and their limits (launcher.py).
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
import time
from functools import partial
from io import StringIO
from typing import Any

from .guest import ASYNCHRONOUS, DUNDERS, Mirror, Peer, decode, describe_error, dunders, encode, read_frame

MAX_RESULT = 300  # characters


# Operators that a subclass of a plain type does not change here: what would make it equal to anything.
_COMPARING = dunders("eq ne lt le gt ge contains")
_READING = dunders("len iter next reversed bool hash int float complex index")
# Operators that tell the candidate nothing of what the test expects.
_SHOWING = dunders(
    "call getitem setitem delitem missing str repr format enter exit setattr delattr copy deepcopy"
)
# Methods that do.
_PREDICATES = {
    "startswith", "endswith", "issubset", "issuperset", "isdisjoint", "difference", "symmetric_difference",
    "removeprefix", "removesuffix", "replace",
}  # fmt: skip
_MAY_ASK = {  # of values of the test's, by their kind
    "getattr": ("object", "class"), "call": ("function", "object", "class"), "next": ("generator", "object"),
    "send": ("generator",), "throw": ("generator",), "run": ("coroutine",),
}  # fmt: skip


class CandidateLost(BaseException):
    """End the test whatever it catches: there is no answer to be had from the candidate any more."""


class Candidate(Peer):
    """The candidate as the test sees it.

    What crosses as data is compared here, by the classes of this side. An instance of a class of the candidate's is a
    mirror: its attributes and items are asked for, and are data again. But how it compares with a value of the test's
    is not believed, since that value tells it what to answer; then nothing is judged.
    """

    trusts = False
    deciding = _COMPARING | _READING

    def __init__(self, requests: int, replies: int, names: dict[str, Any], entry_class: str = "") -> None:
        """names: what the prompt defines; its classes are those of both. entry_class: the one that is asked for."""
        common = [
            n for n, x in names.items() if isinstance(x, type)
            and getattr(sys.modules.get(x.__module__), x.__qualname__, None) is not x
        ]  # fmt: skip
        super().__init__(replies, requests, names, common)
        self.died = False  # nobody reads or writes there any more
        self._entry_class = entry_class
        self._derived: set[int] = set()  # what operators have made with values of the test's own

    def load(self, program: str, kind: str = "load") -> None:
        """Run the program; kind "run": and nothing after it. Raises CandidateLost where that raises."""
        self.write(encode([kind, program, list(self._common)]))
        try:
            reply = decode(self._read())
        except ValueError as e:
            raise self.lose(f"failed: a malformed reply ({e})") from None
        match reply:
            case ["ok"]:
                return
            case ["raise", str(name), str(text)]:
                raise self.lose(f"failed: {name}: {text}")
        raise self.lose("failed: a reply of another form")

    def ask(self, what: str, *args: Any, **kwargs: Any) -> Any:
        """Ask. Raises CandidateLost."""
        if self.lost:
            raise CandidateLost
        return super().ask(what, *args, **kwargs)

    def idle(self) -> list[int]:
        """Return the numbers of values that are only in the table, which the test cannot look at any more."""
        return [n for n in self.objects if n not in self.lent and sys.getrefcount(self.objects[n]) <= 2]

    def serve(self, what: str, *args: Any, **kwargs: Any) -> Any:
        """Answer a question of the candidate about a value of the test's, as far as it may ask; print, read a line."""
        if what == "print":
            return sys.stdout is not sys.__stdout__ and sys.stdout.write(*args)
        if what == "input":
            return input(*args)
        kind = self._describe(self.objects[args[0]])[0] if args and args[0] in self.lent else ""
        if kind not in _MAY_ASK.get(what, ("object",)) or (
            what in ("getattr", "__setattr__", "__delattr__") and str(args[1])[:1] == "_"
        ):
            raise AttributeError(f"{what} of a value of the test's")
        return super().serve(what, *args, **kwargs)

    def operate(self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Ask for an operator's value, unless the answer could not be believed."""
        ask = partial(super().operate, name, value)
        if name in ASYNCHRONOUS:
            raise self.unfit(f"{name} of {type(value).__name__} cannot be asked for")
        if type(value).__name__ == self._entry_class or name not in DUNDERS - _SHOWING:
            return ask(args, kwargs)
        foreign = name != "__round__" and not all(isinstance(type(x), Mirror) for x in args)
        base: Any = next(cls for cls in type(value).__mro__ if "__border__" not in vars(cls))
        if foreign and base is not object and not isinstance(value, BaseException):
            return getattr(base, name, lambda *_: NotImplemented)(value, *args)
        if foreign and name == "__contains__" and hasattr(type(value), "__iter__"):
            return any(x is args[0] or x == args[0] for x in value)
        said = ask(args, kwargs)
        if said is NotImplemented or (name in ("__eq__", "__ne__") and said is (name == "__ne__")):
            return said
        if foreign and name in ("__eq__", "__ne__") and ask((f"{time.time_ns()}",), {}) is said:
            return name == "__ne__"  # it says so of everything
        derived = foreign or self.number(value) in self._derived
        if derived and isinstance(type(said), Mirror):
            self._derived.add(self.number(said))
        elif derived and name not in ("__iter__", "__next__", "__hash__"):
            raise self.unfit(f"{name} of {type(value).__name__} is not to be believed")
        return said

    def read_attribute(self, value: Any, name: str) -> Any:
        """Return a mirror's attribute, other than those by which a test asks whether a value is right."""
        if name in _PREDICATES and type(value).__name__ != self._entry_class:
            raise self.unfit(f"{name} of {type(value).__name__} is not to be believed")
        return super().read_attribute(value, name)

    def raised(self, error: Any) -> BaseException:
        """Return the error to raise in the test, if it is one that a test may wait for."""
        # Not SystemExit and the like: a test that waits for an error means an error.
        return (
            error
            if isinstance(error, Exception)
            else self.lose("failed: " + ": ".join(describe_error(error)))
        )

    def unfit(self, why: str) -> BaseException:
        """End the test, as nobody knows what it would have said."""
        return self.lose(f"not judged: {why}")

    def lose(self, why: str) -> CandidateLost:
        """Return what ends the test. The first reason counts."""
        self.lost = self.lost or why
        return CandidateLost(why)

    def write(self, data: bytes) -> None:
        """Send a message. Raises CandidateLost."""
        try:
            super().write(data)
        except OSError:
            self.died = True
            raise self.lose("candidate died") from None

    def receive(self) -> list[Any]:
        """Return a message. Raises CandidateLost."""
        data = self._read()
        try:
            message = self._unpack(data)
            if message[0] == "raise" and not isinstance(message[1], BaseException):
                raise ValueError("no error")
        except ValueError as e:
            raise self.lose(f"failed: a malformed reply ({e})") from None
        return message

    def _read(self) -> bytes:
        try:
            data = read_frame(self._reads)
        except OSError:
            data = None
        except ValueError as e:
            raise self.lose(f"failed: {e}") from None
        if data is None:
            self.died = True
            raise self.lose("candidate died")
        return data


class Names(dict[str, Any]):
    """A test's global names: its own and the prompt's, else the candidate's as they are whenever they are read."""

    candidate: Candidate | None = None

    def __missing__(self, name: str) -> Any:
        if self.candidate is None or name[:2] == "__" or hasattr(builtins, name):
            raise KeyError(name)
        return self.candidate.ask("name", name)


def helpers(prompt: str, entry_point: str) -> str:
    """Return the part of a prompt that is whole before the entry point begins: imports and helper functions.

    >>> helpers("import math\\n\\ndef half(x):\\n    return x / 2\\n\\ndef f(x):\\n    return half(", "f")
    'import math\\n\\ndef half(x):\\n    return x / 2\\n\\n'
    """
    starts = list(
        re.finditer(rf"^(?:async\s+def|def|class)\s+{re.escape(entry_point)}\b", prompt, re.MULTILINE)
    )
    head = prompt[: starts[0].start()] if starts else prompt
    try:
        body = ast.parse(head).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""  # a comment in words, or a decorator; a test that needs a helper asks the candidate for it
    if not starts and body and isinstance(body[-1], ast.ClassDef):  # the answer goes on with it
        head = "".join(head.splitlines(keepends=True)[: body[-1].lineno - 1])
    return head


def run(job: dict[str, Any], requests: int, replies: int) -> dict[str, Any]:
    """Judge one candidate and return {"result": "passed" or why not, "died": bool}."""
    names = Names()
    candidate: Candidate | None = None
    sys.stdin = StringIO()  # what a candidate's input() reads, unless the test says otherwise
    try:
        if wrong := wrong_test(job["test"]):
            return {"result": wrong}
        if job["kind"] == "run":
            candidate = Candidate(requests, replies, names)
            _run_published(job, candidate)
        else:
            _execute(helpers(job["prompt"], job["entry_point"]), "<prompt>", names)
            declared = re.search(rf"^class\s+{re.escape(job['entry_point'])}\b", job["prompt"], re.MULTILINE)
            candidate = Candidate(requests, replies, names, job["entry_point"] if declared else "")
            _run_check(job, candidate, names)
        # A test may swallow everything in a bare except; a candidate that was lost has failed all the same.
        result = candidate.lost or "passed"
    except BaseException as e:
        result = (candidate and candidate.lost) or "failed: " + ": ".join(describe_error(e))
    return {"result": _one_line(result), "died": bool(candidate and candidate.died)}


def _run_check(job: dict[str, Any], candidate: Candidate, names: Names) -> None:
    entry = job["entry_point"]
    candidate.load(job["program"])
    names.pop(entry, None)
    names.candidate = candidate
    _execute(job["test"], "<test>", names)
    if defines_check(job["test"]):
        names["check"](eval(entry, names))


def _run_published(job: dict[str, Any], candidate: Candidate) -> None:
    """Let the candidate's own process run program and test together, as the published harness does."""
    program = job["program"] + "\n" + job["test"]
    if defines_check(job["test"]):
        program += f"\ncheck({job['entry_point']})"
    candidate.load(program, "run")


def defines_check(test: str) -> bool:
    """Return whether a test is HumanEval's `def check(candidate)`, or statements such as MBPP's asserts."""
    return any(isinstance(n, ast.FunctionDef) and n.name == "check" for n in ast.parse(test).body)


def wrong_test(test: str) -> str | None:
    """Return what is wrong with a test that is no Python, which no candidate is to blame for."""
    try:
        compile(test, "<test>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        return f"the problem's test is no Python: {e}"
    return None


def _execute(source: str, name: str, names: dict[str, Any]) -> None:
    exec(compile(source, name, "exec", dont_inherit=True), names)


def _one_line(text: str) -> str:
    text = " ".join(text.split()).removesuffix(":")  # an error without words
    return text if len(text) <= MAX_RESULT else text[: MAX_RESULT - 1] + "…"
