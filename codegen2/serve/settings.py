"""Settings: what an operator chooses for a server. Pure.

Not here: reading them from a command line (run.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_PART = r"(\d+(?:\.\d+)?)(h|ms|us|ns|m|s)"


@dataclass(frozen=True)
class Settings:
    """The server's limits and switches. Raises ValueError naming the field and its limit.

    keep_alive_s: an idle model is unloaded after it; negative: never. cache_gib: memory for what sessions have read.
    """

    model_name: str = "codegen2"
    temperature: float = 0.2  # where a client says none
    max_new_tokens: int = 256  # of an answer; more is asked for in vain
    max_body_mib: float = 16.0
    max_queue: int = 256  # requests that wait or run
    max_parallel: int = 16  # answers that are written at once
    cache_gib: float = 1.0
    keep_alive_s: float = -1.0
    drain_s: float = 20.0  # SIGTERM: what runs may end within it
    api_keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()  # origins; "*" for all
    log_prompts: bool = False
    only_local_names: bool = False  # refuse a Host that is not this machine: on a loopback address

    def __post_init__(self) -> None:
        limits: tuple[tuple[str, float, float], ...] = (
            ("temperature", 0, 100),
            ("max_new_tokens", 1, 1_000_000),
            ("max_body_mib", 0.001, 4096),
            ("max_queue", 1, 1_000_000),
            ("max_parallel", 1, 256),
            ("cache_gib", 0, 1_000_000),
            ("drain_s", 0, 86_400),
        )
        for name, low, high in limits:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value!r}")
        if any(not key or not key.isascii() for key in self.api_keys):
            raise ValueError("api_keys: a key must be ASCII text, not empty; leave the option out for none")


def seconds_of(text: str) -> float:
    """Return seconds, of a number or a duration as Go writes it; negative is never. Raises ValueError.

    >>> seconds_of("90"), seconds_of("1h30m"), seconds_of("-1")
    (90.0, 5400.0, -1.0)
    """
    match = re.fullmatch(rf"(-?)((?:{_PART})+|\d+(?:\.\d+)?)", text)
    if match is None:
        raise ValueError(
            f"must be seconds or a duration such as 5m or 1h30m, -1 for never, got {text[:40]!r}"
        )
    parts = re.findall(_PART, match[2]) or [(match[2], "s")]
    return (-1 if match[1] else 1) * sum(float(n) * _UNIT_S[unit] for n, unit in parts)
