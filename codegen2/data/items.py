"""Read one item of the corpus (a package's archives, a directory, a Parquet file) as batches of rows.

Not here: what is dropped and why (the stages), except what cannot be a row: too large, or no UTF-8. Parquet has the
columns of the shards written here, or The Stack's (v1.1).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.paths import check_regular
from ..files.sources import decode, may_be_source, walk
from ..text.languages import LANGUAGES, canonical, language_of
from .archives import ArchiveError, Limits, is_archive, members, too_large
from .licence_gate import by_folder, debian_licences, declared_by, is_licence_file
from .licences import PERMISSIVE
from .manifest import Item
from .rows import Table, table_of

_BATCH_ROWS, _BATCH_BYTES = 512, 16_000_000
_METADATA = ("METADATA", "PKG-INFO", "package.json", "pyproject.toml", "copyright")
_TEST = re.compile(
    r"(^|/)(_?tests?|testing|specs?|__tests__|__mocks__|[^/]*\.tests?)/"
    r"|(^|/)(test_[^/]*|[^/]*_test|conftest)\.(py|go|cc|cpp|c|rb|dart|php|lua|exs?)$"
    r"|[._-](test|spec)\.[cm]?[jt]sx?$|_spec\.(rb|lua)$|[a-z0-9]Tests?\.(java|cs|kt|scala|swift|php)$",
)


@dataclass
class Reading:
    """What reading an item found besides its rows: its licence, licence texts, and what was left out unread."""

    declared: str = ""
    notices: dict[str, str] = field(default_factory=dict)  # path -> text
    left_out: Counter[str] = field(default_factory=Counter)
    top: dict[Path, str] = field(default_factory=dict)  # the one folder that all of an archive lies in
    vendored: tuple[str, ...] = ()  # folders of packages copied whole, as the metadata that came along show
    by_path: Callable[[str], str] | None = None  # the licence of a path, where it is not the declared one


def language_named(name: str) -> str:
    """Return our word for a language; raise ValueError when it is none of the 19.

    >>> language_named("C#"), language_named("c-sharp")
    ('c-sharp', 'c-sharp')
    """
    found = canonical(name)
    if found is None:
        raise ValueError(f"language {name!r} is unknown; choose of {', '.join(LANGUAGES)}")
    return found


def read_item(
    item: Item, paths: Sequence[Path], languages: Iterable[str], limits: Limits, reading: Reading
) -> Iterator[Table]:
    """Yield the item's source files as tables, in the order in which they lie there; fill in `reading`.

    Raises ValueError when it cannot be read, OSError when it is not there.
    """
    wanted = frozenset(languages)
    if item.local and paths[0].suffix == ".parquet":
        rows = _parquet_rows(item, paths[0], wanted, limits, reading)
    else:
        rows = _file_rows(item, paths, wanted, limits, reading)
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row["bytes"]
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield table_of(batch)
            batch, size = [], 0
    if batch:
        yield table_of(batch)


def _file_rows(
    item: Item, paths: Sequence[Path], wanted: frozenset[str], limits: Limits, reading: Reading
) -> Iterator[dict[str, Any]]:
    _survey(item, paths, limits, reading)
    for where in paths:
        strip = reading.top[where]
        for path, content in _files(where, may_be_source, limits, reading.left_out):
            inner = path.removeprefix(f"{strip}/") if strip else path
            row = _row(item, inner, content, wanted, reading.left_out)
            if row is None:
                continue
            if path.startswith(reading.vendored):
                reading.left_out["vendored"] += 1
                continue
            row["licence"] = reading.by_path(inner) if reading.by_path else reading.declared
            yield row


def _survey(item: Item, paths: Sequence[Path], limits: Limits, reading: Reading) -> None:
    """Read what names licences first: in a stream the files come before or behind it."""
    found: list[tuple[str, str]] = []  # (path without the top folder, text)
    vendored = set()
    for where in paths:
        tops: set[str] = set()

        def of_interest(path: str, tops: set[str] = tops) -> bool:
            tops.add(path.partition("/")[0])
            head = path.partition(".dist-info/")[0]
            if head != path and "/" in head:
                vendored.add(head.rpartition("/")[0] + "/")
            return is_licence_file(path) or (path.count("/") <= 4 and path.rpartition("/")[2] in _METADATA)

        texts = [
            (path, (raw or b"").decode("utf-8", "replace"))
            for path, raw in _files(where, of_interest, limits, Counter())
        ]
        # A wheel, a Debian part and a directory are as they are; what else lies in one folder is named without it.
        as_it_is = where.is_dir() or where.suffix in (".whl", ".deb") or ".debian.tar" in where.name
        top = "" if as_it_is or len(tops) != 1 else next(iter(tops))
        reading.top[where] = top
        found += [(path.removeprefix(f"{top}/") if top else path, text) for path, text in texts]
    reading.vendored = tuple(sorted(vendored))
    reading.notices = {path: text for path, text in found if is_licence_file(path)}
    at_top = {path: text for path, text in found if "/" not in path}
    at_top |= {
        path.rpartition("/")[2]: t for path, t in found if re.fullmatch(r"[^/]+\.dist-info/METADATA", path)
    }
    if item.registry.startswith("debian"):
        # Upstream's metadata speak of upstream; Debian's copyright file covers all paths. Which of the permissive
        # licences pass is the gate's question, so all are named here.
        debian = [
            text for path, text in found if re.fullmatch(r"debian/copyright|.*/doc/[^/]+/copyright", path)
        ]
        reading.by_path = debian_licences(debian[0], PERMISSIVE) if debian else None
        reading.declared = item.licence
    else:
        reading.declared = declared_by(at_top) or item.licence
        reading.by_path = by_folder(dict(found), reading.declared)


def _files(
    where: Path, wanted: Callable[[str], bool], limits: Limits, left_out: Counter[str]
) -> Iterator[tuple[str, bytes | None]]:
    if where.is_dir():
        return walk(where, left_out, wanted, limits.file_bytes)
    if not is_archive(where):
        raise ArchiveError(f"{where}: is no archive that can be read here")
    return members(where, wanted, limits)


def _row(
    item: Item, path: str, content: bytes | None, wanted: frozenset[str], left_out: Counter[str]
) -> dict[str, Any] | None:
    if content is None:
        left_out["too large"] += 1 if language_of(path) else 0
        return None
    if not language_of(path) and not content.startswith(b"#!"):
        return None  # no source at all: not counted
    if (text := decode(content)) is None:
        left_out["no UTF-8"] += 1
        return None
    return _row_of_text(item, path, text, language_of(path, text), wanted, left_out)


def _row_of_text(
    item: Item, path: str, text: str, language: str | None, wanted: frozenset[str], left_out: Counter[str]
) -> dict[str, Any] | None:
    if language not in wanted:
        left_out["other language"] += 1 if language else 0
        return None
    return {
        "registry": item.registry, "package": item.name, "version": item.version, "path": path,
        "language": language, "bytes": len(text.encode("utf-8")), "is_test": bool(_TEST.search(path)), "text": text,
    }  # fmt: skip


def _parquet_rows(
    item: Item, path: Path, wanted: frozenset[str], limits: Limits, reading: Reading
) -> Iterator[dict[str, Any]]:
    try:
        yield from _rows_of(item, path, wanted, limits.of_file(check_regular(path).stat().st_size), reading)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None
    except Exception as error:  # of damaged bytes pyarrow raises nearly everything
        what = f"{type(error).__name__}: {error!s:.300}"
        raise ArchiveError(f"{path}: cannot be read as a Parquet file ({what}); fetch it again") from error


def _rows_of(
    item: Item, path: Path, wanted: frozenset[str], limits: Limits, reading: Reading
) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(path)
    names = set(schema.names)
    stack = {"content", "max_stars_repo_path", "max_stars_repo_name", "max_stars_repo_licenses"}
    ours = {"text", "path", "package"}
    if not (stack <= names or ours <= names):
        raise ArchiveError(
            f"has columns {sorted(names)!s:.300}; expected The Stack's ({', '.join(sorted(stack))}) or"
            f" {', '.join(sorted(ours))} with licence, version and registry"
        )
    is_stack = stack <= names
    chosen = stack | {"lang"} if is_stack else ours | {"licence", "version", "registry"}
    # A text that a column repeats stays one, so that a batch is not larger than the file makes it.
    text = ["content" if is_stack else "text"]
    with pyarrow.parquet.ParquetFile(path, read_dictionary=text) as source:
        if source.metadata.num_rows > limits.files:
            raise too_large(limits)
        left = limits.total_bytes
        for batch in source.iter_batches(batch_size=_BATCH_ROWS, columns=sorted(chosen & names)):
            for n in range(batch.num_rows):
                row = {name: batch[name][n].as_py() for name in batch.schema.names}
                if made := _row_of_parquet(
                    item, _of_stack(row) if is_stack else row, wanted, reading.left_out
                ):
                    left -= made["bytes"]
                    if left < 0:
                        raise too_large(limits)
                    yield made


def _of_stack(row: dict[str, Any]) -> dict[str, Any]:
    """Name a row's columns our way."""
    return {
        "registry": "the-stack", "package": row["max_stars_repo_name"], "path": row["max_stars_repo_path"],
        "text": row["content"], "language": row.get("lang"),
        # All licences that were found in a repository bind, as nobody says which file is under which.
        "licence": " AND ".join(sorted(map(str, row["max_stars_repo_licenses"] or ()))),
    }  # fmt: skip


def _row_of_parquet(
    item: Item, row: dict[str, Any], wanted: frozenset[str], left_out: Counter[str]
) -> dict[str, Any] | None:
    text, path = row["text"], str(row["path"] or "")
    if not isinstance(text, str) or "\0" in text:
        left_out["no text"] += 1
        return None
    named = str(row.get("language") or "").lower()
    language = language_of(path, text) or canonical(named) or named
    found = _row_of_text(item, path, text.removeprefix("\ufeff"), language, wanted, left_out)
    if found is not None:
        found["licence"] = str(row.get("licence") or item.licence)
        for key in ("package", "version", "registry"):
            found[key] = str(row.get(key) or found[key])
    return found
