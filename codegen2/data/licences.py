"""Licences as declared by packages, normalised to SPDX and gated: permissive ones pass, all else is refused.

Not here: which files of an archive are read for it (licence_gate.py). This is no legal advice.
"""

from __future__ import annotations

import re
from typing import Any

from license_expression import ExpressionError, LicenseSymbol, LicenseWithExceptionSymbol, Licensing

# The licences that nobody disputes; the builder takes PERMISSIVE unless "strict" is asked for.
STRICT = frozenset({
    "MIT", "MIT-0", "MIT-CMU", "BSD-2-Clause", "BSD-3-Clause", "BSD", "0BSD", "Apache-2.0", "ISC",
    "PSF-2.0", "Python-2.0", "Python-2.0.1", "CNRI-Python", "HPND",
})  # fmt: skip
PERMISSIVE = STRICT | {
    "Zlib", "CC0-1.0", "Unlicense",
    "BSL-1.0", "PostgreSQL", "curl", "TCL", "X11", "NCSA", "BSD-1-Clause", "BSD-4-Clause-UC", "BlueOak-1.0.0",
    "bzip2-1.0.6", "libpng-2.0", "libtiff", "UPL-1.0", "ZPL-2.1", "W3C", "WTFPL", "Zsh", "ICU", "Unicode-3.0",
    "HSQLDB", "public-domain",
}  # fmt: skip
LICENCE_SETS = {"permissive": PERMISSIVE, "strict": STRICT}
_KNOWN = {name.lower(): name for name in PERMISSIVE}

# Free text of METADATA's License field and of classifiers, lower case, without "license" and punctuation.
_SPELLINGS = {
    "mit": "MIT", "the mit": "MIT", "expat": "MIT", "mit no attribution": "MIT-0",
    "bsd": "BSD", "bsd style": "BSD", "new bsd": "BSD-3-Clause", "modified bsd": "BSD-3-Clause",
    "bsd 3 clause": "BSD-3-Clause", "3 clause bsd": "BSD-3-Clause", "bsd3": "BSD-3-Clause",
    "revised bsd": "BSD-3-Clause", "new bsd 3 clause": "BSD-3-Clause",
    "bsd 3 clause new or revised": "BSD-3-Clause",
    "bsd 2 clause": "BSD-2-Clause", "simplified bsd": "BSD-2-Clause",
    "apache": "Apache-2.0", "apache 2": "Apache-2.0", "apache 2 0": "Apache-2.0",
    "apache version 2 0": "Apache-2.0",
    "apache software": "Apache-2.0", "apache software 2 0": "Apache-2.0", "asl 2 0": "Apache-2.0",
    "isc": "ISC", "isc iscl": "ISC", "psf": "PSF-2.0", "python software foundation": "PSF-2.0",
    "psf 2 0": "PSF-2.0", "python 2 0": "Python-2.0",
    "historical permission notice and disclaimer hpnd": "HPND",
    "apache 2 0 only": "Apache-2.0", "bsd 4 clause": "", "mit x11": "MIT", "boost 1 0": "BSL-1.0", "bsl 1": "BSL-1.0",
    "boost software 1 0": "BSL-1.0", "zlib libpng": "Zlib", "public domain": "public-domain", "pd": "public-domain",
    "mit like zsh": "Zsh", "cc0": "CC0-1.0", "psf 2 0 like": "PSF-2.0", "postgresql": "PostgreSQL",
    "boost software 1 0 bsl 1 0": "BSL-1.0", "zlib libpng license": "Zlib", "bsd 3 clauses": "BSD-3-Clause",
    "bsd 2 clauses": "BSD-2-Clause", "unlicense unlicense": "Unlicense", "python 2": "Python-2.0",
    "boost software": "BSL-1.0", "mit style": "MIT", "bsd like": "BSD",
}  # fmt: skip

# They only permit more.
_EXCEPTIONS = frozenset({"LLVM-exception", "Swift-exception", "SHL-2.0", "SHL-2.1", "fmt-exception"})
_LICENSING = Licensing()  # without the library's own list: which names pass is decided here
_OPERATORS = ("AND|OR|WITH", "(?i:AND|OR|WITH)")  # "Notice and Disclaimer" is one name, "MIT and ISC" are two


def _name(term: str) -> str:
    """Normalise one name, "" when it is none of ours.

    >>> _name("The MIT License"), _name("Apache License, Version 2.0"), _name("GPL")
    ('MIT', 'Apache-2.0', '')
    """
    if name := _KNOWN.get(term.lower()):
        return name
    words = re.sub(r"[^a-z0-9]+", " ", re.sub(r"licen[cs]ed?", " ", term.lower())).split()
    return _SPELLINGS.get(" ".join(w for w in words if w != "the" or len(words) == 2), "")


def _chosen(node: Any, allowed: frozenset[str]) -> frozenset[str]:
    """Return the licences of an expression, the first allowed choice of each OR; empty when it is refused."""
    if isinstance(node, LicenseWithExceptionSymbol):
        passes = node.exception_symbol.key in _EXCEPTIONS
        return _chosen(node.license_symbol, allowed) if passes else frozenset()
    if isinstance(node, LicenseSymbol):
        return allowed & {node.key}
    parts = [_chosen(part, allowed) for part in node.args]
    if isinstance(node, _LICENSING.OR):
        return next((part for part in parts if part), frozenset())
    return frozenset().union(*parts) if all(parts) else frozenset()


def permissive(expression: str, allowed: frozenset[str] = PERMISSIVE) -> str:
    """Normalise an expression of `allowed` licences, the first allowed choice of each OR; "" when it is refused.

    >>> permissive("(GPL-2.0-only OR Apache-2.0 WITH LLVM-exception) AND MIT"), permissive("MIT AND MPL-2.0")
    ('Apache-2.0 AND MIT', '')
    """
    if len(expression) > 2000 or expression.count("(") > 50:
        return ""  # no licence is that long, and the brackets are read by recursion
    for operators in _OPERATORS:
        # A bracket behind a word, as in "ISC License (ISCL)", belongs to the name.
        text = re.sub(rf"(?<![^\s(])(?!(?:{operators})\b)([^\s()]+)\s+\(([^()]*)\)", r"\1 \2", expression)
        parts = re.split(rf"(\s(?:{operators})\s|[()])", text)
        parts[::2] = [
            part and (part if part in _EXCEPTIONS else _name(part) or "unknown")
            for part in map(str.strip, parts[::2])
        ]
        try:
            if found := _chosen(_LICENSING.parse(" ".join(parts)), allowed):
                return " AND ".join(sorted(found))
        except (ExpressionError, IndexError, AttributeError):  # not closed, nothing between brackets, no text
            pass
    return ""
