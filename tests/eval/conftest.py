"""Sandboxes that many judges of the tests use, one after the other: to start one costs 0.3 s, a verdict 0.05 s."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from codegen2.eval.judge import Limits
from codegen2.eval.sandbox.sandbox import Sandbox

_Kept = defaultdict[tuple[str, Limits], list[Sandbox]]


@pytest.fixture(scope="session")
def _kept() -> Iterator[_Kept]:
    free: _Kept = defaultdict(list)
    yield free
    for sandboxes in free.values():
        for sandbox in sandboxes:
            sandbox.close()


@pytest.fixture
def kept_sandboxes(_kept: _Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let judges take sandboxes that earlier ones left, and leave theirs; not for tests of how a judge ends."""

    class Lent:
        def __init__(self, mode: str, limits: Limits) -> None:
            self._key = mode, limits
            self._real = _kept[self._key].pop() if _kept[self._key] else Sandbox(mode, limits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def close(self) -> None:
            _kept[self._key].append(self._real)

    monkeypatch.setattr("codegen2.eval.judge.Sandbox", Lent)
