"""The files of a folder that evaluation reads: UTF-8 text of a known language, the others counted aloud.

Not here: which files a folder has and which of them may be read (files/sources.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import sources
from ..text.languages import language_of


@dataclass(frozen=True)
class SourceFile:
    """A file: its path from the folder on, with slashes, its language and its text; crlf: its line ends were CRLF."""

    path: str
    language: str
    text: str
    crlf: bool = False

    @property
    def dialect(self) -> str:
        """Return what its grammar goes by."""
        return "tsx" if self.path.lower().endswith(".tsx") else self.language


UNKNOWN, NOT_TEXT = "of no known language", "not UTF-8"


def code_files(
    folder: Path, left_out: Counter[str], most_bytes: int = sources.MOST_BYTES, taken: Container[Path] = ()
) -> Iterator[SourceFile]:
    """Yield the files in the order of their paths, their texts as they stand, byte-order mark included.

    left_out counts the other files by the reason, aside from those that are taken already (resolved paths). Raises
    ValueError as files.sources.list_files does.
    """

    def wanted(name: str) -> bool:
        if folder.resolve() / name in taken:
            return False
        left_out[UNKNOWN] += (unknown := not sources.may_be_source(name))
        return not unknown

    for name, content in sources.walk(folder, left_out, wanted, most_bytes):
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            left_out[NOT_TEXT] += 1
            continue
        if language := language_of(name, text):
            yield SourceFile(name, language, text)
        else:
            left_out[UNKNOWN] += 1
