"""Structured logs: one JSON object a line on standard error. Nobody's code is in them unless --log-prompts says so."""

from __future__ import annotations

import logging
import sys
from typing import Any

import msgspec

_LOGGER = logging.getLogger("codegen2.serve")


def log(event: str, **fields: Any) -> None:
    """Write one event; fields must be JSON."""
    _LOGGER.info(event, extra={"fields": fields})


class JsonLine(logging.Formatter):
    """Write a record as one JSON object: its time, its event and the details that it has in `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = getattr(record, "fields", {})
        return msgspec.json.encode(
            {"time": round(record.created, 3), "event": record.getMessage(), **fields}
        ).decode()


def to_stderr() -> None:
    """Send events of server and worker to standard error from now on; a library that embeds the app hears nothing."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLine())
    logger = logging.getLogger("codegen2")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
