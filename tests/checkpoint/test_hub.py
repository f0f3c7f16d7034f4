"""resolve against a stub of the hub's HTTP interface: which files are asked for, which names, what offline means."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from checkpoint_files import GOLDENS, golden, write_checkpoint

from codegen2.checkpoint import hub
from codegen2.checkpoint.hub import hub_names, resolve
from codegen2.checkpoint.weights import open_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by name, each a dict of revisions to directories; and the log of what was asked."""

    repos: dict[str, dict[str, Path]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)  # METHOD repository file-or-"info" revision
    sizes: dict[str, int] = field(default_factory=dict)  # what the hub claims, where it differs
    gated: set[str] = field(default_factory=set)
    url: str = ""

    def add(self, name: str, directory: Path, *revisions: str) -> None:
        for revision in (*revisions, "main", COMMIT):
            self.repos.setdefault(name, {})[revision] = directory

    def downloaded(self) -> list[str]:
        return [line.split()[2] for line in self.log if line.startswith("GET") and " info " not in line]


class Handler(BaseHTTPRequestHandler):
    """/api/models/NAME[/revision/R] and /NAME/resolve/R/FILE, as the hub answers them."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, self.command == "GET")

    def _answer(self, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, file = "/".join(parts[2:4]), "info"
            revision = "/".join(parts[5:]) if len(parts) > 5 else "main"
        else:
            name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        self.hub.log.append(f"{self.command} {name} {file} {revision}")
        if name not in self.hub.repos:
            return self._error(401, "RepoNotFound")
        if name in self.hub.gated:
            return self._error(403, "GatedRepo")
        directory = self.hub.repos[name].get(revision)
        if directory is None:
            return self._error(404, "RevisionNotFound")
        if file == "info":
            siblings = [
                {"rfilename": p.name, "size": self.hub.sizes.get(p.name, p.stat().st_size)}
                for p in sorted(directory.iterdir())
            ]
            info = {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": COMMIT,
                "private": False,
                "siblings": siblings,
            }
            return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        path = directory / file
        if not path.is_file():
            return self._error(404, "EntryNotFound")
        data, status = path.read_bytes(), 200
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        return self._send(status, data, headers, body)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub use a cache of the test's; it reads the environment at import only."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    for name in ("CODEGEN2_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def released(tmp_path: Path, form: str = "bin", shards: int = 1) -> Path:
    """Return a directory with all that a release holds, most of it not needed."""
    raw, tensors, _ = golden("tiny-mp8")
    directory = write_checkpoint(tmp_path / f"hub-{form}-{shards}", raw, tensors, form, shards)
    for name in (
        "README.md", "modeling_codegen.py", "vocab.json", "merges.txt", "tokenizer.json", ".gitattributes",
        "tf_model.h5",
    ):  # fmt: skip
        (directory / name).write_text("{}")
    return directory


@pytest.mark.parametrize(
    ("form", "shards", "weights"),
    [
        ("bin", 1, ["pytorch_model.bin"]),
        ("safetensors", 1, ["model.safetensors"]),
        (
            "bin", 2,
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        ),
        (
            "safetensors", 2,
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
    ],
)  # fmt: skip
def test_only_the_needed_files(stub: Hub, tmp_path: Path, form: str, shards: int, weights: list[str]) -> None:
    stub.add("someone/model", released(tmp_path, form, shards))
    got = resolve("someone/model")
    wanted = sorted(["config.json", "tokenizer.json", *weights])
    assert sorted(stub.downloaded()) == wanted
    assert sorted(p.name for p in got.iterdir()) == wanted
    assert open_weights(got).groups == 8
    stub.log.clear()
    assert resolve("someone/model") == got
    assert stub.downloaded() == []


def test_safetensors_is_preferred_to_bin(stub: Hub, tmp_path: Path) -> None:
    directory = released(tmp_path, "bin", 2)
    shutil.copytree(released(tmp_path, "safetensors", 1), directory, dirs_exist_ok=True)
    stub.add("someone/model", directory)
    resolve("someone/model")
    assert sorted(stub.downloaded()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_goldens_as_they_are(stub: Hub, tmp_path: Path) -> None:
    stub.add("someone/tiny-mp4", GOLDENS / "tiny-mp4")
    got = resolve("someone/tiny-mp4")
    assert "expected.safetensors" not in stub.downloaded()
    assert open_weights(got).groups == 4


# Names


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("1B", ["Salesforce/codegen2-1B_P", "Salesforce/codegen2-1B"]),
        ("3.7b", ["Salesforce/codegen2-3_7B_P", "Salesforce/codegen2-3_7B"]),
        ("codegen2-7B", ["Salesforce/codegen2-7B_P", "Salesforce/codegen2-7B"]),
        ("Salesforce/codegen2-16B", ["Salesforce/codegen2-16B", "Salesforce/codegen2-16B_P"]),
        ("Salesforce/codegen2-16B_P", ["Salesforce/codegen2-16B_P", "Salesforce/codegen2-16B"]),
        ("Salesforce/codegen2-3_7B_P", ["Salesforce/codegen2-3_7B_P", "Salesforce/codegen2-3_7B"]),
        ("Salesforce/codegen2-2B", ["Salesforce/codegen2-2B"]),
        ("mirror/codegen2-1B", ["mirror/codegen2-1B"]),
    ],
)
def test_hub_names(name: str, names: list[str]) -> None:
    assert hub_names(name) == names


@pytest.mark.parametrize("there", ["Salesforce/codegen2-1B", "Salesforce/codegen2-1B_P"])
@pytest.mark.parametrize("asked", ["1B", "codegen2-1B", "Salesforce/codegen2-1B", "Salesforce/codegen2-1B_P"])
def test_old_and_new_names_both_lead_there(stub: Hub, tmp_path: Path, asked: str, there: str) -> None:
    stub.add(there, released(tmp_path))
    open_weights(resolve(asked))
    assert stub.log[0].split()[1] == hub_names(asked)[0]
    assert {line.split()[1] for line in stub.log if "info" not in line} == {there}


def test_a_directory_wins(stub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1B").mkdir()
    assert resolve("1B") == Path("1B")
    assert resolve(GOLDENS) == GOLDENS
    assert stub.log == []
    with pytest.raises(ValueError, match="local directory, which has no revision 'v1'"):
        resolve("1B", "v1")


def test_revision(stub: Hub, tmp_path: Path) -> None:
    stub.add("someone/model", released(tmp_path), "v1.0")
    resolve("someone/model", "v1.0")
    assert {line.split()[3] for line in stub.log} == {"v1.0"}
    with pytest.raises(ValueError, match="someone/model: has no revision 'v9'; leave it out"):
        resolve("someone/model", "v9")


# Errors: one sentence with a remedy


@pytest.mark.parametrize(
    "name", ["./none", "/none/such", "a/b/c", "~/none", "a b", "", "..x", "https://hub/x"]
)
def test_what_cannot_be_a_name_is_a_missing_directory(stub: Hub, name: str) -> None:
    with pytest.raises(ValueError, match="no such directory, and no hub name"):
        resolve(name)
    assert stub.log == []


def test_names_that_only_the_library_refuses(stub: Hub) -> None:
    with pytest.raises(ValueError, match="no such directory, and no hub name"):
        resolve("a--b/c..d")


def test_unknown_name(stub: Hub, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"7B: http.* knows no Salesforce/codegen2-7B_P or Salesforce/codegen2-7B; "
    ):
        resolve("7B")


def test_gated(stub: Hub, tmp_path: Path) -> None:
    stub.add("someone/model", released(tmp_path))
    stub.gated.add("someone/model")
    with pytest.raises(ValueError, match="someone/model: the hub asks you to accept its terms"):
        resolve("someone/model")


def test_no_weights_or_a_lacking_shard(stub: Hub, tmp_path: Path) -> None:
    directory = released(tmp_path, "bin", 2)
    (directory / "pytorch_model-00002-of-00002.bin").unlink()
    stub.add("someone/model", directory)
    with pytest.raises(
        ValueError, match="the hub lacks pytorch_model-00002-of-00002.bin, which pytorch_model.bin.index"
    ):
        resolve("someone/model")
    (directory / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors or .* on the hub"):
        resolve("someone/model")


def test_index_that_leads_elsewhere(stub: Hub, tmp_path: Path) -> None:
    directory = released(tmp_path, "bin", 2)
    (directory / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../../secret.bin"}}')
    stub.add("someone/model", directory)
    with pytest.raises(ValueError, match="do not trust"):
        resolve("someone/model")
    assert not any("secret" in line for line in stub.log)


def test_disk_is_asked_before_the_download(stub: Hub, tmp_path: Path) -> None:
    stub.add("someone/model", released(tmp_path))
    stub.sizes["pytorch_model.bin"] = 10**18
    with pytest.raises(
        ValueError, match=r"disk: downloading someone/model .* free; take a smaller model \(1B is 4\.1 GB\)"
    ):
        resolve("someone/model")
    assert "pytorch_model.bin" not in stub.downloaded()


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    for name in ("CODEGEN2_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match=r"someone/model: http://127\.0\.0\.1:9 could not be asked .* CODEGEN2_OFFLINE=1"
    ):
        resolve("someone/model")


# Offline


@pytest.mark.parametrize("variable", ["CODEGEN2_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_uses_the_cache_only(
    stub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    stub.add("Salesforce/codegen2-1B", released(tmp_path, "bin", 2))
    online = resolve("1B")
    stub.log.clear()
    monkeypatch.setenv(variable, "1")
    assert resolve("1B") == online
    assert resolve("Salesforce/codegen2-1B_P") == online
    assert resolve("1B", COMMIT) == online
    with pytest.raises(
        ValueError, match="3.7B: it is not in the local cache, and this is offline; unset CODEGEN2_OFF"
    ):
        resolve("3.7B")
    with pytest.raises(ValueError, match="1B at revision v2: it is not in the local cache"):
        resolve("1B", "v2")
    (online / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(
        ValueError, match="pytorch_model-00002-of-00002.bin of Salesforce/codegen2-1B are not in the local"
    ):
        resolve("1B")
    (online / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(
        ValueError, match=r"its weights \(model\.safetensors or .*\) are not in the local cache"
    ):
        resolve("1B")
    assert stub.log == []


def test_what_is_here(stub: Hub, tmp_path: Path) -> None:
    assert hub.downloaded() == []
    stub.add("Salesforce/codegen2-7B_P", released(tmp_path))
    stub.add("someone/model", released(tmp_path))
    resolve("someone/model")
    assert hub.local_directory("7B") is None
    got = resolve("7B")
    assert hub.local_directory("7B") == got
    assert hub.local_directory("Salesforce/codegen2-7B") == got
    [(name, folder, size)] = hub.downloaded()  # another's model is not ours to list
    assert (name, got.is_relative_to(folder)) == ("Salesforce/codegen2-7B_P", True)
    assert sum(p.stat().st_size for p in got.iterdir()) <= size < 2_300_000
    broken = tmp_path / "cache" / "models--Salesforce--codegen2-16B_P" / "blobs" / "0.incomplete"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(bytes(1000))
    assert hub.downloaded()[1:] == [("Salesforce/codegen2-16B_P", broken.parents[1], 1000)]


@pytest.mark.parametrize(
    ("value", "means"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("", False)]
)
def test_offline_words(monkeypatch: pytest.MonkeyPatch, value: str, means: bool) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("CODEGEN2_OFFLINE", value)
    assert hub.offline() is means


def test_no_progress_bars_without_a_terminal(
    stub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """huggingface_hub draws them on a terminal only; we rely on it."""
    stub.add("someone/model", released(tmp_path))
    resolve("someone/model")
    assert capfd.readouterr() == ("", "")
