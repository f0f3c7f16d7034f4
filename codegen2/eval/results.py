"""The file of one evaluation run: everything needed to print, compare or repeat it, written and read back with checks.

Not here: how numbers come about (run.py, judge.py), how they look (report/).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
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
        content.pop("samples")
        _check_finite(content, "")
        head = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
        lines = [
            json.dumps(_sample_record(s, f"samples[{i}]"), ensure_ascii=False, allow_nan=False)
            for i, s in enumerate(self.samples)
        ]
        rows = "[\n  " + ",\n  ".join(lines) + "\n ]" if lines else "[]"
        text = f'{head.removesuffix("}").rstrip()},\n "samples": {rows}\n}}\n'
        # Halves of surrogate pairs, which JSON knows and UTF-8 does not, stay escapes.
        return text.encode("utf-8", "backslashreplace").decode("utf-8")

    def write(self, path: str | Path) -> None:
        """Write the file, all or nothing. Raises ValueError and OSError."""
        write_atomic(path, self.to_json().encode("utf-8"))


def _sample_record(sample: Sample, where: str) -> dict[str, Any]:
    values = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample)}
    record = {k: v for k, v in values.items() if v is not None and (k != "extra" or v)}
    _check_finite(record, where)
    return record


def _check_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{where.lstrip('.')} is {value}, which a result file cannot hold; leave it out or give None"
        )
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_finite(inner, f"{where}[{i}]")


def read_results(path: str | Path) -> Results:
    """Read a result file. Raises ValueError naming the file, the key and what was expected; OSError."""
    try:
        return from_json(read_unpacked(path).decode("utf-8"))
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: no UTF-8 text ({e}); expected a result file of codegen2 eval") from None
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


def from_json(text: str) -> Results:
    """Return the run that to_json wrote. Unknown keys are refused: they would be lost when it is written again.

    Raises ValueError naming the key and what was expected.
    """
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except (json.JSONDecodeError, RecursionError) as e:
        raise ValueError(f"no JSON ({e}); expected a result file of codegen2 eval") from None
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError("key 'schema' is missing; expected a result file of codegen2 eval")
    if content.pop("schema") != SCHEMA:
        raise ValueError(f"key 'schema' is not {SCHEMA}; read it with the codegen2 that wrote it")
    try:
        import msgspec
    except ModuleNotFoundError as e:
        raise ValueError(f"reading results needs {e.name}; install codegen2[eval]") from e
    try:
        made = msgspec.convert(content, Results)
    except msgspec.ValidationError as e:
        raise ValueError(str(e)) from None
    _check_kept(content, msgspec.to_builtins(made), "")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _check_kept(value: Any, kept: Any, where: str) -> None:
    """Raise ValueError for a key of a file that what was read of it lacks."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in kept:
                raise ValueError(
                    f"key '{f'{where}.{key}'.lstrip('.')}' is unknown; expected {', '.join(kept)}"
                )
            _check_kept(inner, kept[key], f"{where}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check_kept(inner, kept[i], f"{where}[{i}]")
