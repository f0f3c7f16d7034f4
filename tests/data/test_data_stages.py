"""The stages of `codegen2 data` on hand-made rows: licences, quality, masking, decontamination, near duplicates."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from codegen2.data import filters, minhash
from codegen2.data.benchmark import (
    Benchmark,
    benchmark_against,
    benchmark_of,
    decontaminate,
    overlap_report,
    problem_sets,
)
from codegen2.data.licence_gate import by_folder, debian_licences, declared_by, licence_gate
from codegen2.data.licences import PERMISSIVE, STRICT, permissive
from codegen2.data.prepare import Config, stages
from codegen2.data.rows import SCHEMA, Table, table_of
from codegen2.problems.sets import Problem

CODE = "".join(f"def step_{i}(value):\n    return value + {i}\n" for i in range(12))

MIT = (
    "Permission is hereby granted, free of charge, to any person obtaining\na copy of this software\n"
    "to use, copy, publish, distribute, sublicense, and/or sell\n"
)
PYTHONS = (
    "A. HISTORY OF THE SOFTWARE\n==========\nreleased under the GNU General Public License\n"
    "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n"
)


def rows(*texts: str, **columns: Any) -> Table:
    base = {"registry": "pypi", "package": "p", "path": "p/a.py", "licence": "MIT", "language": "python"}
    return table_of([base | {"text": t, "bytes": len(t.encode())} | columns for t in texts])


def reasons(table: Table) -> list[str]:
    return table["dropped"].to_pylist()


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("MIT", "MIT"), ("(MIT OR GPL-3.0-only) AND BSD-3-Clause", "BSD-3-Clause AND MIT"),
        ("GPL-2.0-only OR MIT AND MPL-2.0", ""),  # AND binds more tightly
        ("MIT OR GPL-2.0-only AND MPL-2.0", "MIT"), ("Apache-2.0 WITH LLVM-exception", "Apache-2.0"),
        ("(MIT", ""), ("MIT)", ""), ("MIT OR", ""), ("", ""), ("(" * 40 + "MIT" + ")" * 40, "MIT"),
        ("(" * 5000 + "MIT", ""), ("SEE LICENSE IN LICENSE.md", ""), ("ISC License (ISCL)", "ISC"),
        ("3-Clause BSD License", "BSD-3-Clause"), ("Apache License, Version 2.0", "Apache-2.0"),
        ("MIT WITH Commons-Clause", ""), ("MIT with Commons Clause", ""), ("MIT OR", ""), ("()", ""), ("MIT ISC", ""),
        ("(MIT OR ISC) WITH LLVM-exception", ""), ("mit and ISC", "ISC AND MIT"), ("LicenseRef-x", ""),
        ("BSD License AND Historical Permission Notice and Disclaimer (HPND)", "BSD AND HPND"),
    ],
)  # fmt: skip
def test_expressions(expression: str, found: str) -> None:
    assert permissive(expression) == found


def test_the_stricter_set() -> None:
    assert permissive("BSL-1.0 OR LGPL-2.1-only") == "BSL-1.0"
    assert permissive("BSL-1.0", STRICT) == "" and permissive("BSL-1.0 AND MIT", STRICT) == ""
    assert STRICT < PERMISSIVE


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"METADATA": "Name: x\nLicense-Expression: MIT\n", "LICENSE": "GNU General Public License"}, "MIT"),
        ({"PKG-INFO": "Classifier: License :: OSI Approved :: MIT License\n"}, "MIT License"),
        ({"METADATA": "License: 3-Clause BSD License\nLicense-File: LICENSE\n"}, "3-Clause BSD License"),
        ({"METADATA": "License: MIT\nClassifier: License :: OSI Approved :: GPL v3\n"}, "GPL v3"),
        ({"METADATA": "Classifier: License :: OSI Approved\nClassifier: License :: OSI Approved :: MIT License\n"},
         "MIT License"),
        ({"package.json": '{"license": {"type": "MIT"}}'}, "MIT"),
        ({"package.json": '{"licenses": [{"type": "MIT"}, {"type": "GPL-3.0"}]}'}, "MIT OR GPL-3.0"),
        ({"package.json": "{"}, "unreadable package.json"), ({"package.json": "[1]"}, "unreadable package.json"),
        ({"pyproject.toml": '[project]\nlicense = "Apache-2.0"\n'}, "Apache-2.0"),
        ({"LICENSE": "Apache License\n  Version 2.0, January 2004"}, "Apache-2.0"),
        ({"LICENSE": "All rights reserved, and then some"}, "unrecognised licence file"),
        ({"LICENSE.txt": PYTHONS}, "PSF-2.0"), ({"COPYING": "x\n" + PYTHONS}, "unrecognised licence file"),
        ({"COPYING": "GNU General Public License, also the Apache License, Version 2.0"}, "unrecognised licence file"),
        ({"LICENSE": "MIT License\nCommons Clause\n" + MIT}, "unrecognised licence file"), ({"LICENSE": MIT}, "MIT"),
        ({"UNLICENSE": "This is free and unencumbered software released into the public domain."}, "Unlicense"),
        ({}, ""),
    ],
)  # fmt: skip
def test_what_a_package_declares(files: dict[str, str], found: str) -> None:
    assert declared_by(files) == found


def test_debian_copyright_by_path() -> None:
    text = (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
        "Files: *\nCopyright: A\nLicense: Expat\n\nFiles: gpl/*\n other/?.c\nCopyright: B\nLicense: GPL-2+\n\n"
        "Files: gpl/free.c\nCopyright: C\nLicense: GPL-2+ or BSD-3-clause\n\nLicense: Expat\n Permission is\n"
    )
    of = debian_licences(text, PERMISSIVE)
    assert of is not None
    assert [of(p) for p in ("a.c", "gpl/x/y.c", "other/b.c", "other/bb.c", "gpl/free.c")] == [
        "MIT", "", "", "MIT", "BSD-3-Clause",
    ]  # fmt: skip
    assert debian_licences("This package was debianised by A.\n", PERMISSIVE) is None


@pytest.mark.parametrize(
    ("head", "licence", "why"),
    [
        ("", "MIT", ""), ("", "GPL-3.0-only", "licence"), ("", "", "licence"),
        ("# SPDX-License-Identifier: Apache-2.0\n", "MIT", ""),
        ("/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */\n", "MIT", ""),
        ("# SPDX-License-Identifier: LGPL-2.1-only\n", "MIT", "licence notice in the file"),
        ("// under the GNU General Public License\n", "MIT", "licence notice in the file"),
        ("// Microsoft Public License (Ms-PL)\n", "MIT", "licence notice in the file"),
        ("# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: SSPL-1.0\n", "MIT", "licence notice in the file"),
        ("// SPDX-License-Identifier: MIT WITH Commons-Clause\n", "MIT", "licence notice in the file"),
        ("# SPDX-License-Identifier: MIT\n# see the GPL\n", "MIT", "licence notice in the file"),
        ("# under the Apache License, Version 2.0\n# SPDX-License-Identifier: Apache-2.0\n", "MIT", ""),
        ("/* Licensed under the BSD-style license\n   that can be found in the LICENSE file. */\n", "MIT", ""),
        ("import matplotlib as mpl\npublic License f() {}\n# Zope Public License, for internal use only\n", "MIT", ""),
        ("# \u672c\u8f6f\u4ef6\u91c7\u7528GPL\u534f\u8bae\n", "MIT", "licence notice in the file"),
    ],
)  # fmt: skip
def test_licence_gate(head: str, licence: str, why: str) -> None:
    table = licence_gate(rows(head + CODE, licence=licence), PERMISSIVE)
    assert reasons(table) == [why]
    assert table["text"].to_pylist() == [None if why else head + CODE]
    if "Apache" in head:
        assert table["licence"].to_pylist() == ["Apache-2.0"]


REFUSED = (
    "SSPL", "EUPL-1.2", "CeCILL 2.1", "CC BY-NC-SA 4.0", "Commons Clause", "GNU General Public License", "AGPLv3",
    "Server Side Public License", "European Union Public Licence", "Creative Commons Attribution License", "CDDL 1.0",
    "Business Source License", "Elastic License 2.0", "Mozilla Public License", "Foo Bar License", "EPL-2.0", "Ms-RL",
    "Common Development and Distribution License", "Artistic License", "Apple Public Source License",
)  # fmt: skip
MARKS = (
    "# ",
    "// ",
    " * ",
    "/// ",
    "//! ",
    "-- ",
    "<!-- ",
    "\t",
    '    "',
    "; ",
    "    # | ",
)  # of the 19 languages


@pytest.mark.parametrize("name", REFUSED)
def test_a_notice_is_found_however_it_is_broken(name: str) -> None:
    heads = [
        "".join(f"{mark}{line}\n" for line in ("x", *f"Licensed under the {name}.".split(), "y"))
        for mark in MARKS
    ]
    heads += [
        "// words\n" * 900 + heads[1],
        f"Licensed under {name} ",
        f"// Licensed under the\r\n//   {name}\r\n",
    ]
    table = licence_gate(rows(*(head + CODE for head in heads)), PERMISSIVE)
    assert set(reasons(table)) == {"licence notice in the file"}


def test_the_nearest_licence_file_counts() -> None:
    files = {
        "lib/COPYING": "GNU General Public License", "lib/mit/MIT-LICENSE": MIT, "new/LICENSE": "Do as Ann says.",
        "web/package.json": '{"license": "SSPL-1.0"}', "dual/LICENSE-MIT": MIT, "dual/COPYING.LESSER": "LGPL",
        "note/NOTICE": "by Ann", "py/licence.py": "GPL", "bare/package.json": "{}",
    }  # fmt: skip
    of = by_folder(files, "ISC")
    paths = ("a.c", "lib/a.c", "lib/x/y/a.c", "lib/mit/x/a.c", "libs/a.c", "new/a.c", "web/a.js", "dual/a.c",
             "note/a.c", "py/a.py", "bare/a.js")  # fmt: skip
    unknown = "unrecognised licence file"
    assert [of(path) for path in paths] == [
        "ISC", unknown, unknown, "MIT", "ISC", unknown, "SSPL-1.0", unknown, "ISC", "ISC", "ISC",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text", "why"),
    [
        ("a.py", CODE, ""), ("a.pyi", CODE, "stub"), ("a.d.ts", CODE, "stub"), ("x/a.pb.go", CODE, "generated"),
        ("a.min.js", CODE, "generated"), ("lib/a.g.dart", CODE, "generated"), ("node_modules/a.js", CODE, "vendored"),
        ("pkg/third_party/six.py", CODE, "vendored"), ("pkg/_vendor/six.py", CODE, "vendored"),
        ("pkg/distribution/a.py", CODE, ""), ("pkg/api_pb2.py", CODE, "generated"), ("a.py", CODE * 2500, "size"),
        ("a.py", ("x = '" + "word " * 30 + "'\n") * 9, "long lines"), ("a.py", "x", "size"), ("a.py", "", "size"),
        ("a.py", "# Code generated by x. DO NOT EDIT.\n" + CODE, "generated"),
        ("a.py", "# dual: GPL or MIT\n" + CODE, ""),  # the licence gate judged that
        ("a.py", CODE + "#" * 1001, "long lines"), ("a.c", "0x12, 13,\n" * 99, "few letters"),
        ("a.py", "# \u8bf7\u4e0d\u8981\u4fee\u6539\u8fd9\u4e2a\u6587\u4ef6\n1\n" * 9, ""),
        ("a.py", "# \u0434\u043b\u044f\n" * 30, ""),
        ("a.c", "0x12, 13, \u2500\u2192\u2500\u2500\u2500\u2500\n" * 99, "few letters"),
    ],
)  # fmt: skip
def test_quality(path: str, text: str, why: str) -> None:
    assert reasons(filters.quality(rows(text, path=path), filters.Rules())) == [why]


@pytest.mark.parametrize(
    ("text", "masked", "found"),
    [
        ("by Ann <ann@lee.org>", "by Ann <<EMAIL>>", [1, 0, 0]),
        ("me@example.com git@github.com:a/b noreply@x.com", "", [0, 0, 0]),
        ("y = W@x.data; @app.route; icon@2x.png; pkg@1.2.3", "", [0, 0, 0]),
        ("k = 'AKIAIOSFODNN7EXAMPLE'", "k = '<KEY>'", [0, 1, 0]),
        ("api_key = 'q9Zx81LmPw02Rt7YvBn3Kc56'", "api_key = '<KEY>'", [0, 1, 0]),
        ("token = 'this_is_not_a_secret_at_all'", "token = 'this_is_not_a_secret_at_all'", [0, 0, 0]),
        ("name = 'q9Zx81LmPw02Rt7YvBn3Kc56'", "name = 'q9Zx81LmPw02Rt7YvBn3Kc56'", [0, 0, 0]),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----", "<KEY>", [0, 1, 0]),
        ("127.0.0.1 10.0.0.1 192.168.1.2 8.8.8.8 1.2.3.4", "", [0, 0, 0]),
        ("version 52.95.110.1", "", [0, 0, 0]),
    ],
)  # fmt: skip
def test_masking(text: str, masked: str, found: list[int]) -> None:
    assert filters.mask_text(text) == (masked or text, found)  # "": left as it is


def test_addresses_become_private_ones() -> None:
    text, found = filters.mask_text("a 52.95.110.1 b 52.95.110.1 c 2a02:26f0:1234:5678::9 d")
    first, second = re.findall(r"10\.\d+\.\d+\.\d+", text)
    assert first == second and "fd00::" in text and "52." not in text and found == [0, 0, 3]


def test_opt_out() -> None:
    config = Config(opted_out=("pypi/p/*",), decontaminate=False)
    table = stages(config)[0](rows(CODE, CODE, package="q"))
    assert reasons(table) == ["", ""]
    assert reasons(stages(config)[0](rows(CODE))) == ["opted out"]


TASK = Problem(
    "HumanEval/0", "mean_gap",
    'def mean_gap(values: list) -> float:\n    """ Give the mean gap of all the neighbours.\n    """\n',
    "    ordered_values = sorted(values, key=float)\n"
    "    total = sum(b - a for a, b in zip(ordered_values, ordered_values[1:]))\n    return total\n",
    "def check(candidate):\n    assert candidate([1, 2, 4]) == 1.5, 'a line of some length'\n"
    "    assert candidate([1, 2, 5]) == 2.0, 'another line of length'\n",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        (TASK.prompt, True), (TASK.canonical_solution, True), (TASK.test, True),
        ("class A:\n    " + TASK.prompt.replace("\n", "\n    "), True),
        ("// ordered_values = sorted(values, key=float)\n"
         "// total = sum(b - a for a, b in zip(ordered_values, ordered_values[1:]))\n", True),
        ("def mean_gap(values: list) -> float:\n    return 0.0\n", False),
    ],
)  # fmt: skip
def test_benchmark_text_is_dropped(text: str, hit: bool) -> None:
    table = decontaminate(rows(CODE + text), benchmark_of([TASK]))
    assert reasons(table) == ["benchmark" if hit else ""]


def test_all_of_human_eval_is_found_and_the_sets_are_counted() -> None:
    benchmark = benchmark_against()
    assert isinstance(benchmark, Benchmark) and len(benchmark.documented) >= 160
    thirteen = "from typing import List def has_close_elements(numbers: List[float], threshold: float) -> bool: Check"
    table = decontaminate(rows(CODE, CODE + thirteen), benchmark)
    assert reasons(table) == ["", ""]
    none, some = table["overlap"].to_pylist()
    assert none == [] and some
    report = overlap_report([("p/a.py", some)], benchmark, problem_sets())
    counts = {name: (s["with_shared_13_grams"], s["problems"]) for name, s in report["sets"].items()}
    assert counts["humaneval"] == (1, 164) and counts["random-span"] == (10, 1640)
    assert counts["single-line"][1] == 1033 and counts["multi-line"][1] == 5815
    assert report["functions"][0]["task"] == "HumanEval/0"


def mixed(first: list[str], second: list[str], share: float, rng: random.Random) -> list[str]:
    return [a if rng.random() < share else b for a, b in zip(first, second, strict=True)]


def documents(n: int) -> list[str]:
    """Pairs of texts of all degrees of likeness."""
    rng = random.Random(5)
    words = [f"w{i}" for i in range(5000)]
    texts = []
    for i in range(n):
        lines = [" ".join(rng.choices(words, k=12)) for _ in range(60)]
        other = [" ".join(rng.choices(words, k=12)) for _ in range(60)]
        texts += ["\n".join(lines), "\n".join(mixed(lines, other, i / n, rng))]
    return texts


def true_jaccard(a: str, b: str) -> float:
    one, two = set(minhash.ngram_hashes(a).tolist()), set(minhash.ngram_hashes(b).tolist())
    return len(one & two) / len(one | two)


@pytest.mark.parametrize("n", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_signatures_and_near_pairs_are_datasketchs(n: int) -> None:
    datasketch = pytest.importorskip("datasketch")
    texts = documents(n)
    signatures = np.stack([minhash.signature(t) for t in texts])
    sketches = [datasketch.MinHash(num_perm=256) for _ in texts]
    for sketch, text in zip(sketches, texts, strict=True):
        words = re.findall(r"\w+", text)
        sketch.update_batch([" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)])
    pairs = [(i, i + 1) for i in range(0, len(texts), 2)]
    truth = np.array([true_jaccard(texts[a], texts[b]) for a, b in pairs])
    ours = np.array([float((signatures[a] == signatures[b]).mean()) for a, b in pairs])
    error = np.abs(ours - truth)
    assert error.max() < 0.12  # four standard deviations of 256 draws
    assert abs(np.mean(ours - truth)) < 0.01
    their_error = np.abs(np.array([sketches[a].jaccard(sketches[b]) for a, b in pairs]) - truth)
    assert error.mean() < 1.3 * their_error.mean() + 0.002

    found = minhash.near_pairs(signatures, 0.7)
    index = datasketch.MinHashLSH(threshold=0.7, num_perm=256, params=(42, 6))
    theirs: set[tuple[int, int]] = set()
    for number, sketch in enumerate(sketches):
        theirs |= {(int(other), number) for other in index.query(sketch)}
        index.insert(str(number), sketch)
    for pair in {*pairs} | found | theirs:
        likeness = true_jaccard(texts[pair[0]], texts[pair[1]])
        if likeness >= 0.78:
            assert pair in found and pair in theirs
        elif likeness <= 0.6:
            assert pair not in found  # theirs are candidates only
    assert len(found) > 10


def test_near_duplicates_stay_with_what_stays() -> None:
    texts = ["\n".join(f"line {i} of the {word}" for i in range(90)) for word in ("first", "second")]
    table = minhash.minhash(rows(texts[0], texts[0] + "\nand more", texts[1], texts[0]))
    raw = b"".join(table["minhash"].to_pylist())
    signatures = np.frombuffer(raw, "<u4").reshape(-1, minhash.PERMUTATIONS)
    assert minhash.near_duplicates(minhash.near_pairs(signatures, 0.7)) == [1, 3]
    assert minhash.near_duplicates([(0, 1), (1, 2), (0, 3), (2, 3)]) == [1, 3]


def test_stages_keep_rows_and_change_nothing_twice() -> None:
    config = Config(decontaminate=False)
    table = rows(CODE, "x", CODE + "# ann@lee.org\n")
    once = table
    for stage in stages(config):
        assert once.schema == SCHEMA
        once = stage(once)
    twice = once
    for stage in stages(config)[:-2]:
        twice = stage(twice)
    assert reasons(once) == ["", "size", ""] == reasons(twice)
    assert twice["text"].to_pylist() == once["text"].to_pylist()
    assert table["text"].to_pylist()[2].endswith("ann@lee.org\n")  # what came in is as it was


@pytest.mark.parametrize(
    "bad", [{"licences": "any"}, {"heldout_share": 2.0}, {"languages": ()}, {"shard_bytes": 0}]
)
def test_config_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Config(**bad)
