"""One form for every text that enters: LF line ends and no byte-order mark; undone on the way out. Pure."""

from __future__ import annotations

from typing import Literal

LineEnd = Literal["\n", "\r\n", "\r"]


def lf(text: str) -> str:
    """Return text with LF line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def normalise(text: str) -> str:
    """Return text with LF line ends and without a leading U+FEFF; a text that ends in half a CRLF, with a line end.

    So a cursor between CR and LF stands on a line of its own, where any text can be inserted as it is.

    >>> normalise("\\ufeffa\\r\\nb\\rc")
    'a\\nb\\nc'
    """
    return lf(text.lstrip("\ufeff"))


def line_end_of(*texts: str) -> LineEnd:
    """Return the commonest line end of a text in pieces, LF where there is none or a tie.

    >>> line_end_of("a\\r\\nb\\r", "\\nc"), line_end_of("a")
    ('\\r\\n', '\\n')
    """
    text = "".join(texts)  # a cursor may stand between CR and LF
    crlf = text.count("\r\n")
    lf, cr = text.count("\n") - crlf, text.count("\r") - crlf
    if crlf > max(lf, cr):
        return "\r\n"
    return "\r" if cr > max(lf, crlf) else "\n"


def restore(text: str, line_end: LineEnd) -> str:
    """Return LF text with the given line ends.

    >>> restore("a\\nb", "\\r\\n")
    'a\\r\\nb'
    """
    return text if line_end == "\n" else lf(text).replace("\n", line_end)
