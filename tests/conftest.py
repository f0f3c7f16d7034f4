"""What all tests share: the model in the box, no network on request, one seed for random tests' budgets, and which
tests need PyTorch: the mark `torch`, given here to all tests of a module that imports it, written by hand elsewhere.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import codegen2

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
# One thread for each program: threads that wait for each other burn what other tests need. Nothing above loads numpy;
# tests of several threads ask for them.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CODEGEN2_THREADS"):
    os.environ.setdefault(_name, "1")

# What is imported and collected stays: collecting garbage among it costs a tenth of a run, and 0.3 s where a test asks.
gc.disable()

HAVE_TORCH = importlib.util.find_spec("torch") is not None
NEED_TORCH = ("torch", "transformers", "safetensors.torch")
collect_ignore = ["without_torch"]  # importing it hides PyTorch

if HAVE_TORCH:
    import torch

    torch.set_num_threads(1)
# A deadline measures the machine, not the code. The default run tries few examples, always the same; `make test-slow`
# draws many (--hypothesis-profile=thorough).
hypothesis.settings.register_profile("codegen2", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300)
hypothesis.settings.load_profile("codegen2")


class NeedsTorch:
    """Mark what needs PyTorch; where it is not installed, do not import such modules and skip such tests.

    A plugin of its own, since a conftest's hook is not asked about files outside its folder, such as the package's.
    """

    def __init__(self) -> None:
        """Begin with none left out."""
        self.left_out = 0

    def pytest_ignore_collect(self, collection_path: Path, config: pytest.Config) -> bool | None:
        """Leave out a module that could not be imported, or none of whose tests would be chosen."""
        if collection_path.suffix != ".py":
            return None
        if HAVE_TORCH:
            half = config.option.markexpr.startswith("torch and ")
            return True if half and not may_need_torch(collection_path) else None
        if not imports_torch(collection_path):
            return None
        self.left_out += 1
        return True

    @pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Mark the tests of modules that import PyTorch, doctests included."""
        for item in items:
            if imports_torch(item.path):
                item.add_marker(pytest.mark.torch)
            elif not HAVE_TORCH and item.get_closest_marker("torch"):
                item.add_marker(pytest.mark.skip(reason="needs PyTorch"))

    def pytest_report_collectionfinish(self) -> str:
        """Return what was left out."""
        return f"without PyTorch: {self.left_out} files that import it left out" if self.left_out else ""


def pytest_configure(config: pytest.Config) -> None:
    """Let the plugin above see all files."""
    config.pluginmanager.register(NeedsTorch())


def may_need_torch(path: Path) -> bool:
    """Return whether a test of a file may be marked `torch`: by an import, by hand, or by a fixture's engines."""
    return imports_torch(path) or (
        path.is_relative_to(ROOT / "tests")
        and re.search("torch|engine|box_model", path.read_text("utf-8")) is not None
    )


_TEXTS = re.compile(r'"""(?:[^\\]|\\.)*?"""', re.DOTALL)
_IMPORT = re.compile(r"^(?:from (\.*)([\w.]*) import (\([^)]*|.*)|import (.*))", re.MULTILINE)


@functools.cache
def imports_torch(path: Path) -> bool:
    """Return whether importing a file imports PyTorch, directly or by a module of ours.

    Imports in functions do not count, nor those under a condition, which is there for machines without it.
    """
    if path.suffix != ".py":
        return False
    names = list(_imports(path))
    return any(n == need or n.startswith(f"{need}.") for n in names for need in NEED_TORCH) or any(
        imports_torch(file) for name in names for file in _files(name) if file != path
    )


def _imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file's unconditional imports may load; for `from a import b` a and a.b.

    By their lines, as the formatter leaves them: parsing all files takes seconds.
    """
    inside = path.relative_to(ROOT).parent.parts if path.is_relative_to(ROOT) else ()
    for dots, base, names, plain in _IMPORT.findall(_TEXTS.sub("", path.read_text("utf-8"))):
        if plain:
            yield from (name.split()[0] for name in plain.split("#")[0].split(","))
            continue
        above = inside[: len(inside) - len(dots) + 1] if dots else ()
        base = ".".join([*above, *([base] if base else [])])
        yield base
        yield from (f"{base}.{name}" for name in re.findall(r"(\w+)(?: as \w+)?", re.sub("#.*", "", names)))


@functools.cache
def _files(name: str) -> tuple[Path, ...]:
    """Return our files that importing a dotted name runs: those of the folders on the way, then its own."""
    parts = name.split(".")
    home = ROOT if parts[0] == "codegen2" else ROOT / "tests"
    at = [home.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    return tuple(p for a in at for p in (a / "__init__.py", a.with_suffix(".py")) if p.is_file())


def pytest_collection_finish() -> None:
    """Leave what is there to no collection of garbage."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `shared` where the folder with the released files is not beside the repository."""
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason="needs ../shared"))


@pytest.fixture(scope="module")
def small_heap() -> None:
    """Keep what earlier modules left from the garbage collector: a worker that ends collects, 0.3 s with all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def box_model(engine: str) -> codegen2.Model:
    """Return the model in the box on each engine, loaded once."""
    from tiny import box

    return box(engine)


def _is_local(address: Any) -> bool:
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection and every look-up of a name but the machine's own."""

    def guarded(real: Any) -> Any:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family != getattr(socket, "AF_UNIX", None) and not _is_local(address):
                raise AssertionError(f"a test tried to reach {address}")
            return real(self, address)

        return connect

    real_look_up = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            raise AssertionError(f"a test tried to look up {host}")
        return real_look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.fixture(scope="session", params=["native", pytest.param("reference", marks=pytest.mark.torch)])
def engine(request: pytest.FixtureRequest) -> str:
    """Return the name of each engine in turn, for tests of what must hold on all."""
    return str(request.param)
