"""Does a file parse, and where do its calls have arguments: by tree-sitter, offline.

Not here: which language a file is in (languages.py), which holes are cut (repo.py). Each language's grammar is a
package of its own on PyPI, compiled in its wheel (extra `eval`); the collection tree-sitter-language-pack 1.x fetches
its grammars when it runs, so it cannot work offline. Of our 19 languages Vue has no such package, and is not parsed.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from typing import Any

# The module that has a dialect's grammar, and the function in it; a dialect is a language, or tsx.
_GRAMMARS = {
    "python": ("tree_sitter_python", "language"),
    "java": ("tree_sitter_java", "language"),
    "c++": ("tree_sitter_cpp", "language"),
    "c": ("tree_sitter_c", "language"),
    "go": ("tree_sitter_go", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "c-sharp": ("tree_sitter_c_sharp", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "kotlin": ("tree_sitter_kotlin", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "ruby": ("tree_sitter_ruby", "language"),
    "scala": ("tree_sitter_scala", "language"),
    "sql": ("tree_sitter_sql", "language"),
    "lua": ("tree_sitter_lua", "language"),
    "shell": ("tree_sitter_bash", "language"),
    "swift": ("tree_sitter_swift", "language"),
    "dart": ("tree_sitter_dart", "language"),
}
_LISTS = ("argument_list", "arguments", "value_arguments")  # what grammars call a call's arguments


@functools.cache
def _parser(dialect: str) -> Any:
    """Return a parser, None without a grammar. Raises ValueError where the package is missing."""
    if dialect not in _GRAMMARS:
        return None
    module, function = _GRAMMARS[dialect]
    try:
        binding = importlib.import_module("tree_sitter")
        grammar = importlib.import_module(module)
    except ModuleNotFoundError as e:
        raise ValueError(
            f"{dialect}: needs {(e.name or 'tree_sitter').replace('_', '-')}; install codegen2[eval]"
        ) from e
    return binding.Parser(binding.Language(getattr(grammar, function)()))


def parses(dialect: str, text: str) -> bool | None:
    """Return whether a text is free of syntax errors; None where there is no grammar."""
    parser = _parser(dialect)
    return None if parser is None else not parser.parse(_encode(text)).root_node.has_error


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # halves of surrogate pairs, which a model can make


def arguments(dialect: str, text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each argument of each call, characters; [] where there is no grammar or no such thing."""
    parser = _parser(dialect)
    if parser is None:
        return []
    data = _encode(text)
    spans = [
        (argument.start_byte, argument.end_byte)
        for node in _nodes(parser.parse(data).root_node)
        if node.type in _LISTS
        for argument in node.named_children
        if "comment" not in argument.type
    ]
    if text.isascii():
        return spans
    place = {b: len(data[:b].decode()) for span in spans for b in span}
    return [(place[start], place[end]) for start, end in spans]


def _nodes(root: Any) -> Iterator[Any]:
    """Yield all nodes in the text's order; without recursion, as generated code nests deep."""
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(reversed(node.named_children))
