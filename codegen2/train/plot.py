"""Read a run's log and draw its curves as PNG: loss, bits per byte, speed and rate over tokens.

Not here: writing the log (meter.py). Free of torch; matplotlib comes with the extra [plots].
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..files.paths import replacing

LOG_FILE = "log.jsonl"
Line = dict[str, Any]

_PANELS = (
    (("loss",), "loss, nats a token"),
    (("bits_per_byte", "valid_bits_per_byte"), "bits per byte"),
    (("tok_s",), "tokens a second"),
    (("lr_scale", "grad_norm"), "rate (share of peak), gradient norm"),
)


def read_log(path: Path) -> list[Line]:
    """Return the lines of a log that are whole, of a killed run all but the last; [] where there is no file."""
    lines = []
    for text in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and "step" in line:
                lines.append(line)
    return lines


def draw(run_dir: Path, out: Path | None = None) -> Path:
    """Draw the log of a run and return the file. Raises ValueError where there is no log, or matplotlib is missing."""
    path = run_dir / LOG_FILE
    if not path.is_file():
        raise ValueError(f"{path}: not found; give the directory of a run (codegen2 train --run-dir)")
    lines = read_log(path)
    if not lines:
        raise ValueError(f"{run_dir}: its log holds no step yet; train longer")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as e:
        raise ValueError("plot-run needs matplotlib; install codegen2[plots]") from e
    out = run_dir / "curves.png" if out is None else out
    figure = Figure(figsize=(11, 7), layout="constrained")
    for (keys, title), axes in zip(_PANELS, figure.subplots(2, 2).flat, strict=True):
        for key in keys:
            _curve(axes, lines, key)
        axes.set_title(title)
        axes.set_xlabel("million tokens")
        axes.grid(alpha=0.3)
        axes.legend()
    last = lines[-1]
    mfu = "" if last.get("mfu") is None else f", MFU {last['mfu']:.1%}"
    figure.suptitle(f"{run_dir.name}: step {last['step']:,}, {last['seconds']:,.0f} s{mfu}")
    with replacing(out) as draft:
        figure.savefig(draft, format="png", dpi=120)
    return out


def _curve(axes: Any, lines: list[Line], key: str) -> None:
    """Draw one number: pale as it is, and, where there are many, its running mean."""
    found = [(line["tokens"] / 1e6, line[key]) for line in lines if line.get(key) is not None]
    if not found:
        return
    x, y = np.array(found).T
    width = len(y) // 50
    if width < 3:
        axes.plot(x, y, label=key, marker="o" if len(y) < 30 else None)
        return
    (pale,) = axes.plot(x, y, alpha=0.25)
    mean = np.convolve(y, np.ones(width) / width, mode="valid")
    axes.plot(x[width - 1 :], mean, label=f"{key}, mean of {width}", color=pale.get_color())
