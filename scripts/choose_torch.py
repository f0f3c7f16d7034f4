"""Write the constraints for `pip install`, with the build of torch chosen: a CPU build where there is one.

Not here: the install itself (Makefile). Standard library only, since it runs before anything is installed. It only
asks which builds the package index has; it downloads nothing, and whatever goes wrong is a warning.

Usage: python scripts/choose_torch.py OUT        (OUT: the constraints file to write, from constraints.txt)
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from pathlib import Path

LEAST = (2, 8)  # as in pyproject.toml
# Measured for torch 2.13.0 on Linux x86-64: the sum of all files that pip fetches.
CUDA_GB, CPU_GB = 2.7, 0.2

LARGE = f"""\
torch: only a build with CUDA was found for this machine: with NVIDIA's libraries a download of about {CUDA_GB} GB,
torch: and twice that on the disk. A CPU build is about {CPU_GB} GB and does the same on a CPU. To take it, press
torch: Ctrl-C and run again with the address of PyTorch's index of CPU builds (pytorch.org, "Get started", CPU) in
torch: PIP_EXTRA_INDEX_URL."""


def installed() -> str | None:
    """Return the version of a torch that is there already and new enough."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = [int(n) for n in re.findall(r"\d+", version)[:2]]
    return version if tuple(numbers) >= LEAST else None


def available() -> list[str] | None:
    """Return the versions of torch that pip finds for this interpreter, None when it cannot be asked."""
    command = [sys.executable, "-m", "pip", "index", "versions", "torch", "--disable-pip-version-check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    return found[1].split(", ") if found else None


def choose(tested: str, versions: list[str] | None, system: str) -> tuple[str | None, str]:
    """Return the version to pin, None to leave the choice to pip, and what to tell the user.

    >>> choose("2.13.0", ["2.13.0+cpu", "2.13.0"], "Linux")
    ('2.13.0+cpu', 'torch: 2.13.0+cpu, a CPU build')
    >>> choose("2.13.0", ["2.13.0"], "Darwin")
    ('2.13.0', 'torch: 2.13.0, a CPU build')
    >>> choose("2.13.0", ["2.13.0"], "Linux")[1].startswith("torch: only a build with CUDA")
    True
    """
    if versions is None:
        text = "torch: warning: pip could not say which builds there are; the newest one will be taken"
        return None, f"{text}, on Linux a download of up to {CUDA_GB} GB" if system == "Linux" else text
    if (cpu := f"{tested}+cpu") in versions:
        return cpu, f"torch: {cpu}, a CPU build"
    if tested not in versions:
        text = f"torch: warning: the tested build {tested} is not there for this Python; the newest one will be taken"
        return None, f"{text}\n{LARGE}" if system == "Linux" else text
    if system == "Linux":
        return tested, LARGE
    return tested, f"torch: {tested}, a CPU build"


def main(out: Path) -> None:
    """Write the constraints to `out` and say what was chosen."""
    lines = Path(__file__).parents[1].joinpath("constraints.txt").read_text("utf-8").splitlines()
    tested = next(line.removeprefix("torch==") for line in lines if line.startswith("torch=="))
    if (there := installed()) is not None:
        version, text = there, f"torch: {there} is installed already"
    else:
        version, text = choose(tested, available(), platform.system())
    print(text, flush=True)
    kept = [line for line in lines if not line.startswith("torch==")]
    out.write_text("\n".join([*kept, *([f"torch=={version}"] if version else [])]) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
