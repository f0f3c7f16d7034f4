"""Read one item of the corpus (a package's archives, a directory, a Parquet file) as batches of rows.

Not here: what is dropped and why (the stages), except what cannot be a row: too large, or no UTF-8. Parquet has the
columns of the shards written here, or The Stack's (v1.1).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.paths import check_regular
from ..files.sources import decode, may_be_source, walk
from ..text.languages import LANGUAGES, canonical, language_of
from .archives import ArchiveError, Limits, is_archive, members, naming, too_large
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


def language_named(name: str) -> str:
    """Return our word for a language; raise ValueError when it is none of the 19.

    >>> language_named("C#"), language_named("c-sharp")
    ('c-sharp', 'c-sharp')
    """
    found = canonical(name)
    if found is None:
        raise ValueError(f"language {name!r} is unknown; choose of {', '.join(LANGUAGES)}")
    return found


def _of_stack(row: dict[str, Any]) -> dict[str, Any]:
    """Name a row's columns our way."""
    return {
        "registry": "the-stack", "package": row["max_stars_repo_name"], "path": row["max_stars_repo_path"],
        "text": row["content"], "language": row.get("lang"),
        # All licences that were found in a repository bind, as nobody says which file is under which.
        "licence": " AND ".join(sorted(map(str, row["max_stars_repo_licenses"] or ()))),
    }  # fmt: skip


@dataclass
class Reading:
    """An item to read, and what reading finds besides its rows: its licence, licence texts, what was left out unread.

    paths: where its files lie; wanted: languages.
    """

    item: Item
    paths: Sequence[Path]
    wanted: Set[str]
    limits: Limits
    declared: str = ""
    notices: dict[str, str] = field(default_factory=dict)  # path -> text
    left_out: Counter[str] = field(default_factory=Counter)
    _top: dict[Path, str] = field(default_factory=dict)  # the one folder that all of an archive lies in
    _vendored: tuple[str, ...] = ()  # folders of packages copied whole, as the metadata that came along show
    _by_path: Callable[[str], str] | None = None  # the licence of a path, where it is not the declared one

    def tables(self) -> Iterator[Table]:
        """Yield the item's source files as tables, in the order in which they lie there.

        Raises ValueError when it cannot be read, OSError when it is not there.
        """
        is_parquet = self.item.local and self.paths[0].suffix == ".parquet"
        batch: list[dict[str, Any]] = []
        size = 0
        for row in self._parquet_rows(self.paths[0]) if is_parquet else self._file_rows():
            batch.append(row)
            size += row["bytes"]
            if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                yield table_of(batch)
                batch, size = [], 0
        if batch:
            yield table_of(batch)

    def _file_rows(self) -> Iterator[dict[str, Any]]:
        self._survey()
        for where in self.paths:
            strip = self._top[where]
            for path, content in self._files(where, may_be_source, self.left_out):
                inner = path.removeprefix(f"{strip}/") if strip else path
                row = self._row(inner, content)
                if row is None:
                    continue
                if path.startswith(self._vendored):
                    self.left_out["vendored"] += 1
                    continue
                row["licence"] = self._by_path(inner) if self._by_path else self.declared
                yield row

    def _survey(self) -> None:
        """Read what names licences first: in a stream the files come before or behind it."""
        found: list[tuple[str, str]] = []  # (path without the top folder, text)
        vendored = set()
        for where in self.paths:
            tops: set[str] = set()

            def of_interest(path: str, tops: set[str] = tops) -> bool:
                tops.add(path.partition("/")[0])
                head = path.partition(".dist-info/")[0]
                if head != path and "/" in head:
                    vendored.add(head.rpartition("/")[0] + "/")
                return is_licence_file(path) or (
                    path.count("/") <= 4 and path.rpartition("/")[2] in _METADATA
                )

            read = self._files(where, of_interest, Counter())
            texts = [(path, (raw or b"").decode("utf-8", "replace")) for path, raw in read]
            # A wheel, a Debian part and a directory are as they are; what else lies in one folder is named without it.
            as_it_is = where.is_dir() or where.suffix in (".whl", ".deb") or ".debian.tar" in where.name
            top = "" if as_it_is or len(tops) != 1 else next(iter(tops))
            self._top[where] = top
            found += [(path.removeprefix(f"{top}/") if top else path, text) for path, text in texts]
        self._vendored = tuple(sorted(vendored))
        self.notices = {path: text for path, text in found if is_licence_file(path)}
        if self.item.registry.startswith("debian"):
            # Upstream's metadata speak of upstream; Debian's copyright file covers all paths. Which of the permissive
            # licences pass is the gate's question, so all are named here.
            file = re.compile(r"debian/copyright|.*/doc/[^/]+/copyright")
            debian = [text for path, text in found if file.fullmatch(path)]
            self._by_path = debian_licences(debian[0], PERMISSIVE) if debian else None
            self.declared = self.item.licence
            return
        at_top = {path: text for path, text in found if "/" not in path}
        of_wheel = re.compile(r"[^/]+\.dist-info/METADATA")
        at_top |= {path.rpartition("/")[2]: text for path, text in found if of_wheel.fullmatch(path)}
        self.declared = declared_by(at_top) or self.item.licence
        self._by_path = by_folder(dict(found), self.declared)

    def _files(
        self, where: Path, wanted: Callable[[str], bool], left_out: Counter[str]
    ) -> Iterator[tuple[str, bytes | None]]:
        if where.is_dir():
            return walk(where, left_out, wanted, self.limits.file_bytes)
        if not is_archive(where):
            raise ArchiveError(f"{where}: is no archive that can be read here")
        return members(where, wanted, self.limits)

    def _row(self, path: str, content: bytes | None) -> dict[str, Any] | None:
        if content is None:
            self.left_out["too large"] += 1 if language_of(path) else 0
            return None
        if not language_of(path) and not content.startswith(b"#!"):
            return None  # no source at all: not counted
        if (text := decode(content)) is None:
            self.left_out["no UTF-8"] += 1
            return None
        return self._row_of_text(path, text, language_of(path, text))

    def _row_of_text(self, path: str, text: str, language: str | None) -> dict[str, Any] | None:
        if language not in self.wanted:
            self.left_out["other language"] += 1 if language else 0
            return None
        return {
            "registry": self.item.registry, "package": self.item.name, "version": self.item.version, "path": path,
            "language": language, "bytes": len(text.encode("utf-8")), "is_test": bool(_TEST.search(path)), "text": text,
        }  # fmt: skip

    def _parquet_rows(self, path: Path) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet

        stack = {"content", "max_stars_repo_path", "max_stars_repo_name", "max_stars_repo_licenses"}
        ours = {"text", "path", "package"}
        with naming(path, "a Parquet file"):
            limits = self.limits.of_file(check_regular(path).stat().st_size)
            names = set(pyarrow.parquet.read_schema(path).names)
            is_stack = stack <= names
            if not (is_stack or ours <= names):
                raise ArchiveError(
                    f"has columns {sorted(names)!s:.300}; expected The Stack's ({', '.join(sorted(stack))}) or"
                    f" {', '.join(sorted(ours))} with licence, version and registry"
                )
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
                        if made := self._row_of_parquet(_of_stack(row) if is_stack else row):
                            left -= made["bytes"]
                            if left < 0:
                                raise too_large(limits)
                            yield made

    def _row_of_parquet(self, row: dict[str, Any]) -> dict[str, Any] | None:
        text, path = row["text"], str(row["path"] or "")
        if not isinstance(text, str) or "\0" in text:
            self.left_out["no text"] += 1
            return None
        named = str(row.get("language") or "").lower()
        language = language_of(path, text) or canonical(named) or named
        found = self._row_of_text(path, text.removeprefix("\ufeff"), language)
        if found is not None:
            found["licence"] = str(row.get("licence") or self.item.licence)
            for key in ("package", "version", "registry"):
                found[key] = str(row.get(key) or found[key])
        return found
