"""Long tables of cases: a few in the default run, all of them in `make test-slow`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], every: int) -> list[Any]:
    """Return cases for parametrize, those marked `slow` that are not each every-th one, beginning with the first.

    Cases of a kind stand together in our tables, so that a step no longer than a kind leaves none out.
    """
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        pytest.param(*row, marks=() if i % every == 0 else pytest.mark.slow) for i, row in enumerate(rows)
    ]
