"""Check what `make wheel` built: the wheel holds the library, the sdist its sources, and both install and run.

Not here: building them (setup.py, build_native.py). Standard library only.

Usage: python scripts/check_dist.py DIST
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from build_native import ROOT, library_path, source_files

LIBRARY = library_path().relative_to(ROOT).as_posix()
# The library is loaded as the package loads it, but without numpy: what is installed here has no dependencies.
LOAD = "import ctypes, sys; print('library: ABI', ctypes.CDLL(sys.argv[1]).cg2_abi())"


def only(folder: Path, pattern: str) -> Path:
    """Return the one file of that name."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder}: expected one {pattern}, found {len(found)}")
    return found[0]


def check_wheel(path: Path) -> None:
    """See that a wheel is for any Python on one platform, and holds the library and no sources."""
    python, abi, platform = path.stem.split("-")[-3:]
    if (python, abi) != ("py3", "none") or platform == "any":
        sys.exit(f"{path.name}: the tag should be py3-none and a platform")
    names = zipfile.ZipFile(path).namelist()
    if LIBRARY not in names:
        sys.exit(f"{path.name}: {LIBRARY} is missing")
    if extra := [n for n in names if n.endswith((".cpp", ".h")) or n.startswith(("tests/", "scripts/"))]:
        sys.exit(f"{path.name}: does not need {', '.join(extra)}")


def check_sdist(path: Path) -> None:
    """See that an sdist holds what the library is built from, and no library."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = [*source_files(), ROOT / "setup.py", ROOT / "scripts" / "build_native.py"]
    if missing := {p.relative_to(ROOT).as_posix() for p in needed} - names:
        sys.exit(f"{path.name}: without {', '.join(sorted(missing))}")
    if LIBRARY in names:
        sys.exit(f"{path.name}: holds {LIBRARY}, which belongs to one machine")


def check_install(path: Path) -> None:
    """Install into a fresh environment, without dependencies; run the command and load the library."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        required = {**os.environ, "CODEGEN2_REQUIRE_NATIVE": "1"}
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", path], check=True, env=required)
        subprocess.run([str(Path(folder) / "bin" / "codegen2"), "--version"], check=True, cwd=folder)
        [library] = Path(folder).glob(f"lib/*/site-packages/{LIBRARY}")
        subprocess.run([python, "-c", LOAD, str(library)], check=True)


def main(dist: Path) -> None:
    """Check the wheel and the sdist in a folder; stop with a sentence at what is wrong."""
    wheel, sdist = only(dist, "*.whl"), only(dist, "*.tar.gz")
    check_wheel(wheel)
    check_sdist(sdist)
    for path in (wheel, sdist):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
        check_install(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
