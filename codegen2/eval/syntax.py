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

# A dialect is a language, or tsx. The module that has its grammar is called by it, the function there "language", but:
_MODULES = {"c++": "cpp", "c-sharp": "c_sharp", "shell": "bash", "tsx": "typescript"}
_FUNCTIONS = {"typescript": "language_typescript", "tsx": "language_tsx", "php": "language_php"}
_WITHOUT = ("vue",)
_LISTS = ("argument_list", "arguments", "value_arguments")  # what grammars call a call's arguments


@functools.cache
def _parser(dialect: str) -> Any:
    """Return a parser, None without a grammar. Raises ValueError where the package is missing."""
    if dialect in _WITHOUT:
        return None
    try:
        binding = importlib.import_module("tree_sitter")
        grammar = importlib.import_module(f"tree_sitter_{_MODULES.get(dialect, dialect)}")
    except ModuleNotFoundError as e:
        raise ValueError(
            f"{dialect}: needs {(e.name or 'tree_sitter').replace('_', '-')}; install codegen2[eval]"
        ) from e
    return binding.Parser(binding.Language(getattr(grammar, _FUNCTIONS.get(dialect, "language"))()))


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
