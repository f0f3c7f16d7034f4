"""What a language server asks for at a cursor, and what it makes of the answer: settings, line or block, the item.

Pure. Not here: the protocol (server.py), who answers (backend.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lsprotocol import types

from ..generation.params import SamplingParams
from ..generation.request import Request
from ..generation.results import Choice
from ..text.cursor import Place
from .documents import Document, count_units

_LINE_TOKENS = 48  # a line that is longer is not worth its wait
_OPENS = re.compile(r"(?:[:{(\[]|[=-]>|\b(?:do|then|begin|else|try))$")
_MULTILINE = ("auto", "always", "never")


@dataclass(frozen=True)
class Settings:
    """What a person set under "codegen2" in their editor.

    model: a name or directory, "" for the command line's. server: the address of a running server, "" to run the model
    here. debounce_ms: an automatic request waits so long for a newer one. deadline_ms: 0 for none. suggest_above: how
    sure the model must be; None: as its config says of automatic suggestions, while those asked for are always shown.
    """

    model: str = ""
    server: str = ""
    max_new_tokens: int = 128
    temperature: float = 0.0
    multiline: Literal["auto", "always", "never"] = "auto"
    automatic: bool = True
    debounce_ms: int = 0
    deadline_ms: int = 0
    suggest_above: float | None = None


def _number(low: float, high: float, whole: bool = True) -> tuple[Callable[[object], bool], str]:
    """Return a check of a number and its words."""

    def check(value: object) -> bool:
        kinds = int if whole else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    return check, f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"


_TEXT: tuple[Callable[[object], bool], str] = (lambda value: isinstance(value, str), "a string")
# A setting's name in editors: our field, the check of a value, and what a value must be.
_FIELDS: dict[str, tuple[str, Callable[[object], bool], str]] = {
    "model": ("model", *_TEXT),
    "server": ("server", *_TEXT),
    "maxTokens": ("max_new_tokens", *_number(1, 4096)),
    "temperature": ("temperature", *_number(0, 2, whole=False)),
    "multiline": ("multiline", lambda value: value in _MULTILINE, "auto, always or never"),
    "automatic": ("automatic", lambda value: isinstance(value, bool), "true or false"),
    "debounceMs": ("debounce_ms", *_number(0, 60_000)),
    "suggestAbove": ("suggest_above", *_number(0, 1, whole=False)),
    "deadlineMs": ("deadline_ms", *_number(0, 60_000)),
}


def read_settings(content: Any, base: Settings) -> tuple[Settings, list[str]]:
    """Return the settings on top of base, and a sentence for each that is wrong or unknown, which is passed over.

    >>> read_settings({"maxTokens": 64, "multiline": "yes"}, Settings())[1]
    ["codegen2.multiline must be auto, always or never, got 'yes'"]
    """
    if content is None or content == []:  # editors send either for nothing
        return base, []
    if not isinstance(content, dict):
        return base, [f"codegen2 must be an object of settings, got {_short(content)}"]
    changes, wrong = {}, []
    for name, value in content.items():
        if name not in _FIELDS:
            wrong.append(f"codegen2.{name} is unknown; there are {', '.join(_FIELDS)}")
        elif value is not None:  # null counts as absent
            field, check, what = _FIELDS[name]
            if check(value):
                changes[field] = value
            else:
                wrong.append(f"codegen2.{name} must be {what}, got {_short(value)}")
    return dataclasses.replace(base, **changes), wrong


def _short(value: object) -> str:
    names = {dict: "an object", list: "a list"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), repr(value)[:60])


@dataclass(frozen=True)
class Cursor:
    """Where in a document a request stands, as the document was then; a menu's marked entry counts as chosen."""

    prefix: str
    suffix: str
    line: int
    column: int  # in characters
    line_text: str
    encoding: str
    language: str = ""
    selected: types.SelectedCompletionInfo | None = None

    @classmethod
    def of(
        cls,
        document: Document,
        position: types.Position,
        selected: types.SelectedCompletionInfo | None = None,
    ) -> Cursor:
        """Find a position; a menu's entry that is not where the cursor is, is passed over."""
        here = document.locate(position)
        prefix, suffix = document.around(here)
        if selected is not None:
            start, end = map(document.locate, (selected.range.start, selected.range.end))
            if start.line == here.line == end.line and start.column <= here.column <= end.column:
                prefix = document.around(start)[0] + selected.text
                suffix = document.around(end)[1]
            else:
                selected = None
        return cls(prefix, suffix, *here[:3], document.encoding, document.language, selected)

    @property
    def inside_word(self) -> bool:
        """Whether a name stands right after the cursor: what is typed there is part of it."""
        after = self.suffix[:1]
        return after.isalnum() or after == "_"

    def item(self, choice: Choice) -> types.InlineCompletionItem | None:
        """Return what an editor shows of an answer; None for one that is blank."""
        if not choice.text.strip():
            return None
        if self.selected is not None:
            text = self.selected.text + choice.text
            return types.InlineCompletionItem(text, text, self.selected.range)
        unindent = min(choice.unindent, self.column)
        start, here = self._position(self.column - unindent), self._position(self.column)
        # Clients show an item only where the text that it replaces begins its filter text.
        blanks = self.line_text[self.column - unindent : self.column]
        filter_text = blanks + choice.text if unindent else None
        return types.InlineCompletionItem(choice.text, filter_text, types.Range(start, here))

    def _position(self, column: int) -> types.Position:
        return types.Position(self.line, count_units(self.line_text[:column], self.encoding))


def opens_block(place: Place) -> bool:
    """Return whether a block opens at the cursor: at the end of a line that opens one, or on the blank line below it.

    With text behind the cursor on its line, closing brackets that editors write by themselves included, an answer stays
    on that line: f = {|} is no place for a block.

    >>> opens_block(Place.of("def f():", "\\nx = 1\\n", "python")), opens_block(Place.of("if (a) {\\n  ", "", "c"))
    (True, True)
    >>> opens_block(Place.of("f = {", "}\\n", "c")), opens_block(Place.of("x = ", "\\n", "python"))
    (False, False)
    """
    if place.rest:
        return False
    line = place.head
    if place.on_blank:
        line = next((above for above in reversed(place.prefix.split("\n")[:-1]) if above.strip()), "")
    return _OPENS.search(place.code(line)) is not None


def request_at(cursor: Cursor, settings: Settings, *, invoked: bool, session: str) -> Request:
    """Return what to ask for: a block where somebody asks for it or one opens, else a line.

    Where text follows on the cursor's line it is always a line.
    """
    place = Place.of(cursor.prefix, cursor.suffix, cursor.language)
    block = not place.rest and settings.multiline != "never"
    if settings.multiline == "auto":
        block = block and (invoked or opens_block(place))
    most = settings.max_new_tokens
    params = SamplingParams(
        max_new_tokens=most if block else min(most, _LINE_TOKENS),
        temperature=settings.temperature,
        deadline_s=settings.deadline_ms / 1000 or None,
        suggest_above=0.0 if invoked and settings.suggest_above is None else settings.suggest_above,
    )
    return Request(
        prefix=cursor.prefix, suffix=cursor.suffix, params=params, stop_at="block" if block else "line",
        language=cursor.language or None, suggest=True, session=session, client=session,
    )  # fmt: skip
