"""What can be said of the text around a cursor: brackets, indentation, line ends. A leaf.

Not here: what is done to a middle with that knowledge (postprocess.py). It looks at lines and brackets, not
at grammars: one regular expression skips strings and comments, so a string over several lines or a regular
expression literal can mislead it, and so can a file that is cut off before the cursor. It never fails.

Words: head is the cursor's line before the cursor, rest its remainder after the cursor, without line ends.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

_NEAR = 32_768  # characters looked at on each side of the cursor: bounds the time that a huge file costs
_TAB = 4  # columns of a tab where depths are compared; a file mostly has one kind of indentation only
_CLOSER_OF = {"(": ")", "[": "]", "{": "}"}
CLOSERS = frozenset(")]}")

# Our names of languages and those that editors use (LSP's languageId), by what starts a comment: # or //.
# fmt: off
_HASH = frozenset((
    "python", "ruby", "shell", "shellscript", "perl", "r", "elixir", "julia", "yaml", "toml", "makefile",
))
_SLASH = frozenset((
    "c", "c++", "cpp", "c-sharp", "csharp", "c#", "dart", "go", "java", "javascript", "javascriptreact",
    "kotlin", "php", "rust", "scala", "swift", "typescript", "typescriptreact", "vue", "zig", "css", "scss",
))
# fmt: on
# Strings end on their own line, so that an apostrophe in prose hides little; 500 bounds the search.
_STRINGS = r""" \"{3}[\s\S]*?(?:\"{3}|\Z) | '{3}[\s\S]*?(?:'{3}|\Z)
    | "(?:\\.|[^"\\\n]){0,500}" | '(?:\\.|[^'\\\n]){0,500}' | `(?:\\.|[^`\\\n]){0,500}` """
_BRACKETS = {  # by whether # starts a comment
    True: re.compile(_STRINGS + r"| \#[^\n]* | (?P<bracket>[()\[\]{}])", re.VERBOSE),
    False: re.compile(_STRINGS + r"| //[^\n]* | /\*[\s\S]*?(?:\*/|\Z) | (?P<bracket>[()\[\]{}])", re.VERBOSE),
}
# Lines that stand one level left of the block before them, and the lines whose level they share.
_PARTNERS = {
    "else": [
        "if",
        "elif",
        "elsif",
        "elseif",
        "for",
        "while",
        "try",
        "except",
        "rescue",
        "unless",
        "case",
        "when",
    ],
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
}
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


def line_at(text: str, at: int) -> str:
    """Return the line of text that holds position `at`.

    >>> line_at("a\\nbc\\nd", 3)
    'bc'
    """
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0]


def unmatched(text: str, hash_comments: bool) -> tuple[list[int], list[int]]:
    """Return the positions of opening and of closing brackets that text leaves without a partner.

    >>> unmatched("f(a[0]", True), unmatched("x) # (", True)
    (([1], []), ([], [1]))
    """
    opened: list[int] = []
    closers: list[int] = []
    for match in _BRACKETS[hash_comments].finditer(text):
        bracket = match["bracket"]
        if bracket in _CLOSER_OF:
            opened.append(match.start())
        elif bracket and opened and _CLOSER_OF[text[opened[-1]]] == bracket:
            opened.pop()
        elif bracket:
            closers.append(match.start())
    return opened, closers


@dataclass(frozen=True)
class Place:
    """The text around a cursor with LF line ends, and answer what is asked of it, each once."""

    prefix: str
    suffix: str
    hash_comments: bool = True  # else // and /* */
    crlf: bool = False  # most line ends of the file are CRLF

    @classmethod
    def of(cls, prefix: str, suffix: str, language: str | None = None) -> Place:
        """Read a file around a cursor; an unknown language is told by its line ends: any of { } ; or none."""
        prefix, suffix = prefix[-_NEAR:], suffix[:_NEAR]
        crlf = prefix.count("\r\n") + suffix.count("\r\n")
        lf = prefix.count("\n") + suffix.count("\n") - crlf
        prefix, suffix = prefix.replace("\r\n", "\n"), suffix.replace("\r\n", "\n")
        name = (language or "").lower()
        if name in _HASH or name in _SLASH:
            return cls(prefix, suffix, name in _HASH, crlf > lf)
        braces = re.compile(r"[{};][ \t]*$", re.MULTILINE)
        return cls(prefix, suffix, not (braces.search(prefix) or braces.search(suffix)), crlf > lf)

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
        """Return whether nothing but blanks stands before the cursor on its line."""
        return not self.head.strip()

    @functools.cached_property
    def _above(self) -> list[str]:
        return [line for line in self.prefix.split("\n")[:-1] if line.strip()]

    @functools.cached_property
    def _opened(self) -> list[int]:
        return unmatched(self.prefix, self.hash_comments)[0]

    @functools.cached_property
    def _closed_after(self) -> int:
        """Count the brackets open at the cursor that the suffix closes."""
        closers = unmatched(self.suffix, self.hash_comments)[1]
        if not closers or not self._opened:
            return len(closers)
        line = line_at(self.suffix, closers[0])
        leads = "\n" in self.suffix[: closers[0]] and line.lstrip()[:1] in CLOSERS
        opener = line_at(self.prefix, self._opened[-1])
        # A closing line left of the innermost opener's line closes something further out.
        return 0 if leads and columns(indent_of(line)) < columns(indent_of(opener)) else len(closers)

    def surplus_closers(self, middle: str) -> list[int]:
        """Return the positions of closing brackets in middle that close what the suffix closes already.

        >>> Place("foo(", ")").surplus_closers("bar()"), Place("foo(", ")").surplus_closers("bar())")
        ([], [5])
        """
        opened, closers = unmatched(middle, self.hash_comments)

        def own(reopened: int) -> int:
            """Count the closers it may give: the suffix first closes what the middle has reopened."""
            return max(0, len(self._opened) - max(0, self._closed_after - reopened))

        first = own(len(opened))
        # A cut at the first surplus closer drops what is reopened after it, so that fewer are its own.
        while first < len(closers) and (fewer := own(sum(at < closers[first] for at in opened))) < first:
            first = fewer
        return closers[first:]

    @functools.cached_property
    def line_end(self) -> str:
        """Return what ends a middle that was cut at a line's end: a newline where it would glue to the suffix.

        >>> Place("x = 1\\n", "y = 2").line_end, Place("x = ", "\\ny = 2").line_end
        ('\\n', '')
        """
        finishing = not self.on_blank and all(c in ")]}>;:,\"'`" for c in self.rest)
        return "" if not self.rest or finishing else "\n"

    @functools.cached_property
    def unit(self) -> str | None:
        """Return the file's unit of indentation, a tab or spaces; None where it shows neither or both alike."""
        after = self.suffix.split("\n")[1 if self.head else 0 :]
        lines = [*self._above, self.head, *(line for line in after if line.strip())]
        indents = [indent_of(line) for line in lines]
        tabs, spaces = sum(i.startswith("\t") for i in indents), sum(i.startswith(" ") for i in indents)
        if tabs == spaces:
            return None
        steps = Counter(len(b) - len(a) for a, b in pairwise(indents) if 1 < len(b) - len(a) <= 8)
        return "\t" if tabs > spaces else " " * (steps.most_common(1)[0][0] if steps else 4)

    @functools.cached_property
    def deepest(self) -> int:
        """Return the columns at which a statement at the cursor may stand at most, by the line above."""
        above = self._above[-1] if self._above else ""
        code = re.sub(r"(?:^|\s)#.*$" if self.hash_comments else r"//.*$", "", above).rstrip()
        opened = unmatched(code, self.hash_comments)[0]
        if opened and opened[-1] != len(code) - 1:
            return 10**9  # a list of arguments goes on; it may be aligned with its bracket, anywhere
        step = columns(self.unit or " " * 4)
        deeper = step if opened or _MAY_OPEN.match(code) else 0
        return max(columns(self.head), columns(indent_of(above)) + deeper)

    def closes_here(self, line: str, at: int, surplus: list[int]) -> bool:
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
        for above in reversed(self._above):
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
