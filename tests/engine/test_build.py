"""The build of the native library: which flags a file gets, what is compiled again, and what a failure leaves.

Most tests have a compiler that writes down how it was called. test_a_real_compiler has a real one, on small sources.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import build_native
import pytest
from build_native import COMMON, BuildError

from codegen2 import native

ROOT = Path(__file__).parents[2]
SOURCES = {
    "one.cpp": '#include "all.h"\nAPI int cg2_one() { return ONE; }\n',
    "kernels_scalar.cpp": "int width_scalar() { return 1; }\n",
    "kernels_avx2.cpp": "#ifdef __AVX2__\nint width_avx2() { return 8; }\n#endif\n",
    "kernels_avx512.cpp": "",
    "kernels_amx.cpp": "",
    "kernels_neon.cpp": "",
    "all.h": '#pragma once\n#define API extern "C" __attribute__((visibility("default")))\n#define ONE 1\n',
}
FAKE = """\
#!/bin/sh
case " $* " in *" -dM "*) echo "#define {macro} 1"; exit 0;; esac
echo "$*" >> "{log}"
case " $* " in *bad.cpp*) seq 100 >&2; echo "bad.cpp:1: error: no such thing" >&2; exit 1;; esac
while [ "$1" != -o ]; do shift; done
: > "$2"
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what the person who runs this has set."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CODEGEN2_REQUIRE_NATIVE", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a repository with a few small C++ files, all of them of yesterday."""
    root = tmp_path / "root"
    (root / "scripts").mkdir(parents=True)
    source = root / "codegen2" / "native" / "src"
    source.mkdir(parents=True)
    for name in ("setup.py", "scripts/build_native.py"):
        shutil.copyfile(ROOT / name, root / name)
    for name, text in SOURCES.items():
        (source / name).write_text(text)
    for path in root.rglob("*.*"):
        age(path, 86400)
    return root


def age(path: Path, seconds: int) -> None:
    at = path.stat().st_mtime - seconds
    os.utime(path, (at, at))


class Fake:
    """A compiler that compiles nothing and remembers all."""

    def __init__(self, folder: Path, macro: str = "__x86_64__") -> None:
        self.log = folder / "log"
        self.path = folder / "fake-c++"
        self.path.write_text(FAKE.format(log=self.log, macro=macro))
        self.path.chmod(0o755)

    def calls(self) -> dict[str, list[str]]:
        """Return the arguments by the last of them, a source or the last object, since the last time."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        found = [line.rpartition(" -o ")[0].split() for line in lines]
        return {Path(call[-1]).name: call for call in found}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return such a compiler, named in CXX."""
    fake = Fake(tmp_path)
    monkeypatch.setenv("CXX", str(fake.path))
    return fake


def test_the_loader_looks_where_the_build_writes() -> None:
    assert build_native.library_path() == native.library_path()


@pytest.mark.parametrize(
    ("macro", "expected"),
    [
        (
            "__x86_64__",
            {"scalar": "", "avx2": "-mavx2 -mfma -mf16c", "avx512": "-mavx512vnni", "amx": "-mavx512vnni"},
        ),
        ("__aarch64__", {"scalar": "", "neon": "-march=armv8.2-a+dotprod+fp16"}),
        ("__riscv", {"scalar": ""}),
    ],
)
def test_each_file_has_its_flags(
    root: Path, tmp_path: Path, macro: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(tmp_path, macro)
    monkeypatch.setenv("CXX", f"{fake.path} --sysroot=x")
    out = build_native.library_path(root)
    build_native.build(out, root, flags=["-g"])
    calls = fake.calls()
    link = calls.pop(f"kernels_{list(expected)[-1]}.o")  # the widest last: see build
    assert "-shared" in link or "-dynamiclib" in link
    assert [Path(a).stem for a in link if a.endswith(".o")] == [
        "one",
        *(f"kernels_{isa}" for isa in expected),
    ]
    assert set(calls) == {"one.cpp", *(f"kernels_{isa}.cpp" for isa in expected)}
    for name, call in calls.items():
        special = expected.get(name[8:-4], "").split()
        assert call[: 1 + len(COMMON)] == ["--sysroot=x", *COMMON]
        assert call[-3:-1] == ["-g", "-c"]
        assert set(special) <= set(call)
        assert special or not [a for a in call if a.startswith("-m")]
    assert out.is_file()


def test_a_kernel_file_without_flags_is_refused() -> None:
    with pytest.raises(BuildError, match="kernels_sve.cpp: has no flags; give sve its place in ISAS"):
        build_native.flags_for("kernels_sve.cpp", {"__aarch64__"})


def test_nothing_is_built_when_fresh(root: Path, fake: Fake) -> None:
    out = build_native.library_path(root)
    build_native.install_into(out, root)
    assert len(fake.calls()) == 6  # of them one links
    build_native.install_into(out, root)
    assert fake.calls() == {}
    another = root / "build" / "lib" / out.name  # a wheel's, after an editable install: linked, not compiled
    build_native.install_into(another, root)
    assert set(fake.calls()) == {"kernels_amx.o"}
    assert another.is_file()


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        ("codegen2/native/src/one.cpp", 1),
        ("codegen2/native/src/all.h", 5),
        ("scripts/build_native.py", 5),
        ("setup.py", 0),
    ],
)
def test_what_changed_is_built_again(root: Path, fake: Fake, name: str, compiled: int) -> None:
    out = build_native.library_path(root)
    build_native.install_into(out, root)
    fake.calls()
    age(root / name, -2 * 86400)
    assert not build_native.is_fresh(out, root)
    build_native.install_into(out, root)
    assert len(fake.calls()) == compiled + 1


def test_compilers_and_flags_do_not_share_objects(root: Path, fake: Fake) -> None:
    out = root / "x.so"
    assert len(build_native.build(out, root)) == 5
    assert len(build_native.build(out, root, flags=["-g"])) == 5
    assert len(build_native.build(out, root, cxx=f"{fake.path} -v")) == 5
    assert build_native.build(out, root) == []


@pytest.mark.parametrize("cxx", ["/bin/false", "/nowhere/c++"])
def test_without_a_compiler_there_is_a_warning_and_no_library(
    root: Path, cxx: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", cxx)
    out = build_native.library_path(root)
    out.write_bytes(b"of older sources")
    age(out, 2 * 86400)
    build_native.install_into(out, root)
    assert not out.exists()
    said = capfd.readouterr().err
    assert f"warning: the native engine was not built: no C++ compiler works here (tried {cxx})" in said
    assert "install a C++17 compiler" in said
    assert said.count("\n") == 2
    monkeypatch.setenv("CODEGEN2_REQUIRE_NATIVE", "1")
    with pytest.raises(BuildError, match="no C\\+\\+ compiler works here"):
        build_native.install_into(out, root)


def test_an_error_in_a_source_shows_the_compilers_last_lines(
    root: Path, fake: Fake, capfd: pytest.CaptureFixture[str]
) -> None:
    (root / "codegen2" / "native" / "src" / "bad.cpp").write_text("x")
    out = build_native.library_path(root)
    build_native.install_into(out, root)
    assert not out.exists()
    assert not list(root.rglob(".*"))  # no half-written file either
    said = capfd.readouterr().err
    assert f"{fake.path} failed (1) on bad.cpp\n" in said
    assert "bad.cpp:1: error: no such thing" in said
    assert len(said.splitlines()) == 2 + build_native.LINES_SHOWN


def test_without_sources_there_is_nothing_to_build(root: Path, fake: Fake) -> None:
    shutil.rmtree(root / "codegen2" / "native" / "src")
    with pytest.raises(BuildError, match="there are no sources in"):
        build_native.build(build_native.library_path(root), root)


def test_a_real_compiler(root: Path) -> None:
    source = root / "codegen2" / "native" / "src"
    (source / "one.cpp").write_text(
        '#include "all.h"\n#ifdef __AVX2__\n#error every machine runs this file\n#endif\nint width_scalar();\n'
        "#ifdef __x86_64__\nint width_avx2();\nint width() { return width_avx2(); }\n"
        "#else\nint width() { return 8 * width_scalar(); }\n#endif\n"
        "API int cg2_width() { return width(); }\nAPI int hidden() { return 0; }\n"
    )
    out = build_native.library_path(root)
    build_native.build(out, root)
    library = ctypes.CDLL(str(out))
    assert library.cg2_width() == 8
    assert not hasattr(library, "hidden")
    (source / "one.cpp").write_text(
        '#include "all.h"\nint forgotten();\nAPI int cg2_x() { return forgotten(); }\n'
    )
    with pytest.raises(BuildError, match="forgotten"):
        build_native.build(out, root)


def test_by_hand_a_sanitizer_does_not_replace_the_packages_library(
    root: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_native, "library_path", lambda: root / "lib.so")
    monkeypatch.setattr(build_native, "ROOT", root / "elsewhere")
    monkeypatch.setattr(build_native, "build", lambda out, **kwargs: [str(out), kwargs["flags"]])
    assert build_native.main(["--flags", "-fsanitize=address -g"]) == 0
    assert str(root / "elsewhere" / "build" / "native") in capsys.readouterr().out
    monkeypatch.setenv("CXX", "/bin/false")
    assert build_native.main(["--flags=-g"]) == 2
    assert "not built" in capsys.readouterr().err


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy what an install reads, with the small sources in place of the real ones."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copyfile(ROOT / name, copy / name)
    ignored = shutil.ignore_patterns("__pycache__", "libcodegen2.*", "src")
    for name in ("codegen2", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    source = copy / "codegen2" / "native" / "src"
    source.mkdir()
    for name, text in SOURCES.items():
        (source / name).write_text(text)
    return copy


def pip(python: Path | str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pip", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)


@pytest.mark.slow  # asks the package index
def test_an_install_without_a_compiler(copy: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    done = pip(python, "install", "-q", str(copy), CXX="/bin/false", CODEGEN2_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "no C++ compiler works here (tried /bin/false)" in done.stdout + done.stderr
    done = pip(python, "install", "-v", str(copy), CXX="/bin/false")
    assert done.returncode == 0, done.stderr
    assert "warning: the native engine was not built: no C++ compiler works here" in done.stdout + done.stderr
    assert not list((tmp_path / "env").rglob("libcodegen2.*"))
    command = [python.with_name("codegen2"), "infill", ROOT / "examples" / "inventory.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"codegen2: {native.NOT_BUILT}\n")


@pytest.mark.slow  # asks the package index
def test_a_wheel_is_for_one_platform_and_any_python(copy: Path, tmp_path: Path) -> None:
    done = pip(sys.executable, "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(copy))
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none")
    assert platform not in ("any", "")
    names = zipfile.ZipFile(wheel).namelist()
    assert f"codegen2/native/{native.library_path().name}" in names
    assert "codegen2/box/model.safetensors" in names
    assert not [n for n in names if n.endswith((".cpp", ".h", ".o"))]


def processor_flags() -> set[str]:
    """Return what this machine's processor says it can, where it says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


SELFTEST = [
    ("native", "c++", "", []),
    ("sanitized", "c++", "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined", []),
    ("clang", "clang++", "", []),
    ("tiles", "c++", "-O2 -DCODEGEN2_AMX_EMULATED", []),
    ("tiles anywhere", "c++", "-O2 -DCODEGEN2_AMX_EMULATED=2", []),
    (
        "tiles sanitized",
        "c++",
        "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -DCODEGEN2_AMX_EMULATED=2",
        [],
    ),
    ("neon", "aarch64-linux-gnu-g++", "-static", ["qemu-aarch64", "-cpu", "max"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cxx", "flags", "runner"), SELFTEST, ids=[s[0] for s in SELFTEST])
def test_the_engine_by_itself(name: str, cxx: str, flags: str, runner: list[str], tmp_path: Path) -> None:
    """Run tests/native_selftest.cpp: with sanitizers, from another compiler, on another processor (emulated).

    "tiles" has functions in place of AMX's instructions (src/tiles.h); what is around them needs AVX-512. The other two
    have functions in place of that, too (src/simd_emulated.h).
    """
    needed = {"tiles": "avx512_bf16", "tiles anywhere": "avx2", "tiles sanitized": "avx2"}.get(name)
    if needed and needed not in processor_flags():
        pytest.skip(f"needs a processor with {needed}")
    if missing := [tool for tool in (cxx, *runner[:1]) if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    source = ROOT / "codegen2" / "native" / "src"
    macros = build_native.find_compiler(cxx).macros
    objects = []
    for file in sorted(source.glob("*.cpp")):
        if (own := build_native.flags_for(file.name, macros, flags.split())) is not None:
            objects.append(str(tmp_path / f"{file.stem}.o"))
            command = [cxx, *own, *flags.split(), "-w", "-c", str(file), "-o", objects[-1]]
            subprocess.run(command, check=True, timeout=600)
    program = str(tmp_path / "selftest")
    test = str(ROOT / "tests" / "native_selftest.cpp")
    command = [
        cxx,
        "-std=c++17",
        *flags.split(),
        "-I",
        str(source),
        test,
        *objects,
        "-pthread",
        "-o",
        program,
    ]
    subprocess.run(command, check=True, timeout=600)
    done = subprocess.run([*runner, program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.endswith("all hold\n")
    assert ("neon" in done.stdout) == (name == "neon")
    assert not name.startswith("tiles") or done.stdout.startswith("amx ")
