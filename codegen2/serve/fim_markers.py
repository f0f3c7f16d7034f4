"""Other models' infill formats in a plain prompt, read back into prefix and suffix, and the text of other files put
before a prefix. Pure.

Not here: the format that our model is asked in (infill.py), HTTP. Clients that know no `suffix` write the text around
the cursor between another model's markers. Ours would read them as odd text; so whoever answers a raw prompt asks
`translate` first:

    begin, hole, end          <fim_prefix> P <fim_suffix> S <fim_middle>
    the same, suffix first    <fim_prefix><fim_suffix> S <fim_middle> P
                              <fim_suffix> S <fim_prefix> P <fim_middle>
    Codestral                 [SUFFIX] S [PREFIX] P
    CodeGen2                  P <mask_1> S <|endoftext|><sep><mask_1> what the answer begins with

The prompt ends with the last marker, or begins with the first one, or is left alone: code may mention markers. What
stands before the first marker are other files, which clients put there; they stay before the prefix, without the lines
that only name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..generation.request import PromptRules

_CHARS_PER_TOKEN = 3  # of code, a little less than the mean
_USUAL_TOKENS = 2048


class Markers(NamedTuple):
    """Three markers of one family."""

    begin: str
    hole: str
    end: str


FAMILIES: tuple[Markers, ...] = (
    Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, StableCode
    Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    Markers("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Markers("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek  # noqa: RUF001
    Markers("<|fim▁begin|>", "<|fim▁hole|>", "<|fim▁end|>"),  # the same, as typed on a keyboard
    Markers("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    Markers("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),  # Codestral
)
LLAMA = Markers("<PRE>", "<SUF>", "<MID>")  # CodeLlama; one blank beside a marker belongs to the marker
_STARTS = ("<s>", "<bos>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>")  # noqa: RUF001
# A line that names a file or repository.
_FILE = re.compile(
    r"(?:<\|?(?:repo_name|reponame|file_sep|file_separator|filename)\|?>|<gh_stars>)[^\n]*\n?", re.IGNORECASE
)
_OWN_HOLE, _OWN_END = "<mask_1>", "<|endoftext|><sep><mask_1>"
_OTHER_MASK = re.compile(r"<mask_\d+>")


def translate(prompt: str) -> tuple[str, str] | None:
    """Return (prefix, suffix) of a prompt in one of the formats above, None for any other text.

    >>> translate("<fim_prefix>def f(<fim_suffix>):<fim_middle>")
    ('def f(', '):')
    >>> translate("<PRE> a = f( <SUF>)\\nb = a <MID>"), translate("[SUFFIX])[PREFIX]f(")
    (('a = f(', ')\\nb = a'), ('f(', ')'))
    >>> translate("if x == '<fim_prefix>':")
    """
    text = prompt
    for start in _STARTS:
        text = text.removeprefix(start)
    for markers in (*FAMILIES, LLAMA):
        found = _after_files(text, markers)
        if found is not None:
            return found
    return _read_own(text)


def _after_files(text: str, markers: Markers) -> tuple[str, str] | None:
    """Read what follows the other files at the start of a prompt that ends with the last marker."""
    if not (text.startswith((markers.begin, markers.hole)) or _ends_with(text, markers.end)):
        return None  # before a long text is searched for each family's markers
    at = min((at for at in (text.find(markers.begin), text.find(markers.hole)) if at >= 0), default=-1)
    if at < 0:
        return None
    files, found = _FILE.sub("", text[:at]), _read(text[at:], markers)
    if files and not files.endswith("\n"):
        files += "\n"
    return found and (files + found[0], found[1])


def _read(text: str, markers: Markers) -> tuple[str, str] | None:
    """Read a text that begins with a marker: prefix first, or one of the two forms with the suffix first."""
    begin, hole, end = markers
    if text.startswith(hole):  # hole S begin P end
        suffix, there, prefix = text.removeprefix(hole).partition(begin)
        prefix = prefix.removesuffix(end)
    else:
        blank = " " if markers is LLAMA else ""
        inside = text.removeprefix(begin).removeprefix(blank)
        if inside.startswith(hole) and not _ends_with(inside, end):  # begin hole S end P
            suffix, there, prefix = inside.removeprefix(hole).partition(end)
            prefix = prefix.removeprefix(blank)
        else:  # begin P hole S end
            prefix, there, suffix = inside.partition(hole)
            there = there if _ends_with(suffix, end) else ""
            prefix, suffix = prefix.removesuffix(blank), suffix.rpartition(end)[0]
    if markers is LLAMA:  # a blank after <SUF> where it stands before a line end is one that some clients add
        suffix = re.sub(r"\A (?=\r?\n)", "", suffix.removesuffix(" "))
    return (prefix, suffix) if there else None


def _ends_with(text: str, end: str) -> bool:
    """Return whether the marker is the last thing but blanks, which templates add."""
    return text.rstrip().endswith(end)


def _read_own(text: str) -> tuple[str, str] | None:
    """Read our own form, of one hole. What follows it is what the answer begins with: the cursor's line, so far."""
    asked, there, typed = text.rpartition(_OWN_END)
    if not there or "\n" in typed:
        return None
    prefix, hole, suffix = asked.partition(_OWN_HOLE)
    if not hole or _OTHER_MASK.search(prefix + suffix + typed):
        return None
    return prefix + typed, suffix


def characters(rules: PromptRules | None) -> int:
    """Return how many characters the model is shown; a guess while none has been loaded yet."""
    return _CHARS_PER_TOKEN * (_USUAL_TOKENS if rules is None else rules.max_prompt_tokens)


def with_extras(prefix: str, suffix: str, extras: Iterable[str], room: int) -> str:
    """Return prefix with the last of the extras, texts of other files, before it: as many as fit a quarter of `room`.

    The file at hand comes first: where prefix, suffix and extras do not fit the room (characters) together, no extra is
    taken. So while somebody types, the prompt's head stays as it is, and so does what has been read of it.

    >>> with_extras("b", "", ["too long", "a"], 12), with_extras("0123456789", "", ["a"], 12)
    ('a\\n\\nb', '0123456789')
    """
    left = room // 4
    kept: list[str] = []
    for extra in reversed(list(extras)):
        text = extra.strip("\r\n")
        if not text.strip():
            continue
        left -= len(text) + 2
        if left < 0:
            break
        kept.append(text + "\n\n")
    head = "".join(reversed(kept))
    return head + prefix if len(head) + len(prefix) + len(suffix) <= room else prefix
