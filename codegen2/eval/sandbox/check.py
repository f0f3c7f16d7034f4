"""The trusted side of a judgement: runs a problem's test, and asks the candidate's process for every answer.

Here are the test's own objects and the helper functions of the prompt; from the candidate come only values that
guest.decode has built. Arguments travel by value: what the candidate does to them the test does not see.
Not here: the two processes and their limits (launcher.py).
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable
from typing import Any

from .guest import decode, describe_error, encode, read_frame, write_frame

MAX_RESULT = 300  # characters


class CandidateLost(BaseException):
    """End the test whatever it catches: there is no answer to be had from the candidate any more."""


class Candidate:
    """Call functions of the candidate's program over two pipes. `lost` says why that has come to an end."""

    def __init__(self, requests: int, replies: int) -> None:
        """Ask nothing yet; the first thing to ask is ("load", program)."""
        self._requests, self._replies = requests, replies
        self.lost: str | None = None
        self.died = False  # nobody reads or writes there any more

    def ask(self, *request: Any) -> Any:
        """Send a request (guest.serve lists them) and return the reply's value.

        Raises the built-in exception that the candidate raised, or CandidateLost.
        """
        if self.lost is not None:
            raise CandidateLost
        try:
            frame = encode(request, 1 << 26)
        except (TypeError, ValueError) as e:
            raise self._lose(f"failed: the test passes what cannot be sent: {e}") from None
        try:
            write_frame(self._requests, frame)
            data = read_frame(self._replies)
        except OSError:
            data = None
        except ValueError as e:
            raise self._lose(f"failed: {e}") from None
        if data is None:
            self.died = True
            raise self._lose("candidate died")
        try:
            reply = decode(data)
        except ValueError as e:
            raise self._lose(f"failed: a malformed reply ({e})") from None
        match reply:
            case ("ok", value) if type(reply) is tuple:
                return value
            case ("unfit", str(why)):
                raise self._lose(f"failed: an answer that cannot be sent: {why}")
            case ("raise", str(name), str(own), str(text)):
                raise self._error(request[0], name, own, text)
            case _:
                raise self._lose("failed: a reply of another form")

    def _error(self, kind: str, name: str, own: str, text: str) -> BaseException:
        error = getattr(builtins, name, None)
        # Not SystemExit and the like: a test that waits for an error means an error.
        if kind == "load" or not (isinstance(error, type) and issubclass(error, Exception)):
            return self._lose(f"failed: {own}: {text}")
        try:
            return error(text if own == name else f"{own}: {text}")
        except TypeError:  # UnicodeDecodeError wants five arguments
            return self._lose(f"failed: {own}: {text}")

    def _lose(self, why: str) -> CandidateLost:
        self.lost = why
        return CandidateLost(why)

    def function(self, name: str) -> Callable[..., Any]:
        """Return a function that calls the candidate's function of this name."""

        def call(*args: Any, **kwargs: Any) -> Any:
            return self.ask("call", name, args, kwargs)

        call.__name__ = name
        return call


def helpers(prompt: str, entry_point: str) -> str:
    """Return the part of a prompt that is whole before the entry point begins: imports and helper functions.

    >>> helpers("import math\\n\\ndef half(x):\\n    return x / 2\\n\\ndef f(x):\\n    return half(", "f")
    'import math\\n\\ndef half(x):\\n    return x / 2\\n\\n'
    """
    starts = list(re.finditer(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b", prompt, re.MULTILINE))
    head = prompt[: starts[0].start()] if starts else prompt
    try:
        ast.parse(head)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""  # a comment in words, or a decorator; a test that needs a helper asks the candidate for it
    return head


def free_names(test: str, known: set[str]) -> set[str]:
    """Return the names that a test reads and neither binds itself nor finds among the known or built-in ones."""
    read: set[str] = set()
    bound = known | set(dir(builtins))
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return read - bound


def run_check(job: dict[str, Any], requests: int, replies: int) -> dict[str, Any]:
    """Judge one candidate and return {"result": "passed" or why not, "died": bool}."""
    candidate = Candidate(requests, replies)
    try:
        candidate.ask("load", job["program"])
        _run_test(job, candidate)
        # A test may swallow everything in a bare except; a candidate that was lost has failed all the same.
        result = candidate.lost or "passed"
    except CandidateLost:
        result = candidate.lost or "failed"
    except BaseException as e:
        result = candidate.lost or "failed: " + ": ".join(describe_error(e)[2:])
    return {"result": _one_line(result), "died": candidate.died}


def run_published(job: dict[str, Any], requests: int, replies: int) -> dict[str, Any]:
    """Let the candidate's own process run program and test together, as the published harness does."""
    program = job["program"] + "\n" + job["test"]
    if defines_check(job["test"]):
        program += f"\ncheck({job['entry_point']})"
    try:
        write_frame(requests, encode(("run", program), 1 << 26))
        data = read_frame(replies)
        reply = None if data is None else decode(data)
    except (OSError, ValueError):
        data = reply = None
    if data is None:
        return {"result": "candidate died", "died": True}
    match reply:
        case ("ok", None):
            result = "passed"
        case ("raise", str(), str(own), str(text)):
            result = _one_line(f"failed: {own}: {text}")
        case _:
            result = "failed: a malformed reply"
    return {"result": result, "died": False}


def defines_check(test: str) -> bool:
    """Return whether a test is HumanEval's `def check(candidate)`, or statements such as MBPP's asserts."""
    return any(isinstance(n, ast.FunctionDef) and n.name == "check" for n in ast.parse(test).body)


def _run_test(job: dict[str, Any], candidate: Candidate) -> None:
    names: dict[str, Any] = {}
    _execute(helpers(job["prompt"], job["entry_point"]), "<prompt>", names)
    entry = candidate.function(job["entry_point"])
    names[job["entry_point"]] = entry
    names |= {n: candidate.function(n) for n in free_names(job["test"], set(names))}
    _execute(job["test"], "<test>", names)
    if defines_check(job["test"]):
        names["check"](entry)


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
