"""What an editor should see of a middle: a chain of small cuts, each with a reason. Pure text in, text out.

Not here: stop strings while text streams (stopping.py), what is known of the text around a cursor (cursor.py), or
what counts as repeated text (overlap.py). The caller keeps the raw text. The chain, in order, runs
until nothing changes, so that a processed text passes through it untouched:

    line            mid-line (Place.within_line): the first line end; stop_at="line": the first line that is not blank
    indentation     tabs or spaces as in the file; indentation that already stands before the cursor goes
    prefix_overlap  text that already stands before the cursor goes: its line, or the lines above it (trim_overlap)
    suffix_overlap  text that already stands after the cursor goes, with all that follows it (trim_overlap)
    dedent          stop_at="block": a line that stands left of the hole's block ends the middle
    block           stop_at="block": a closing bracket that the suffix supplies ends it
    line_end        stop_at="block": line ends at the end go where the suffix begins with one
    brackets        of suggestions: what leaves a bracket or quote without its partner goes, to the last whole line
    leading_space   blanks at the start go where code and a blank stand before the cursor
    trailing_space  blanks at the end go where the suffix begins with a blank or a line end

Overlap comes before the stops because it needs the lines after the cut as evidence. Every step takes time linear in
its text, and what still repeats its surroundings after 16 rounds is nothing else, so that no shape of a text is slow.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from .cursor import Place, code_starts, columns, indent_of, unmatched
from .newlines import line_end_of, normalise, restore
from .overlap import agree, trim_prefix_overlap, trim_suffix_overlap

StopAt = Literal["line", "block"]

_MOST_TRIED = 32  # places to cut
_MOST_ROUNDS = 16  # real answers take two or three
_DIRECTIVE = re.compile(r"#[ \t]*(?:if|el|endif|define|undef|include|pragma|region)")


@dataclass(frozen=True)
class Cut:
    """One change: its reason, and the text that is gone, with LF line ends ("" where it only added)."""

    reason: str
    removed: str


@dataclass(frozen=True)
class Processed:
    """The text to insert, the changes made, and how many characters before the cursor should go.

    `unindent` is above 0 only where the cursor's line is blank and the text starts with `else` or `}`.
    """

    text: str
    cuts: tuple[Cut, ...] = ()
    unindent: int = 0


def postprocess(
    middle: str,
    prefix: str,
    suffix: str,
    *,
    stop_at: StopAt | None = None,
    trim_overlap: bool = True,
    language: str | None = None,
) -> Processed:
    """Return what an editor should insert of a raw middle between prefix and suffix; never fails on any text.

    `language` (one of ours, or an editor's name for it) says how comments look; unknown or None is guessed.
    Raises ValueError for another stop_at.

    Line ends are the file's, whatever the middle's are; cuts show LF. A cursor between CR and LF stands below the CR.

    >>> postprocess("name)\\nprint(name)", "print(", ")\\nprint(name)").cuts
    (Cut(reason='line', removed='\\nprint(name)'), Cut(reason='suffix_overlap', removed=')'))
    """
    place = Place.of(normalise(prefix), normalise(suffix), language)
    done = process(middle, place, stop_at=stop_at, trim_overlap=trim_overlap)
    return replace(done, text=restore(done.text, line_end_of(prefix, suffix)))


def process(
    middle: str,
    place: Place,
    *,
    stop_at: StopAt | None = None,
    trim_overlap: bool = True,
    whole: bool = False,
) -> Processed:
    """Do what postprocess does for text with LF line ends; a middle that grows is asked about with the same place.

    whole: keep the text's brackets and quotes in pairs, where they are.
    """
    if stop_at not in (None, "line", "block"):
        raise ValueError(f"stop_at must be 'line', 'block' or None, got {stop_at!r}")
    chain: list[tuple[str, Callable[[str, Place], str]]] = [("indentation", fix_indentation)]
    if place.within_line:
        chain.insert(0, ("line", cut_at_line_end))
    if trim_overlap:
        chain += [("prefix_overlap", trim_prefix_overlap), ("suffix_overlap", trim_suffix_overlap)]
    if stop_at == "block":
        chain += [("dedent", cut_dedent), ("block", cut_block), ("line_end", trim_line_end)]
    elif stop_at == "line":
        chain.append(("line", cut_line))
    if whole:
        chain.append(("brackets", keep_whole))
    chain += [("leading_space", trim_leading_space), ("trailing_space", trim_trailing_space)]
    text, cuts = normalise(middle), []
    before, rounds = None, 0
    while text != before:  # ends: every step shortens the text or does what it does but once
        before, rounds = text, rounds + 1
        if rounds > _MOST_ROUNDS:
            cuts.append(Cut("suffix_overlap", text))
            text = ""
        for reason, step in chain:
            new = step(text, place)
            if new != text:
                cuts.append(Cut(reason, _gone(text, new)))
            text = new
    return Processed(text, tuple(cuts), unindent(text, place))


def _gone(old: str, new: str) -> str:
    """Return the part of old between what it shares with new at its start and at its end."""
    start = agree(old, new)
    end = agree(old[start:][::-1], new[start:][::-1])
    return old[start : len(old) - end]


def fix_indentation(middle: str, place: Place) -> str:
    """Use the file's kind of indentation, and drop from the first line what already stands before the cursor.

    The first line keeps as much of its own as a statement may have below the line above: an `if x:` there
    makes room for one more level. Nothing is dropped unless it repeats all the blanks before the cursor.

    >>> fix_indentation("    return 1", Place("def f():\\n    ", ""))
    'return 1'
    >>> fix_indentation("if x:\\n    y()", Place("def f():\\n\\t", ""))
    'if x:\\n\\ty()'
    """
    lines = _convert(middle.split("\n"), place)
    first = lines[0]
    indent, code = indent_of(first), first.lstrip(" \t")
    if not (place.on_blank and place.head and indent and code.strip()):
        return "\n".join(lines)
    if unindent(code, place):
        indent = ""
    elif indent.startswith(place.head):
        room = place.deepest - columns(place.head)
        widths = accumulate(columns(c) for c in indent)
        indent = indent[: sum(width <= room for width in widths)]
    return "\n".join([indent + code, *lines[1:]])


def _convert(lines: list[str], place: Place) -> list[str]:
    """Turn leading tabs into the file's spaces, or leading spaces, if in even steps, into its tabs."""
    if place.unit is None:
        return lines
    own = [indent_of(line) for line in lines]
    if not place.on_blank:
        own[0] = ""  # in the middle of a line these are blanks, not indentation
    bodies = [line[len(i) :] for i, line in zip(own, lines, strict=True)]
    if place.unit != "\t":
        return [i.replace("\t", place.unit) + body for i, body in zip(own, bodies, strict=True)]
    # One blank alone is no indentation: it aligns the star of a comment.
    spaces = [len(i) if len(i) > 1 and "\t" not in i else 0 for i in own]
    step = next((s for s in (4, 2) if all(n % s == 0 for n in spaces)), None)
    if step is None:
        return lines
    new = ["\t" * (n // step) if n else i for n, i in zip(spaces, own, strict=True)]
    return [i + body for i, body in zip(new, bodies, strict=True)]


def unindent(middle: str, place: Place) -> int:
    """Return how many characters before the cursor should go for a first line that closes a block.

    >>> unindent("else:\\n    y()", Place("if a:\\n    x()\\n    ", ""))
    4
    """
    first = (middle if "\n" in middle else middle + place.rest).partition("\n")[0].rstrip()
    target = place.closing_indent(first) if place.on_blank and first else None
    return len(place.head) - len(target) if target is not None and place.head.startswith(target) else 0


def cut_at_line_end(middle: str, place: Place) -> str:
    """Cut at the first line end: what follows it cannot stand between two parts of one line.

    >>> cut_at_line_end("a, b\\n    c", Place("f(", ")"))
    'a, b'
    """
    return middle.partition("\n")[0]


def cut_line(middle: str, place: Place) -> str:
    """Cut after the first line that is not blank; blank lines before it stay, to keep it in place.

    >>> cut_line("\\n    x = 1\\n    y = 2\\n", Place("def f():", "\\n"))
    '\\n    x = 1'
    """
    match = re.match(r"\s*\S[^\n]*", middle)
    if match is None or match.end() == len(middle):
        return middle
    return match.group() + place.line_end


def cut_dedent(middle: str, place: Place) -> str:
    """Cut at the first line left of the hole's block, but after a `}` or `end` that is its own.

    The block is as deep as the first line; after a cursor in a line that opens one, deeper than that line. At
    column 0 nothing encloses the hole: there the first statement with its body is the block.

    >>> cut_dedent("return 1\\n\\ndef g():\\n", Place("def f():\\n    ", "\\n"))
    'return 1'
    """
    lines = middle.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip() and (i or place.on_blank)), len(lines))
    if first == len(lines):
        return middle
    base, floor = columns(indent_of(place.head)), columns(indent_of(lines[first]))
    if place.on_blank:
        floor += columns(place.head) - unindent(middle, place) if first == 0 else 0
    else:
        floor = base + 1 if floor > base else base
    surplus, starts = place.surplus_closers(middle), code_starts(lines)
    entered = False  # a line deeper than the floor has been seen
    for i in range(first, len(lines)):
        code = lines[i].strip()
        depth = columns(indent_of(lines[i]))
        directive = place.comments == "//" and _DIRECTIVE.match(code)  # C's stand at column 0 anywhere
        if (i == first and place.on_blank) or not code or directive:
            continue
        if depth >= floor and not (floor == 0 and entered and depth == 0):
            entered = entered or depth > floor
            continue
        if place.closes_here(code, starts[i], surplus):
            if unmatched(code, place.comments)[0]:
                continue  # } else {
            return place.until(lines[: i + 1]) if any(line.strip() for line in lines[i + 1 :]) else middle
        if not (Place.goes_on(code) and depth == min(base, floor)):
            return place.until(lines[:i])
    return middle


def cut_block(middle: str, place: Place) -> str:
    """Cut at the first closing bracket that closes what the suffix closes already.

    >>> cut_block("a();\\n}\\nb();", Place("if (x) {\\n  ", "\\n}\\n"))
    'a();'
    """
    surplus = place.surplus_closers(middle)
    if not surplus:
        return middle
    kept = middle[: surplus[0]]
    return kept if kept.rpartition("\n")[2].strip() else place.until(kept.split("\n"))


def keep_whole(middle: str, place: Place) -> str:
    """Cut where the text's brackets and quotes still have their partners: behind a line, or before a closing bracket.

    Nothing is cut where they had none before. "" where no such place is found among the last 32.

    >>> keep_whole("a, b))", Place("f(", ")")), keep_whole("x = [1]\\ny = [", Place("", "\\n"))
    ('a, b', 'x = [1]')
    >>> keep_whole("g(a))", Place("f(", ")")), keep_whole("g(", Place("f(", ""))
    ('g(a)', 'g(')
    """
    if not middle.strip() or not place.whole or place.stays_whole(middle):
        return middle
    ends = [m.start() for m in re.finditer(r"\n|[)\]}]", middle)][-_MOST_TRIED:]
    for end in reversed(ends):
        kept = place.until(middle[:end].split("\n")) if middle[end] == "\n" else middle[:end]
        if kept.strip() and place.stays_whole(kept):
            return kept
    return ""


def trim_leading_space(middle: str, place: Place) -> str:
    """Drop blanks at the start where a blank stands before the cursor, after code.

    >>> trim_leading_space(" 1", Place("x = ", "")), trim_leading_space("  1", Place("    ", ""))
    ('1', '  1')
    """
    return middle.lstrip(" \t") if not place.on_blank and place.head[-1] in " \t" else middle


def trim_trailing_space(middle: str, place: Place) -> str:
    """Drop blanks at the end where the suffix begins with a blank or a line end.

    >>> trim_trailing_space("1 ", Place("x = ", " # one")), trim_trailing_space("1 ", Place("x = ", "+ 2"))
    ('1', '1 ')
    >>> trim_trailing_space("1\\n", Place("x = ", "\\ny = 2"))
    '1'
    """
    if not place.on_blank and place.suffix.startswith("\n") and middle.find("\n") == len(middle) - 1:
        middle = middle[:-1]  # the rest of a line, and its end, which stands there
    return middle.rstrip(" \t") if place.suffix[:1] in (" ", "\t", "\n") else middle


def trim_line_end(middle: str, place: Place) -> str:
    """Drop line ends at the end where the suffix begins with one: a blank line is not wanted.

    >>> trim_line_end("y()\\n", Place("x()\\n", "\\nz()\\n")), trim_line_end("y()\\n", Place("x()\\n", "z()\\n"))
    ('y()', 'y()\\n')
    """
    return middle.rstrip() if place.suffix.startswith("\n") and middle.endswith("\n") else middle
