"""Turn a result of benchmarks/cpu_peers.py into a Markdown table and an SVG of bars.

python benchmarks/peers_table.py benchmarks/results/NAME.json [--svg docs/peers.svg]
"""

from __future__ import annotations

import argparse
import html
import json
from pathlib import Path
from typing import Any

WIDTH, ROW, LABEL = 760, 24, 250


def table(content: dict[str, Any]) -> str:
    """Return engine, decode and prefill, medians and ranges, fastest decode first."""
    samples: dict[str, list[float]] = content["samples"]
    names = sorted({name.rsplit(" ", 1)[0] for name in samples})

    def cell(name: str, what: str) -> str:
        values = samples.get(f"{name} {what}")
        if not values:
            return "-"
        digits = 2 if what == "fraction" else 1
        low, middle, high = min(values), content["medians"][f"{name} {what}"], max(values)
        return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    names.sort(key=lambda n: -content["medians"].get(f"{n} decode", 0.0))
    lines = [
        "| engine | decode tok/s | of the memory's limit | prefill tok/s |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [f"| {n} | {cell(n, 'decode')} | {cell(n, 'fraction')} | {cell(n, 'prefill')} |" for n in names]
    return "\n".join(lines)


def svg(content: dict[str, Any]) -> str:
    """Draw one bar an engine, decode left and prefill right, ours dark."""
    parts = []
    y = 10
    for what, title in (
        ("decode", "writing, tokens a second"),
        ("prefill", "reading 1,024 tokens, tokens a second"),
    ):
        values = {n.rsplit(" ", 1)[0]: v for n, v in content["medians"].items() if n.endswith(f" {what}")}
        parts.append(f'<text x="0" y="{y + 12}" font-weight="bold">{title}</text>')
        y += ROW
        most = max(values.values())
        for name, value in sorted(values.items(), key=lambda item: -item[1]):
            length = (WIDTH - LABEL - 60) * value / most
            colour = "#1f4e79" if name.startswith("codegen2") else "#a9b8c6"
            parts.append(f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>')
            parts.append(
                f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{ROW - 7}" fill="{colour}"/>'
            )
            parts.append(f'<text x="{LABEL + length + 6:.1f}" y="{y + 13}">{value:.1f}</text>')
            y += ROW
        y += ROW // 2
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="13">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def main() -> None:
    """Print the table and write the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--svg", type=Path, default=None)
    args = parser.parse_args()
    content = json.loads(args.result.read_text("utf-8"))
    print(table(content))
    if args.svg:
        args.svg.write_text(svg(content), encoding="utf-8")


if __name__ == "__main__":
    main()
