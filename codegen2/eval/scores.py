"""From a run's folder to samples, and from samples to scores; and what ran it all.

Not here: intervals (metrics.py), pass@k (passk.py), the result file's form (results.py).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from ..problems.statistics import bootstrap, edit_similarity, exact_match, median
from .generators.base import Task
from .passk import pass_at_k
from .report.tables import by_task, share_of
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


def no_grammar(task: Task, completion: str, unindent: int) -> bool | None:
    """Say of no answer whether it parses."""
    return None


def samples_of(tasks: Iterable[Task], n: int, folder: Folder, parses: Parses = no_grammar) -> list[Sample]:
    """Return the samples that are there, n at most of each task, with what judging said of them."""
    found = []
    for task in tasks:
        for i in range(n):
            record = folder.samples.records.get((task.task_id, i))
            if record is None:
                continue
            time = folder.timings.records.get((task.task_id, i), {})
            raw, shown, unindent = record["raw"], record["shown"], record["unindent"]
            fields = {
                "raw": raw,
                "shown": shown,
                "finish_reason": record["finish_reason"],
                "tokens": record["tokens"],
                "latency_s": time.get("latency_s"),
                "extra": {"unindent": unindent} if unindent else {},
            }
            for form, text, columns in (("raw", raw, 0), ("shown", shown, unindent)):
                fields |= _verdict(folder, task, f"{i} {form}", form)
                fields |= _likeness(task, text, columns, form)
                if (fine := parses(task, text, columns)) is not None:
                    fields["extra"][f"parses_{form}"] = fine
                if said := folder.verdicts.records.get((task.task_id, f"{i} {form}{PUBLISHED}")):
                    fields["extra"][f"passed_{form}_published"] = said["passed"]
            found.append(Sample(task.task_id, i, group=task.group, category=task.category, **fields))
    return found


def baseline_samples(
    tasks: Iterable[Task], folder: Folder, parses: Parses = no_grammar
) -> dict[str, list[Sample]]:
    """Return what each baseline would be as a model's samples, of the tasks that have a sample."""
    found: dict[str, list[Sample]] = {name: [] for name in BASELINES}
    for task in tasks:
        if (task.task_id, 0) not in folder.samples:
            continue
        for name in BASELINES:
            text = baseline(name, task)
            fields = _verdict(folder, task, name, "raw") | _likeness(task, text, 0, "raw")
            fine = parses(task, text, 0)
            extra = {} if fine is None else {"parses_raw": fine}
            group, category = task.group, task.category
            found[name].append(
                Sample(task.task_id, raw=text, group=group, category=category, extra=extra, **fields)
            )
    return found


def _verdict(folder: Folder, task: Task, answer: str, form: str) -> dict[str, Any]:
    said = folder.verdicts.records.get((task.task_id, answer))
    return {f"passed_{form}": said["passed"], f"result_{form}": said["result"]} if said else {}


def _likeness(task: Task, text: str, unindent: int, form: str) -> dict[str, Any]:
    if task.expected is None:
        return {}
    same = exact_match(text, task.expected) and not unindent
    return {f"exact_{form}": same, f"edit_{form}": edit_similarity(text, task.expected)}


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
    found: Scores = {}
    tasks = by_task(samples)
    for form in ("raw", "shown"):
        flags = {t: [getattr(s, f"passed_{form}") for s in of] for t, of in tasks.items()}
        if flags and not any(f is None for of in flags.values() for f in of):
            groups = [tasks[t][0].group or t for t in flags]
            for k in ks:
                values = [pass_at_k(len(of), sum(of), k) for of in flags.values()]
                found[f"pass@{k} {form}"] = bootstrap(values, groups, share=True)
    fields: tuple[tuple[str, Callable[[Sample, str], float | bool | None]], ...] = (
        ("exact_match", lambda s, form: getattr(s, f"exact_{form}")),
        ("edit_similarity", lambda s, form: getattr(s, f"edit_{form}")),
        ("parses", lambda s, form: s.extra.get(f"parses_{form}")),
    )
    for name, field in fields:
        for form in ("raw", "shown"):
            share = share_of(list(samples), lambda s, field=field, form=form: field(s, form))  # type: ignore[misc]
            if share is not None:
                found[f"{name} {form}"] = share
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
