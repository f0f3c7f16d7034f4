"""Open documents of a language server: incremental changes, and positions in UTF-8, UTF-16 or UTF-32 units. Pure.

Not here: the protocol (server.py). A position is a line from 0 and a character in units of the encoding. Lines end with
LF, CRLF or CR as the protocol says, and with nothing else: not with the form feeds and separators that str.splitlines
knows, which pygls's own documents go by.
"""

from __future__ import annotations

import io
import re
from typing import NamedTuple

from lsprotocol.types import Position

_SURROGATE = re.compile("[\ud800-\udfff]")
_HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")
_CODECS = {"utf-8": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}
_UNIT = {"utf-8": 1, "utf-16": 2, "utf-32": 4}
_MOST = 2**20  # characters on each side of a cursor that are looked at: more than any context holds
_STEP = 2**18
_BLOCK = 2**14  # characters that a block has at least: a millisecond's work if all are line ends
_LINE_END = re.compile("\r\n?|\n")


def split_lines(text: str) -> list[str]:
    """Split into lines with their ends; the last one has none, and is empty after a line end.

    >>> split_lines("a\\r\\nb\\x0cc\\rd"), split_lines("a\\n"), split_lines("")
    (['a\\r\\n', 'b\\x0cc\\r', 'd'], ['a\\n', ''], [''])
    """
    lines = list(io.StringIO(text, newline=""))
    if not lines or lines[-1][-1] in "\r\n":
        lines.append("")
    return lines


def _split_blocks(text: str) -> list[str]:
    start, blocks = 0, []
    while end := _LINE_END.search(text, start + _BLOCK):
        blocks.append(text[start : end.end()])
        start = end.end()
    return [*blocks, text[start:]]


def _count_ends(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def to_column(line: str, units: int, encoding: str) -> int:
    """Return the index in line of a count of units; past the end is the end, half a character its start.

    >>> to_column("a\\U0001f600b", 3, "utf-16"), to_column("a\\U0001f600b", 2, "utf-16"), to_column("é", 9, "utf-8")
    (2, 1, 1)
    """
    body = line.rstrip("\r\n")
    if encoding == "utf-32" or body.isascii() or (encoding == "utf-16" and not _ASTRAL.search(body)):
        return min(units, len(body))
    raw = body.encode(_CODECS[encoding], "surrogatepass")
    cut = min(units * _UNIT[encoding], len(raw))
    if encoding == "utf-8":
        while cut < len(raw) and raw[cut] & 0xC0 == 0x80:
            cut -= 1
    elif 0 < cut < len(raw) and raw[cut - 1] & 0xFC == 0xD8 and raw[cut + 1] & 0xFC == 0xDC:
        cut -= 2
    return len(raw[:cut].decode(_CODECS[encoding], "surrogatepass"))


def count_units(text: str, encoding: str) -> int:
    """Count the units of a text.

    >>> [count_units("a\\U0001f600", encoding) for encoding in ("utf-16", "utf-8", "utf-32")]
    [3, 5, 2]
    """
    if encoding == "utf-32" or text.isascii():
        return len(text)
    return len(text.encode(_CODECS[encoding], "surrogatepass")) // _UNIT[encoding]


def _join_halves(text: str) -> str:
    """Make one character of two halves that came in two changes; a half that stays alone stays as it is."""
    if text.isascii():
        return text
    return _HALVES.sub(lambda pair: pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le"), text)


def _replace_halves(text: str) -> str:
    """Return text without half characters, which no tokenizer takes."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


class Located(NamedTuple):
    """A place in a document: its line, the index in the line, the line's text; its block and the offset in that."""

    line: int
    column: int
    text: str
    block: int
    offset: int


class Document:
    """One open document, in blocks of whole lines, so that neither opening it nor a key makes an object of every line.

    blocks: each ends behind a line end, never between CR and LF, but the last, which has the document's last line.
    """

    def __init__(self, text: str, language: str = "", encoding: str = "utf-16") -> None:
        """Raise ValueError for another encoding."""
        if encoding not in _CODECS:
            raise ValueError(f"encoding must be one of {', '.join(_CODECS)}, got {encoding!r}")
        self.language, self.encoding = language, encoding
        self.replace(text)

    def locate(self, position: Position) -> Located:
        """Find a position; one past the document's end is its end."""
        block, line = 0, position.line
        while block < len(self.blocks) - 1 and line >= (n_ends := _count_ends(self.blocks[block])):
            line -= n_ends
            block += 1
        lines = split_lines(self.blocks[block])
        text = lines[inside := min(line, len(lines) - 1)]
        column = to_column(text, position.character, self.encoding) if line == inside else len(text)
        return Located(
            position.line - line + inside, column, text, block, sum(map(len, lines[:inside])) + column
        )

    def replace(self, text: str) -> None:
        """Take a whole new text."""
        self.blocks = _split_blocks(_join_halves(text))

    def change(self, start: Position, end: Position, text: str) -> None:
        """Replace what stands between two positions by text.

        Only the blocks that it touches are made anew, so that a key costs little in a file of any size.
        """
        (first, a), (last, b) = sorted((at.block, at.offset) for at in map(self.locate, (start, end)))
        piece = _join_halves(self.blocks[first][:a] + text + self.blocks[last][b:])
        if first and piece.startswith("\n") and self.blocks[first - 1].endswith("\r"):
            first -= 1  # the two have become one line end
            piece = self.blocks[first] + piece
        new = _split_blocks(piece)
        if last + 1 < len(self.blocks) and new[-1] == "":
            new.pop()
        self.blocks[first : last + 1] = new

    def around(self, at: Located) -> tuple[str, str]:
        """Return the text before and after a place, each at most a million characters and a bit.

        What is left off at the beginning stays the same while somebody types, so that what was read stays known.
        """
        here = self.blocks[at.block]
        before = "".join(self.blocks[: at.block]) + here[: at.offset]
        after = here[at.offset :] + "".join(self.blocks[at.block + 1 :])
        left_off = max(0, -(-(len(before) - _MOST) // _STEP) * _STEP)
        return _replace_halves(before[left_off:]), _replace_halves(after[:_MOST])
