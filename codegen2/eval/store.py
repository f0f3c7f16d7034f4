"""The folder of a run: what it is of, and journals of JSON lines that a kill at any moment leaves usable.

Not here: what is written into it (run.py). A journal is appended to, one flushed line a record; a line that a kill cut
short is taken off when the run goes on. Nothing in a journal of answers depends on time, so that the files of a run
that was killed and continued and of one that was not are equal, up to the order of lines.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..files.lock import only_one
from ..files.paths import write_atomic

Key = tuple[Any, ...]
ABOUT = "run.json"


class Journal:
    """Records in a file, each found by the values of its key's fields."""

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        """Open a journal, taking off an unfinished end; `mended` says how many bytes that were."""
        self._key = tuple(key)
        self.records: dict[Key, dict[str, Any]] = {}
        self.mended = 0
        self._file: IO[bytes] = open(path, "a+b")  # noqa: SIM115  closed by close()
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        good = 0
        for line in self._file:
            try:
                if not line.endswith(b"\n"):
                    break
                record = json.loads(line)
                self.records[tuple(record[k] for k in self._key)] = record
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            good += len(line)
        self._file.seek(0, os.SEEK_END)
        self.mended = self._file.tell() - good
        self._file.truncate(good)

    def add(self, record: dict[str, Any]) -> None:
        """Append a record; afterwards only a power cut can lose it."""
        self.records[tuple(record[k] for k in self._key)] = record
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def __contains__(self, key: Key) -> bool:
        return key in self.records

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Folder:
    """The folder of one run, locked while it is open. A context manager.

    samples: answers, by (task_id, sample). timings: how long they took. verdicts: what judging said, by (task_id,
    answer), where answer is the number and form of a sample ("0 raw") or a baseline's name.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        """about: plain JSON that must be equal for the run to go on: model, settings, problems.

        Raises ValueError where the folder is of another run or in use, OSError.
        """
        self.path = Path(path)
        with contextlib.ExitStack() as stack:
            stack.enter_context(only_one(self.path, "give --out another folder"))
            self.continued = _check(self.path, about)
            self.samples, self.timings, self.verdicts = (
                stack.enter_context(
                    contextlib.closing(Journal(self.path / f"{name}.jsonl", ("task_id", key)))
                )
                for name, key in (("samples", "sample"), ("timings", "sample"), ("verdicts", "answer"))
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _check(path: Path, about: Mapping[str, Any]) -> bool:
    """Return whether a run goes on here; write down what it is of where it begins."""
    wanted = json.loads(json.dumps(about))  # as it comes back: tuples are lists then
    file = path / ABOUT
    if not file.exists():
        others = [p.name for p in path.iterdir() if p.name != ".lock"]
        if others:
            raise ValueError(
                f"{path}: holds {min(others)} and is not the folder of a run; give --out a new or an empty folder"
            )
        write_atomic(file, (json.dumps(wanted, indent=1) + "\n").encode())
        return False
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as e:
        raise ValueError(f"{file}: no JSON ({e}); give --out a new folder") from None
    if differences := _differences(_flat(found), _flat(wanted)):
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise ValueError(
            f"{path}: holds a run that differs from this one: {'; '.join(differences[:3])}{more}; repeat its settings"
            " to continue it, or give --out another folder"
        )
    return True


def _flat(value: Any, where: str = "") -> dict[str, str]:
    """Return what a JSON value holds, by its way there.

    >>> _flat({"a": {"b": 1}, "c": [2]})
    {'a.b': '1', 'c': '[2]'}
    """
    if not isinstance(value, dict):
        return {where.removesuffix("."): repr(value)}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{where}{key}.").items()}


def _differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    given = "not given"
    return [f"{key} was {found.get(key, given)}, is {wanted.get(key, given)}" for key in keys]
