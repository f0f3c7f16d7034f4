"""Positions in text, and files that are no text."""

import contextlib
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen2.files import textfile
from codegen2.files.textfile import offset_of, read_text


def test_positions():
    text = "ab\r\n漢字c\n\nx"
    assert [text[offset_of(text, *at) :] for at in ((1, 1), (1, 3), (2, 2), (3, 1), (4, 2))] == [
        text, "\r\n漢字c\n\nx", "字c\n\nx", "\nx", "",
    ]  # fmt: skip
    assert offset_of("", 1, 1) == 0
    assert offset_of("a\n", 2, 1) == 2


@given(st.text("ab\r\n漢", max_size=30), st.integers(0, 30))
def test_positions_are_undone(text, at):
    at = min(at, len(text))
    if at and text[at - 1 : at + 1] == "\r\n":
        return  # between the two halves of a line end there is no position
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    assert offset_of(text, line, column) == at


@pytest.mark.parametrize(
    ("at", "message"), [((0, 1), "line 0"), ((3, 1), "lines 1 to 2"), ((1, 4), "columns 1 to 3")]
)
def test_positions_outside(at, message):
    with pytest.raises(ValueError, match=message):
        offset_of("ab\nc", *at)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("f") / "x"
    path.write_bytes(data)
    try:
        file = read_text(str(path))
    except ValueError as e:
        assert "convert the file to UTF-8" in str(e)
        return
    assert file.encode(file.text) == data
    file.write(file.text + "é")
    assert path.read_bytes() == data + "é".encode(file.encoding)


def written(path, text="new text\n"):
    file = read_text(str(path))
    file.write(text)
    return path.read_bytes()


def test_writing_keeps_inode_owner_mode_attributes_and_links(tmp_path):
    path, hard, soft = (tmp_path / n for n in ("a.py", "hard.py", "soft.py"))
    path.write_bytes(b"\xef\xbb\xbfx = 1\r\n")
    path.chmod(0o754)
    hard.hardlink_to(path)
    soft.symlink_to(path)
    if os.name == "posix" and os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    with contextlib.suppress(OSError, AttributeError):  # where the file system has attributes
        os.setxattr(path, "user.note", b"kept")
    before = path.stat()
    attributes = os.listxattr(path) if hasattr(os, "listxattr") else []
    assert written(soft) == b"\xef\xbb\xbfnew text\n"
    after = path.stat()
    assert (after.st_ino, after.st_uid, after.st_gid, after.st_mode, after.st_nlink) == (
        before.st_ino, before.st_uid, before.st_gid, before.st_mode, before.st_nlink,
    )  # fmt: skip
    assert hard.read_bytes() == path.read_bytes()
    assert soft.is_symlink()
    assert not hasattr(os, "listxattr") or os.listxattr(path) == attributes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.py", "hard.py", "soft.py"]


@pytest.mark.parametrize("how", ["in place", "by rename", "removed line", "same size"])
def test_what_an_editor_saved_meanwhile_stays(tmp_path, how):
    path = tmp_path / "a.py"
    path.write_text("x = 1\n")
    file = read_text(str(path))
    saved = {"removed line": "", "same size": "x = 2\n"}.get(how, "x = 1\ny = 2\n")
    if how == "by rename":
        (tmp_path / "b").write_text(saved)
        (tmp_path / "b").replace(path)
    else:
        path.write_text(saved)
    with pytest.raises(ValueError, match="changed while the model wrote; nothing was written"):
        file.write("x = 1\nz = 3\n")
    assert path.read_text() == saved
    assert [p.name for p in tmp_path.iterdir()] == ["a.py"]


def test_a_file_that_was_removed_meanwhile_is_not_called_read_only(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("x = 1\n")
    file = read_text(str(path))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        file.write("x = 2\n")
    assert not list(tmp_path.iterdir())


def test_a_read_only_file_is_refused_for_root_too(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("x\n")
    path.chmod(0o444)
    with pytest.raises(ValueError, match="read-only"):
        read_text(str(path)).write("y\n")
    assert path.read_text() == "x\n"


@pytest.mark.parametrize("data", ["x = 1\n".encode("utf-16-le"), b"\x7fELF\0\0"])
def test_what_is_no_text_is_refused(tmp_path, data):
    path = tmp_path / "a.py"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="NUL, so it is no UTF-8 text"):
        read_text(str(path))


@pytest.mark.skipif(os.name != "posix", reason="FIFO and devices")
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "x"
    make = {"fifo": os.mkfifo, "folder": os.mkdir, "link": lambda p: p.symlink_to("/dev/zero")}
    make.get(kind, lambda p: None)(path)
    with pytest.raises(ValueError, match="no regular file"):
        read_text("/dev/zero" if kind == "device" else str(path))


def test_what_is_wrong_with_standard_input_is_said_of_it(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\0b")))
    with pytest.raises(ValueError, match="standard input: character 1 is NUL"):
        read_text("-")


def test_after_a_kill_the_old_text_is_there_and_said(tmp_path, monkeypatch):
    path, text = tmp_path / "a.py", "x = 1\n" * 1000
    path.write_text(text)

    def killed(handle, data):
        os.write(handle, data[: len(data) // 2])
        raise KeyboardInterrupt  # nothing is tidied after a kill

    with monkeypatch.context() as patch:
        patch.setattr(textfile, "_overwrite", killed)
        with pytest.raises(KeyboardInterrupt):
            read_text(str(path)).write("y = 2\n" * 1000)
    old = tmp_path / ".a.py.codegen2-old"
    assert old.read_text() == text
    with pytest.raises(
        ValueError, match=r"killed while it wrote; its old text is in .*\.a\.py\.codegen2-old"
    ):
        read_text(str(path)).check_writable()
    path.write_text(text)  # as one who took the old text back, or a kill before the first byte
    read_text(str(path)).check_writable()
    assert not old.exists()


def test_a_full_disk_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "a.py"
    path.write_text("x = 1\n")
    real, calls = textfile._overwrite, []

    def full(handle, data):
        calls.append(data)
        if len(calls) == 1:
            os.write(handle, data[:3])
            raise OSError(28, "No space left on device")
        real(handle, data)

    monkeypatch.setattr(textfile, "_overwrite", full)
    with pytest.raises(OSError, match="No space"):
        read_text(str(path)).write("yyyyyy = 2\n")
    assert path.read_text() == "x = 1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.py"]
