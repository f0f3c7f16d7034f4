"""Licences as declared by packages, normalised to SPDX and gated: permissive ones pass, all else is refused.

Not here: the reading of archives (corpus.py). This is no legal advice, and it reads no licence file.
"""

from __future__ import annotations

import re
from email.parser import HeaderParser

# Words in a file's head that keep it out whatever its package declares; `mpl` in lower case is matplotlib's.
COPYLEFT_WORDS = re.compile(
    r"\b[AL]?GPL(v?\d|\b)|\bMPL(-| v?\d|\b)|(Lesser )?General Public License|Mozilla Public License",
    re.ASCII,
)

_PERMISSIVE = {
    name.lower(): name
    for name in (
        "MIT", "MIT-0", "MIT-CMU", "BSD-2-Clause", "BSD-3-Clause", "BSD", "0BSD", "Apache-2.0", "ISC",
        "PSF-2.0", "Python-2.0", "Python-2.0.1", "CNRI-Python", "HPND",
        # Only ever seen as parts of an AND beside the above, for bundled C files:
        "Zlib", "CC0-1.0", "Unlicense",
    )
}  # fmt: skip

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
}  # fmt: skip


def _permissive_term(term: str) -> str:
    term = term.strip().strip("()").strip()
    if term.lower() in _PERMISSIVE:
        return _PERMISSIVE[term.lower()]
    words = re.sub(r"[^a-z0-9]+", " ", re.sub(r"licen[cs]ed?", " ", term.lower())).split()
    return _SPELLINGS.get(" ".join(w for w in words if w != "the" or len(words) == 2), "")


def _permissive_expression(expression: str) -> str:
    """Give the normalised expression when each AND part has a permissive OR choice, else "".

    Brackets are read only as grouping of choices: "MIT OR (A AND B)" is judged more strictly than it need be.
    """
    parts = []
    for part in re.split(r"\s+AND\s+", expression):
        choices = [name for term in re.split(r"\s+OR\s+", part) if (name := _permissive_term(term))]
        if not choices:
            return ""
        parts.append(choices[0])
    return " AND ".join(sorted(set(parts)))


def normalise_licence(metadata: str) -> str:
    """Give the SPDX expression of a wheel's METADATA text, "" when it is unknown or not permissive.

    >>> normalise_licence("Name: x\\nLicense-Expression: Apache-2.0 OR GPL-2.0-or-later\\n")
    'Apache-2.0'
    >>> normalise_licence("Name: x\\nClassifier: License :: OSI Approved :: MIT License\\n")
    'MIT'
    >>> normalise_licence("Name: x\\nLicense: LGPL-3.0\\n")
    ''
    """
    headers = HeaderParser().parsestr(metadata)
    expression = headers.get("License-Expression")
    if expression:
        return _permissive_expression(expression)
    named = [c.split(" :: ")[-1] for c in headers.get_all("Classifier", []) if c.startswith("License :: ")]
    named = [name for name in named if name != "OSI Approved"]
    if named:
        # Two classifiers do not say whether both bind or one may be chosen: all must be permissive.
        return _permissive_expression(" AND ".join(named))
    free = headers.get("License", "").strip()
    # A long field is a whole licence text: its first line names it.
    return _permissive_expression(free.split("\n")[0]) if free else ""
