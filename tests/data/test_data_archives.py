"""Archives as an attacker would make them: paths that climb, links, bombs, lies about sizes, broken ends."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest

from codegen2.data.archives import ArchiveError, Limits, members

SMALL = Limits(file_bytes=1000, total_bytes=50_000, files=50)


def everything(path: Path, limits: Limits = SMALL) -> dict[str, bytes | None]:
    return dict(members(path, lambda name: True, limits))


def tar_bytes(files: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in others:
            archive.addfile(entry)
    return raw.getvalue()


def odd(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".tar.xz", ".deb"])
def test_tar_gives_plain_files_only(tmp_path: Path, suffix: str) -> None:
    files = {
        "p/a.py": b"a",
        "../evil.py": b"b",
        "/abs.py": b"c",
        "p/../../x.py": b"d",
        "p/big.py": b"e" * 1001,
    }
    raw = tar_bytes(
        files, odd("p/link.py", tarfile.SYMTYPE), odd("p/hard.py", tarfile.LNKTYPE, "p/a.py"),
        odd("p/dev.py", tarfile.CHRTYPE),
    )  # fmt: skip
    if suffix == ".tgz":
        raw = gzip.compress(raw)
    elif suffix == ".tar.xz":
        raw = lzma.compress(raw)
    elif suffix == ".deb":
        packed = lzma.compress(raw)
        raw = b"!<arch>\n"
        for name, content in (
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", b"abc"),
            ("data.tar.xz", packed),
        ):
            raw += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            raw += content + b"\n" * (len(content) % 2)
    path = tmp_path / f"p-1.0{suffix}"
    path.write_bytes(raw)
    assert everything(path) == {"p/a.py": b"a", "p/big.py": None}


def test_zip_gives_plain_files_only(tmp_path: Path) -> None:
    path = tmp_path / "p-1.0.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("p/a.py", "../evil.py", "/abs.py", "p\\b.py"):
            archive.writestr(zipfile.ZipInfo(name), "a")
        link = zipfile.ZipInfo("p/link.py")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert everything(path) == {"p/a.py": b"a"}


def test_bombs_end_in_an_error(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.tgz"
    # The large file is not even wanted: a stream has to pass over it.
    bomb.write_bytes(gzip.compress(tar_bytes({"zeros.bin": bytes(5_000_000), "a.py": b"a"})))
    with pytest.raises(ArchiveError, match=r"bomb\.tgz: unpacks to more than 50000 bytes"):
        list(members(bomb, lambda name: name.endswith(".py"), SMALL))
    many = tmp_path / "many.tar"
    many.write_bytes(tar_bytes({f"{i}.py": b"" for i in range(60)}))
    with pytest.raises(ArchiveError, match="or 50 files"):
        everything(many, Limits(file_bytes=1000, total_bytes=10**9, files=50))
    zipped = tmp_path / "many.zip"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(20):
            archive.writestr(f"{i}.py", bytes(1000))
    with pytest.raises(ArchiveError, match="unpacks to more than 5000 bytes"):
        everything(zipped, Limits(file_bytes=1000, total_bytes=5000))


def test_a_lie_about_a_size_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", bytes(100_000))
    # Both records say 100 bytes.
    path.write_bytes(path.read_bytes().replace((100_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(ArchiveError):
        everything(path)


def test_a_huge_extended_header_is_not_read(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    path = tmp_path / "header.tar"
    path.write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(ArchiveError, match="holds a header of"):
        everything(path, Limits())


@pytest.mark.parametrize("suffix", [".tgz", ".whl", ".deb", ".tar.xz"])
def test_broken_archives_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p-1{suffix}"
    good = gzip.compress(tar_bytes({"a.py": b"a" * 900})) if suffix == ".tgz" else b"\xfd7zXZ\0 broken"
    path.write_bytes(good[: len(good) // 2] if suffix == ".tgz" else good)
    with pytest.raises(ArchiveError, match=rf"p-1\{suffix}"):
        everything(path)
