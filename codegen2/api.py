"""Model: complete, infill, score and embed, text in and text out.

Not here: loading (loading.py), the token loop (generate.py), the prompt's form (infill.py), the cuts for an editor
(postprocess.py). Letters: T tokens, C n_embd.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Final, Literal, TypedDict, TypeVar, Unpack

import numpy as np

from .config import EOT
from .generation.generate import Engine, Generation, Row, check_ids, run
from .generation.results import Chunk, Completion, Infilling, Middle, Score
from .generation.sampling import Cancel, SamplingParams
from .generation.session import MOST_TYPED, Session
from .text import context, infill
from .text.postprocess import postprocess
from .text.tokenizer import Tokenizer
from .text.windows import Window, windows

_SUFFIX_TOKENS_JUDGED = 256  # best_of: what the middle makes likely fades with distance
_EARLY = ("line", "block", "dedent")  # cuts that no further token can undo
StopAt = Literal["line", "block"] | None
Pooling = Literal["mean", "last"]
AnchorAt = Literal["cursor", "line"] | int | None


class _Hole(enum.Enum):
    HOLE = "HOLE"


HOLE: Final = _Hole.HOLE  # marks a place to fill in infill_spans


class SamplingOptions(TypedDict, total=False):
    """Name the fields of SamplingParams that every generating method takes as keywords."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int | None
    stop: Sequence[str]
    n: int
    best_of: int | None
    top_logprobs: int
    deadline_s: float | None
    cancel: Cancel | None
    speculate: bool


R = TypeVar("R", Completion, Infilling)


class Model:
    """A CodeGen2 model with its tokenizer, ready to use; codegen2.load gives one."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        name: str = "",
        max_prompt_tokens: int | None = None,
        anchor: AnchorAt = None,
    ) -> None:
        """Join an engine and a tokenizer.

        max_prompt_tokens: show the model no more text, though it has room. anchor: infill's where it is given none.
        """
        self.anchor = _check_anchor("cursor" if anchor is None else anchor)
        self.engine = engine
        self.tokenizer = tokenizer
        self.name = name
        n_ctx = engine.config.n_ctx
        self.max_prompt_tokens = n_ctx if max_prompt_tokens is None else max_prompt_tokens
        if not (isinstance(self.max_prompt_tokens, int) and 16 <= self.max_prompt_tokens <= n_ctx):
            raise ValueError(
                f"max_prompt_tokens must be from 16 to the context of {n_ctx}, got {max_prompt_tokens!r}"
            )
        self.banned = frozenset(tokenizer.control.values())  # never written, but for those that end an answer

    def session(self) -> Session:
        """Return a new session: pass it to complete or infill, and what the last request read is not read again."""
        return Session(self.engine)

    # ---- tokens

    def generate(
        self, ids: Sequence[int], *, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Generation:
        """Continue ids and return the new tokens, ended by <|endoftext|> or <eom>; no token is held back.

        Raises ValueError for ids outside the vocabulary or a prompt that fills the context.
        """
        return self.generate_batch([ids], params=params, **options)[0]

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Generation]:
        """Continue several prompts at once, row i with random state (seed, i)."""
        if not prompts:
            return []
        wanted = _params(params, options)
        decoder = self.tokenizer if self.tokenizer.vocab_size <= self.engine.config.vocab_size else None
        rows = [Row(prompt, wanted, decoder, index=i) for i, prompt in enumerate(prompts)]
        for _ in run(self.engine, rows):
            pass
        return [row.result() for row in rows]

    # ---- completion

    def complete(
        self,
        prompt: str,
        *,
        session: Session | None = None,
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Continue a text from left to right; n (or best_of, the likeliest of which are kept) answers.

        A prompt that is too long loses whole lines at its beginning; `dropped` says how much.
        """
        return _last(self.stream_complete(prompt, session=session, params=params, **options), Completion)

    def stream_complete(
        self,
        prompt: str,
        *,
        session: Session | None = None,
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """Yield what complete gives, piece by piece."""
        wanted = _params(params, options)
        self._check_text(prompt)
        side = context.keep_end(
            self.tokenizer, prompt, min(self.room(wanted.max_new_tokens, 0), self.max_prompt_tokens)
        )
        ids = side.ids or [EOT]
        drawing = (
            wanted
            if wanted.best_of is None
            else dataclasses.replace(wanted, top_logprobs=max(1, wanted.top_logprobs))
        )
        rows = [Row(ids, drawing, self.tokenizer, index=i) for i in range(wanted.best_of or wanted.n)]
        yield from self._stream(rows, session)
        found = [row.result() for row in rows]
        if wanted.best_of is not None:
            found.sort(key=_logprob_per_token, reverse=True)
        dropped = context.Dropped(len(prompt) - len(side.text))
        result = Completion(found[: wanted.n], len(ids), dropped)
        yield Chunk("", 0, result.finish_reason, result)

    # ---- infilling

    def infill(
        self,
        prefix: str,
        suffix: str,
        *,
        stop_at: StopAt = None,
        trim_overlap: bool = True,
        anchor: AnchorAt = None,
        session: Session | None = None,
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Infilling:
        """Write what belongs between prefix and suffix.

        stop_at: end after the line, or where the block closes. trim_overlap: do not repeat what the suffix begins
        with. best_of: draw so many middles, keep the n after which middle and suffix together are likeliest.
        anchor: where the hole begins for the model: at the "cursor"; at the beginning of its "line", or a number of
        lines above it, and then the text from there to the cursor is shown as the beginning of the answer. With a
        session, a key then costs a token or two. None: what config.json says suits the model, else the cursor.
        """
        stream = self.stream_infill(
            prefix, suffix, stop_at=stop_at, trim_overlap=trim_overlap, anchor=anchor, session=session,
            params=params, **options,
        )  # fmt: skip
        return _last(stream, Infilling)

    def stream_infill(
        self,
        prefix: str,
        suffix: str,
        *,
        stop_at: StopAt = None,
        trim_overlap: bool = True,
        anchor: AnchorAt = None,
        session: Session | None = None,
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """Yield the raw middle piece by piece, then a chunk with the whole result."""
        wanted = _params(params, options)
        anchor = self.anchor if anchor is None else _check_anchor(anchor)
        pieces, typed, dropped = self.place(prefix, suffix, anchor, session, wanted.max_new_tokens)
        ids = infill.build_prompt([self.tokenizer.encode(p) for p in pieces]) + self.tokenizer.encode(typed)

        def enough(text: str) -> bool:
            done = postprocess(text, prefix, suffix, stop_at=stop_at, trim_overlap=trim_overlap)
            return any(cut.reason in _EARLY for cut in done.cuts)

        rows = [
            Row(ids, wanted, self.tokenizer, index=i, n_holes=1, enough=enough if stop_at else None)
            for i in range(wanted.best_of or wanted.n)
        ]
        yield from self._stream(rows, session)
        found = [_middle(row.result(), 0, prefix, suffix, stop_at, trim_overlap) for row in rows]
        if wanted.best_of is not None:
            found = self.likeliest([pieces[0] + typed, pieces[1]], found)
        result = Infilling(found[: wanted.n], len(ids), dropped)
        yield Chunk("", 0, result.finish_reason, result)

    def infill_spans(
        self,
        pieces: Sequence[str | _Hole],
        *,
        trim_overlap: bool = True,
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Infilling:
        """Fill several holes in one pass: infill_spans([text, HOLE, text, HOLE, text]); max_new_tokens is a hole's.

        Raises ValueError without a hole, with more than 899, with n or best_of, or when the text between the first
        and the last hole does not fit the context.
        """
        wanted = _params(params, options)
        if wanted.n != 1 or wanted.best_of is not None:
            raise ValueError(
                "infill_spans gives one answer a hole; leave n and best_of out, or fill holes one by one"
            )
        texts = _between_holes(pieces)
        n_holes = len(texts) - 1
        fitted, dropped = self._fit(texts, wanted.max_new_tokens)
        ids = infill.build_prompt([self.tokenizer.encode(t) for t in fitted])
        row = Row(ids, wanted, self.tokenizer, n_holes=n_holes)
        for _ in run(self.engine, [row], banned=self.banned - {EOT, infill.EOM}, n_holes=n_holes):
            pass
        done = row.result()
        middles, before = [], texts[0]
        for at in range(n_holes):
            middles.append(_middle(done, at, before, texts[at + 1], None, trim_overlap))
            before += middles[-1].text + texts[at + 1]
        return Infilling(middles, len(ids), dropped)

    # ---- judging and representing

    def score(self, text: str) -> Score:
        """Return each token's log-likelihood; a text of any length, in windows of the context with half overlap."""
        ids = self.tokenizer.encode(text)
        logprobs = np.concatenate(
            [np.empty(0), *(self._window_logprobs([EOT, *ids], w) for w in self._windows(len(ids) + 1))]
        )
        return Score(ids, logprobs.tolist(), len(text.encode()))

    def embed(self, text: str, pooling: Pooling | None = None) -> np.ndarray:
        """Return the last hidden states, float32: (T, C), or (C,) for pooling "mean" or "last"; a text of any length.

        Raises ValueError for pooling over no tokens.
        """
        if pooling not in (None, "mean", "last"):
            raise ValueError(f"pooling must be mean, last or None, got {pooling!r}")
        ids = [EOT, *self.tokenizer.encode(text)]
        parts = [
            self.engine.hidden(np.array([ids[w.start : w.end]]))[0, w.first - w.start :]
            for w in self._windows(len(ids))
        ]
        states: np.ndarray = np.concatenate([np.empty((0, self.engine.config.n_embd), np.float32), *parts])
        if pooling is None:
            return states
        if not len(states):
            raise ValueError("text: empty, so there is nothing to pool; give at least one character")
        pooled: np.ndarray = states.mean(0) if pooling == "mean" else states[-1]
        return pooled

    # ---- helpers

    def _windows(self, n: int) -> Iterator[Window]:
        size = self.engine.config.n_ctx
        return windows(n, size, size // 2)

    def _window_logprobs(self, ids: list[int], w: Window) -> np.ndarray:
        check_ids(ids[w.start : w.end], self.engine.config)
        got = self.engine.token_logprobs(np.array([ids[w.start : w.end]]))[0]
        wide: np.ndarray = got[w.first - w.start - 1 :].astype(np.float64)
        return wide

    def room(self, max_new_tokens: int, overhead: int, n_holes: int = 1) -> int:
        """Return the tokens that are left for a prompt. Raises ValueError when they are fewer than 16."""
        n_ctx = self.engine.config.n_ctx
        room = n_ctx - n_holes * max_new_tokens - overhead
        if room < 16:
            each = f" for each of {n_holes} holes" if n_holes > 1 else ""
            most = (n_ctx - overhead - 16) // n_holes
            raise ValueError(
                f"max_new_tokens: {max_new_tokens}{each} leave {max(room, 0)} tokens of the context of {n_ctx} for the"
                f" prompt; ask for at most {most}"
            )
        return room

    def _check_text(self, *texts: str) -> None:
        if self.tokenizer.vocab_size > self.engine.config.vocab_size:
            raise ValueError(
                f"this model has {self.engine.config.vocab_size} tokens, its tokenizer {self.tokenizer.vocab_size};"
                " give it its own tokenizer.json, or use generate with ids"
            )
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"text must be str, got {type(text).__name__}; decode bytes as UTF-8 first")

    def _fit(self, texts: Sequence[str], max_new_tokens: int) -> tuple[list[str], context.Dropped]:
        """Cut the first and the last text to what fits; line ends become "\\n" and a byte-order mark goes.

        Training text has bare newlines, and postprocess gives the file its own back.
        """
        self._check_text(*texts)
        plain = [t.replace("\r\n", "\n") for t in texts]
        plain[0] = plain[0].removeprefix("\ufeff")
        inner = [len(self.tokenizer.encode(t)) for t in plain[1:-1]]
        n_holes = len(texts) - 1
        # A hole after the first costs its mask in the text, <eom> before it and its mask again.
        room = self.room(max_new_tokens, infill.PROMPT_OVERHEAD + 3 * (n_holes - 1), n_holes) - sum(inner)
        if inner and room < 16:
            raise ValueError(
                f"holes: {sum(inner)} tokens stand between the first and the last hole, which leaves {room} of"
                f" {self.engine.config.n_ctx} for the rest; fill fewer holes at once"
            )
        room = min(
            room, max(16, self.max_prompt_tokens - sum(inner))
        )  # what stands between holes is always shown
        before, after, dropped = context.fit(self.tokenizer, plain[0], plain[-1], room)
        return [before.text, *plain[1:-1], after.text], dropped

    def place(
        self,
        prefix: str,
        suffix: str,
        anchor: Literal["cursor"] | int,
        session: Session | None,
        max_new_tokens: int,
    ) -> tuple[list[str], str, context.Dropped]:
        """Return the texts around the hole as they fit, and the text between the hole's beginning and the cursor."""
        if anchor == "cursor":
            pieces, dropped = self._fit([prefix, suffix], max_new_tokens)
            return pieces, "", dropped
        self._check_text(prefix, suffix)
        most = min(MOST_TYPED, self.engine.config.n_ctx // 4)

        def fit(before: str, after: str) -> tuple[str, str, context.Dropped]:
            # Room for what may yet be typed is kept, so that the anchor can stay.
            (kept_before, kept_after), lost = self._fit([before, after], max_new_tokens + most)
            return kept_before, kept_after, lost

        def count(text: str) -> int:
            # A token holds at most 128 bytes: an endless line needs no reading to be known as too long.
            return len(text) if len(text) > 128 * most else len(self.tokenizer.encode(text))

        plain = prefix.replace("\r\n", "\n").removeprefix("\ufeff")
        place, typed = (session or self.session()).anchored(plain, suffix, count, fit, anchor, most)
        return [place.before, place.after], typed, place.dropped

    def _stream(self, rows: list[Row], session: Session | None = None) -> Iterator[Chunk]:
        for grown in run(self.engine, rows, banned=self.banned - {EOT, infill.EOM}, session=session):
            for i, text in grown:
                if text or rows[i].finish_reason:
                    yield Chunk(text, i, rows[i].finish_reason)

    def likeliest(self, pieces: Sequence[str], found: list[Middle]) -> list[Middle]:
        """Sort middles by log p(middle, suffix | prefix) under the same model read from left to right."""
        before = [EOT, *self.tokenizer.encode(pieces[0])]
        after = self.tokenizer.encode(pieces[1])[:_SUFFIX_TOKENS_JUDGED]
        known: dict[str, float] = {}
        for text in {m.text.replace("\r\n", "\n") for m in found}:
            tail = [*self.tokenizer.encode(text), *after]
            if not tail:
                known[text] = 0.0
                continue
            head = before[-(max(1, self.engine.config.n_ctx - len(tail))) :]
            logprobs = self.engine.token_logprobs(np.array([[*head, *tail][-self.engine.config.n_ctx :]]))[0]
            known[text] = float(logprobs[-len(tail) :].sum())
        judged = [dataclasses.replace(m, logprob=known[m.text.replace("\r\n", "\n")]) for m in found]
        return sorted(judged, key=lambda m: -(m.logprob or 0.0))


def _check_anchor(anchor: object) -> Literal["cursor"] | int:
    """Return "cursor", or how many lines above the cursor's the hole begins. Raises ValueError for anything else."""
    if anchor == "cursor":
        return "cursor"
    if anchor == "line":
        return 0
    if isinstance(anchor, int) and not isinstance(anchor, bool) and 0 <= anchor <= 100:
        return anchor
    raise ValueError(f"anchor must be cursor, line or a number of lines from 0 to 100, got {anchor!r}")


def _params(params: SamplingParams | None, options: SamplingOptions) -> SamplingParams:
    return dataclasses.replace(params or SamplingParams(), **options)


def _logprob_per_token(done: Generation) -> float:
    return sum(t.logprob for t in done.logprobs) / max(1, len(done.logprobs))


def _last(stream: Iterator[Chunk], kind: type[R]) -> R:
    for chunk in stream:
        if isinstance(chunk.result, kind):
            return chunk.result
    raise AssertionError("a stream ends with its result")


def _middle(
    done: Generation, hole: int, prefix: str, suffix: str, stop_at: StopAt, trim_overlap: bool
) -> Middle:
    if hole >= len(done.texts):  # interrupted before its turn
        return Middle("", "", (), 0, done.finish_reason, done)
    raw = done.texts[hole]
    shown = postprocess(raw, prefix, suffix, stop_at=stop_at, trim_overlap=trim_overlap)
    return Middle(shown.text, raw, shown.cuts, shown.unindent, done.reasons[hole], done)


def _between_holes(pieces: Sequence[str | _Hole]) -> list[str]:
    """Return the texts before, between and after the holes.

    >>> _between_holes(["a", HOLE, "b", "c", HOLE, HOLE])
    ['a', 'bc', '', '']
    """
    texts = [""]
    for piece in pieces:
        if isinstance(piece, _Hole):
            texts.append("")
        elif isinstance(piece, str):
            texts[-1] += piece
        else:
            raise ValueError(f"pieces must be str or HOLE, got {type(piece).__name__}")
    if len(texts) < 2:
        raise ValueError("pieces: no HOLE among them; put HOLE where text is wanted")
    return texts
