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
        fields = {}
        for key, value in re.findall(r"^(\S[^:\n]*):(.*(?:\n[ \t].*)*)", block, re.MULTILINE):
            fields[key.strip().lower()] = "\n".join(line.strip() for line in value.split("\n"))
        if fields:
            yield fields
