"""The HTTP protocols that editors speak, and what all of them say of an answer in our own words."""

from __future__ import annotations

from typing import Any

from ...generation.results import Choice, Result


def about(result: Result, choice: Choice) -> dict[str, Any]:
    """Return what the protocols have no word for. unindent: blanks before the cursor that an editor deletes first."""
    ended = result.interrupted or choice.finish_reason
    sure = {} if choice.confidence is None else {"confidence": round(choice.confidence, 3)}
    return {"finish_reason": ended, "cuts": choice.cuts, "unindent": choice.unindent, **sure}
