"""The file of one evaluation run: everything needed to print, compare or repeat it, written and read back with checks.

Not here: how numbers come about (run.py, judge.py), how they look (report/).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..files.paths import read_unpacked, write_atomic
from ..problems.statistics import Interval

SCHEMA = 1
Kind = Literal["problems", "repo", "bpb"]
Scores = dict[str, Interval]


@dataclass(frozen=True)
class SetInfo:
    """Say which problems there were, and of how many the scores are; partial: some were left out or not reached."""

    name: str
    sha256: str
    problems: int
    evaluated: int
    partial: bool


@dataclass(frozen=True)
class Sample:
    """One answer to one problem and what came of it; None is what was not asked or does not apply.

    raw: cut at <eom> only, as in the paper; shown: what an editor would show. group: what it stands and falls with
    (the function or file its hole is cut from; None is the task itself). category: what scores are broken down by
    (kind of hole, language). prompt, suffix, expected: only where no problem set holds them (a repository's holes).
    extra: further numbers of a kind of run, such as nats and bytes.
    """

    task_id: str
    sample: int = 0
    raw: str | None = None
    shown: str | None = None
    finish_reason: str | None = None
    tokens: int | None = None
    latency_s: float | None = None
    passed_raw: bool | None = None
    result_raw: str | None = None
    passed_shown: bool | None = None
    result_shown: str | None = None
    exact_raw: bool | None = None
    exact_shown: bool | None = None
    edit_raw: float | None = None
    edit_shown: float | None = None
    group: str | None = None
    category: str | None = None
    prompt: str | None = None
    suffix: str | None = None
    expected: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """One run. model, settings, versions, hardware and sandbox are plain JSON objects, shown as they are."""

    kind: Kind
    model: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, Any]
    hardware: dict[str, Any]
    started: str  # ISO 8601 with the time zone
    wall_s: float
    problem_set: SetInfo
    sandbox: dict[str, Any] | None
    scores: Scores
    baselines: dict[str, Scores] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the file's text, a sample a line, without its Nones. Raises ValueError for NaN and infinities."""
        content = {"schema": SCHEMA} | dataclasses.asdict(dataclasses.replace(self, samples=[]))
        rows = [{k: v for k, v in vars(s).items() if v is not None and v != {}} for s in self.samples]
        try:
            head = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
            lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
        except ValueError as e:
            raise ValueError(f"a result file has finite numbers only: {e}") from None
        samples = "[\n  " + ",\n  ".join(lines) + "\n ]" if lines else "[]"
        text = head.removesuffix("[]\n}") + samples + "\n}\n"  # samples come last
        # Halves of surrogate pairs, which JSON knows and UTF-8 does not, stay escapes.
        return text.encode("utf-8", "backslashreplace").decode("utf-8")

    def write(self, path: str | Path) -> None:
        """Write the file, all or nothing. Raises ValueError and OSError."""
        write_atomic(path, self.to_json().encode("utf-8"))


def read_results(path: str | Path) -> Results:
    """Read a result file. Raises ValueError naming the file, the key and what was expected; OSError."""
    try:
        return from_json(read_unpacked(path).decode("utf-8"))
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: no UTF-8 text ({e}); expected a result file of codegen2 eval") from None
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


def from_json(text: str) -> Results:
    """Return the run that to_json wrote. Raises ValueError naming the key and what was expected."""
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except (json.JSONDecodeError, RecursionError) as e:
        raise ValueError(f"no JSON ({e}); expected a result file of codegen2 eval") from None
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError("key 'schema' is missing; expected a result file of codegen2 eval")
    if content["schema"] != SCHEMA:
        raise ValueError(f"key 'schema' is not {SCHEMA}; read it with the codegen2 that wrote it")
    try:
        import msgspec
    except ModuleNotFoundError as e:
        raise ValueError(f"reading results needs {e.name}; install codegen2[eval]") from e
    return msgspec.convert(content, Results)  # its error is a ValueError


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
