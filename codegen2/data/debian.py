"""Debian's control format: paragraphs of `Key: value` lines, a value's further lines indented. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yield each paragraph's fields by their names in lower case; the lines of a value stand one below the other.

    >>> list(paragraphs("Files: *\\nLicense: MIT\\n more\\n\\nFiles: b\\n"))
    [{'files': '*', 'license': 'MIT\\nmore'}, {'files': 'b'}]
    """
    for block in re.split(r"\n[ \t]*\n", text.replace("\r", "")):
        fields: dict[str, str] = {}
        key = ""
        for line in block.split("\n"):
            if line[:1].isspace():
                fields[key] = fields.get(key, "") + "\n" + line.strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if fields:
            yield fields
