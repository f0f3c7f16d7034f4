"""What a run says of itself, a step at a time: JSON lines always, TensorBoard and a progress bar on request.

Not here: curves (plot.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import torch

from ..engine.system import peak_rss_gib
from ..files.paths import write_atomic
from ..files.progress import progress_bar
from .plot import Line, read_log

_PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "B200": 2250.0}  # TFLOP/s, dense bfloat16
Report = Callable[[Line], None]


def peak_tflops(device: torch.device, given: float | None) -> float | None:
    """Return the TFLOP/s that a device can do at most, None where nobody knows."""
    if given is not None or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def memory_gib(device: torch.device) -> float:
    """Return the most memory that was in use so far, GiB: the device's, or on a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_rss_gib()


def open_log(path: Path, step: int) -> IO[bytes]:
    """Open the log for appending, unbuffered, without lines of steps that a crash will make happen again."""
    kept = [json.dumps(line) + "\n" for line in read_log(path) if line["step"] <= step]
    write_atomic(path, "".join(kept).encode())
    return path.open("ab", buffering=0)


@contextlib.contextmanager
def tensorboard(run_dir: Path) -> Iterator[Report]:
    """Yield a function of a line that writes its numbers for TensorBoard, into a folder of the run.

    Raises ValueError where the package is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as e:
        raise ValueError("--tensorboard needs the package tensorboard; install codegen2[plots]") from e

    def write(line: Line) -> None:
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float):
                writer.add_scalar(key, value, line["step"])

    with SummaryWriter(str(run_dir / "tensorboard")) as writer:
        yield write


@contextlib.contextmanager
def progress(max_steps: int, title: str) -> Iterator[Report]:
    """Yield a function of a line that draws a bar; where standard error is no terminal, it prints now and then."""
    with progress_bar(title, max_steps, lines_every_s=30) as bar:
        yield lambda line: bar.update(line["step"], note=sentence(line), left_s=line["left_s"])


def sentence(line: Line) -> str:
    """Return the numbers of a line that a person looks for.

    >>> sentence({"loss": 2.5, "bits_per_byte": 1.0, "tok_s": 12345.6, "mfu": None, "memory_gib": 3.21})
    'loss 2.500, 1.000 bits/byte, 12,346 tok/s, 3.2 GiB'
    """
    mfu = "" if line.get("mfu") is None else f"MFU {line['mfu']:.1%}, "
    return (
        f"loss {line['loss']:.3f}, {line['bits_per_byte']:.3f} bits/byte, {line['tok_s']:,.0f} tok/s, {mfu}"
        f"{line['memory_gib']:.1f} GiB"
    )
