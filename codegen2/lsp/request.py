"""What a language server asks for at a cursor, and what it makes of the answer: settings, line or block, the item.

Pure. Not here: the protocol (server.py), who answers (backend.py).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

from ..serve.schema import BadField, Body, short
from ..text.cursor import Place
from .documents import Around, At, Document, to_units

_LINE_TOKENS = 48  # a line that is longer is not worth its wait
_OPENS = re.compile(r"(?:[:{(\[]|[=-]>|\b(?:do|then|begin|else|try))$")


@dataclass(frozen=True)
class Wishes:
    """What a person set under "codegen2" in their editor.

    model: a name or directory, "" for the command line's. server: the address of a running server, "" to run the model
    here. debounce_ms: an automatic request waits so long for a newer one. deadline_ms: 0 for none; it counts after one
    whole line.
    """

    model: str = ""
    server: str = ""
    max_tokens: int = 128
    temperature: float = 0.0
    multiline: Literal["auto", "always", "never"] = "auto"
    automatic: bool = True
    debounce_ms: int = 0
    deadline_ms: int = 0


_NAMES = {
    "model": "model",
    "server": "server",
    "maxTokens": "max_tokens",
    "temperature": "temperature",
    "multiline": "multiline",
    "automatic": "automatic",
    "debounceMs": "debounce_ms",
    "deadlineMs": "deadline_ms",
}


def read_wishes(content: Any, base: Wishes) -> tuple[Wishes, list[str]]:
    """Return the settings on top of base, and a sentence for each that is wrong or unknown, which is passed over.

    >>> read_wishes({"maxTokens": 64, "multiline": "yes"}, Wishes())[1]
    ["codegen2.multiline must be auto, always or never, got 'yes'"]
    """
    if content is None or content == []:  # editors send either for nothing
        return base, []
    if not isinstance(content, dict):
        return base, [f"codegen2 must be an object of settings, got {short(content)}"]
    found, wrong = base, []
    for name in content:
        if name not in _NAMES:
            wrong.append(f"codegen2.{name} is unknown; there are {', '.join(_NAMES)}")
            continue
        try:
            value = _read(Body(content), name, getattr(base, _NAMES[name]))
        except BadField as e:
            wrong.append(f"codegen2.{e}")
            continue
        found = dataclasses.replace(found, **{_NAMES[name]: value})
    return found, wrong


def _read(body: Body, name: str, default: Any) -> Any:
    if name == "maxTokens":
        return body.whole(name, default, 1, 4096)
    if name in ("debounceMs", "deadlineMs"):
        return body.whole(name, default, 0, 60_000)
    if name == "temperature":
        return body.number(name, default, 0, 2)
    if name == "automatic":
        return body.flag(name, default)
    value = body.text(name, default)
    if name == "multiline" and value not in ("auto", "always", "never"):
        raise BadField(name, f"multiline must be auto, always or never, got {short(value)}")
    return value


@dataclass(frozen=True)
class Hole:
    """One request to whoever answers. session: a newer one with the same key takes the place of an older one."""

    prefix: str
    suffix: str
    stop_at: Literal["line", "block"]
    max_tokens: int
    temperature: float
    session: str
    language: str = ""
    deadline_s: float | None = None


@dataclass(frozen=True)
class Filling:
    """An answer: the text to insert, and how many characters before the cursor go first."""

    text: str
    unindent: int = 0


@dataclass(frozen=True)
class Selected:
    """What a menu of completions has marked: it would put text in the place of start to end."""

    start: At
    end: At
    text: str


@dataclass(frozen=True)
class Item:
    """One inline completion: text in the place of what stands between two positions of one line."""

    text: str
    start: At
    end: At
    filter_text: str | None = None


@dataclass(frozen=True)
class Spot:
    """Where in a document a request stands, as the document was then: the cursor, and the menu's entry, taken as
    if it were chosen already.
    """

    around: Around
    line: int
    column: int
    line_text: str
    encoding: str
    selected: Selected | None = None

    @classmethod
    def of(cls, document: Document, at: At, selected: Selected | None = None) -> Spot:
        """Find the cursor; a menu's entry that is not where the cursor is, is passed over."""
        line, column = document.place(at)
        around = document.around(line, column)
        if selected is not None:
            (first, a), (last, b) = document.place(selected.start), document.place(selected.end)
            if first == line == last and a <= column <= b:
                around = Around(
                    document.around(line, a).prefix + selected.text, document.around(line, b).suffix
                )
            else:
                selected = None
        return cls(around, line, column, document.lines[line], document.encoding, selected)

    @property
    def inside_word(self) -> bool:
        """Return whether a name stands right after the cursor: what is typed there is part of it."""
        after = self.around.suffix[:1]
        return after.isalnum() or after == "_"

    def item(self, filling: Filling) -> Item | None:
        """Return what an editor shows of an answer; None for one that is blank."""
        if not filling.text.strip():
            return None
        if self.selected is not None:
            text = self.selected.text + filling.text
            return Item(text, self.selected.start, self.selected.end, text)
        gone = min(filling.unindent, self.column)
        start, here = self._at(self.column - gone), self._at(self.column)
        if not gone:
            return Item(filling.text, start, here)
        # Clients show an item only where the text that it replaces begins its filter text.
        blanks = self.line_text[self.column - gone : self.column]
        return Item(filling.text, start, here, blanks + filling.text)

    def _at(self, column: int) -> At:
        return At(self.line, to_units(self.line_text[:column], self.encoding))


def opens_block(around: Around, language: str) -> bool:
    """Return whether a block opens at the cursor: at the end of a line that opens one, or on the blank line below it.

    >>> opens_block(Around("def f():", "\\nx = 1\\n"), "python"), opens_block(Around("if (a) {\\n  ", ""), "c")
    (True, True)
    >>> opens_block(Around("def f(", "):\\n"), "python"), opens_block(Around("x = ", "\\n"), "python")
    (False, False)
    """
    place = Place.of(around.prefix, around.suffix, language)
    line = place.head
    if place.on_blank:
        line = next((above for above in reversed(place.prefix.split("\n")[:-1]) if above.strip()), "")
    code = place.code(line)
    if place.rest:  # what editors close by themselves may follow: f = {|}
        return code.endswith(("{", "[")) and all(c in ")]};," for c in place.rest)
    return _OPENS.search(code) is not None


def hole_of(spot: Spot, language: str, wishes: Wishes, invoked: bool, session: str) -> Hole:
    """Return what to ask for: a block where somebody asks for it or one opens, else a line."""
    block = wishes.multiline == "always"
    if wishes.multiline == "auto":
        block = invoked or opens_block(spot.around, language)
    return Hole(
        spot.around.prefix,
        spot.around.suffix,
        "block" if block else "line",
        wishes.max_tokens if block else min(wishes.max_tokens, _LINE_TOKENS),
        wishes.temperature,
        session,
        language,
        wishes.deadline_ms / 1000 or None,
    )
