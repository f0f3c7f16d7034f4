r"""Request: what somebody wants of the model, and the pure function from it to the prompt that asks for it.

A prompt depends on the request and on the model's rules alone: never on what was asked before, by whom, or what is
cached. Not here: the format of infilling (text/infill.py), what fits (text/context.py), tokens drawn (sequence.py).

A hole begins where the request says, or at the beginning of the cursor's line: then a typed key leaves the prompt
before it as it is. What stands between the hole's beginning and the cursor is the beginning of the answer: its tokens
end the prompt, but for the last word, which longer tokens may continue. The answer spells that word again (token
healing; sequence.py).

    text      def f(x):\n    retu|\n          | is the cursor
    prompt    def f(x):\n <mask_1> \n <|endoftext|> <sep> <mask_1>      the hole begins at the line
    typed     "    retu"  ->  tokens ["    "], word ["ret", "u"]
    drawn     "return" (it begins with "retu"), " x", <eom>              answer: "rn x"

    text      x = |                         a plain continuation
    prompt    x =                           word " "; drawn " 1", answer "1". Without healing the prompt would end in
                                            the token " ", which no number follows in training text
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..config import EOT, ModelConfig
from ..text import context, infill
from ..text.context import Dropped
from ..text.newlines import LineEnd, line_end_of, normalise
from ..text.postprocess import StopAt
from ..text.tokenizer import Tokenizer
from .confidence import Confidence, Judge
from .params import SamplingParams

AnchorAt = Literal["cursor", "line"] | int
_MOST_HEALED = 8  # tokens of a word; what stands further left cannot change much
_LEAST_ROOM = 16  # tokens of a prompt
_MOST_BYTES = 128  # of a token


@dataclass(frozen=True)
class Request:
    """What is wanted, whatever the program it was asked in.

    prefix: the text before the cursor. suffix: the text after it, or after the last hole; None continues the prefix.
    between: the texts between several holes. tokens: ids to continue instead of a prefix, read as they are or refused.
    stop_at: end an infill after the "line", where the "block" closes, or where the model ends it (None). trim_overlap:
    do not repeat what stands around the hole. language: for post-processing. anchor: where the hole begins: at the
    "cursor", the beginning of its "line", or a number of lines above it; None: as the model's config says. raw: no
    post-processing; else an answer behind half a line has one new token at least. heal: hand the word before the cursor
    to the answer. suggest: the answer is shown unasked, so that it keeps the text's brackets in pairs and, unless
    params.suggest_above says otherwise, is shown only where the model's config finds it worth that. echo:
    log-probabilities of the prompt's own tokens are wanted, so it is read as it is, whole or not at all. session: a
    newer request of the same session takes this one's place. client: whom scheduling is fair to. user: who shares
    nothing with others, neither sessions nor what was read ("": one user for all). index: of the first answer's random
    numbers. Raises ValueError for combinations that mean nothing.
    """

    prefix: str = ""
    suffix: str | None = None
    between: tuple[str, ...] = ()
    tokens: tuple[int, ...] | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    stop_at: StopAt | None = None
    trim_overlap: bool = True
    language: str | None = None
    anchor: AnchorAt | None = None
    raw: bool = False
    heal: bool = True
    suggest: bool = False
    echo: bool = False
    session: str | None = None
    client: str = ""
    user: str = ""
    index: int = 0

    def __post_init__(self) -> None:
        for text in (self.prefix, *self.between, *([self.suffix] if self.suffix is not None else [])):
            if not isinstance(text, str):
                raise ValueError(f"text must be str, got {type(text).__name__}; decode bytes as UTF-8 first")
        if self.stop_at not in (None, "line", "block"):
            raise ValueError(f"stop_at must be 'line', 'block' or None, got {self.stop_at!r}")
        if self.anchor is not None:
            check_anchor(self.anchor)
        if self.between and self.suffix is None:
            raise ValueError("between: text between holes needs a suffix after the last one")
        if self.between and (self.params.n != 1 or self.params.best_of is not None):
            raise ValueError(
                "several holes get one answer each; leave n and best_of out, or fill them one by one"
            )
        if self.n_holes > infill.MAX_HOLES:
            raise ValueError(f"holes: at most {infill.MAX_HOLES} at once, got {self.n_holes}; fill fewer")
        if self.echo and self.suffix is not None:
            raise ValueError("echo must be false with a suffix; the answer stands between the two")

    @property
    def n_holes(self) -> int:
        """Return the number of holes, 0 for a plain continuation."""
        return 0 if self.suffix is None else len(self.between) + 1


@dataclass(frozen=True)
class PromptRules:
    """What a model's config says about prompts and answers.

    max_prompt_tokens: the most that is read, typed text included. confidence: how sure the model is of an answer.
    suggest_above: the confidence from which on a suggestion is shown; 0 shows all.
    """

    config: ModelConfig
    max_prompt_tokens: int
    anchor: AnchorAt = "line"
    confidence: Confidence | None = None
    suggest_above: float = 0.0

    def __post_init__(self) -> None:
        most = self.max_prompt_tokens
        if not (isinstance(most, int) and _LEAST_ROOM <= most <= self.config.n_ctx):
            raise ValueError(
                f"max_prompt_tokens must be from 16 to the context of {self.config.n_ctx}, got {most!r}"
            )
        check_anchor(self.anchor)
        above = self.suggest_above
        if not (isinstance(above, int | float) and 0 <= above <= 1) or (above and self.confidence is None):
            raise ValueError(f"suggest_above must be from 0 to 1, beside a confidence, got {above!r}")

    def judge(self, request: Request) -> Judge | None:
        """Return what judges the answers to a request. Raises ValueError where it asks what the model does not know."""
        wanted = request.params.suggest_above
        if self.confidence is None:
            if wanted:
                raise ValueError(
                    "suggest_above: this model's config.json has no confidence, so nothing says how sure it is;"
                    " leave it out"
                )
            return None
        return Judge(self.confidence, wanted if wanted is not None else self.suggest_above * request.suggest)


@dataclass(frozen=True)
class Prompt:
    """What the model reads, and what its answer must begin with.

    tokens: read before the first token is drawn. words: for each hole the tokens of the word before it, with which its
    answer begins again (token healing). texts: the normalised texts before, between and after the holes, whole. seen:
    the first and last of these as the model sees them. line_end: of the user's text.
    """

    tokens: tuple[int, ...]
    words: tuple[tuple[int, ...], ...] = ((),)
    texts: tuple[str, ...] = ()
    seen: tuple[str, str] = ("", "")
    line_end: LineEnd = "\n"
    dropped: Dropped = field(default_factory=Dropped)


def build_prompt(request: Request, tokenizer: Tokenizer, rules: PromptRules) -> Prompt:
    """Return the prompt of a request; the same one whenever and wherever it is asked.

    Raises ValueError for text without room in the context, tokens outside the vocabulary, a tokenizer that does not
    belong to the model or that has no masks.
    """
    if request.tokens is not None and request.suffix is None:
        return Prompt(_whole(list(request.tokens), request, rules))
    if tokenizer.vocab_size > rules.config.vocab_size:
        raise ValueError(
            f"this model has {rules.config.vocab_size} tokens, its tokenizer {tokenizer.vocab_size}; give it its own"
            " tokenizer.json, or use generate with ids"
        )
    if request.suffix is None:
        return _of_text(request, tokenizer, rules)
    if not tokenizer.can_infill:
        raise ValueError(
            "this model's tokenizer has no <mask_1>, <sep> and <eom>, so it cannot infill; use complete"
        )
    return _of_holes(request, tokenizer, rules)


def back_up(tokenizer: Tokenizer, tokens: Sequence[int]) -> int:
    """Return how many tokens at the end spell the last word, which longer tokens may continue; 0 behind one line end.

    Two line ends are one token before an indented line and two tokens before another, so they are spelled again.

    >>> tok = Tokenizer()
    >>> [back_up(tok, tok.encode(t)) for t in ("x = foo.retu", "return ", "f(", "x = 1\\n", "")]
    [2, 1, 1, 0, 0]
    """
    if not tokens or infill.is_control(tokens[-1]) or tokenizer.decode_bytes(tokens[-1:]) == b"\n":
        return 0
    tail = tokenizer.decode_bytes([t for t in tokens[-4 * _MOST_HEALED :] if not infill.is_control(t)])
    size = len(tokenizer.last_word(tail.decode("utf-8", errors="ignore")).encode())
    n = 0
    while size > 0 and n < min(_MOST_HEALED, len(tokens)):
        n += 1
        size -= len(tokenizer.decode_bytes(tokens[len(tokens) - n : len(tokens) - n + 1]))
    return n


def _healed(
    request: Request, tokenizer: Tokenizer, tokens: Sequence[int]
) -> tuple[Sequence[int], Sequence[int]]:
    """Cut tokens into those that are read and those of the last word, which the answer spells again.

    A hole at a line's beginning is a place that training knows: nothing is moved into it.
    """
    at_line = request.n_holes > 0 and tokenizer.decode_bytes(tokens[-1:]).endswith(b"\n")
    n = back_up(tokenizer, tokens) if request.heal and not at_line else 0
    return tokens[: len(tokens) - n], tokens[len(tokens) - n :]


def _room(request: Request, rules: PromptRules, overhead: int) -> int:
    """Return the tokens that are left for a prompt's text. Raises ValueError when they are fewer than 16."""
    n_ctx, n_holes, new = rules.config.n_ctx, max(1, request.n_holes), request.params.max_new_tokens
    room = n_ctx - n_holes * new - overhead
    if room < _LEAST_ROOM:
        each = f" for each of {n_holes} holes" if n_holes > 1 else ""
        raise ValueError(
            f"max_new_tokens: {new}{each} leave {max(room, 0)} tokens of the context of {n_ctx} for the prompt; ask for"
            f" at most {(n_ctx - overhead - _LEAST_ROOM) // n_holes}"
        )
    return room


def _whole(tokens: list[int], request: Request, rules: PromptRules) -> tuple[int, ...]:
    """Return tokens that are read as they are. Raises ValueError where they do not fit or are not in the vocabulary."""
    n_ctx, vocab_size = rules.config.n_ctx, rules.config.vocab_size
    if len(tokens) > n_ctx - min(1, request.params.max_new_tokens):
        why = "echo is of all of them, so " if request.echo else ""
        raise ValueError(
            f"prompt: {len(tokens)} tokens leave no room in the context of {n_ctx}; {why}shorten the prompt"
        )
    wrong = next((t for t in tokens if not 0 <= t < vocab_size), None)
    if wrong is not None:
        raise ValueError(f"prompt: token id {wrong} is outside this model's vocabulary 0..{vocab_size - 1}")
    return tuple(tokens or [EOT])


def check_size(what: str, text: str, rules: PromptRules) -> None:
    """Raise ValueError for text that must be read whole and cannot fit, before work is done on it."""
    if len(text) > _MOST_BYTES * (n_ctx := rules.config.n_ctx):
        raise ValueError(
            f"{what}: {len(text)} characters do not fit the context of {n_ctx} tokens; send less"
        )


def _of_text(request: Request, tokenizer: Tokenizer, rules: PromptRules) -> Prompt:
    if request.echo:
        check_size("prompt", request.prefix, rules)
        tokens = _whole(tokenizer.encode(request.prefix), request, rules)
        return Prompt(tokens, texts=(request.prefix,), seen=(request.prefix, ""))
    text = normalise(request.prefix)
    most = min(_room(request, rules, 0), rules.max_prompt_tokens)
    side = context.keep(tokenizer, text, most, from_end=True)
    read, word = _healed(request, tokenizer, side.ids)
    return Prompt(
        tokens=tuple(read or [EOT]),
        words=(tuple(word),),
        texts=(text,),
        seen=(side.text, ""),
        line_end=line_end_of(request.prefix),
        dropped=Dropped(len(text) - len(side.text)),
    )


def _of_holes(request: Request, tokenizer: Tokenizer, rules: PromptRules) -> Prompt:
    prefix = request.prefix if request.tokens is None else tokenizer.decode(request.tokens)
    raw = [prefix, *request.between, request.suffix or ""]
    texts = [normalise(t) for t in raw]
    if raw[0].endswith("\r") and raw[1].startswith("\n"):  # the cursor is inside a line end: before it
        texts[0] = texts[0].removesuffix("\n")
    check_size("holes", "".join(texts[1:-1]), rules)
    inner = [tokenizer.encode(t) for t in texts[1:-1]]
    n_inner = sum(map(len, inner))
    # A hole after the first costs its mask in the text, <eom> before it and its mask again.
    room = _room(request, rules, infill.PROMPT_OVERHEAD + 3 * len(inner)) - n_inner
    if inner and room < _LEAST_ROOM:
        raise ValueError(
            f"holes: {n_inner} tokens stand between the first and the last hole, which leaves {room} of"
            f" {rules.config.n_ctx} for the rest; fill fewer holes at once"
        )
    # What stands between holes is always read.
    room = min(room, max(_LEAST_ROOM, rules.max_prompt_tokens - n_inner))
    anchor = rules.anchor if request.anchor is None else request.anchor
    cut, reserved = _hole_start(texts[0], tokenizer, "cursor" if inner else anchor, room)
    typed = tokenizer.encode(texts[0][cut:])
    before, after = context.fit(tokenizer, texts[0][:cut], texts[-1], max(2, room - reserved))
    # The word before a hole is of what is typed in it, else of the text before it.
    begun: Sequence[int] = ()
    pieces: list[Sequence[int]] = [before.ids, *inner]
    words: list[Sequence[int]] = [()] * (len(inner) + 1)
    if typed:
        begun, words[0] = _healed(request, tokenizer, typed)
    for at in range(bool(typed), len(pieces)):
        pieces[at], words[at] = _healed(request, tokenizer, pieces[at])
    return Prompt(
        tokens=(*infill.build_prompt([*pieces, after.ids]), *begun),
        words=tuple(map(tuple, words)),
        texts=tuple(texts),
        seen=(before.text + texts[0][cut:], after.text),
        line_end=line_end_of(*raw),
        dropped=Dropped(cut - len(before.text), len(texts[-1]) - len(after.text)),
    )


def _hole_start(prefix: str, tokenizer: Tokenizer, anchor: AnchorAt, room: int) -> tuple[int, int]:
    """Return where a hole begins, and how many of the room's tokens are kept for what is typed in it.

    Kept are whole eighths of the room, so that the text around the hole stays the same while somebody types.
    """
    if anchor == "cursor":
        return len(prefix), 0
    lines_above = 0 if anchor == "line" else int(anchor)
    step = max(1, min(32, room // 8))
    most = max(step, min(256, room // 2) // step * step - 1)

    def count(text: str) -> int:
        # An endless line needs no reading to be known as too long.
        return len(text) if len(text) > _MOST_BYTES * most else len(tokenizer.encode(text))

    cut = _line_start(prefix, lines_above)
    while lines_above and count(prefix[cut:]) > most:
        lines_above -= 1
        cut = _line_start(prefix, lines_above)
    # In one long line the hole begins at a place that typing keeps.
    while (n := count(prefix[cut:])) > most:
        cut += max(most, (len(prefix) - cut) // (2 * most) * most)
    return cut, (n // step + 1) * step


def _line_start(text: str, lines_above: int) -> int:
    """Return where the line begins that is so many lines above the last one.

    >>> _line_start("a\\nbb\\nccc", 0), _line_start("a\\nbb\\nccc", 1), _line_start("a\\nbb", 9)
    (5, 2, 0)
    """
    at = text.rfind("\n") + 1
    for _ in range(lines_above):
        if not at:
            break
        at = text.rfind("\n", 0, at - 1) + 1
    return at


def check_anchor(anchor: object) -> None:
    """Raise ValueError unless anchor is "cursor", "line" or a number of lines from 0 to 100."""
    whole = isinstance(anchor, int) and not isinstance(anchor, bool) and 0 <= anchor <= 100
    if anchor not in ("cursor", "line") and not whole:
        raise ValueError(f"anchor must be cursor, line or a number of lines from 0 to 100, got {anchor!r}")
