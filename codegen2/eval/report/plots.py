"""Drawings of the page as inline SVG: intervals, bars, curves. No script, no library; colours come from report.css.

Places are percentages of the width, so that a drawing fits a phone without shrinking its text. Every drawing has a
label that says in words what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from ...problems.statistics import Interval


def _at(value: float, low: float, high: float) -> str:
    share = (value - low) / (high - low) if high > low else 0.5
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"


def interval_mark(interval: Interval, low: float, high: float, style: str, words: str) -> Markup:
    """Draw one value with its interval on an axis from low to high; style: a class of report.css."""
    parts = [
        f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="22"/>' for x in (0, 25, 50, 75, 100)
    ]  # the grid lines of the rows join, since the rows touch
    if low < 0 < high:
        zero = _at(0, low, high)
        parts.append(f'<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="22"/>')
    if interval.low is not None and interval.high is not None:
        a, b = _at(interval.low, low, high), _at(interval.high, low, high)
        parts.append(f'<line class="whisker" x1="{a}" x2="{b}" y1="11" y2="11"/>')
    parts.append(f'<circle class="dot" cx="{_at(interval.value, low, high)}" cy="11" r="5"/>')
    return Markup(f'<svg class="mark {style}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>')


def nice_top(value: float) -> float:
    """Return a round number not below value, for the end of an axis.

    >>> nice_top(2.3), nice_top(0.07), nice_top(0)
    (2.5, 0.08, 1.0)
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return next((s * power for s in steps if s * power >= value * (1 - 1e-9)), 10 * power)


def axis(labels: Sequence[str]) -> Markup:
    """Draw the numbers under rows of interval marks, spread evenly from the left end to the right."""
    ends = len(labels) - 1
    texts = "".join(
        f'<text x="{100 * i / ends:.2f}%" y="12" text-anchor='
        f'"{"start" if i == 0 else "end" if i == ends else "middle"}">{escape(text)}</text>'
        for i, text in enumerate(labels)
    )
    return Markup(f'<svg class="axis" aria-hidden="true">{texts}</svg>')


def histogram(
    series: Sequence[tuple[str, str, Sequence[float]]],
    edges: Sequence[float],
    labels: Sequence[str],
    words: str,
) -> Markup:
    """Draw how many values fall between edges (the last edge included); series: (name, class, values).

    labels: texts under the axis, spread evenly.
    """
    n = len(edges) - 1
    within = [np.clip(values, edges[0], edges[-1]) for *_, values in series]
    counts = [np.histogram(values, edges)[0].tolist() for values in within]
    top = max(1, max(max(row) for row in counts))
    width, height = 100 / n, 120
    bars = [f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>' for y in (16, 68, 120)]
    bars.append(f'<text class="left" x="0" y="12">{top:,}</text>')
    each = width * 0.86 / len(series)
    for s, ((name, style, _), row) in enumerate(zip(series, counts, strict=True)):
        for i, count in enumerate(row):
            if count:
                tall = max(1.5, (height - 16) * count / top)
                x = i * width + width * 0.07 + s * each
                bars.append(
                    f'<rect class="{style}" x="{x:.2f}%" width="{each:.2f}%" y="{height - tall:.1f}"'
                    f' height="{tall:.1f}"><title>{escape(name)}: {count:,}</title></rect>'
                )
    svg = f'<svg class="chart" height="124" role="img" aria-label="{escape(words)}">{"".join(bars)}</svg>'
    return Markup(svg) + axis(labels)


def curve(series: Sequence[tuple[str, Sequence[tuple[int, Interval]]]], words: str) -> Markup:
    """Draw pass@k over k, k spread by its logarithm, with the intervals as bands; series: (class, points)."""
    last = max(k for _, points in series for k, _ in points)
    top = nice_top(max(i.high or i.value for _, points in series for _, i in points))
    top = min(1.0, top)

    def x(k: int) -> float:
        return 4 + 92 * math.log(k) / math.log(last) if last > 1 else 50

    def y(value: float) -> float:
        return 100 - 100 * min(1.0, value / top)

    inner, dots = [], []
    for style, points in series:
        low = [f"{x(k):.2f},{y(i.value if i.low is None else i.low):.2f}" for k, i in points]
        high = [f"{x(k):.2f},{y(i.value if i.high is None else i.high):.2f}" for k, i in points]
        line = " ".join(f"{x(k):.2f},{y(i.value):.2f}" for k, i in points)
        inner.append(f'<polygon class="band {style}" points="{" ".join(low + high[::-1])}"/>')
        inner.append(f'<polyline class="line {style}" points="{line}"/>')
        dots += [
            f'<circle class="{style}" cx="{x(k):.2f}%" cy="{20 + 1.5 * y(i.value):.1f}" r="4">'
            f"<title>k = {k}: {100 * i.value:.1f} %</title></circle>"
            for k, i in points
        ]
    grid = [f'<line class="grid" x1="0" x2="100%" y1="{v}" y2="{v}"/>' for v in (20, 95, 170)]
    texts = [
        f'<text class="left" x="0" y="{v - 4}">{100 * s * top:.3g} %</text>' for v, s in ((20, 1), (95, 0.5))
    ]
    ks = sorted({k for _, points in series for k, _ in points})
    texts += [
        f'<text x="{x(k):.2f}%" y="186" text-anchor="middle">{k}</text>' for k in ks if k <= 5 or k in ks[-3:]
    ]
    nested = (
        '<svg y="20" height="150" width="100%" viewBox="0 0 100 100" preserveAspectRatio="none">'
        f"{''.join(inner)}</svg>"
    )
    return Markup(
        f'<svg class="chart" height="192" role="img" aria-label="{escape(words)}">{"".join(grid)}{nested}'
        f"{''.join(dots)}{''.join(texts)}</svg>"
    )
