"""pass@k: how likely it is that one of k samples is right, estimated without bias from n samples.

Pure: neither torch nor an engine. Not here: intervals (metrics.py). Chen et al., "Evaluating Large Language Models
Trained on Code", 2021, section 2.1.
"""

from __future__ import annotations

import math


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return 1 - C(n - c, k) / C(n, k): the chance that k of n samples, c of them right, hold a right one.

    >>> pass_at_k(4, 1, 2)
    0.5

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c must be from 0 to n = {n} samples, got {c}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, at least 1; there are {n}")
    if c == 0 or n - c < k:
        return float(c > 0)
    # C(n-c, k) / C(n, k) is the product of (1 - c/i), i = n-c+1..n: binomials of thousands overflow floats. In
    # logarithms, because 1 - product loses all digits where the product is near 1. The same quotient with c and k
    # exchanged is a product of k factors; the shorter one is taken.
    few, many = min(c, k), max(c, k)
    return -math.expm1(math.fsum(math.log1p(-many / i) for i in range(n - few + 1, n + 1)))
