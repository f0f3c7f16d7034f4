"""What can be said of the text around a cursor: brackets, indentation, line ends. A leaf.

Not here: what is done to a middle with that knowledge (postprocess.py). It looks at lines and brackets, not
at grammars: one regular expression skips strings and comments, so a string over several lines or a regular
expression literal can mislead it, and so can a file that is cut off before the cursor. It never fails.

Words: head is the cursor's line before the cursor, rest its remainder after the cursor, without line ends.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile

from .languages import canonical

_NEAR = 32_768  # characters looked at on each side of the cursor: bounds the time that a huge file costs
_MOST_AGREEING = 64  # brackets in a row whose kinds are compared
_TAB = 4  # columns of a tab where depths are compared; a file mostly has one kind of indentation only
_BRACES = re.compile(r"[{};][ \t]*$", re.MULTILINE)
_CLOSER_OF = {"(": ")", "[": "]", "{": "}"}
CLOSERS = frozenset(")]}")
_TRIPLE = ('"""', "'''")

# What comments look like, by a name for the style, and the languages of each style.
_BLOCK_COMMENT = r"/\*[\s\S]*?(?:\*/|\Z)"
_COMMENTS = {
    "#": r"\#[^\n]*",
    "shell": r"(?<!\S)\#[^\n]*",  # $# and ${#list} are none
    "//": rf"//[^\n]*|{_BLOCK_COMMENT}",
    "php": rf"\#(?!\[)[^\n]*|//[^\n]*|{_BLOCK_COMMENT}",  # #[ begins an attribute
    "lua": r"--\[\[[\s\S]*?(?:\]\]|\Z)|--[^\n]*",
    "sql": rf"--[^\n]*|{_BLOCK_COMMENT}",
    "css": _BLOCK_COMMENT,
    "vue": rf"<!--[\s\S]*?(?:-->|\Z)|//[^\n]*|{_BLOCK_COMMENT}",
}
_LANGUAGES = {
    "#": ("python", "ruby", "perl", "r", "elixir", "julia", "yaml", "toml", "makefile", "dockerfile"),
    "//": ("c", "c++", "c-sharp", "dart", "go", "java", "javascript", "kotlin", "rust", "scala", "swift",
           "typescript", "scss", "zig"),
    "shell": ("shell",), "php": ("php",), "lua": ("lua",), "sql": ("sql",), "css": ("css",), "vue": ("vue", "html"),
}  # fmt: skip
_STYLE = {name: style for style, names in _LANGUAGES.items() for name in names}
# Strings end on their own line, so that an apostrophe in prose hides little; 500 bounds the search, and so does
# that a quote after a backslash begins no string: a quote without partner is then the only one of 500 characters.
_STRINGS = r"""\"{3}[\s\S]*?(?:\"{3}|\Z) | '{3}[\s\S]*?(?:'{3}|\Z) | \\.
    | "(?:\\.|[^"\\\n]){0,500}+" | '(?:\\.|[^'\\\n]){0,500}+' | `(?:\\.|[^`\\\n]){0,500}+`"""
# Lines that stand one level left of the block before them, and the lines whose level they share.
_PARTNERS = {
    "else": ["if", "elif", "elsif", "elseif", "for", "while", "try", "except", "rescue", "unless", "case", "when"],
    "elif": ["if", "elif"],
    "elsif": ["if", "elsif", "unless"],
    "elseif": ["if", "elseif"],
    "except": ["try", "except"],
    "catch": ["try", "catch"],
    "finally": ["try", "except", "else", "catch"],
    "rescue": ["begin", "def", "rescue"],
    "ensure": ["begin", "def", "rescue"],
    "case": ["case"],
    "default": ["case"],
    "when": ["when"],
}  # fmt: skip
# `case = 1`, `default.x` and a lone `when` are names; a lone `else` is none.
_SIBLING = re.compile(rf"({'|'.join(_PARTNERS)})\b(?![ \t]*(?:[=.,)]|$))|(else|finally|ensure|rescue)[ \t]*$")
_END_WORD = re.compile(r"(end|fi|done|esac)\b(?=[ \t]*(?:$|[;),]))")
_MAY_OPEN = re.compile(
    r"\s*(?:def|class|module|if|elsif|elseif|else|unless|while|until|for|case|when|begin|do|then|function"
    r"|repeat|try|local\s+function|catch|switch)\b|.*(?:[:{(\[=\\+*/|&>-]|\b(?:do|then|begin|of|in|where))$"
)


def indent_of(line: str) -> str:
    """Return the spaces and tabs that a line starts with."""
    return line[: len(line) - len(line.lstrip(" \t"))]


def columns(indent: str) -> int:
    """Return the width of an indentation, a tab as 4 columns."""
    return sum(_TAB if c == "\t" else 1 for c in indent)


def code_starts(lines: list[str]) -> list[int]:
    """Return the position of each line's code in the text of the lines.

    >>> code_starts(["a", "  b", "c"])
    [0, 4, 6]
    """
    begins = accumulate((len(line) + 1 for line in lines), initial=0)
    return [at + len(indent_of(line)) for at, line in zip(begins, lines, strict=False)]


def line_at(text: str, at: int) -> str:
    """Return the line of text that holds position `at`.

    >>> line_at("a\\nbc\\nd", 3)
    'bc'
    """
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0]


@functools.cache
def _tokens(comments: str) -> re.Pattern[str]:
    """Return the pattern of what counts in a text: its strings, comments and brackets."""
    bracket = r"(?P<bracket>[()\[\]{}])"
    return re.compile(rf"{_STRINGS} | (?P<comment>{_COMMENTS[comments]}) | {bracket}", re.VERBOSE)


@functools.lru_cache(maxsize=8)  # the steps of one chain ask for the same few texts
def unmatched(text: str, comments: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the positions of opening and of closing brackets that text leaves without a partner.

    >>> unmatched("f(a[0]", "#"), unmatched("x) # (", "#"), unmatched("x) -- (", "lua")
    (((1,), ()), ((), (1,)), ((), (1,)))
    """
    opened: list[int] = []
    closers: list[int] = []
    for match in _tokens(comments).finditer(text):
        bracket = match["bracket"]
        if bracket in _CLOSER_OF:
            opened.append(match.start())
        elif bracket and opened and _CLOSER_OF[text[opened[-1]]] == bracket:
            opened.pop()
        elif bracket:
            closers.append(match.start())
    return tuple(opened), tuple(closers)


def _open_text(text: str, comments: str) -> bool:
    """Return whether a text ends inside a comment or a string of several lines.

    >>> _open_text("f(); /* so", "//"), _open_text("x = 1  # so", "#"), _open_text("x = 'a'", "#")
    (True, True, False)
    """
    last = next(iter(deque(_tokens(comments).finditer(text), maxlen=1)), None)
    if last is None or last.end() < len(text):
        return False
    found = last.group()
    quotes = found[:3]
    return last["comment"] is not None or (
        quotes in _TRIPLE and (len(found) < 6 or not found.endswith(quotes))
    )


def _shape(text: str, comments: str) -> tuple[str, str, bool]:
    """Return the brackets that text leaves without a partner, opening and closing, and whether its quotes have theirs.

    A lone apostrophe is a lifetime or prose in languages of the // kind, so it counts in others only.

    >>> _shape("f(a[0]", "#"), _shape('x = "a', "#"), _shape("&'a str", "//")
    (('(', '', True), ('', '', False), ('', '', True))
    """
    opened, closers = unmatched(text, comments)
    left = _tokens(comments).sub("", text)
    quotes = '"' if comments in ("//", "css", "vue") else "\"'"
    return (
        "".join(text[i] for i in opened),
        "".join(text[i] for i in closers),
        not any(q in left for q in quotes),
    )


@dataclass(frozen=True)
class Place:
    """The text around a cursor, with LF line ends, and what follows from it, each computed once."""

    prefix: str
    suffix: str
    comments: str = "#"  # a key of _COMMENTS

    @classmethod
    def of(cls, prefix: str, suffix: str, language: str | None = None) -> Place:
        """Read a file around a cursor; `language` is any name that languages.canonical knows.

        An unknown language is guessed by its line ends: `//` comments where one is { } or ;, else `#`.

        >>> Place.of("a = 1;", "").comments, Place.of("", "", "C#").comments, Place.of("", "", "mysql").comments
        ('//', '//', 'sql')
        """
        return cls._near(prefix[-_NEAR:], suffix[:_NEAR], language)

    @classmethod
    @functools.lru_cache(maxsize=32)  # what is found out about a place counts for all answers at it
    def _near(cls, prefix: str, suffix: str, language: str | None) -> Place:
        name = canonical(language or "") or (language or "").lower()
        if name not in _STYLE:
            name = "c" if _BRACES.search(prefix) or _BRACES.search(suffix) else "python"
        return cls(prefix, suffix, _STYLE[name])

    @functools.cached_property
    def head(self) -> str:
        """Return the cursor's line before the cursor."""
        return self.prefix.rpartition("\n")[2]

    @functools.cached_property
    def rest(self) -> str:
        """Return the cursor's line after the cursor, without blanks around it."""
        return self.suffix.partition("\n")[0].strip()

    @functools.cached_property
    def on_blank(self) -> bool:
        """Return whether nothing but spaces and tabs stands before the cursor on its line."""
        return not self.head.strip(" \t")

    @functools.cached_property
    def within_line(self) -> bool:
        """Whether an answer must stay on the cursor's line, because text follows on it.

        Not at column 0, where whole lines are inserted above that text; nor where both sides bring indentation,
        because then the text behind the cursor is a line of its own, as in the model card's example.

        >>> Place("x = f(", ")").within_line, Place("", "y = 2").within_line, Place("  ", "  y = 2").within_line
        (True, False, False)
        """
        return bool(self.rest and self.head) and not (self.on_blank and self.suffix[0] in " \t")

    @functools.cached_property
    def above(self) -> list[str]:
        """Return the lines above the cursor's that are not blank."""
        return [line for line in self.prefix.split("\n")[:-1] if line.strip()]

    @functools.cached_property
    def _opened(self) -> tuple[int, ...]:
        return unmatched(self.prefix, self.comments)[0]

    @functools.cached_property
    def _closers(self) -> str:
        """Return the closing brackets of the suffix that have no partner there."""
        return "".join(self.suffix[i] for i in unmatched(self.suffix, self.comments)[1])

    @functools.cached_property
    def _closed_after(self) -> int:
        """Count the brackets open at the cursor that the suffix closes."""
        closers = unmatched(self.suffix, self.comments)[1]
        if not closers or not self._opened:
            return len(closers)
        line = line_at(self.suffix, closers[0])
        leads = "\n" in self.suffix[: closers[0]] and line.lstrip()[:1] in CLOSERS
        opener = line_at(self.prefix, self._opened[-1])
        # A closing line left of the innermost opener's line closes something further out.
        return 0 if leads and columns(indent_of(line)) < columns(indent_of(opener)) else len(closers)

    def surplus_closers(self, middle: str) -> tuple[int, ...]:
        """Return the positions of closing brackets in middle that close what the suffix closes already.

        >>> Place("foo(", ")").surplus_closers("bar()"), Place("foo(", ")").surplus_closers("bar())")
        ((), (5,))
        >>> Place("if (", ") {\\n}", "//").surplus_closers("x) {")
        (1,)
        """
        opened, closers = unmatched(middle, self.comments)

        def allowed(reopened: int) -> int:
            """Count the closers of the middle's own: the suffix first closes what the middle has reopened."""
            # Of its kind: in if (|) {   "x) {" reopens "{", which the suffix's ")" does not close.
            last = opened[max(0, reopened - _MOST_AGREEING) : reopened]
            kinds = (_CLOSER_OF[middle[at]] for at in reversed(last))
            agreeing = sum(
                1 for _ in takewhile(lambda both: both[0] == both[1], zip(kinds, self._closers, strict=False))
            )
            closed = reopened if agreeing == _MOST_AGREEING else agreeing
            return max(0, len(self._opened) - max(0, self._closed_after - closed))

        first = allowed(len(opened))
        # A cut at the first surplus closer drops what is reopened after it, so that fewer are allowed.
        while first < len(closers) and (fewer := allowed(bisect_left(opened, closers[first]))) < first:
            first = fewer
        return closers[first:]

    @functools.cached_property
    def whole(self) -> bool:
        """Whether brackets around the cursor, and the quotes of its line, have their partners, and it stands in code.

        Not where the text around is longer than what is looked at: then this cannot be known.

        >>> Place("f(", ")").whole, Place("f(", "").whole, Place('f("', '")').whole, Place("# f(", "").whole
        (True, False, True, False)
        """
        if max(len(self.prefix), len(self.suffix)) >= _NEAR or _open_text(self.prefix, self.comments):
            return False
        opened, strays = unmatched(self.prefix, self.comments)
        reopened = unmatched(self.suffix, self.comments)[0]
        wanted = "".join(_CLOSER_OF[self.prefix[i]] for i in reversed(opened))
        return not strays and not reopened and wanted == self._closers and self._line[2]

    @functools.cached_property
    def _line(self) -> tuple[str, str, bool]:
        return self._line_with("")

    def _line_with(self, middle: str) -> tuple[str, str, bool]:
        return _shape(self.head + middle + self.suffix.partition("\n")[0], self.comments)

    def stays_whole(self, middle: str) -> bool:
        """Return whether a middle leaves the brackets of the cursor's line as they are, and all quotes in pairs.

        >>> Place("f(", ")").stays_whole("a[0]"), Place("f(", ")").stays_whole("a)")
        (True, False)
        """
        return self._line_with(middle) == self._line

    @functools.cached_property
    def line_end(self) -> str:
        """Return what ends a middle that was cut at a line's end: a newline where whole lines are inserted.

        >>> Place("x = 1\\n", "y = 2").line_end, Place("x = ", "\\ny = 2").line_end
        ('\\n', '')
        """
        return "\n" if self.rest and not self.within_line else ""

    def until(self, lines: list[str]) -> str:
        """Join the lines kept of a middle that was cut at a line's end; blank ones at the end go."""
        text = "\n".join(lines)
        kept = text.rstrip()
        return kept + text[len(kept) :].partition("\n")[0] + self.line_end if kept else ""

    def code(self, line: str) -> str:
        """Return a line without the comment at its end.

        >>> Place("", "").code("if x:  # yes"), Place("", "", "//").code('f("http://a");  // b')
        ('if x:', 'f("http://a");')
        """
        at = next((m.start() for m in _tokens(self.comments).finditer(line) if m["comment"]), len(line))
        return line[:at].rstrip()

    @functools.cached_property
    def unit(self) -> str | None:
        """Return the file's unit of indentation, a tab or spaces; None where it shows neither or both alike."""
        after = self.suffix.split("\n")[1 if self.head else 0 :]
        lines = [*self.above, self.head, *(line for line in after if line.strip())]
        indents = [indent_of(line) for line in lines]
        tabs, spaces = sum(i.startswith("\t") for i in indents), sum(i.startswith(" ") for i in indents)
        if tabs == spaces:
            return None
        steps = Counter(len(b) - len(a) for a, b in pairwise(indents) if 1 < len(b) - len(a) <= 8)
        return "\t" if tabs > spaces else " " * (steps.most_common(1)[0][0] if steps else 4)

    @functools.cached_property
    def deepest(self) -> int:
        """Return the columns at which a statement at the cursor may stand at most, by the line above."""
        above = self.above[-1] if self.above else ""
        code = self.code(above)
        opened = unmatched(code, self.comments)[0]
        if opened and opened[-1] != len(code) - 1:
            return 10**9  # a list of arguments goes on; it may be aligned with its bracket, anywhere
        step = columns(self.unit or " " * 4)
        deeper = step if opened or _MAY_OPEN.match(code) else 0
        return max(columns(self.head), columns(indent_of(above)) + deeper)

    def closes_here(self, line: str, at: int, surplus: tuple[int, ...]) -> bool:
        """Return whether a line, of a middle from `at` on, closes a block that the suffix leaves open."""
        if line[:1] in CLOSERS:
            return at not in surplus
        end = _END_WORD.match(line)
        following = self.suffix.lstrip() if end else ""
        return end is not None and re.match(rf"{end[1]}\b", following) is None

    @staticmethod
    def goes_on(line: str) -> bool:
        """Return whether a line (its indentation off) goes on with the statement before it: else, except ...

        >>> [Place.goes_on(line) for line in ("else:", "case = 1", "except ValueError:")]
        [True, False, True]
        """
        return _SIBLING.match(line) is not None

    def closing_indent(self, line: str) -> str | None:
        """Return the indentation of the line that `line` closes or goes on from; None if it does neither."""
        if line[:1] in CLOSERS:
            return indent_of(line_at(self.prefix, self._opened[-1])) if self._opened else None
        sibling = _SIBLING.match(line)
        if not sibling and not _END_WORD.match(line):
            return None
        here = columns(self.head)
        limit = here + 1  # what stands further right is inside blocks that are closed already
        for above in reversed(self.above):
            indent = indent_of(above)
            depth = columns(indent)
            if sibling and depth < limit:
                first = re.match(r"[}\s]*(?:async\s+)?(\w*)", above)
                if first and first[1] in _PARTNERS[sibling[1] or sibling[2]]:
                    return indent
                limit = depth
            elif not sibling and depth < here:
                return indent
        return None
