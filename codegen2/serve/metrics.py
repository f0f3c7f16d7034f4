"""What /metrics tells, in Prometheus' text form, written by hand: it is forty lines, and a client library is a
dependency with a registry of its own that every test would have to empty.

Not here: who counts (generation/scheduler.py, generation/worker.py, app.py). Safe from any thread.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Callable
from typing import Any

from ..generation.scheduler import Observer
from ..generation.worker import Worker

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
HELP = {
    "codegen2_http_requests_total": "HTTP requests by path and status",
    "codegen2_requests_total": "requests for completions by how they ended",
    "codegen2_cancelled_total": "requests that ended early, by reason and by what was going on",
    "codegen2_prompt_tokens_total": "prompt tokens that were read",
    "codegen2_cached_tokens_total": "prompt tokens that were known from before",
    "codegen2_written_tokens_total": "tokens that were written",
    "codegen2_passes_total": "passes of the engine",
    "codegen2_pass_rows_total": "rows of all passes; by codegen2_passes_total it is the mean batch",
    "codegen2_faults_total": "faults in the worker, which failed the requests at hand",
    "codegen2_loads_total": "times the model was loaded",
    "codegen2_unloads_total": "times the idle model was unloaded",
    "codegen2_cancel_seconds": "from cancelling a request to its end",
    "codegen2_first_token_seconds": "from arrival to the first token",
    "codegen2_request_seconds": "from arrival to the end of a request",
    "codegen2_waiting": "requests that wait for a slot",
    "codegen2_running": "requests that are being read or written",
    "codegen2_slots": "rows of keys and values that there are",
    "codegen2_cached_tokens": "tokens whose keys and values are kept",
    "codegen2_model_loaded": "1 while the model is in memory",
    "process_resident_memory_bytes": "memory of this process",
}


class Metrics(Observer):
    """Count, and measure seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, float]] = {}
        self._seconds: dict[str, tuple[list[int], list[float]]] = {}
        self.gauges: dict[str, Callable[[], float]] = {}  # read when they are asked for

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = ",".join(f'{k}="{v.translate(_ESCAPED)}"' for k, v in sorted(labels.items()))
        key = f"{{{key}}}" if key else ""
        with self._lock:
            one = self._counts.setdefault(name, {})
            one[key] = one.get(key, 0) + by

    def observe(self, name: str, seconds: float) -> None:
        """Add to a histogram."""
        with self._lock:
            counts, total = self._seconds.setdefault(name, ([0] * (len(_BUCKETS) + 1), [0.0]))
            counts[bisect.bisect_left(_BUCKETS, seconds)] += 1
            total[0] += seconds

    def text(self) -> str:
        """Return everything as Prometheus reads it."""
        found = [(name, "gauge", [f"{name} {read():.15g}"]) for name, read in self.gauges.items()]
        with self._lock:
            for name, values in self._counts.items():
                found.append((name, "counter", [f"{name}{key} {v:.15g}" for key, v in values.items()]))
            for name, (counts, (total,)) in self._seconds.items():
                upto = list(itertools.accumulate(counts))
                buckets = zip((*_BUCKETS, "+Inf"), upto, strict=True)
                lines = [f'{name}_bucket{{le="{most}"}} {n}' for most, n in buckets]
                found.append(
                    (name, "histogram", [*lines, f"{name}_sum {total:.6f}", f"{name}_count {upto[-1]}"])
                )
        heads = {name: [f"# HELP {name} {HELP[name]}", f"# TYPE {name} {kind}"] for name, kind, _ in found}
        return "".join(f"{line}\n" for name, _, lines in sorted(found) for line in heads[name] + lines)


def watch(metrics: Metrics, worker: Worker[Any]) -> None:
    """Add the gauges that tell what a worker does."""

    def of_scheduler(read: Callable[[Any], int]) -> float:
        model = worker.model
        return 0 if model is None else read(model.scheduler)

    def running() -> float:
        return of_scheduler(lambda s: len(s.running))

    metrics.gauges |= {
        "codegen2_waiting": lambda: max(0, worker.n_requests - running()),
        "codegen2_running": running,
        "codegen2_slots": lambda: of_scheduler(lambda s: len(s.slots.slots)),
        "codegen2_cached_tokens": lambda: of_scheduler(
            lambda s: sum(len(one.tokens) for one in s.slots.slots)
        ),
        "codegen2_model_loaded": lambda: int(worker.model is not None),
        "process_resident_memory_bytes": _resident_bytes,
    }


def _resident_bytes() -> float:
    """Return this process's memory, 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096.0
    except (OSError, ValueError, IndexError):
        return 0.0
