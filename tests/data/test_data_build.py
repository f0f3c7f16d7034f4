"""Whole builds from archives made here: the same bytes for any number of workers, any engine, and after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

from codegen2.cli.main import main
from codegen2.data import build as builder
from codegen2.data.engines import LocalEngine
from codegen2.data.fetch import Fetcher
from codegen2.data.manifest import Item, local_items
from codegen2.data.prepare import Config
from codegen2.data.tokens import tokenise
from codegen2.files.shards import Shard

CONFIG = Config(heldout_share=0.0, decontaminate=False, shard_bytes=6000, max_test_share=1.0)

SPLIT = dataclasses.replace(CONFIG, heldout_share=0.4)


def code(word: str, n: int = 30) -> str:
    return "".join(f"{word}_{i} = make_{word}({i}, '{word}')\n" for i in range(n))


def wheel(folder: Path, name: str, files: dict[str, str], licence: str = "MIT") -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        head = f"{name}-1.0.dist-info"
        archive.writestr(f"{head}/METADATA", f"Name: {name}\nLicense-Expression: {licence}\n")
        archive.writestr(f"{head}/licenses/LICENSE", f"licence of {licence}")
        for path, text in files.items():
            archive.writestr(path, text)


def tarball(folder: Path, name: str, files: dict[str, str]) -> None:
    with tarfile.open(folder / name, "w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))


def sources(folder: Path, n: int = 5) -> Path:
    """Make packages: n wheels with twins, a refused one, an npm package, a broken archive, one Parquet file."""
    folder.mkdir()
    for p in range(n):
        files = {f"p{p}/{i}.py": code(f"w{p}x{i}") for i in range(6)}
        files["p/same.py"] = code("same")
        files[f"p{p}/near.py"] = code("near", 60) + f"own_{p} = {p}\n"
        files[f"p{p}/mail.py"] = code(f"mail{p}") + "# ann@lee.org\n"
        wheel(folder, f"pack{p}", files)
    wheel(folder, "secret", {"s/a.py": code("secret")}, licence="GPL-3.0-only")
    inside = {
        "package/package.json": '{"license": "MIT"}',
        "package/src/a.ts": code("ts"),
        "package/a.d.ts": code("d"),
    }
    tarball(folder, "mod-2.0.tgz", inside)
    (folder / "broken-1.0.tar.gz").write_bytes(b"\x1f\x8b broken")
    stack = {
        "content": [code("stack"), code("gpl"), code("cs"), None],
        "lang": ["Python", "Python", "C#", "Python"], "ext": ["py", "py", "cs", "py"],
        "max_stars_repo_path": ["a/b.py", "c.py", "d.cs", "e.py"],
        "max_stars_repo_name": ["who/one", "who/two", "who/one", "who/one"],
        "max_stars_repo_licenses": [["MIT"], ["MIT", "GPL-2.0"], ["Apache-2.0"], ["MIT"]],
        "hexsha": ["0", "1", "2", "3"],
    }  # fmt: skip
    pq.write_table(pa.table(stack), folder / "stack.parquet")
    return folder


def run(inputs: Path, out: Path, config: Config = CONFIG, engine: Any = None) -> dict[str, Any]:
    return builder.build(local_items(inputs), out, config, engine or LocalEngine(1), Fetcher(out / "store"))


def digests(out: Path) -> dict[str, str]:
    found = [*out.glob("*.parquet"), *out.glob("*.json"), *out.glob("*.jsonl")]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def test_build(tmp_path: Path) -> None:
    inputs, out = sources(tmp_path / "in"), tmp_path / "out"
    manifest = run(inputs, out)
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert manifest["dropped"] == {
        "exact duplicate": 4,
        "licence": 2,
        "near duplicate": 4,
        "no text": 1,
        "stub": 1,
    }
    assert manifest["masked"]["email"] == 5
    assert [entry["item"] for entry in manifest["missing"]] == ["local/broken"]
    languages = manifest["splits"]["train"]["languages"]
    assert {name: count["files"] for name, count in languages.items()} == {
        "c-sharp": 1,
        "python": 38,
        "typescript": 1,
    }
    table = pa.concat_tables(pq.read_table(out / shard["file"]) for shard in manifest["shards"])
    assert len(manifest["shards"]) > 3 and table.num_rows == 40
    for row in table.to_pylist():
        assert hashlib.sha256(row["text"].encode()).digest() == row["sha256"]
        assert len(row["text"].encode()) == row["bytes"] and "ann@" not in row["text"]
    packages = table["package"].to_pylist()
    assert packages != sorted(packages)  # shuffled
    assert "who/two" not in packages and packages.count("who/one") == 2 and "secret" not in packages
    ledger = pq.read_table(out / "files.parquet").to_pylist()
    assert len(ledger) == manifest["read_files"] == 40 + 4 + 2 + 4 + 1
    assert {r["dropped"] for r in ledger if not r["shard"]} == {
        "exact duplicate",
        "licence",
        "near duplicate",
        "stub",
    }
    twins = [r for r in ledger if r["path"] == "p/same.py" and not r["dropped"]]
    assert [r["package"] for r in twins] == ["pack0"]  # the first by name stays
    notices = [json.loads(line)["text"] for line in (out / "notices.jsonl").read_text().splitlines()]
    assert "licence of MIT" in notices


def test_a_folder_with_its_own_licence(tmp_path: Path) -> None:
    inside = {
        "package/package.json": '{"license": "MIT"}', "package/a.ts": code("a"), "package/x/b.ts": code("b"),
        "package/x/y/COPYING": "GNU General Public License", "package/x/y/z/c.ts": code("c"),
    }  # fmt: skip
    (tmp_path / "in").mkdir()
    tarball(tmp_path / "in", "mod-2.0.tgz", inside)
    manifest = run(tmp_path / "in", tmp_path / "out")
    assert manifest["dropped"] == {"licence": 1}
    ledger = pq.read_table(tmp_path / "out" / "files.parquet").to_pylist()
    assert {row["path"]: row["dropped"] for row in ledger} == {
        "a.ts": "",
        "x/b.ts": "",
        "x/y/z/c.ts": "licence",
    }


def test_held_out_packages_share_nothing_with_training(tmp_path: Path) -> None:
    config = Config(heldout_share=0.0, decontaminate=False, shard_bytes=10**6, max_test_share=1.0)
    items = [
        dataclasses.replace(item, split="heldout" if item.name in ("pack0", "pack3") else "")
        for item in local_items(sources(tmp_path / "in"))
    ]
    manifest = builder.build(items, tmp_path / "out", config, LocalEngine(1), Fetcher(tmp_path / "store"))
    held = pq.read_table(tmp_path / "out" / "heldout-00000.parquet").to_pylist()
    train = pq.read_table(tmp_path / "out" / "train-00000.parquet").to_pylist()
    assert {r["package"] for r in held} == {"pack0", "pack3"}
    assert {r["package"] for r in held}.isdisjoint(r["package"] for r in train)
    assert manifest["splits"]["heldout"]["packages"] == 2
    # Of twins in both splits the training one stays, though pack0 comes first by name.
    for path in ("p/same.py", "near.py"):
        assert [r["package"] for r in [*held, *train] if r["path"].endswith(path)] == ["pack1"]


def test_processes_give_the_results_in_order() -> None:
    assert [*LocalEngine(2).run(abs, [(-1,), (2,), (-3,)])] == [1, 2, 3]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_order_jobs_and_repetition_change_nothing(jobs: int, tmp_path: Path) -> None:
    inputs = sources(tmp_path / "in")
    run(inputs, tmp_path / "a")
    expected = digests(tmp_path / "a")
    items = local_items(inputs)[::-1]
    builder.build(items, tmp_path / "b", CONFIG, LocalEngine(jobs), Fetcher(tmp_path / "store"))
    assert digests(tmp_path / "b") == expected
    run(inputs, tmp_path / "a")
    assert digests(tmp_path / "a") == expected


def test_a_later_build_replaces_the_shards(tmp_path: Path) -> None:
    inputs = sources(tmp_path / "in")
    run(inputs, tmp_path / "out")
    whole = Config(heldout_share=0.0, decontaminate=False, max_test_share=1.0)
    run(inputs, tmp_path / "out", whole)
    assert sorted(p.name for p in (tmp_path / "out").glob("train-*")) == [
        "train-00000.json",
        "train-00000.parquet",
    ]
    run(inputs, tmp_path / "fresh", whole)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")
    assert not list((tmp_path / "out").rglob("*.part"))


def test_caps(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    files = {f"p/{i}.py": code(f"w{i}") for i in range(10)} | {
        f"p/tests/{i}.py": code(f"t{i}") for i in range(10)
    }
    wheel(folder, "pack", files | {f"p/{i}.go": code(f"g{i}") for i in range(5)})
    size = len(code("w0"))
    config = Config(
        heldout_share=0, decontaminate=False, max_test_share=0.2, max_language_bytes=(("go", 2 * size),)
    )
    manifest = run(folder, tmp_path / "out", config)
    assert manifest["dropped"] == {"language over its cap": 3, "tests over their share": 10 - 15 // 4}
    small = Config(heldout_share=0, decontaminate=False, max_package_bytes=4 * size)
    assert run(folder, tmp_path / "small", small)["splits"]["train"]["files"] == 4


def test_languages_and_stricter_licences(tmp_path: Path) -> None:
    inputs = sources(tmp_path / "in", 1)
    wheel(inputs, "boost", {"b/a.py": code("boost")}, licence="BSL-1.0")
    only = run(inputs, tmp_path / "a", Config(languages=("c-sharp",), heldout_share=0, decontaminate=False))
    assert list(only["splits"]["train"]["languages"]) == ["c-sharp"]
    both = [
        run(inputs, tmp_path / kind, Config(licences=kind, heldout_share=0, decontaminate=False))
        for kind in ("permissive", "strict")
    ]
    assert ["BSL-1.0" in found["splits"]["train"]["licences"] for found in both] == [True, False]


def test_a_directory_with_its_licence_declared(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in (".hidden/x.py", "site-packages/x.py", "a.py"):  # the second: installed, under other licences
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code("dir" + name[0]))
    (folder / "link.py").symlink_to(folder / "a.py")
    (folder / "tool").write_text("#!/usr/bin/env python3\n" + code("tool"))
    with_licence = builder.build(
        local_items(folder, "MIT"), tmp_path / "a", CONFIG, LocalEngine(1), Fetcher(tmp_path / "s")
    )
    assert with_licence["splits"]["train"]["files"] == 2
    left_out = {"a link or no file": 1, "vendored": 1}
    assert run(folder, tmp_path / "b")["dropped"] == left_out | {"licence": 2}
    # A checkout that git does not list is left out with the reason, and the rest is built.
    (folder / ".git").mkdir()
    wheel(tmp_path, "pack", {"p/a.py": code("p")})
    items = [*local_items(folder, "MIT"), *local_items(tmp_path / "pack-1.0-py3-none-any.whl")]
    manifest = builder.build(items, tmp_path / "c", CONFIG, LocalEngine(1), Fetcher(tmp_path / "s"))
    assert "git does not list" in manifest["missing"][0]["why"] and manifest["read_files"] == 1


def test_nothing_to_read(tmp_path: Path) -> None:
    missing = [Item("local", "gone", "1", local=str(tmp_path / "gone-1.tar.gz"))]
    with pytest.raises(ValueError, match="nothing was read"):
        builder.build(missing, tmp_path / "out", CONFIG, LocalEngine(1), Fetcher(tmp_path))


class Letters:
    def encode(self, text: str) -> list[int]:
        return [ord(c) % 256 for c in text]


def test_tokenise(tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = run(sources(tmp_path / "in"), out)
    notes = tokenise(out, Letters(), LocalEngine(1))
    assert set(notes) == {shard["file"].removesuffix(".parquet") for shard in manifest["shards"]}
    for name in notes:
        shard, texts = (
            Shard(out / "tokens" / name, check_hash=True),
            pq.read_table(out / f"{name}.parquet")["text"].to_pylist(),
        )
        assert [bytes(shard[i].tolist()).decode() for i in range(len(shard))] == texts
        assert shard.source_bytes == sum(len(t.encode()) for t in texts)
        languages = pq.read_table(out / f"{name}.parquet")["language"].to_pylist()
        assert [language for language, count in shard.languages or [] for _ in range(count)] == languages
    before = {p.name: p.stat().st_mtime_ns for p in (out / "tokens").glob("*.bin")}
    tokenise(out, Letters(), LocalEngine(1))
    assert {p.name: p.stat().st_mtime_ns for p in (out / "tokens").glob("*.bin")} == before
    first = next(iter(notes))
    path = out / "tokens" / f"{first}.bin"
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    tokenise(out, Letters(), LocalEngine(1))  # what a damaged shard's error asks for
    assert path.read_bytes() == content
    # Shards of earlier versions name no languages, and those of functions are one kind, whatever the language.
    note = out / "tokens" / f"{first}.json"
    note.write_text(json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "languages"}))
    (out / "manifest.json").write_text(
        json.dumps(manifest | {"config": manifest["config"] | {"functions": -0.5}})
    )
    tokenise(out, Letters(), LocalEngine(1))
    shard = Shard(out / "tokens" / first)
    assert shard.languages == [("functions", len(shard))]
    (out / f"{first}.parquet").write_bytes(b"spoiled")
    (out / "tokens" / f"{first}.source").unlink()
    with pytest.raises(ValueError, match="not what the manifest says"):
        tokenise(out, Letters(), LocalEngine(1))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, out = sources(tmp_path / "in", 2), tmp_path / "out"
    command = [
        "data",
        "build",
        str(inputs),
        "--out",
        str(out),
        "--jobs",
        "1",
        "--languages",
        "python,c-sharp",
    ]
    assert main([*command, "--cap", "c#=1"]) == 0
    told = capsys.readouterr()
    assert (
        "left out local/broken" in told.err
        and "near duplicate" in told.out
        and "humaneval: 0 of 164" in told.out
    )
    assert main(["data", "report", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["max_language_bytes"] == [["c-sharp", 1000000]]
    assert main(["data", "tokenise", str(out), "--jobs", "1"]) == 0
    for bad in (["--cap", "c-sharp"], ["--languages", "cobol"], ["--jobs", "0"]):
        assert main([*command, *bad]) == 2
    assert main(["data", "report", str(tmp_path)]) == 2
    assert "no finished corpus" in capsys.readouterr().err


@pytest.mark.slow
def test_kills_change_nothing(tmp_path: Path) -> None:
    inputs = sources(tmp_path / "in", 40)
    run(inputs, tmp_path / "whole", Config(heldout_share=0.1, shard_bytes=6000))
    command = [
        sys.executable, "-m", "codegen2", "data", "build", str(inputs), "--out", str(tmp_path / "killed"),
        "--jobs", "2",
        "--heldout-share", "0.1", "--shard-mb", "0.006",
    ]  # fmt: skip
    stopped = 0
    for attempt in range(12):
        child = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            time.sleep(0.9 + 0.17 * attempt)
            if child.poll() is None:
                stopped += 1
                os.killpg(child.pid, signal.SIGKILL)
        finally:
            child.wait()
        if child.returncode == 0:
            break
    assert stopped >= 2
    subprocess.run(command, check=True, capture_output=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    inputs = sources(tmp_path / "in")
    manifest = run(inputs, tmp_path / "local", SPLIT)
    assert manifest["splits"]["heldout"]["files"]  # so that leaks are looked for
    script = (
        "import sys; from pathlib import Path; import test_data_build as t\n"
        "from codegen2.data.engines import RayEngine\n"
        "t.run(Path(sys.argv[1]), Path(sys.argv[2]), t.SPLIT, RayEngine(2))\n"
    )
    # A process of its own: Ray leaves threads and handlers behind.
    path = os.pathsep.join(map(str, Path(__file__).parents[:3]))
    subprocess.run(
        [sys.executable, "-c", script, str(inputs), str(tmp_path / "ray")], check=True, timeout=300,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": path},
    )  # fmt: skip
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
