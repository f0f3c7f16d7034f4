"""Open documents of a language server: incremental changes, and positions in UTF-8, UTF-16 or UTF-32 units. Pure.

Not here: the protocol (server.py). A position is a line from 0 and a character in units of the encoding. Lines end with
LF, CRLF or CR as the protocol says, and with nothing else: not with the form feeds and separators that str.splitlines
knows, which pygls's own documents go by.
"""

from __future__ import annotations

import io
import re

from lsprotocol.types import Position

_SURROGATE = re.compile("[\ud800-\udfff]")
_HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")
_CODECS = {"utf-8": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}
_UNIT = {"utf-8": 1, "utf-16": 2, "utf-32": 4}
_MOST = 2**20  # characters on each side of a cursor that are looked at: more than any context holds
_STEP = 2**18


def split_lines(text: str) -> list[str]:
    """Split into lines with their ends; the last one has none, and is empty after a line end.

    >>> split_lines("a\\r\\nb\\x0cc\\rd"), split_lines("a\\n"), split_lines("")
    (['a\\r\\n', 'b\\x0cc\\r', 'd'], ['a\\n', ''], [''])
    """
    lines = list(io.StringIO(text, newline=""))
    if not lines or lines[-1][-1] in "\r\n":
        lines.append("")
    return lines


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


class Document:
    """One open document as lines."""

    def __init__(self, text: str, language: str = "", encoding: str = "utf-16") -> None:
        """Raise ValueError for another encoding."""
        if encoding not in _CODECS:
            raise ValueError(f"encoding must be one of {', '.join(_CODECS)}, got {encoding!r}")
        self.language, self.encoding = language, encoding
        self.lines = split_lines(_join_halves(text))

    @property
    def text(self) -> str:
        """Return the whole text."""
        return "".join(self.lines)

    def locate(self, position: Position) -> tuple[int, int]:
        """Return (line, index in it) of a position; one past the document's end is its end."""
        if position.line >= len(self.lines):
            return len(self.lines) - 1, len(self.lines[-1])
        return position.line, to_column(self.lines[position.line], position.character, self.encoding)

    def replace(self, text: str) -> None:
        """Take a whole new text."""
        self.lines = split_lines(_join_halves(text))

    def change(self, start: Position, end: Position, text: str) -> None:
        """Replace what stands between two positions by text.

        Only the lines that it touches are read, so that a key costs little in a file of any size.
        """
        (first, a), (last, b) = sorted((self.locate(start), self.locate(end)))
        piece = _join_halves(self.lines[first][:a] + text + self.lines[last][b:])
        if first and piece.startswith("\n") and self.lines[first - 1].endswith("\r"):
            first -= 1  # the two have become one line end
            piece = self.lines[first] + piece
        new = split_lines(piece)
        if last + 1 < len(self.lines) and new[-1] == "":
            new.pop()
        self.lines[first : last + 1] = new

    def around(self, line: int, column: int) -> tuple[str, str]:
        """Return the text before and after a place, each at most a million characters and a bit.

        What is left off at the beginning stays the same while somebody types, so that what was read stays known.
        """
        here = self.lines[line]
        before, after = self._before(line) + here[:column], here[column : column + _MOST] + self._after(line)
        return _replace_halves(before), _replace_halves(after)

    def _before(self, line: int) -> str:
        text = "".join(self.lines[:line])
        over = len(text) - _MOST
        return text if over <= 0 else text[-(-over // _STEP) * _STEP :]

    def _after(self, line: int) -> str:
        return "".join(self.lines[line + 1 : line + 1 + _MOST])[:_MOST]  # a line is a character at least
