"""Confidence: how likely a shown answer is exactly what was wanted, from how likely the model found its tokens.

Of an answer of x nats (minus the sum of its tokens' log-probabilities, the ending one included) the odds are
exp(bias) / (x + 0.2) ** slope. The two numbers are fitted on holes of packages that no training saw, by
benchmarks/suggestions.py, and kept in the model's config.json; a model without them says nothing of its answers. The
smallest log-probability, the number of tokens and names that stand nowhere around the hole told no more than the sum.

    "confidence": {"bias": -0.5, "slope": 1.6}
    answer "return x"    0.1 + 0.3 + 0.2 (<eom>) = 0.6 nats    odds 0.61 / 0.8 ** 1.6 = 0.87    confidence 0.46
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_LEAST_NATS = 0.2  # added, since no answer is certain


@dataclass(frozen=True)
class Confidence:
    """The curve's two numbers. Raises ValueError unless confidence falls with the nats, on which ending early rests."""

    bias: float
    slope: float

    def __post_init__(self) -> None:
        values = [getattr(self, f.name) for f in fields(self)]
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in values) or self.slope <= 0:
            raise ValueError(f"confidence must be finite numbers, slope above 0, got {values}")

    @classmethod
    def of_config(cls, said: Mapping[str, Any]) -> Confidence | None:
        """Return what a config.json's content says, None where it says nothing. Raises ValueError."""
        content = said.get("confidence")
        if content is None:
            return None
        if not isinstance(content, dict) or set(content) != {f.name for f in fields(cls)}:
            raise ValueError(
                f"config.json: confidence must hold bias and slope, got {content!r:.200}; correct it"
            )
        try:
            return cls(**content)
        except ValueError as e:
            raise ValueError(f"config.json: {e}; correct it") from None

    def probability(self, nats: float) -> float:
        """Return the chance that an answer is right; with the tokens drawn so far, no less than that of the whole.

        >>> round(Confidence(-0.5, 1.6).probability(0.6), 2)
        0.46
        """
        x = self.bias - self.slope * math.log(max(nats, 0.0) + _LEAST_NATS)
        return 1 / (1 + math.exp(min(-x, 700.0)))


@dataclass(frozen=True)
class Judge:
    """A model's confidence, and the one from which on an answer is shown; 0 shows all."""

    confidence: Confidence
    above: float = 0.0

    def held_back(self, nats: float) -> str | None:
        """Return why an answer is not shown, None where it is; one that is not, no further token makes surer."""
        found = self.confidence.probability(nats)
        return (
            f"held back: {math.floor(100 * found) / 100:.2f} below {self.above:g}"
            if found < self.above
            else None
        )
