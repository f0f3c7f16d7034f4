"""Which licence covers a file: its package's, a Debian copyright file's for its path, a notice in the file itself.

Not here: which licences pass (licences.py). Debian's form: DEP-5, "Machine-readable debian/copyright file". No legal
advice.
"""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from email.parser import HeaderParser

from .debian import paragraphs
from .licences import permissive
from .rows import Table, drop, put, texts_of

_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([\w.+()/:, \t-]*)", re.IGNORECASE)
# Words that keep a file out whatever its package declares. A blank stands for all that is between two words: the end
# of a line, comment marks. `mpl` in lower case is matplotlib's, and `public License f()` is Java.
_NAMES = (
    r"[AL]?GPL(?:v?\d|\b)", r"MPL(?:(?: )?v?\d|\b)", r"(?:SSPL|EUPL|CDDL|APSL|NPOSL|GFDL|BUSL|RSAL)(?:v?\d|\b)",
    r"M[Ss] [RP]L\b", r"(?:EPL|CPL|CPAL|OSL|RPL|QPL|IPL|FSL) v?\d", r"BSL 1 1\b", r"CC BY\b",
    r"(?<!Zope\W)(?<!To\W)(?:Public|PUBLIC) (?:Licen[cs]e|LICEN[CS]E)\b",
)  # fmt: skip
_WORDS = (
    "general public licen[cs]e", "cecill", "commons clause", "creative commons (?!zero|cc0|public)", "good not evil",
    "creativecommons org licenses", "non(?: )?commercial (?:use|purpose|licen[cs]e|share|no)",
    "(?:business source|functional source|source available|sustainable use|free documentation|community) licen[cs]e",
    "(?:public source|reciprocal|elastic|artistic|sleepycat|polyform|hippocratic|rail) licen[cs]e",
    "confidential (?:and )?proprietary", "proprietary (?:and )?confidential",
    "(?:academic|research|evaluation|personal) (?:use|purposes) only",
)  # fmt: skip
# A file without any of a pattern's hints is not searched, which saves most of the time.
_REFUSED = tuple(
    (hints, re.compile(rf"\b(?:{'|'.join(words)})".replace(" ", r"\W{1,200}+"), re.ASCII))
    for hints, words in (
        (("PL", "SL", "DL", "SAL", "CC", "s-R", "S-R", "Public", "PUBLIC"), _NAMES),
        (("licen", "cecill", "commons", "commercial", "evil", "proprietary", "use", "purposes"), _WORDS),
    )
)  # fmt: skip
# What stands under a named licence, so that a name that nobody knows is refused.
_UNDER = re.compile(
    r"(?:(?:[Ll]icensed|[Rr]eleased|[Dd]istributed) under (?:(?:the|terms|and|conditions|of|an?) ){0,8}"
    r"|[Ll]icen[cs]e:\s)([A-Z]\w{0,40}(?: (?:[A-Z]\w{0,40}|v?\d{1,9}|style|and|or|of|for)){0,8}?) [Ll]icen[cs]e\b"
    .replace(" ", r"\W{1,200}+")
)  # fmt: skip
_PHRASES = (
    ("Apache-2.0", ("apache license", "version 2 0")),
    ("MIT", ("permission is hereby granted free of charge to any person obtaining a copy", "sublicense")),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    ("ISC", ("permission to use copy modify and or distribute this software for any purpose with or",)),
    ("BSL-1.0", ("boost software license version 1 0",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("Zlib", ("this software is provided as is without any express or implied warranty", "altered source versions")),
    ("CC0-1.0", ("cc0 1 0 universal",)),
)  # fmt: skip


_MOST_TOML = 200_000  # characters of a pyproject.toml


def _refused(text: str) -> bool:
    """Return whether a text names a licence that is refused.

    >>> _refused("-- under the GNU General\\n-- Public License"), _refused("the MIT License")
    (True, False)
    """
    texts = (text, text.lower())
    return any(
        any(hint in where for hint in hints) and words.search(where)
        for where, (hints, words) in zip(texts, _REFUSED, strict=True)
    )


def licence_of_text(text: str) -> str:
    """Recognise the text of a well-known permissive licence; "" is any other, and any that also names a refused one.

    >>> licence_of_text("Boost Software License - Version 1.0")
    'BSL-1.0'
    """
    plain = re.sub(r"\W+", " ", text.lower()).strip()
    # Python's own tells its history, in which other licences are named.
    if (
        plain.startswith("a history of the software")
        and "python software foundation license version 2" in plain
    ):
        return "PSF-2.0"
    if _refused(text):
        return ""
    return next((name for name, phrases in _PHRASES if all(p in plain for p in phrases)), "")


def declared_by(files: Mapping[str, str]) -> str:
    """Return the licence that a package's own metadata declares, not judged; "" when they say nothing.

    `files` are texts by their names at the package's top: METADATA, PKG-INFO, package.json, pyproject.toml, LICENSE...
    """
    for name in ("METADATA", "PKG-INFO"):
        if name in files and (found := _from_headers(files[name])):
            return found
    if "package.json" in files and (found := _from_package_json(files["package.json"])):
        return found
    if "pyproject.toml" in files and (found := _from_pyproject(files["pyproject.toml"])):
        return found
    return _by_texts(files)


def _by_texts(files: Mapping[str, str]) -> str:
    recognised = {licence_of_text(text) for name, text in files.items() if is_licence_file(name)}
    return " AND ".join(sorted(recognised)) if all(recognised) else "unrecognised licence file"


def is_licence_file(path: str) -> bool:
    """Return whether a file holds a licence or a notice, by its name.

    >>> [is_licence_file(name) for name in ("pkg/LICENSE.txt", "GPL-LICENSE", "COPYING.LESSER", "licenses.py")]
    [True, True, True, False]
    """
    name = path.rpartition("/")[2].lower()
    return bool(
        re.fullmatch(r"(?:[\w+]+[-_.])?(?:un)?(?:licen[cs]e|copying|notice)s?\d*(?:[-_.][\w.+-]+)?", name)
    ) and not re.search(r"\.(?:json|xml|ya?ml|toml|css|in|h|\w*[jt]sx?|py|rb|go|java|cs|c|cc|cpp|rs)$", name)


def by_folder(files: Mapping[str, str], declared: str) -> Callable[[str], str]:
    """Return a function from a path to the licence of the nearest folder above it that has one, else to `declared`.

    >>> of = by_folder({"a/COPYING": "GNU General Public License", "a/b/package.json": '{"license": "MIT"}'}, "ISC")
    >>> of("x.js"), of("a/x.js"), of("a/b/c/x.js")
    ('ISC', 'unrecognised licence file', 'MIT')
    """
    folders: dict[str, dict[str, str]] = {}
    for path, text in files.items():
        folder, _, name = path.rpartition("/")
        if folder and not name.lower().startswith("notice"):
            folders.setdefault(folder, {})[name] = text
    licences = {folder: _by_texts(inside) or declared_by(inside) for folder, inside in folders.items()}

    def of(path: str) -> str:
        while "/" in path:
            path = path.rpartition("/")[0]
            if found := licences.get(path):
                return found
        return declared

    return of


def _from_headers(text: str) -> str:
    headers = HeaderParser().parsestr(text)
    if expression := headers.get("License-Expression"):
        return str(expression).strip()
    named = [c.split(" :: ")[-1] for c in headers.get_all("Classifier", []) if c.startswith("License :: ")]
    named = sorted({name for name in named if name != "OSI Approved"})
    # Two classifiers do not say whether both bind or one may be chosen: all must be permissive.
    return " AND ".join(named) or str(headers.get("License") or "").strip().split("\n")[0]


def _from_package_json(text: str) -> str:
    try:
        content = json.loads(text)
        found = content.get("license") or content.get("licenses") or ""
        if isinstance(found, list):
            return " OR ".join(str(one["type"] if isinstance(one, dict) else one) for one in found)
        return str(found["type"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, AttributeError, RecursionError):
        return "unreadable package.json"


def _from_pyproject(text: str) -> str:
    try:
        if len(text) > _MOST_TOML or any(line.count(".") > 200 for line in text.split("\n")):
            raise ValueError("too long, or a key of so many parts that tomllib takes for ever")
        found = tomllib.loads(text).get("project", {}).get("license", "")
    except (ValueError, AttributeError, RecursionError):
        return "unreadable pyproject.toml"
    if isinstance(found, dict):
        text = str(found.get("text", ""))
        return licence_of_text(text) or text.split("\n")[0]
    return str(found)


def debian_licences(copyright_text: str, allowed: frozenset[str]) -> Callable[[str], str] | None:
    """Read a machine-readable debian/copyright: a function from a path to its normalised licence, "" if refused.

    None when the file is free text.
    """
    if "copyright-format/1" not in copyright_text[:1000]:
        return None
    rules: list[tuple[re.Pattern[str], str]] = []
    for fields in paragraphs(copyright_text):
        if "files" in fields:
            licence = permissive(_debian_expression(fields.get("license", "").split("\n")[0]), allowed)
            for pattern in fields["files"].split():
                rules.append((re.compile(fnmatch.translate(pattern)), licence))
    rules.reverse()  # the last paragraph that matches a path is the one that holds

    def of(path: str) -> str:
        return next((licence for pattern, licence in rules if pattern.match(path)), "")

    return of


def _debian_expression(text: str) -> str:
    """Write Debian's words as SPDX's operators; `,` binds more loosely than both there, which brackets say here.

    >>> _debian_expression("Expat and (GPL-2+ or Apache-2.0)")
    'Expat AND (GPL-2+ OR Apache-2.0)'
    """
    text = re.sub(r"\s+with\s+[\w. -]*?exception", " WITH exception", text, flags=re.IGNORECASE)
    parts = [part for part in re.split(r",\s*(?=and |or )", text) if part]
    words = [re.sub(r"\s*\b(and|or)\b\s*", lambda m: f" {m[1].upper()} ", part) for part in parts]
    if len(words) == 1:
        return words[0].strip()
    first, *rest = words
    return f"({first.strip()})" + "".join(
        f" {operator} ({inside.strip()})"
        for operator, _, inside in (w.strip().partition(" ") for w in rest)
    )  # fmt: skip


def licence_gate(table: Table, allowed: frozenset[str]) -> Table:
    """Normalise each row's licence and drop what is not permissive, by its package or by a notice in the file."""
    declared = [name or "" for name in table["licence"].to_pylist()]
    known = {name: permissive(name, allowed) for name in set(declared)}
    licences = [known[name] for name in declared]
    reasons = ["" if licence else "licence" for licence in licences]
    for place, text in enumerate(texts_of(table)):
        if text is not None and not reasons[place]:
            if licence := _by_notice(text, licences[place], allowed):
                licences[place] = licence
            else:
                reasons[place] = "licence notice in the file"
    return drop(put(table, licence=licences), reasons)


def _by_notice(text: str, licence: str, allowed: frozenset[str]) -> str:
    """Return a file's licence by its own notices, all of which hold, `licence` where there is none; "" if refused."""
    if "icen" not in text and "ICEN" not in text:
        return "" if _refused(text) else licence
    notices = [notice.strip(" \t/-") for notice in _SPDX.findall(text)] if "SPDX-" in text.upper() else []
    if notices:
        text = _SPDX.sub("", text)
        licence = permissive(" AND ".join(f"({notice})" for notice in sorted(set(notices))), allowed)
    known = all(permissive(re.sub(r"\W+", " ", name), allowed) for name in _UNDER.findall(text))
    return licence if known and not _refused(text) else ""
