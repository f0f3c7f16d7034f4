"""Licences as declared by packages, normalised to SPDX and gated: permissive ones pass, all else is refused.

Not here: which files of an archive are read for it (licence_gate.py). This is no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Words in a file's head that keep it out whatever its package declares; `mpl` in lower case is matplotlib's.
COPYLEFT_WORDS = re.compile(
    r"\b[AL]?GPL(v?\d|\b)|\bMPL(-| v?\d|\b)|(Lesser )?General Public License|Mozilla Public License",
    re.ASCII,
)

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
}  # fmt: skip


def _term(term: str, allowed: frozenset[str]) -> str:
    # What follows WITH is an exception, and exceptions only permit more.
    term = re.split(r"\s+WITH\s+", term.strip())[0].strip("()").strip()
    name = _KNOWN.get(term.lower(), "")
    if not name:
        words = re.sub(r"[^a-z0-9]+", " ", re.sub(r"licen[cs]ed?", " ", term.lower())).split()
        name = _SPELLINGS.get(" ".join(w for w in words if w != "the" or len(words) == 2), "")
    return name if name in allowed else ""


def _tokens(expression: str) -> Iterator[str]:
    """Yield terms, AND, OR and brackets; a bracket inside a term, as in "ISC License (ISCL)", stays in it."""
    for chunk in re.split(r"\s+(AND|OR)\s+", expression):
        chunk = chunk.strip()
        while chunk.startswith("("):
            yield "("
            chunk = chunk[1:].strip()
        closing = 0
        while chunk.endswith(")") and chunk.count(")") > chunk.count("("):
            closing, chunk = closing + 1, chunk[:-1].strip()
        yield chunk
        yield from ")" * closing


def permissive(expression: str, allowed: frozenset[str] = PERMISSIVE) -> str:
    """Normalise an expression of `allowed` licences, the first allowed choice of each OR; "" when it is refused.

    >>> permissive("(GPL-2.0-only OR Apache-2.0 WITH LLVM-exception) AND MIT"), permissive("MIT AND MPL-2.0")
    ('Apache-2.0 AND MIT', '')
    """
    if len(expression) > 2000 or expression.count("(") > 50:
        return ""  # no licence is that long, and the brackets are read by recursion
    tokens = list(_tokens(expression))[::-1]  # the next one last
    none: frozenset[str] = frozenset()

    def follows(token: str) -> bool:
        return tokens[-1:] == [token] and bool(tokens.pop())

    def one() -> frozenset[str]:
        if follows("("):
            inside = choice()
            return inside if follows(")") else none
        name = _term(tokens.pop(), allowed) if tokens else ""
        return frozenset({name}) if name else none

    def both() -> frozenset[str]:
        parts = [one()]
        while follows("AND"):
            parts.append(one())
        return none.union(*parts) if all(parts) else none

    def choice() -> frozenset[str]:
        choices = [both()]
        while follows("OR"):
            choices.append(both())
        return next((c for c in choices if c), none)

    found = choice()
    return "" if tokens else " AND ".join(sorted(found))
