"""Compile codegen2/native/src to one shared library, which runs on every machine with its kind of processor.

Not here: choosing kernels when it runs (native/src/dispatch.cpp), and installing (setup.py calls install_into).
Standard library only, since it runs before anything is installed. Linux and macOS, g++ or clang++.

Usage: python scripts/build_native.py [--cxx COMPILER] [--flags FLAGS] [--out FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPILERS = ("c++", "g++", "clang++")  # tried in this order where CXX names none
# No -march=native: what is built here may run elsewhere. No contraction of a*b + c: the compiler would decide results.
COMMON = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-Wall", "-Wextra", "-pthread",
)  # fmt: skip
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
# kernels_<name>.cpp: the macro of the processors that have it (None: all), and the flags of this file alone.
ISAS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "scalar": (None, ()),
    "neon": ("__aarch64__", ("-march=armv8.2-a+dotprod+fp16",)),
    "avx2": ("__x86_64__", _AVX2),
    "avx512": ("__x86_64__", (*_AVX2, *_AVX512)),
    "amx": ("__x86_64__", (*_AVX2, *_AVX512)),  # tiles by assembly, which needs no flag
}
EMULATED = "-DCODEGEN2_AMX_EMULATED=2"  # functions in place of AVX-512 and tiles, for tests
LINES_SHOWN = 20  # of what a compiler says when it fails
REMEDY = (
    "install a C++17 compiler (Debian and Ubuntu: apt install g++; macOS: xcode-select --install) or name another in"
    " CXX, then install again"
)


class BuildError(Exception):
    """The library cannot be built; the message says what happened."""


@dataclass(frozen=True)
class Compiler:
    """A command that compiles C++, and what it compiles for."""

    command: tuple[str, ...]
    macros: frozenset[str]


def library_path(root: Path = ROOT) -> Path:
    """Return where the package looks for its library, as codegen2.native.library_path does."""
    suffix = ".dylib" if sys.platform == "darwin" else ".dll" if sys.platform == "win32" else ".so"
    return root / "codegen2" / "native" / f"libcodegen2{suffix}"


def source_files(root: Path = ROOT) -> list[Path]:
    """Return all C++ files, headers included, in a fixed order."""
    folder = root / "codegen2" / "native" / "src"
    return sorted(p for p in folder.glob("*") if p.suffix in (".cpp", ".h"))


def flags_for(name: str, macros: Iterable[str], more: Sequence[str] = ()) -> tuple[str, ...] | None:
    """Return the flags of one source on a processor that defines `macros`, None where it is not compiled at all.

    more: flags that will follow.

    >>> flags_for("kernels_avx2.cpp", {"__x86_64__"})[-3:]
    ('-mavx2', '-mfma', '-mf16c')
    >>> flags_for("kernels_avx2.cpp", {"__aarch64__"}) is None
    True
    >>> flags_for("model.cpp", {"__aarch64__"}) == COMMON
    True
    """
    if not name.startswith("kernels_"):
        return COMMON
    isa = name.removeprefix("kernels_").removesuffix(".cpp")
    if isa not in ISAS:
        raise BuildError(f"{name}: has no flags; give {isa} its place in ISAS in scripts/build_native.py")
    macro, flags = ISAS["avx2" if isa == "amx" and EMULATED in more else isa]
    if macro is not None and macro not in macros:
        return None
    if isa in ("avx512", "amx") and "__clang__" not in macros:
        # gcc 11 to 13 find their own header's undefined vectors uninitialised (gcc bug 105593), in thousands of lines.
        flags = (*flags, "-Wno-maybe-uninitialized", "-Wno-uninitialized")
    return (*COMMON, *flags)


def find_compiler(named: str | None = None) -> Compiler:
    """Return the compiler of that name, else the one in CXX, else the first of COMPILERS that works."""
    if sys.platform == "win32":
        raise BuildError("Windows compilers are not supported")
    named = named or os.environ.get("CXX")
    tried = [named] if named else COMPILERS
    for name in tried:
        command = tuple(shlex.split(name))
        try:
            # The macros tell what code comes out, whatever machine this is and whatever flags CXX brings.
            done = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
        except OSError:
            continue
        if done.returncode == 0:
            words = (line.split() for line in done.stdout.splitlines())
            return Compiler(command, frozenset(w[1] for w in words if len(w) > 1 and w[0] == "#define"))
    raise BuildError(f"no C++ compiler works here (tried {', '.join(tried)})")


def wheel_platform(platform_tag: str, machine: str) -> str:
    """Return a wheel's platform: a Python for both kinds of Mac builds a library for one.

    >>> wheel_platform("macosx_11_0_universal2", "arm64")
    'macosx_11_0_arm64'
    >>> wheel_platform("linux_x86_64", "x86_64")
    'linux_x86_64'
    """
    return platform_tag.replace("universal2", machine)


def is_fresh(out: Path, root: Path = ROOT) -> bool:
    """Return whether a library is newer than all that it is made from."""
    made_from = [*source_files(root), root / "setup.py", root / "scripts" / "build_native.py"]
    return out.is_file() and all(_mtime(p) <= _mtime(out) for p in made_from)


def build(
    out: Path, root: Path = ROOT, cxx: str | None = None, flags: Sequence[str] = (), jobs: int | None = None
) -> list[str]:
    """Build the library at `out` and return the names of the sources that were compiled.

    Objects stay in build/native, apart for each compiler and flags, and only those older than their source or any
    header are made anew. `flags` come after ours. Raises BuildError; what was at `out` is then as it was.
    """
    began = time.time_ns()  # what is edited while we compile is newer than what comes out
    compiler = find_compiler(cxx)
    files = source_files(root)
    named = [p for p in files if p.suffix == ".cpp"]
    wanted = {p: f for p in named if (f := flags_for(p.name, compiler.macros, flags)) is not None}
    if not wanted:
        raise BuildError(f"there are no sources in {root / 'codegen2' / 'native' / 'src'}")
    common_files = [p for p in files if p.suffix == ".h"] + [root / "scripts" / "build_native.py"]
    newest = max(map(_mtime, common_files))
    folder = _objects(root, compiler, flags)
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> str | None:
        made = folder / f"{source.stem}.o"
        if made.is_file() and _mtime(made) >= max(newest, _mtime(source)):
            return None
        _make(made, source.name, [*compiler.command, *wanted[source], *flags, "-c", str(source)], began)
        return source.name

    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        pending = [pool.submit(compile_one, source) for source in wanted]
        try:
            compiled = [p.result() for p in pending]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    # Of an inline function that several objects hold, the linker keeps the first: one that every machine can run.
    order = list(ISAS)
    objects = sorted(wanted, key=lambda p: order.index(p.stem[8:]) if p.stem.startswith("kernels_") else -1)
    paths = [str(folder / f"{p.stem}.o") for p in objects]
    out.parent.mkdir(parents=True, exist_ok=True)
    _make(
        out, "the objects", [*compiler.command, *COMMON, *flags, *_link_flags(folder, flags), *paths], began
    )
    return [name for name in compiled if name]


def install_into(out: Path, root: Path = ROOT) -> None:
    """Build the library at `out` unless it is fresh. A failure is a warning, and leaves no library.

    Raises BuildError where CODEGEN2_REQUIRE_NATIVE is 1.
    """
    if is_fresh(out, root):
        return
    try:
        build(out, root)
    except BuildError as e:
        out.unlink(missing_ok=True)  # one of other sources must not pass for the one that failed
        if os.environ.get("CODEGEN2_REQUIRE_NATIVE") == "1":
            raise
        print(explain(e, "warning: "), file=sys.stderr)


def explain(error: BuildError, kind: str = "") -> str:
    """Say that there is no library, why, and what to do."""
    return f"codegen2: {kind}the native engine was not built: {error}\ncodegen2: {REMEDY}"


def _objects(root: Path, compiler: Compiler, flags: Sequence[str]) -> Path:
    key = hashlib.sha256("\0".join([*compiler.command, "", *flags]).encode()).hexdigest()[:8]
    return root / "build" / "native" / key


def _link_flags(folder: Path, flags: Sequence[str]) -> list[str]:
    """Return what makes a library of objects and shows cg2_* alone.

    The standard library's templates stay visible otherwise, and another library's copy could take their place.
    """
    if sys.platform == "darwin":
        return ["-dynamiclib", "-Wl,-exported_symbol,_cg2_*"]
    exports = folder / "exports.map"
    exports.write_text("{ global: cg2_*; local: *; };\n")
    checked = not any("-fsanitize" in f for f in flags)  # a sanitizer's functions are in the program
    return ["-shared", f"-Wl,--version-script={exports}", *(["-Wl,-z,defs"] if checked else [])]


def _make(out: Path, made_from: str, command: Sequence[str], began: int) -> None:
    """Run a command that writes a file, and put it in place when it is whole: somebody may have the old one loaded."""
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        done = _run([*command, "-o", str(part)])
        if done.returncode != 0 or not part.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-LINES_SHOWN:]
            raise BuildError("\n".join([f"{command[0]} failed ({done.returncode}) on {made_from}", *said]))
        if done.stderr:
            print(done.stderr, end="", file=sys.stderr)
        os.utime(part, ns=(began, began))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)


def _mtime(path: Path) -> int:
    return path.stat().st_mtime_ns


def main(argv: Sequence[str] | None = None) -> int:
    """Build by hand; give 2 when it fails."""
    parser = argparse.ArgumentParser(description="Compile the native engine's library.")
    parser.add_argument("--cxx", help="the compiler; default: CXX, else the first of c++, g++ and clang++")
    parser.add_argument("--flags", default="", help="further flags, such as those of a sanitizer")
    parser.add_argument("--out", type=Path, help="default: inside the package; with --flags in build/native")
    args = parser.parse_args(argv)
    flags = shlex.split(args.flags)
    out = args.out or library_path()
    try:
        if not args.out and flags:  # a sanitizer's library must not pass for the package's own
            out = _objects(ROOT, find_compiler(args.cxx), flags) / out.name
        elif not args.cxx and is_fresh(out):
            return 0
        print("compiling the native engine (from nothing it takes about half a minute)", flush=True)
        compiled = build(out, cxx=args.cxx, flags=flags)
    except BuildError as e:
        print(explain(e), file=sys.stderr)
        return 2
    print(f"{out}: {len(compiled)} files compiled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
