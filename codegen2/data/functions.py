"""Cut Python files into small functions that stand by themselves: what single-line infilling is asked about.

Not here: licences and quality, which judge the file before, and benchmarks and duplicates, which judge the functions.
Ours, in no paper: a small model that reads whole files of frameworks sees few of the loops, slices and string methods
that programming tasks are made of.
"""

from __future__ import annotations

import ast
import builtins
import gc
import hashlib
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LEAST_LINES, MOST_LINES = 4, 40  # of a function, decorators and docstring included
_LINES_WITHOUT_DOCSTRING = 6
# What a reader knows without the rest of the project.
_MODULES = frozenset({
    "abc", "array", "bisect", "calendar", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum",
    "fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "operator", "random", "re", "statistics",
    "string", "sys", "textwrap", "time", "typing", "typing_extensions", "unicodedata",
})  # fmt: skip
_TYPES = (str, bytes, list, dict, set, tuple, int, float, complex, range, re.Pattern, re.Match)
_ATTRIBUTES = frozenset(name for kind in _TYPES for name in dir(kind))
_BUILTINS = frozenset(dir(builtins)) | {"self", "cls"}
_WORK = (
    ast.For, ast.While, ast.If, ast.IfExp, ast.comprehension, ast.BinOp, ast.BoolOp, ast.Compare, ast.AugAssign,
    ast.Subscript,
)  # fmt: skip
_MOST_NODES = 20_000  # of a function that are compared, far more than one of MOST_LINES has
_MOST_CHARS = 300_000  # of a file that is parsed: a second's work at its worst (comparisons, lambdas)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """A function cut out of a file: where it stood, its text with the imports it needs, its score."""

    name: str  # "Class.method"
    line: int
    text: str
    score: float
    body: bytes  # body_key


def parse(text: str) -> ast.Module | None:
    """Return the syntax tree, None where the text is no Python of this version or longer than people write a file."""
    if len(text) > _MOST_CHARS:
        return None
    collects = gc.isenabled()
    gc.disable()  # a tree has no cycles, and to look for some among its nodes while it grows trebles the time
    try:
        with warnings.catch_warnings():  # about escapes in other people's strings
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    finally:
        if collects:
            gc.enable()


def cut(text: str) -> Iterator[Function]:
    """Yield the functions of a Python file that are of the right size and do something, methods without indentation.

    >>> source = "import math, os\\nclass A:\\n  def f(xs):\\n    '''Sum.'''\\n    y = 0\\n    return math.fsum(xs)\\n"
    >>> print([f.text for f in cut(source)][0])
    import math
    <BLANKLINE>
    <BLANKLINE>
    def f(xs):
      '''Sum.'''
      y = 0
      return math.fsum(xs)
    <BLANKLINE>

    Relative imports are left out, as what they name is not at hand.
    """
    tree = parse(text)
    if tree is None:
        return
    lines = text.split("\n")  # as the parser counts them; splitlines would also split at form feeds
    imports = _imports(tree)
    for name, node in _functions(tree, ""):
        if not _wanted(node):
            continue
        body = _lines_of(node, lines)
        used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        needed = _joined(what for n, what in imports.items() if n in used)
        whole = "\n".join([*needed, "", "", *body] if needed else body) + "\n"
        if node.col_offset and parse(whole) is None:
            continue  # lines of a string or of a tab's width that stand to the left of the function
        yield Function(name, node.lineno, whole, _score(node, imports), body_key(node))


def _functions(node: ast.Module | ast.ClassDef, inside: str) -> Iterator[tuple[str, _Function]]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inside + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{inside}{child.name}.")


def _first_line(node: _Function) -> int:
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def _wanted(node: _Function) -> bool:
    n_lines = (node.end_lineno or 0) - _first_line(node) + 1
    least = LEAST_LINES if ast.get_docstring(node, clean=False) else _LINES_WITHOUT_DOCSTRING
    if not least <= n_lines <= MOST_LINES or node.name.startswith("test"):
        return False
    return not all(isinstance(child, ast.Pass | ast.Raise | ast.Expr) for child in _without_docstring(node))


def _without_docstring(node: _Function) -> list[ast.stmt]:
    return node.body[1:] if ast.get_docstring(node, clean=False) else node.body


def _lines_of(node: _Function, lines: list[str]) -> list[str]:
    found = lines[_first_line(node) - 1 : node.end_lineno]
    margin = node.col_offset
    # Lines inside a string may stand further left; they lose what white space they have.
    return [line[min(margin, len(line) - len(line.lstrip(" \t"))) :].rstrip() for line in found]


def _imports(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Return, for each name that an absolute import at the top binds, ("from x import" or "import", what)."""
    found: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            kind = "import"
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module != "__future__":
            kind = f"from {node.module} import"
        else:
            continue
        for alias in node.names:
            found[alias.asname or alias.name.partition(".")[0]] = (kind, ast.unparse(alias))
    return found


def _joined(needed: Iterable[tuple[str, str]]) -> list[str]:
    """Write imports, a line a module."""
    lines: dict[str, list[str]] = {}
    for kind, what in dict.fromkeys(needed):
        lines.setdefault(f"import {what}" if kind == "import" else kind, []).append(what)
    return [line if line.startswith("import ") else f"{line} {', '.join(n)}" for line, n in lines.items()]


def _score(node: _Function, imports: dict[str, tuple[str, str]]) -> float:
    """Return what the function does itself (loops, arithmetic, ...) less twice what only its project knows, a line."""
    inner = list(ast.walk(node))
    plain = {name for name, (kind, what) in imports.items() if _module(kind, what) in _MODULES}
    known = _BUILTINS | plain | {name for n in inner for name in _bound(n)}
    strange = 0
    for n in inner:
        if isinstance(n, ast.Name):
            strange += n.id not in known
        elif isinstance(n, ast.Attribute) and n.attr not in _ATTRIBUTES:
            strange += not (isinstance(n.value, ast.Name) and n.value.id in plain)
    work = sum(isinstance(n, _WORK) for n in inner)
    return (work - 2 * strange) / ((node.end_lineno or 0) - _first_line(node) + 1)


def _module(kind: str, what: str) -> str:
    return (what if kind == "import" else kind.split()[1]).split()[0].partition(".")[0]


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the name that a node gives to something."""
    if isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ExceptHandler) and node.name:
        yield node.name


def body_key(node: _Function) -> bytes:
    """Return a hash of what a function does: without its name, docstring and annotations, its own names by number.

    >>> def key(text): return body_key(ast.parse(text).body[0])
    >>> key("def f(a: int):\\n  'Doc.'\\n  b = a + 1\\n  return b") == key("def g(x):\\n  y = x + 1\\n  return y")
    True
    """
    own: dict[str, str] = {}
    body = _without_docstring(node)
    inner = (n for part in [node.args, *body] for n in ast.walk(part))
    for name in (name for n in itertools.islice(inner, _MOST_NODES) for name in _bound(n)):
        own.setdefault(name, f"v{len(own)}")
    parts = itertools.islice((part for child in body for part in _walk_in_order(child)), _MOST_NODES)
    whole = "\0".join(own.get(part, part) for part in parts)
    return hashlib.blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def body_keys(text: str, name: str) -> set[bytes]:
    """Return the keys of a text's functions of that name."""
    tree = parse(text)
    return {body_key(node) for path, node in _functions(tree, "") if path == name} if tree else set()


def _walk_in_order(node: ast.AST) -> Iterator[str]:
    """Yield the kinds of a tree's nodes and their names and values, annotations left out."""
    todo: list[ast.AST | str] = [node]  # not by recursion: an expression may be nested a thousand times
    while todo:
        here = todo.pop()
        if isinstance(here, str):
            yield here
            continue
        yield type(here).__name__
        parts: list[ast.AST | str] = []
        for field in here._fields:
            if field in ("annotation", "returns", "type_comment", "kind", "ctx"):
                continue
            value = getattr(here, field, None)
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, ast.AST) or (isinstance(one, str) and field in ("id", "arg", "name")):
                    parts.append(one)  # a name may be renamed
                else:  # the space keeps it apart from a name; only as hex may a number have any length
                    parts.append(f" {hex(one) if type(one) is int else repr(one)}")
            parts.append(";")
        todo += reversed(parts)
