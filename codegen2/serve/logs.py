"""Structured logs: one JSON object a line on standard error. Nobody's code is in them unless --log-prompts says so."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_LOGGER = logging.getLogger("codegen2.serve")


def log(event: str, **fields: Any) -> None:
    """Write one event; fields must be JSON."""
    _LOGGER.info(json.dumps({"time": round(time.time(), 3), "event": event, **fields}, ensure_ascii=False))


def to_stderr() -> None:
    """Send events to standard error from now on; a library that embeds the app hears nothing unless it asks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
