"""Settings: what an operator chooses for a server, in one table that the command line reads too. Pure.

Not here: reading them from a command line (run.py).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_PART = r"(\d+(?:\.\d+)?)(h|ms|us|ns|m|s)"


def _option(default: float, low: float, high: float, flag: str, text: str) -> Any:
    """Return a field with its limits, its flag and its help."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "flag": flag, "help": text})


@dataclass(frozen=True)
class Settings:
    """The server's limits and switches. Raises ValueError naming the field and its limit.

    keep_alive_s: an idle model is unloaded after it; negative: never. cors: origins, "*" for all. only_local_names:
    refuse a Host that is not this machine, for a loopback address.
    """

    model_name: str = "codegen2"
    cache_gib: float = _option(1.0, 0, 1e6, "--cache-gib", "memory for what was read")
    max_parallel: int = _option(16, 1, 256, "--parallel", "answers written at once")
    max_new_tokens: int = _option(256, 1, 1e6, "--max-new-tokens", "limit of an answer")
    temperature: float = _option(0.2, 0, 100, "--temperature", "where a client says none")
    max_queue: int = _option(256, 1, 1e6, "--max-queue", "requests that wait or run")
    max_body_mib: float = _option(16.0, 0.001, 4096, "--max-body-mib", "limit of a request's body")
    drain_s: float = _option(20.0, 0, 86_400, "--drain", "SIGTERM: seconds to end what runs")
    keep_alive_s: float = -1.0
    api_keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    log_prompts: bool = False
    only_local_names: bool = False

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            value, (low, high) = getattr(self, name), (option["low"], option["high"])
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value!r}")
        if any(not key or not key.isascii() for key in self.api_keys):
            raise ValueError("api_keys: a key must be ASCII text, not empty; leave the option out for none")


# By field: default, low, high, flag, help.
OPTIONS: dict[str, dict[str, Any]] = {
    f.name: {"default": f.default, **f.metadata} for f in dataclasses.fields(Settings) if f.metadata
}


def seconds_of(text: str) -> float:
    """Return seconds, of a number or a duration as Go writes it; negative is never. Raises ValueError.

    >>> seconds_of("90"), seconds_of("1h30m"), seconds_of("-1")
    (90.0, 5400.0, -1.0)
    """
    match = re.fullmatch(rf"(-?)((?:{_PART})+|\d+(?:\.\d+)?)", text) if len(text) < 100 else None
    if match is None:
        raise ValueError(f"must be seconds or a duration such as 5m or 1h30m, got {text[:40]!r}; -1 is never")
    parts = re.findall(_PART, match[2]) or [(match[2], "s")]
    return (-1 if match[1] else 1) * sum(float(n) * _UNIT_S[unit] for n, unit in parts)
