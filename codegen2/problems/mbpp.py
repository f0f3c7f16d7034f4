"""MBPP's records turned into HumanEval's: a prompt with the task and its asserts, and a check(candidate) of them.

A leaf that imports nothing of the package. Not here: reading files (problems.py). The set's paper: Austin et al.,
"Program Synthesis with Large Language Models", 2021. Its sanitized half is one JSON list and says `prompt` for `text`.

A test that needs more of the program than one function of plain data (MBPP's few trees made of the solution's own
class) cannot be asked across the border between judge and candidate, and fails there.
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from typing import Any

_MOST_CHARACTERS = 100_000  # of a record's code and tests


def is_mbpp(record: dict[str, Any]) -> bool:
    """Return whether a record looks like one of MBPP."""
    return "test_list" in record and "entry_point" not in record


def to_human_eval(record: dict[str, Any]) -> dict[str, str]:
    """Return the record with HumanEval's keys; the model is shown the task's text and test_list as a docstring.

    challenge_test_list judges too but is not shown. The function's name is read from the asserts.
    Raises ValueError naming the key and what was expected.

    >>> made = to_human_eval({"task_id": 7, "text": "Add one.", "code": "def inc(x):\\r\\n  return x + 1",
    ...                       "test_list": ["assert inc(1) == 2"]})
    >>> print(made["task_id"], made["entry_point"])
    MBPP/7 inc
    >>> print(made["test"], end="")
    def check(candidate):
        inc = candidate
        assert inc(1) == 2
    """
    text: Any = record.get("text", record.get("prompt"))
    code: Any = record.get("code")
    setup = record.get("test_setup_code") or ""
    for key, value in (("'text' (or 'prompt')", text), ("'code'", code), ("'test_setup_code'", setup)):
        if not isinstance(value, str):
            raise ValueError(f"key {key} of an MBPP record must be a string")
    if not isinstance(record.get("task_id"), int | str):
        raise ValueError("key 'task_id' of an MBPP record must be a number or a string")
    tests, hidden = _strings(record, "test_list"), _strings(record, "challenge_test_list")
    if not tests:
        raise ValueError("key 'test_list' of an MBPP record is empty, expected at least one assert")
    setup = "\n".join([*_strings(record, "test_imports"), setup])
    if (size := len(code) + len(setup) + sum(map(len, [*tests, *hidden]))) > _MOST_CHARACTERS:
        raise ValueError(f"an MBPP record of {size} characters; at most {_MOST_CHARACTERS} are read")
    code = code.replace("\r\n", "\n")
    name = entry_point(code, tests)
    return {
        "task_id": f"MBPP/{record['task_id']}",
        "entry_point": name,
        "prompt": _docstring("\n".join([text.strip(), *(t.strip() for t in tests)])),
        "canonical_solution": code if code.endswith("\n") else code + "\n",
        "test": _check(name, setup, [*tests, *hidden]),
    }


def _strings(record: dict[str, Any], key: str) -> list[str]:
    value = record.get(key) or []
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ValueError(f"key {key!r} of an MBPP record must be a list of strings")
    return value


def _tree(key: str, code: str) -> ast.Module:
    try:
        with warnings.catch_warnings():  # about escapes in other people's strings
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise ValueError(f"key {key!r} is no Python ({e}): {code[:60]!r}") from None


def entry_point(code: str, tests: list[str]) -> str:
    """Return the name that the first assert calls and that the code defines.

    >>> entry_point("def helper(): ...\\ndef mean(xs): ...", ["assert set(mean([1])) == {1}"])
    'mean'

    Raises ValueError when there is none.
    """
    body = _tree("code", code).body
    defined = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    targets = [target for n in body if isinstance(n, ast.Assign) for target in n.targets]
    defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    called = [
        node.func.id
        for node in ast.walk(_tree("test_list", tests[0]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    for name in called:
        if name in defined:
            return name
    raise ValueError(
        f"key 'test_list': {tests[0][:60]!r} calls nothing that 'code' defines, expected its function"
    )


def _docstring(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return f'"""\n{escaped}\n"""\n'


def _check(name: str, setup: str, tests: list[str]) -> str:
    """Return check(candidate); imports stand above it, since `from x import *` is no inner statement."""
    before = _tree("test_setup_code", setup.replace("\r\n", "\n")).body
    body = [node for test in tests for node in _tree("test_list", test.replace("\r\n", "\n")).body]
    top, inner = "", []
    for node in [*before, *body]:
        # Unparsed, not pasted: a string over several lines would change where text is indented.
        if isinstance(node, ast.Import | ast.ImportFrom):
            top += ast.unparse(node) + "\n"
        else:
            inner.append(ast.unparse(node))
    lines = textwrap.indent("\n".join(inner), "    ")
    return f"{top}def check(candidate):\n    {name} = candidate\n{lines}\n"
