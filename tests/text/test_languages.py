"""Names of languages: every name that a protocol may send leads to ours, or to None."""

from __future__ import annotations

import pytest

from codegen2.text.languages import EXTENSIONS, LANGUAGES, canonical

_GITHUB = [
    "Python", "Java", "C++", "Go", "C", "JavaScript", "C#", "Rust", "TypeScript", "Kotlin", "PHP", "Ruby", "Scala",
    "SQL", "Lua", "Vue", "Shell", "Swift", "Dart",
]  # fmt: skip
_LSP = [
    "python", "java", "cpp", "go", "c", "javascript", "csharp", "rust", "typescript", "kotlin", "php", "ruby", "scala",
    "sql", "lua", "vue", "shellscript", "swift", "dart",
]  # fmt: skip


def test_the_names_are_the_model_card_s() -> None:
    card = "c c++ c-sharp dart go java javascript kotlin lua php python ruby rust scala shell sql swift typescript vue"
    assert sorted(LANGUAGES) == card.split()


@pytest.mark.parametrize("names", [_GITHUB, _LSP, LANGUAGES], ids=["GitHub", "LSP", "ours"])
def test_each_list_of_names_leads_to_ours(names: list[str]) -> None:
    assert [canonical(name) for name in names] == list(LANGUAGES)


def test_extensions_are_names_with_and_without_their_dot() -> None:
    for language, extensions in EXTENSIONS.items():
        for extension in extensions:
            assert canonical(extension) == canonical(extension.removeprefix(".").upper()) == language


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("javascriptreact", "javascript"),
        ("typescriptreact", "typescript"),
        ("TSX", "typescript"),
        ("golang", "go"),
        ("c#", "c-sharp"),
        ("PLpgSQL", "sql"),
        ("bash", "shell"),
        ("Python3", "python"),
        (" Rust ", "rust"),
        ("cobol", None),
        ("plaintext", None),
        ("", None),
        ("3.14", None),
    ],
)
def test_canonical(name: str, wanted: str | None) -> None:
    assert canonical(name) == wanted
