"""The 19 languages that corpora, evaluation and reports tell apart, and how a file's language is told.

A leaf that imports nothing of the package. Not here: where a cursor stands in a language (cursor.py).
"""

from __future__ import annotations

import re
from pathlib import PurePath

EXTENSIONS = {
    "python": (".py", ".pyi", ".pyw"),
    "java": (".java",),
    "c++": (".cpp", ".cc", ".cxx", ".c++", ".hpp", ".hh", ".hxx", ".h++", ".inl", ".ipp", ".tpp"),
    "go": (".go",),
    "c": (".c", ".h"),
    "javascript": (".js", ".mjs", ".cjs", ".jsx"),
    "c-sharp": (".cs", ".csx"),
    "rust": (".rs",),
    "typescript": (".ts", ".mts", ".cts", ".tsx"),
    "kotlin": (".kt", ".kts"),
    "php": (".php", ".phtml"),
    "ruby": (".rb", ".rake", ".gemspec"),
    "scala": (".scala", ".sc", ".sbt"),
    "sql": (".sql",),
    "lua": (".lua",),
    "vue": (".vue",),
    "shell": (".sh", ".bash", ".zsh", ".ksh"),
    "swift": (".swift",),
    "dart": (".dart",),
}
LANGUAGES = tuple(EXTENSIONS)  # the model card's names
_BY_EXTENSION = {extension: name for name, extensions in EXTENSIONS.items() for extension in extensions}
_BY_NAME = {
    "Rakefile": "ruby", "Gemfile": "ruby", "Podfile": "ruby", "SConstruct": "python", ".bashrc": "shell",
    ".profile": "shell",
}  # fmt: skip
_INTERPRETERS = {
    "python": "python", "pypy": "python", "node": "javascript", "nodejs": "javascript", "deno": "typescript",
    "php": "php", "ruby": "ruby", "lua": "lua", "luajit": "lua", "sh": "shell", "bash": "shell", "dash": "shell",
    "zsh": "shell", "ksh": "shell", "swift": "swift", "dart": "dart", "scala": "scala", "kotlin": "kotlin",
}  # fmt: skip
# Other names: LSP's language ids, GitHub's and the Stack's names; a file's extension without its dot is one, too.
_ALIASES = {
    "c#": "c-sharp", "csharp": "c-sharp", "cplusplus": "c++", "golang": "go", "javascriptreact": "javascript",
    "typescriptreact": "typescript", "shellscript": "shell", "postgresql": "sql", "mysql": "sql",
    "plsql": "sql", "plpgsql": "sql", "tsql": "sql", "sqlite": "sql",
}  # fmt: skip
_CPLUSPLUS = re.compile(r"^\s*(template\s*<|namespace\b|class\s+\w+)|\bstd::", re.MULTILINE)


def canonical(name: str) -> str | None:
    """Return our name of a language that a protocol, an editor or a file's extension names; None: none of ours.

    >>> [canonical(name) for name in ("C#", "typescriptreact", ".rs", "sh", "Python3", "cobol")]
    ['c-sharp', 'typescript', 'rust', 'shell', 'python', None]
    """
    name = name.strip().lower().replace(" ", "-")
    if name in EXTENSIONS:
        return name
    return _ALIASES.get(name) or _BY_EXTENSION.get(f".{name.lstrip('.')}") or _interpreted(name)


def language_of(path: str | PurePath, text: str = "") -> str | None:
    """Tell a file's language by its name and, where that leaves a doubt, by the beginning of its text; None: no idea.

    A header is C++ where it says template, namespace, class or std::; a `.ts` that begins as XML is a translation of
    Qt's; a file without extension goes by its `#!` line.

    >>> language_of("a/b.py"), language_of("x.h", "namespace a {"), language_of("run", "#!/usr/bin/env python3\\n")
    ('python', 'c++', 'python')
    """
    path = PurePath(path)
    extension = path.suffix.lower()
    found = _BY_NAME.get(path.name) or _BY_EXTENSION.get(extension)
    if extension == ".h" and _CPLUSPLUS.search(text):
        return "c++"
    if extension == ".ts" and text.lstrip("\ufeff \t\r\n").startswith("<?xml"):
        return None
    return found if found or extension else _by_interpreter(text)


def _by_interpreter(text: str) -> str | None:
    line = text[:200].split("\n", 1)[0]
    if not line.startswith("#!"):
        return None
    words = line[2:].split()
    if words and PurePath(words[0]).name == "env":
        words = [w for w in words[1:] if not w.startswith("-") and "=" not in w]
    if not words:
        return None
    return _interpreted(PurePath(words[0]).name)


def _interpreted(program: str) -> str | None:
    return _INTERPRETERS.get(re.sub(r"[\d.]+$", "", program))
