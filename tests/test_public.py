"""The public names, and that neither they nor any help text load something heavy."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import codegen2
from codegen2.cli.main import build_parser

HEAVY = {"torch", "numpy", "tokenizers", "rich", "huggingface_hub", "transformers", "safetensors"}


def commands() -> list[str]:
    """Return the subcommands there are."""
    actions = build_parser()._actions
    return next(list(a.choices) for a in actions if isinstance(a, argparse._SubParsersAction))


def loaded_by(*arguments: str) -> tuple[set[str], str]:
    """Run Python with arguments; give the top-level packages it imported, and its output."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return {m.split(".")[0] for m in re.findall(r"\|\s*([\w.]+)$", done.stderr, re.MULTILINE)}, done.stdout


def test_all_is_what_is_importable() -> None:
    for name in codegen2.__all__:
        assert getattr(codegen2, name) is not None
    assert set(codegen2.__all__) - {"__version__"} == set(codegen2._HOME)
    assert set(codegen2.__all__) <= set(dir(codegen2))


def test_star_import_gives_all() -> None:
    namespace: dict[str, object] = {}
    exec("from codegen2 import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(codegen2.__all__)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'codegen2' has no attribute 'modle'"):
        codegen2.modle  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_is_the_distribution_s() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("codegen2") == codegen2.__version__
    except PackageNotFoundError:
        assert re.fullmatch(r"\d+\.\d+\.\d+", codegen2.__version__)  # run from the source tree


def installed_with(name: str) -> set[str]:
    """Return the names of all packages that a default install of one brings along on this machine."""
    found, todo = set(), [Requirement(name)]
    while todo:
        here = todo.pop()
        if here.name in found:
            continue
        found.add(here.name)
        for text in metadata.requires(here.name) or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in ("", *here.extras)):
                todo.append(inner)
    return found - {name}


def test_a_default_install_brings_no_pytorch() -> None:
    needed = installed_with("codegen2")
    assert {"numpy", "tokenizers"} <= needed
    assert not needed & {"torch", "transformers", "safetensors", "matplotlib", "starlette", "pyarrow"}


def test_where_pytorch_is_hidden_it_is_as_if_not_installed() -> None:
    code = (
        "import importlib.metadata, importlib.util\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "assert not [d for d in importlib.metadata.distributions() if d.metadata['Name'] == 'torch']\n"
        "import numpy\nimport torch\n"
    )
    guard = str(Path(__file__).with_name("without_torch"))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": guard}, capture_output=True, text=True
    )
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'torch'\n")


def test_import_loads_nothing_heavy() -> None:
    loaded, _ = loaded_by("-c", "import codegen2; codegen2.PRESETS; print(codegen2.__version__)")
    assert "codegen2" in loaded
    assert not loaded & HEAVY


HELP = """
import contextlib, sys
from codegen2.cli.main import main
for command in [[], *([c] for c in sys.argv[1:])]:
    with contextlib.suppress(SystemExit):
        main([*command, "--help"])
"""


def test_help_loads_nothing_heavy() -> None:
    """One process for the help of all commands: what one loads, the next shows as well."""
    loaded, out = loaded_by("-c", HELP, *commands())
    for command in ["", *commands()]:
        assert f"usage: codegen2 {command}" in out
    assert not loaded & HEAVY


def test_version_loads_nothing_heavy() -> None:
    loaded, out = loaded_by("-m", "codegen2", "--version")
    assert out == f"codegen2 {codegen2.__version__}\n"
    assert not loaded & HEAVY
