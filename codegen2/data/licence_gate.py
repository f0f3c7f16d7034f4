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
from .licences import COPYLEFT_WORDS, permissive
from .rows import Table, drop, put, texts_of

_HEAD = 3000  # characters of a file in which its own notice stands
_SPDX = re.compile(r"SPDX-License-Identifier:\s*([^\n*]+)")
_OTHERS = re.compile(
    r"Ms-PL|Microsoft (Public|Reciprocal) License|Eclipse Public License|Common Development and Distribution License"
    r"|\bCDDL\b|NonCommercial|proprietary and confidential|Commons Clause|Business Source License",
    re.IGNORECASE,
)
_PHRASES = (
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("MIT", ("permission is hereby granted, free of charge, to any person obtaining a copy", "sublicense")),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose with or",)),
    ("BSL-1.0", ("boost software license - version 1.0",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
)
_COPYLEFT_TEXT = ("general public license", "mozilla public license", "eclipse public license", "cc-by-nc")


def licence_of_text(text: str) -> str:
    """Recognise the text of a well-known permissive licence; "" is any other, and any that also names a copyleft one.

    >>> licence_of_text("Boost Software License - Version 1.0")
    'BSL-1.0'
    """
    plain = " ".join(text.lower().split())
    # Python's own tells its history, in which other licences are named.
    if (
        plain.startswith("a. history of the software")
        and "python software foundation license version 2" in plain
    ):
        return "PSF-2.0"
    if any(phrase in plain for phrase in _COPYLEFT_TEXT):
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
    recognised = {licence_of_text(text) for name, text in files.items() if is_licence_file(name)}
    if not recognised:
        return ""
    return " AND ".join(sorted(recognised)) if all(recognised) else "unrecognised licence file"


def is_licence_file(path: str) -> bool:
    """Return whether a file holds a licence or a notice, by its name.

    >>> is_licence_file("pkg/LICENSE.txt"), is_licence_file("licenses.py")
    (True, False)
    """
    return bool(
        re.fullmatch(r"(licen[cs]e|copying|notice)([-_.](mit|apache|bsd|isc))?(\.(txt|md|rst))?",
                     path.rpartition("/")[2].lower())
    )  # fmt: skip


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
            reasons[place], licences[place] = _by_notice(text[:_HEAD], licences[place], allowed)
    return drop(put(table, licence=licences), reasons)


def _by_notice(head: str, licence: str, allowed: frozenset[str]) -> tuple[str, str]:
    if spdx := _SPDX.search(head):
        found = permissive(re.sub(r"\s*(\*/|-->|#}|\"\"\").*$", "", spdx[1]).strip(), allowed)
        return ("", found) if found else ("licence notice in the file", licence)
    found_other = COPYLEFT_WORDS.search(head) or _OTHERS.search(head)
    return ("licence notice in the file", licence) if found_other else ("", licence)
