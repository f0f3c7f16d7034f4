"""From a run's folder to samples, and from samples to scores; and what ran it all.

Not here: the value of one problem and intervals (measures.py), the result file's form (results.py).
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from ..problems.statistics import bootstrap, edit_similarity, exact_match, median
from .generators.base import Task
from .measures import FORMS, by_task, score
from .results import Sample, Scores
from .store import Folder

PUBLISHED = " published"  # added to an answer's name: judged as the published harness does
BASELINES = ("empty middle", "previous line")
Show = Callable[[Sample], Sample]  # adds what a report needs
Parses = Callable[[Task, str, int], bool | None]  # of an answer and the columns that it takes away


def baseline(name: str, task: Task) -> str:
    """Return the answer that needs no model: nothing, or the line before the hole once more.

    >>> baseline("previous line", Task("t", "a = 1\\nb = 2\\n", "c = 3\\n"))
    'b = 2\\n'
    >>> baseline("previous line", Task("t", "a = 1\\nb = ", "\\nc = 3\\n"))
    '1'
    """
    if name == "empty middle":
        return ""
    before, _, begun = task.prompt.rpartition("\n")
    line = next((x for x in reversed(before.split("\n")) if x.strip()), "")[len(begun) :]
    # A hole that has its own line and is not followed by a line end brings one.
    return line + "\n" if not begun and not (task.suffix or "").startswith("\n") else line


def _sample(
    task: Task, folder: Folder, parses: Parses | None, forms: dict[str, tuple[str, str, int]], extra: dict[str, Any],
    **fields: Any,
) -> Sample:  # fmt: skip
    """Return a sample with what judging said of each form of it: the answer's name, its text, columns it takes away."""
    for form, (answer, text, unindent) in forms.items():
        fields[form] = text
        if said := folder.verdicts.records.get((task.task_id, answer)):
            fields |= {f"passed_{form}": said["passed"], f"result_{form}": said["result"]}
        if said := folder.verdicts.records.get((task.task_id, answer + PUBLISHED)):
            extra[f"passed_{form}_published"] = said["passed"]
        if task.expected is not None:
            fields[f"exact_{form}"] = exact_match(text, task.expected) and not unindent
            fields[f"edit_{form}"] = edit_similarity(text, task.expected)
        if parses and (fine := parses(task, text, unindent)) is not None:
            extra[f"parses_{form}"] = fine
    return Sample(task.task_id, group=task.group, category=task.category, extra=extra, **fields)


def samples_of(tasks: Iterable[Task], n: int, folder: Folder, parses: Parses | None = None) -> list[Sample]:
    """Return the samples that are there, n at most of each task, with what judging said of them."""
    found = []
    for task, i in itertools.product(tasks, range(n)):
        record = folder.samples.records.get((task.task_id, i))
        if record is None:
            continue
        unindent = record["unindent"]
        forms = {"raw": (f"{i} raw", record["raw"], 0), "shown": (f"{i} shown", record["shown"], unindent)}
        fields = {key: record[key] for key in ("sample", "finish_reason", "tokens")}
        fields["latency_s"] = folder.timings.records.get((task.task_id, i), {}).get("latency_s")
        found.append(
            _sample(task, folder, parses, forms, {"unindent": unindent} if unindent else {}, **fields)
        )
    return found


def baseline_samples(
    tasks: Iterable[Task], folder: Folder, parses: Parses | None = None
) -> dict[str, list[Sample]]:
    """Return what each baseline would be as a model's samples, of the tasks that have a sample."""
    asked = [task for task in tasks if (task.task_id, 0) in folder.samples]
    return {
        name: [_sample(task, folder, parses, {"raw": (name, baseline(name, task), 0)}, {}) for task in asked]
        for name in BASELINES
    }


def whole(tasks: Sequence[Task], samples: Sequence[Sample], n: int) -> list[Sample]:
    """Return the samples of the tasks that have all of them, and all verdicts or none: an interrupted run's score."""
    judged = any(s.passed_raw is not None for s in samples)
    full = {
        task
        for task, of in by_task(samples).items()
        if len(of) == n and (not judged or all(None not in (s.passed_raw, s.passed_shown) for s in of))
    }
    return [s for s in samples if s.task_id in full]


def scores_of(samples: Sequence[Sample], ks: Sequence[int]) -> Scores:
    """Return each score of samples that can be had of them; pass@k for each of ks."""
    judged = [form for form in FORMS if all(getattr(s, f"passed_{form}") is not None for s in samples)]
    names = [f"pass@{k} {form}" for form in judged for k in ks]
    names += [f"{name} {form}" for name in ("exact_match", "edit_similarity", "parses") for form in FORMS]
    found = {name: made for name in names if (made := score(samples, name))}
    if times := [s.latency_s for s in samples if s.latency_s is not None]:
        found["latency_s median"] = median(times)
    if counts := [(s.group or s.task_id, s.tokens) for s in samples if s.tokens is not None]:
        found["tokens mean"] = bootstrap([float(c) for _, c in counts], [g for g, _ in counts])
    return found


def differing(samples: Iterable[Sample]) -> int | None:
    """Count the raw answers on which the published harness's verdict is another; None where it was not asked."""
    pairs = [
        (s.passed_raw, s.extra["passed_raw_published"]) for s in samples if "passed_raw_published" in s.extra
    ]
    return sum(a != b for a, b in pairs) if pairs else None


def versions() -> dict[str, Any]:
    """Return the versions of what could change a result."""
    found: dict[str, Any] = {"codegen2": __version__, "python": platform.python_version()}
    for name in ("numpy", "tokenizers", "torch", "transformers"):
        if sys.modules.get(name):  # what is installed and not used changes nothing
            found[name] = importlib.metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """Describe this machine."""
    found: dict[str, Any] = {"platform": platform.platform(), "machine": platform.machine()}
    found["cores"] = os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        found["processor"] = names[0] if names else platform.processor()
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return found
