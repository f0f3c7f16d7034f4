"""Fetching, against a registry of our own on this machine: pins, hashes, withdrawn and wrong files, retries."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import json
import lzma
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen2.data.build import fetch_all
from codegen2.data.cli import LISTS, own_list
from codegen2.data.fetch import Fetcher, FetchError
from codegen2.data.manifest import Archive, Item, family, local_items, read_manifest, split_of, write_lock

CONTENT = b"the archive"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Registry:
    """What is served, by path, and what was asked for; a path in `failing` answers 503 so many times first."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failing: dict[str, int] = {}
        self.address = ""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    found = Registry()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            page = found.pages.get(self.path)
            status = 200 if page is not None else 404
            if found.failing.get(self.path, 0):
                found.failing[self.path] -= 1
                status = 503
            self.send_response(status)
            self.end_headers()
            self.wfile.write(page if page is not None and status == 200 else b"")

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("PIP_INDEX_URL", f"{found.address}/simple/")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"{found.address}/npm")
    monkeypatch.setenv("CODEGEN2_DEBIAN_MIRROR", f"{found.address}/debian")
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def pypi_page(*names: str, digest: str = SHA256) -> bytes:
    files = [{"filename": n, "url": f"../../files/{n}", "hashes": {"sha256": digest}} for n in names]
    return json.dumps({"files": files}).encode()


PURE, SDIST = "some_pkg-1.0-py3-none-any.whl", "some_pkg-1.0.tar.gz"
ITEM = Item("pypi", "some-pkg", "1.0")


def test_pypi_by_json_and_html(registry: Registry, tmp_path: Path) -> None:
    registry.pages = {
        "/simple/some-pkg/": pypi_page(SDIST, PURE, "some_pkg-1.1-py3-none-any.whl"),
        f"/files/{PURE}": CONTENT,
    }
    item, paths = Fetcher(tmp_path, pause_s=0).fetch(ITEM)
    assert item.archives == (Archive(PURE, f"sha256:{SHA256}"),)
    assert paths == [tmp_path / "pypi" / PURE] and paths[0].read_bytes() == CONTENT
    link = f'<a href="../../files/{PURE}#sha256={SHA256}" data-x="">{PURE}</a>'
    registry.pages["/simple/some-pkg/"] = f"<html>{link}</html>".encode()
    assert Fetcher(tmp_path / "b", pause_s=0).fetch(ITEM)[0] == item


def test_what_is_there_is_not_asked_for_again(registry: Registry, tmp_path: Path) -> None:
    registry.pages = {"/simple/some-pkg/": pypi_page(PURE), f"/files/{PURE}": CONTENT}
    item, _ = Fetcher(tmp_path, pause_s=0).fetch(ITEM)
    registry.asked.clear()
    assert Fetcher(tmp_path, pause_s=0).fetch(item)[0] == item
    assert registry.asked == []
    (tmp_path / "pypi" / PURE).write_bytes(b"spoiled")
    assert Fetcher(tmp_path, pause_s=0).fetch(item)[1][0].read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    registry.pages = {"/simple/some-pkg/": pypi_page(PURE), f"/files/{PURE}": b"other bytes"}
    with pytest.raises(FetchError, match="pinned is sha256:"):
        Fetcher(tmp_path, pause_s=0).fetch(ITEM)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    # The registry's own hash agrees with its bytes, but the lock pins others.
    registry.pages["/simple/some-pkg/"] = pypi_page(PURE, digest=hashlib.sha256(b"other bytes").hexdigest())
    pinned = Item("pypi", "some-pkg", "1.0", archives=(Archive(PURE, f"sha256:{SHA256}"),))
    with pytest.raises(FetchError, match=f"pinned is sha256:{SHA256}"):
        Fetcher(tmp_path, pause_s=0).fetch(pinned)


def test_npm_with_a_scope(registry: Registry, tmp_path: Path) -> None:
    sri = "sha512-" + base64.b64encode(hashlib.sha512(CONTENT).digest()).decode()
    dist = {"dist": {"tarball": f"{registry.address}/t/b-2.tgz", "integrity": sri}}
    registry.pages = {"/npm/@a%2Fb/2.0.0": json.dumps(dist).encode(), "/t/b-2.tgz": CONTENT}
    item, paths = Fetcher(tmp_path, pause_s=0).fetch(Item("npm", "@a/b", "2.0.0"))
    assert paths[0].name == "a-b-2.0.0.tgz"
    assert item.archives[0].hash == "sha512:" + hashlib.sha512(CONTENT).hexdigest()


def test_debian_sources_and_packages(registry: Registry, tmp_path: Path) -> None:
    sources = (
        f"Package: zlib\nVersion: 1:1.2-1\nDirectory: pool/z\nChecksums-Sha256:\n {SHA256} 11 zlib_1.2.dsc\n"
        f" {SHA256} 11 zlib_1.2.orig.tar.gz\n {SHA256} 11 zlib_1.2-1.debian.tar.xz\n\n"
    )
    packages = (
        f"Package: lua-x\nVersion: 1-1\nFilename: pool/l/lua-x_1-1_all.deb\nSize: 11\nSHA256: {SHA256}\n\n"
    )
    registry.pages = {
        "/debian/dists/bookworm/main/source/Sources.xz": lzma.compress(sources.encode()),
        "/debian/dists/bookworm/main/binary-amd64/Packages.xz": lzma.compress(packages.encode()),
        "/debian/pool/z/zlib_1.2.orig.tar.gz": CONTENT, "/debian/pool/z/zlib_1.2-1.debian.tar.xz": CONTENT,
        "/debian/pool/l/lua-x_1-1_all.deb": CONTENT,
    }  # fmt: skip
    fetcher = Fetcher(tmp_path, pause_s=0)
    item, paths = fetcher.fetch(Item("debian-source", "zlib", "1:1.2-1"))
    assert [p.name for p in paths] == ["zlib_1.2-1.debian.tar.xz", "zlib_1.2.orig.tar.gz"]
    assert fetcher.fetch(Item("debian", "lua-x", "1-1"))[1][0].name == "lua-x_1-1_all.deb"
    registry.asked.clear()
    assert Fetcher(tmp_path / "b", pause_s=0).fetch(item)[0] == item  # a lock needs no list
    assert len(registry.asked) == 2


def test_a_missing_item_is_reported_and_the_rest_fetched(registry: Registry, tmp_path: Path) -> None:
    registry.pages = {"/simple/some-pkg/": pypi_page(PURE), f"/files/{PURE}": CONTENT}
    gone = [Item("pypi", "gone", "1.0"), Item("pypi", "some-pkg", "9.9"), Item("debian-source", "x", "1")]
    found, missing = fetch_all([*gone, ITEM], Fetcher(tmp_path, pause_s=0))
    assert [item.name for item, _ in found] == ["some-pkg"]
    assert [entry["item"] for entry in missing] == [str(item) for item in gone]
    assert "404" in missing[0]["why"] and "no such version" in missing[1]["why"]


def test_a_server_in_trouble_is_asked_again(registry: Registry, tmp_path: Path) -> None:
    registry.pages = {"/simple/some-pkg/": pypi_page(PURE), f"/files/{PURE}": CONTENT}
    registry.failing = {"/simple/some-pkg/": 2}
    Fetcher(tmp_path, pause_s=0).fetch(ITEM)
    registry.failing = {f"/files/{PURE}": 3}
    with pytest.raises(FetchError, match="answered by 503"):
        Fetcher(tmp_path / "b", pause_s=0).fetch(ITEM)


@pytest.mark.parametrize("name", ["../../evil-1.0-py3-none-any.whl", "a/evil-1.0-py3-none-any.whl"])
def test_a_registry_cannot_choose_the_place(registry: Registry, tmp_path: Path, name: str) -> None:
    registry.pages = {"/simple/evil/": pypi_page(name), f"/files/{name}": CONTENT}
    with pytest.raises(FetchError):
        Fetcher(tmp_path, pause_s=0).fetch(Item("pypi", "evil", "1.0"))
    assert not list(tmp_path.parent.rglob("evil*"))


def test_manifests(tmp_path: Path) -> None:
    table = tmp_path / "list.tsv"
    table.write_text(
        "registry\tname\tversion\tlicence\tlanguage\npypi\tb\t1\tMIT\tc\npypi\tb\t1\tMIT\tgo\nnpm\ta\t2\t\t\n"
    )
    items = read_manifest(table)
    packed = tmp_path / "list.tsv.gz"
    packed.write_bytes(gzip.compress(table.read_bytes()))
    assert read_manifest(packed) == items
    assert [str(item) for item in items] == ["npm/a 2", "pypi/b 1"]
    pinned = [Item("pypi", "b", "1", "MIT", "train", (Archive("b-1.tar.gz", f"sha256:{SHA256}", 11),))]
    write_lock(tmp_path / "lock.jsonl", pinned)
    assert read_manifest(tmp_path / "lock.jsonl") == pinned
    for bad in ("x\tb\t1", "pypi\t../b\t1", "pypi\tb\t", "pypi\tb\t1\npypi\tb\t2"):
        table.write_text("registry\tname\tversion\n" + bad + "\n")
        with pytest.raises(ValueError, match=r"list\.tsv"):
            read_manifest(table)
    for row in (
        {"extra": 1},
        {"archives": [{"name": "../x", "hash": f"sha256:{SHA256}"}]},
        {"split": "test"},
    ):
        (tmp_path / "lock.jsonl").write_text(
            json.dumps({"registry": "pypi", "name": "b", "version": "1"} | row)
        )
        with pytest.raises(ValueError, match=r"lock\.jsonl: line 1"):
            read_manifest(tmp_path / "lock.jsonl")


def test_kin_stay_together(tmp_path: Path) -> None:
    splits = {split_of(name, "", 0.5, 1) for name in ("flet", "flet-map", "flet_video", "python-flet")}
    assert len(splits) == 1
    assert {split_of(f"p{i}", "", 0.5, 1) for i in range(20)} == {"train", "heldout"}
    assert split_of("p", "heldout", 0.0, 1) == "heldout"
    table = tmp_path / "l.tsv"
    table.write_text("registry\tname\tversion\tsplit\npypi\ta-x\t1\ttrain\nnpm\t@a/y\t1\theldout\n")
    assert family("a-x") == family("@a/y")
    with pytest.raises(ValueError, match="torn apart"):
        read_manifest(table)


def test_the_lists_that_come_along_are_sound() -> None:
    lists = {name: read_manifest(own_list(name)) for name in LISTS}
    starter = lists["starter"]
    assert 20 <= len(starter) <= 60 and all(item.archives and item.licence for item in starter)
    assert {item.registry for item in starter} == {"pypi", "npm", "debian", "debian-source"}
    assert all(len(item.archives) and item.licence and not item.split for item in lists["box"])
    assert len(lists["box"]) == 113
    nano, algorithms = lists["nano"], lists["algorithms"]
    assert all(len(item.archives) == 1 and item.split for item in [*nano, *algorithms])
    # Nobody's kin stands on both sides.
    held = {family(item.name) for item in nano if item.split == "heldout"}
    assert len(held) == 16
    assert held.isdisjoint(family(item.name) for item in [*nano, *algorithms] if item.split == "train")


def test_local_items(tmp_path: Path) -> None:
    (tmp_path / "some_pkg-1.0.tar.gz").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    assert [(i.name, i.version) for i in local_items(tmp_path, "MIT")] == [("some-pkg", "1.0")]
    (tmp_path / "project").mkdir()
    assert [i.name for i in local_items(tmp_path / "project")] == ["project"]
    with pytest.raises(ValueError, match=r"notes\.txt"):
        local_items(tmp_path / "notes.txt")
