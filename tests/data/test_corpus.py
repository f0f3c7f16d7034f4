"""The corpus builder: each stage on hand-written files, then a whole build from wheels made here."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from codegen2.data import corpus, sources, stages
from codegen2.data.licences import normalise_licence
from codegen2.data.stages import Drops, Rules, SourceFile
from codegen2.files.shards import Shard

RULES = Rules()
BODY = "".join(f"def step_{i}(value):\n    return value + {i}\n" for i in range(12))


def file(text: str, path: str = "pkg/a.py", package: str = "pkg") -> SourceFile:
    return SourceFile(package, "1.0", "MIT", path, text)


# Lines that no other `word` shares.
def lines_of(word: str, n: int) -> list[str]:
    return [f"{word}_{i} = make_{word}({i})" for i in range(n)]


@pytest.mark.parametrize(
    ("text", "path", "why"),
    [
        (BODY, "pkg/a.py", ""),
        ("x = 1\n", "pkg/a.py", "size"),
        (BODY * 2500, "pkg/a.py", "size"),
        (BODY, "pkg/_vendor/six.py", "vendored"),
        (BODY, "pkg/third_party/six.py", "vendored"),
        (BODY, "pkg/distribution/a.py", ""),
        (BODY, "pkg/api_pb2.py", "generated"),
        ("# Automatically generated, do not edit.\n" + BODY, "pkg/a.py", "generated"),
        ("# SPDX-License-Identifier: LGPL-2.1-or-later\n" + BODY, "pkg/a.py", "copyleft header"),
        ("# under the GNU General Public License\n" + BODY, "pkg/a.py", "copyleft header"),
        ("# simplGPLot and mplot3d\n" + BODY, "pkg/a.py", ""),
        (BODY + "#" * 1001 + "\n", "pkg/a.py", "long lines"),
        (("x = '" + "word " * 30 + "'\n") * 9, "pkg/a.py", "long lines"),
        ("T = (\n" + "  0x11, 22, 33, 44, 55,\n" * 40 + ")\n", "pkg/a.py", "few letters"),
    ],
)
def test_why_unclean(text: str, path: str, why: str) -> None:
    assert stages.why_unclean(file(text, path), RULES) == why


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: MIT\n", "MIT"),
        ("License-Expression: BSD-3-Clause AND MIT\n", "BSD-3-Clause AND MIT"),
        ("License-Expression: MPL-2.0 AND MIT\n", ""),
        ("License-Expression: Apache-2.0 OR LGPL-3.0-only\n", "Apache-2.0"),
        ("License: Apache License, Version 2.0\n", "Apache-2.0"),
        ("License: 3-Clause BSD License\n", "BSD-3-Clause"),
        ("License: SEE LICENSE IN LICENSE.md\n", ""),
        ("Classifier: License :: OSI Approved :: Apache Software License\n", "Apache-2.0"),
        ("Classifier: License :: OSI Approved\nClassifier: License :: OSI Approved :: MIT License\n", "MIT"),
        ("License: MIT\nClassifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)\n", ""),
        ("License-File: LICENSE\n", ""),
    ],
)
def test_normalise_licence(metadata: str, licence: str) -> None:
    assert normalise_licence("Name: x\n" + metadata) == licence


def test_exact_duplicates_differ_in_white_space_only() -> None:
    drops = Drops()
    first, twin, other = file("a = 1\n"), file("a  =  1", "b.py"), file("a = 2\n", "c.py")
    assert list(stages.drop_exact([first, twin, other], drops)) == [first, other]
    assert drops == {("pkg", "exact duplicate"): 1}


@pytest.mark.parametrize(
    ("shared", "kept"), [(90, 1), (83, 1), (81, 2), (50, 2)]
)  # 83 / 117 = 0.709, 81 / 119 = 0.68
def test_near_duplicates_by_jaccard(shared: int, kept: int) -> None:
    common, rest = lines_of("common", shared), 100 - shared
    one = file("\n".join([*common, *lines_of("one", rest)]))
    two = file("\n".join([*lines_of("two", rest), *common]), "b.py")
    assert stages.drop_near([one, two], RULES, Drops()) == [one, two][:kept]


def test_caps() -> None:
    rules = Rules(max_package_bytes=10_000, max_heldout_package_bytes=1_000)
    code = [file("c" * 100, f"pkg/{i}.py") for i in range(40)]
    tests = [file("t" * 100, f"pkg/tests/{i}.py") for i in range(40)]
    kept = stages.cap([*code, *tests], frozenset(), rules, Drops())
    assert sum("/tests/" in f.path for f in kept) == 10  # a fifth of what is kept
    assert len(kept) == 50
    large = [file("c" * 100, f"pkg/{i}.py") for i in range(300)]
    assert len(stages.cap(large, frozenset(), rules, Drops())) == 100
    assert len(stages.cap([*large, *tests], frozenset(), rules, Drops())) == 100
    assert len(stages.cap(large, frozenset({"pkg"}), rules, Drops())) == 10
    assert stages.cap(large[::-1], frozenset(), rules, Drops()) == stages.cap(
        large, frozenset(), rules, Drops()
    )


PROBLEM = {
    "entry_point": "mean_gap",
    "prompt": 'def mean_gap(values: list) -> float:\n    """ Give the mean gap of neighbours.\n    """\n',
    "canonical_solution": "    ordered_values = sorted(values, key=float)\n"
    "    total = sum(b - a for a, b in zip(ordered_values, ordered_values[1:]))\n    return total\n",
}


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        (PROBLEM["prompt"], True),  # signature and one line of the description
        ("class A:\n    " + PROBLEM["prompt"].replace("\n", "\n    "), True),
        ("import os\n" + PROBLEM["canonical_solution"], True),
        ("def mean_gap(values: list) -> float:\n    return 0.0\n", False),
        ("x = 1\n" + PROBLEM["canonical_solution"].split("\n")[0], False),
    ],
)
def test_benchmark_text_is_dropped(text: str, hit: bool) -> None:
    assert len(stages.drop_benchmark([file(text)], [PROBLEM], Drops())) == 1 - hit


@pytest.mark.parametrize(("shared", "dropped"), [(5, True), (4, False)])
def test_leaks_count_one_training_file_at_a_time(shared: int, dropped: bool) -> None:
    held = file(
        "\n".join([*lines_of("held", 10), "x = 1", ""]), package="held"
    )  # the short line does not count
    near = file("\n".join(["    " + line for line in lines_of("held", shared)]), "near.py")
    other = file("\n".join(lines_of("held", 10)[-4:]), "other.py", "other")
    drops = Drops()
    kept = stages.drop_leaks([held], [other, near], RULES, drops)
    assert (kept == []) is dropped
    assert stages.leak_shares([held], [other, near], RULES).tolist() == [shared / 10]
    assert drops == ({("held", "leak"): 1} if dropped else {})


def test_leaks_count_a_package_as_a_whole() -> None:
    held = file("\n".join(lines_of("held", 10)), package="held")
    parts = [file("\n".join(lines_of("held", 10)[i : i + 3]), f"{i}.py") for i in (0, 3)]
    drops = Drops()
    assert stages.drop_leaks([held], parts, RULES, drops) == []
    assert drops == {("held", "leak from a package"): 1}


def test_package_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# comment\n\nflask==1.0\npython-docx==2.0 heldout\n")
    assert [p.split for p in sources.read_packages(path)] == ["train", "heldout"]
    for bad in ("flask\n", "flask==1.0 held\n", "flask==1.0\nFlask-admin==1.0 heldout\n"):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"list\.txt"):
            sources.read_packages(path)


def test_committed_list_is_sound() -> None:
    packages = sources.read_packages(Path(corpus.__file__).with_name("nano-packages.txt"))
    assert len({p.name for p in packages}) == len(packages)
    assert {p.split for p in packages} == {"train", "heldout", "decontaminate"}


def make_wheel(folder: Path, name: str, files: dict[str, bytes], licence: str = "MIT") -> Path:
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Name: {name}\nLicense-Expression: {licence}\n")
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def test_wheel_reader_guards(tmp_path: Path) -> None:
    inside = {"p/a.py": b"a", "../evil.py": b"b", "/abs.py": b"c", "p/data.bin": b"d", "p/latin.py": b"\xe9"}
    copied = {"p/bundle/six.py": b"e", "p/bundle/six-1.0.dist-info/METADATA": b"Name: six\n"}
    wheel = make_wheel(tmp_path, "p", inside | copied)
    link = zipfile.ZipInfo("p/link.py")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    licence, files, drops = sources.read_wheel(wheel, sources.Package("p", "1.0", "train"), RULES)
    assert (licence, [f.path for f in files]) == ("MIT", ["p/a.py"])
    assert drops == {("p", "encoding"): 1, ("p", "vendored"): 1}
    with pytest.raises(ValueError, match="unpacks to more than 0 bytes"):
        sources.read_wheel(wheel, sources.Package("p", "1.0", "train"), Rules(max_archive_bytes=0))


class Letters:
    def encode(self, text: str) -> list[int]:
        return [ord(c) % 256 for c in text]


def test_build_and_tokenise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "read_stdlib", lambda rules: ([], Drops()))
    monkeypatch.setattr(
        "codegen2.data.sources.subprocess.run", lambda command, check: None
    )  # no network here

    def many(word: str) -> dict[str, bytes]:
        return {f"{word}/{i}.py": "\n".join(lines_of(f"{word}{i}", 30)).encode() for i in range(4)}

    # Half of one training file and as much again of its own: too little for a near duplicate.
    leak = "\n".join(lines_of("alpha1", 10) + lines_of("own", 9))
    make_wheel(tmp_path, "alpha", many("alpha") | {"alpha/copy.py": many("alpha")["alpha/0.py"] + b"\n"})
    make_wheel(tmp_path, "beta", many("beta") | {"beta/leak.py": leak.encode()})
    make_wheel(tmp_path, "gamma", many("gamma"), licence="GPL-3.0-only")
    make_wheel(tmp_path, "bench", {"d/HumanEval.jsonl.gz": gzip.compress(json.dumps(PROBLEM).encode())})
    names = [
        ("alpha", "train"),
        ("beta", "heldout"),
        ("gamma", "train"),
        ("gone", "train"),
        ("bench", "decontaminate"),
    ]
    packages = [sources.Package(name, "1.0", split) for name, split in names]
    out = tmp_path / "out"
    manifest = corpus.build(packages, out, tmp_path, RULES)

    written = json.loads((out / "manifest.json").read_text())
    assert written == manifest
    entries = {entry["name"]: entry for entry in written["packages"]}
    assert entries["alpha"]["files"] == 4
    assert entries["alpha"]["dropped"] == {"exact duplicate": 1}
    assert entries["beta"]["dropped"] == {"leak": 1}
    assert entries["gamma"]["refused"] == "licence unknown or not permissive"
    assert entries["gone"]["refused"] == "missing: no such wheel"
    assert written["totals"]["heldout"]["files"] == 4

    train = list(corpus.read_files(out / "files-train.jsonl"))
    assert {f.package for f in train} == {"alpha"}
    note = corpus.tokenise(out / "files-train.jsonl", out, Letters())
    shard = Shard(out / "train", check_hash=True)
    assert [bytes(shard.doc(i).tolist()).decode() for i in range(len(shard))] == [f.text for f in train]
    assert note["source_bytes"] == sum(len(f.text) for f in train)
    again = tmp_path / "again"
    corpus.build(packages[::-1], again, tmp_path, RULES)
    for name in ("files-train.jsonl", "files-heldout.jsonl"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_holes_are_written_with_their_hash(tmp_path: Path) -> None:
    held: Sequence[SourceFile] = [file("\n".join(lines_of(f"w{i}", 9)), f"{i}.py") for i in range(200)]
    corpus.write_files(tmp_path / "files-heldout.jsonl", held)
    digest = corpus.write_holes(tmp_path / "files-heldout.jsonl", tmp_path)
    assert (tmp_path / "holes.sha256").read_text().strip() == digest
    assert len((tmp_path / "holes.jsonl").read_text().splitlines()) == 1000
