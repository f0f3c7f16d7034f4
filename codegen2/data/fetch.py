"""Fetch pinned packages: PyPI by its simple index, npm by the registry's JSON, Debian by Sources and Packages.

Not here: reading what was fetched (archives.py). Nothing is built, installed or imported: a file is found, stored and
its hash compared. Addresses can be changed by PIP_INDEX_URL, NPM_CONFIG_REGISTRY, CODEGEN2_DEBIAN_MIRROR and
CODEGEN2_DEBIAN_SUITE. Index: PEP 503, PEP 691.
"""

from __future__ import annotations

import base64
import html
import json
import lzma
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..files.paths import file_hash, replacing
from .debian import paragraphs
from .manifest import Archive, Item

_MAX_INDEX_BYTES = 200_000_000
_JSON = "application/vnd.pypi.simple.v1+json"


class FetchError(ValueError):
    """A package cannot be had: it is withdrawn, its hash differs, or the network failed."""


def _setting(name: str, default: str) -> str:
    return (os.environ.get(name) or os.environ.get(name.lower()) or default).rstrip("/")


@dataclass
class Fetcher:
    """Fetch into `store`; files that are there already, with the right hash, are not asked for again."""

    store: Path
    pause_s: float = 0.5  # between two requests, out of politeness
    timeout_s: float = 60.0
    tries: int = 3
    max_bytes: int = 2_000_000_000
    _last: float = field(default=0.0, repr=False)
    _lists: dict[str, dict[tuple[str, str], list[Archive]]] = field(default_factory=dict, repr=False)

    def fetch(self, item: Item) -> tuple[Item, list[Path]]:
        """Return the item with its archives pinned, and where they lie.

        Raises FetchError when it is not there, differs from its pinned hash or cannot be reached.
        """
        try:
            return self._fetched(item)
        except FetchError:
            raise
        except Exception as error:
            # A list or a registry may say anything, and the library for HTTP has exceptions of its own.
            why = f"{type(error).__name__}: {error!s:.300}"
            raise FetchError(f"{item}: it or the registry's answer cannot be read ({why})") from error

    def _fetched(self, item: Item) -> tuple[Item, list[Path]]:
        if item.local:
            return item, [Path(item.local)]
        if item.archives:
            paths = [self._stored(item, archive) for archive in item.archives]
            if None not in paths:
                return item, [path for path in paths if path]
        found = self._resolve(item)
        pinned = {archive.name: archive for archive in item.archives}
        wanted = [(a, url) for a, url in found if not pinned or a.name in pinned]
        if pinned and len(wanted) != len(pinned):
            missing = sorted(set(pinned) - {a.name for a, _ in wanted})
            raise FetchError(f"{item}: {', '.join(missing)} is not in the registry any more")
        archives = [pinned.get(archive.name, archive) for archive, _ in wanted]
        paths = [self._download(item, a, url) for a, (_, url) in zip(archives, wanted, strict=True)]
        return replace(item, archives=tuple(archives)), [path for path in paths if path]

    def _place(self, item: Item, archive: Archive) -> Path:
        return self.store / item.registry / archive.name

    def _stored(self, item: Item, archive: Archive) -> Path | None:
        for path in (self._place(item, archive), self.store / archive.name):
            if path.is_file() and _hash_like(archive, path) == archive.hash:
                return path
        return None

    def _download(self, item: Item, archive: Archive, url: str) -> Path:
        if stored := self._stored(item, archive):
            return stored
        path = self._place(item, archive)
        size = 0
        with replacing(path) as draft:
            with self._open(str(item), url) as answer, draft.open("wb") as out:
                while chunk := answer.read(1 << 20):
                    size += len(chunk)
                    if size > self.max_bytes:
                        raise FetchError(f"{item}: {archive.name} is larger than {self.max_bytes} bytes")
                    out.write(chunk)
            found = _hash_like(archive, draft)
            if found != archive.hash:
                raise FetchError(
                    f"{item}: {archive.name} has {found}, pinned is {archive.hash}; do not use it"
                )
        return path

    def _open(self, what: str, url: str, accept: str = "*/*") -> Any:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise FetchError(f"{what}: {url} is no web address")
        request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "codegen2-data"})
        for attempt in range(self.tries):
            time.sleep(max(0.0, self._last + self.pause_s * 2**attempt - time.monotonic()))
            self._last = time.monotonic()
            try:
                return urllib.request.urlopen(request, timeout=self.timeout_s)
            except urllib.error.HTTPError as error:
                error.close()
                if (error.code < 500 and error.code != 429) or attempt + 1 == self.tries:
                    why = "is not there (404)" if error.code == 404 else f"was answered by {error.code}"
                    raise FetchError(f"{what}: {url} {why}") from None
            except OSError as error:
                if attempt + 1 == self.tries:
                    raise FetchError(f"{what}: {url} cannot be reached ({error})") from None
        raise AssertionError("unreachable: the last try returns or raises")

    def _read(self, what: str, url: str, accept: str = "*/*") -> tuple[bytes, str]:
        with self._open(what, url, accept) as answer:
            data = answer.read(_MAX_INDEX_BYTES + 1)
            if len(data) > _MAX_INDEX_BYTES:
                raise FetchError(f"{what}: {url} is larger than an index may be ({_MAX_INDEX_BYTES} bytes)")
            return data, answer.geturl()

    def _resolve(self, item: Item) -> list[tuple[Archive, str]]:
        """Ask the registry for a version's archives: (with the registry's hash, address)."""
        if item.registry == "pypi":
            return [self._pypi(item)]
        if item.registry == "npm":
            return [self._npm(item)]
        return self._debian(item)

    def _pypi(self, item: Item) -> tuple[Archive, str]:
        project = re.sub(r"[-_.]+", "-", item.name).lower()
        base = _setting("PIP_INDEX_URL", "https://pypi.org/simple")
        data, at = self._read(str(item), f"{base}/{project}/", f"{_JSON}, text/html;q=0.2")
        files = list(_pypi_json(data) if data.lstrip()[:1] == b"{" else _pypi_html(data))
        pinned = {archive.name for archive in item.archives}
        ranked = sorted(
            (_wheel_rank(name, project, item.version), name, link, digest)
            for name, link, digest in files
            if (name in pinned if pinned else _wheel_rank(name, project, item.version) >= 0)
        )
        if not ranked:
            raise FetchError(f"{item}: the index has no such version as a wheel or source archive")
        _, name, link, digest = ranked[0]
        return Archive(name, f"sha256:{digest}"), urllib.parse.urljoin(at, link)

    def _npm(self, item: Item) -> tuple[Archive, str]:
        base = _setting("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org")
        place = urllib.parse.quote(item.name, safe="@")  # @scope/name is one path segment there
        data, at = self._read(str(item), f"{base}/{place}/{item.version}")
        dist = json.loads(data)["dist"]
        kind, _, digest = dist["integrity"].split()[0].partition("-")
        if kind != "sha512":
            raise FetchError(f"{item}: the registry gives no sha512")
        name = f"{item.name.removeprefix('@').replace('/', '-')}-{item.version}.tgz"
        pinned = f"sha512:{base64.b64decode(digest).hex()}"
        return Archive(name, pinned), urllib.parse.urljoin(at, dist["tarball"])

    def _debian(self, item: Item) -> list[tuple[Archive, str]]:
        mirror = _setting("CODEGEN2_DEBIAN_MIRROR", "https://deb.debian.org/debian")
        if item.archives and all(archive.path for archive in item.archives):
            return [(a, f"{mirror}/{urllib.parse.quote(a.path)}") for a in item.archives]
        suite = _setting("CODEGEN2_DEBIAN_SUITE", "bookworm")
        place = "source/Sources.xz" if item.registry == "debian-source" else "binary-amd64/Packages.xz"
        url = f"{mirror}/dists/{suite}/main/{place}"
        if url not in self._lists:
            data, _ = self._read(str(item), url)
            unpacked = lzma.LZMADecompressor().decompress(data, most := 20 * max(len(data), 500_000))
            if len(unpacked) == most:
                raise FetchError(f"{item}: {url} unpacks to {most} bytes or more, which no list does")
            parse = _debian_sources if item.registry == "debian-source" else _debian_packages
            self._lists[url] = parse(unpacked.decode("utf-8"))
        found = self._lists[url].get((item.name, item.version))
        if not found:
            raise FetchError(f"{item}: the list of {suite} has no such version; it may have moved on")
        return [(a, f"{mirror}/{urllib.parse.quote(a.path)}") for a in found]


def _hash_like(archive: Archive, path: Path) -> str:
    """Return "KIND:HEX" of a file, of the kind that the archive is pinned by."""
    kind = archive.hash.partition(":")[0]
    return f"{kind}:{file_hash(path, kind)}"


def _pypi_json(data: bytes) -> Iterator[tuple[str, str, str]]:
    for file in json.loads(data)["files"]:
        yield file["filename"], file["url"], file["hashes"].get("sha256", "")


def _pypi_html(data: bytes) -> Iterator[tuple[str, str, str]]:
    for link in re.findall(r"<a[^<>]*\bhref=[\"']([^\"']+)[\"']", data.decode("utf-8"), re.IGNORECASE):
        address, _, digest = html.unescape(link).partition("#sha256=")
        yield urllib.parse.unquote(address.rpartition("/")[2]), address, digest


def _wheel_rank(name: str, project: str, version: str) -> int:
    """Rank a file of a project for a version: pure wheels first, then Linux ones, then sources; -1: not this version.

    >>> [_wheel_rank(n, "a-b", "1.0") for n in ("a_b-1.0-py3-none-any.whl", "a-b-1.0.tar.gz", "a_b-1.1.tar.gz")]
    [0, 4, -1]
    """
    stem, kind = name, 4
    if name.endswith(".whl"):
        parts = name.removesuffix(".whl").split("-")
        if len(parts) < 5:
            return -1
        stem = "-".join(parts[:2])
        python, platform = parts[-3], parts[-1]
        linux = "manylinux" in platform and "x86_64" in platform
        kind = 0 if platform == "any" else 5 if not linux else 1 if python == "cp311" else 2
        if parts[-2] == "abi3" and linux:
            kind = 2
        elif kind == 2 and "t" in parts[-2]:
            kind = 3  # a build for free threads
    else:
        for suffix in (".tar.gz", ".tar.bz2", ".tar.xz", ".zip"):
            stem = stem.removesuffix(suffix)
        if stem == name:
            return -1
    head, _, found = stem.rpartition("-")
    same = re.sub(r"[-_.]+", "-", head).lower() == project
    return kind if same and found == version else -1


def _debian_sources(text: str) -> dict[tuple[str, str], list[Archive]]:
    found = {}
    for fields in paragraphs(text):
        archives = []
        for line in fields.get("checksums-sha256", "").split("\n"):
            words = line.split()
            if len(words) == 3 and ".tar." in words[2] and not words[2].endswith(".asc"):
                path = f"{fields['directory']}/{words[2]}"
                archives.append(Archive(words[2], f"sha256:{words[0]}", int(words[1]), path))
        found[fields["package"], fields["version"]] = sorted(archives, key=lambda a: a.name)
    return found


def _debian_packages(text: str) -> dict[tuple[str, str], list[Archive]]:
    found = {}
    for fields in paragraphs(text):
        path = fields["filename"]
        archive = Archive(path.rpartition("/")[2], f"sha256:{fields['sha256']}", int(fields["size"]), path)
        found[fields["package"], fields["version"]] = [archive]
    return found
