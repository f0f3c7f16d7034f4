"""The stages that judge a row by itself: the quality rules, and the masking of secrets and of people's addresses.

Not here: licences (licence_gate.py), benchmarks (benchmark.py), duplicates (minhash.py). The quality rules are those of
stages.py, with the generated names of all languages. Masked are e-mail and network
addresses and keys, as for StarCoder.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
from collections import Counter

from .rows import Table, drop, put, texts_of
from .stages import Rules, SourceFile, why_unclean

_STUB = re.compile(r"\.d\.[cm]?ts$|\.pyi$")
_GENERATED = re.compile(
    r"\.pb\.(go|cc|h|dart)$|_pb2?\.(js|rb|d\.ts)$|\.pb\.gw\.go$|_grpc\.pb\.|zz_generated|[._]generated\.|\.gen\.\w+$"
    r"|\.min\.(js|mjs|css)$|[.-]min\.js$|\.(g|freezed|gr|mocks)\.dart$|\.(designer|g|g\.i)\.cs$|\.bundle\.js$|\.umd\.js$"
    r"|(^|/)(bindata|parser\.tab|lex\.yy|y\.tab)\.(go|c|h)$",
    re.IGNORECASE,
)
_EMAIL = re.compile(
    r"(?<![\w.+%/@:-])[A-Za-z0-9][\w.+%-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,5}([a-z]{2,10})\b"
    r"(?![(/:\w@-])"
)
_GENERIC_DOMAINS = frozenset(
    {
        "com",
        "org",
        "net",
        "edu",
        "gov",
        "mil",
        "int",
        "info",
        "biz",
        "name",
        "dev",
        "app",
        "email",
        "tech",
        "online",
    }
)
_NOBODY = re.compile(
    r"@(example|test|localhost|domain|email|host|foo|bar)\.|\.(example|test|invalid)$|no-?reply@|^git@", re.I
)
_KEY_BLOCK = re.compile(
    r"-----BEGIN ([A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?)-----.{1,20000}?-----END \1-----", re.DOTALL
)
_TOKEN = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{50,}\b|\bglpat-[\w-]{20,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}\b|\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}|\bsk_live_[A-Za-z0-9]{16,}"
    r"|\bnpm_[A-Za-z0-9]{36}\b|\bpypi-AgE[\w-]{50,}|\bhf_[A-Za-z]{30,}\b|\bSG\.[\w-]{16,}\.[\w-]{16,}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}"
)
_VALUE = re.compile(r"(?<=[\"'])[A-Za-z0-9+/=_-]{20,200}(?=[\"'])")
_NAMED_SECRET = re.compile(
    r"""(?i)(password|passwd|secret|token|api_?key|access_?key|private_?key|auth)\w{0,20}["']?\s*[:=]\s*["']$"""
)
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}(?::[0-9a-fA-F]{0,4}){3,7}(?![\w:.])")
_VERSION_BEFORE = re.compile(r"(?i)(version\w*|release|\bv|[<>=~^]=?|build|oid|section|\u00a7)\W{0,6}$")
_WELL_KNOWN = frozenset({"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"})
_LEAST_ENTROPY = 4.2  # bits a character; words of a language and names stay below


def quality(table: Table, rules: Rules) -> Table:
    """Drop stubs, generated and vendored files, and what the rules of size, line length and letters refuse."""
    paths = table["path"].to_pylist()
    reasons = []
    for path, text in zip(paths, texts_of(table), strict=True):
        if text is None:
            reasons.append("")
        elif _STUB.search(path):
            reasons.append("stub")
        elif _GENERATED.search(path):
            reasons.append("generated")
        else:
            # The licence gate looks at notices.
            reasons.append(why_unclean(SourceFile("", "", "", path, text), rules, check_notice=False))
    return drop(table, reasons)


def opt_out(table: Table, patterns: re.Pattern[str]) -> Table:
    """Drop rows whose "registry/package/path" matches: people may ask to be left out."""
    columns = (table[name].to_pylist() for name in ("registry", "package", "path"))
    return drop(
        table,
        ["opted out" if patterns.match("/".join(names)) else "" for names in zip(*columns, strict=True)],
    )


def mask(table: Table) -> Table:
    """Put <EMAIL>, <KEY> and private addresses in the place of what could be a person's or a secret; count them."""
    texts, counts = [], []
    for text in texts_of(table):
        masked, found = (None, [0, 0, 0]) if text is None else mask_text(text)
        texts.append(masked)
        counts.append(found)
    sizes = [
        size if text is None else len(text.encode("utf-8"))
        for size, text in zip(table["bytes"].to_pylist(), texts, strict=True)
    ]
    return put(table, text=texts, masked=counts, bytes=sizes)


def mask_text(text: str) -> tuple[str, list[int]]:
    """Return the text without secrets and addresses, and how many e-mail addresses, keys and network addresses went.

    >>> mask_text("# Ann Lee <ann.lee@uni-x.edu>, host 52.95.110.1")
    ('# Ann Lee <<EMAIL>>, host 10.202.246.79', [1, 0, 1])
    """
    found: Counter[str] = Counter()

    def email(match: re.Match[str]) -> str:
        domain = match[1]
        if _NOBODY.search(match[0]) or (len(domain) != 2 and domain not in _GENERIC_DOMAINS):
            return match[0]
        found["email"] += 1
        return "<EMAIL>"

    def key(match: re.Match[str]) -> str:
        found["key"] += 1
        return "<KEY>"

    def assigned(match: re.Match[str]) -> str:
        value = match[0]
        if _entropy(value) < _LEAST_ENTROPY or not re.search(r"\d", value):
            return value
        if not _NAMED_SECRET.search(text, max(0, match.start() - 60), match.start()):
            return value
        found["key"] += 1
        return "<KEY>"

    def address(match: re.Match[str]) -> str:
        if not _is_public(match[0]) or _VERSION_BEFORE.search(
            text, max(0, match.start() - 24), match.start()
        ):
            return match[0]
        found["address"] += 1
        return _private(match[0])

    # Network addresses first: the pattern looks back into the text as it is.
    text = _IPV4.sub(address, text)
    if ":" in text:
        text = _IPV6.sub(address, text)
    if "@" in text:
        text = _EMAIL.sub(email, text)
    if "PRIVATE KEY" in text:
        text = _KEY_BLOCK.sub(key, text)
    text = _TOKEN.sub(key, text)
    text = _VALUE.sub(assigned, text)
    return text, [found["email"], found["key"], found["address"]]


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if text in _WELL_KNOWN or not address.is_global or address.is_multicast:
        return False
    # 1.2.3.4 and 2.0.0.0 are rather examples and versions.
    return address.version == 6 or (int(address) >> 24 >= 12 and not text.endswith(".0"))


def _private(address: str) -> str:
    digest = hashlib.sha256(address.encode()).digest()
    if ":" in address:
        return f"fd00::{digest[0] << 8 | digest[1]:x}:{digest[2] << 8 | digest[3]:x}"
    return f"10.{digest[0]}.{digest[1]}.{digest[2]}"


def _entropy(text: str) -> float:
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def hashes(table: Table) -> Table:
    """Fill in sha256 (of the text) and key (of the text without white space)."""
    whole, bare = [], []
    for text in texts_of(table):
        whole.append(None if text is None else hashlib.sha256(text.encode()).digest())
        bare.append(None if text is None else hashlib.sha256("".join(text.split()).encode()).digest()[:16])
    return put(table, sha256=whole, key=bare)
