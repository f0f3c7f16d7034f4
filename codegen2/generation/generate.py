"""From ids to tokens: the Engine protocol and the loop that every way of generating goes through.

Not here: text-level work (api.py), choosing a token from logits (sampling.py), the forward pass (engine/).
Letters: B rows, T tokens in this call, C n_embd, V vocab.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from ..config import EOT, ModelConfig
from ..text.infill import EOM, is_control, mask
from ..text.stopping import StopMatcher
from ..text.tokenizer import StreamDecoder, Tokenizer
from .sampling import (
    Cancelled,
    SamplingParams,
    apply_bias,
    apply_penalties,
    choose,
    log_softmax,
    row_rng,
    top_alternatives,
)
from .session import Session
from .speculate import MOST_GUESSES, Lookup, Pace, Purse, Stopwatch

FinishReason = Literal["stop", "length", "cancel", "deadline"]
STOP_IDS = (EOT, EOM)
_PREFILL_TOKENS = 512  # a cancelled request goes on for no longer than this


class Cache(Protocol):
    """The keys and values of the tokens seen."""

    length: int

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens of each row."""

    def select_rows(self, rows: list[int]) -> Any:
        """Return a cache whose row i is this one's rows[i]."""


class Engine(Protocol):
    """Run the forward pass; numpy in and out, so that no engine asks for another's library."""

    config: ModelConfig

    def new_cache(self, n_rows: int, capacity: int) -> Any:
        """Return an empty cache for B rows of at most `capacity` tokens."""

    def prefill(self, ids: np.ndarray, cache: Any, pad: np.ndarray | None = None) -> np.ndarray:
        """Take in ids (B, T) and return the last position's logits (B, V), float32; pad (B,): left padding a row."""

    def decode_step(self, ids: np.ndarray, cache: Any) -> np.ndarray:
        """Take in one more token a row, ids (B,), and return logits (B, V), float32."""

    def extend(self, ids: np.ndarray, cache: Any) -> np.ndarray:
        """Take in ids (B, T) and return the logits after each of them, (B, T, V), float32."""

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Return logits at all positions (B, T, V), float32."""

    def hidden(self, ids: np.ndarray) -> np.ndarray:
        """Return the last hidden states (B, T, C), float32."""

    def token_logprobs(self, ids: np.ndarray) -> np.ndarray:
        """Return log p (nats) of ids[:, 1:] each given what stands before: (B, T - 1)."""


@dataclass(frozen=True)
class TokenLogprob:
    """One chosen token's log-probability (nats, of the unmodified model) and the likeliest alternatives."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Generation:
    """One generated text.

    tokens: the new ids, without the one that ended it. stop_token: that one, or None. texts, reasons: one text and
    one finish_reason a hole that was begun. logprobs: one entry a token, where top_logprobs asked for them.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    stop_token: int | None = None
    texts: list[str] = field(default_factory=list)
    reasons: list[FinishReason] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Row:
    """One sequence while it grows: what has been drawn, the text so far, and why it ended."""

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        *,
        index: int = 0,
        n_holes: int = 0,
        enough: Callable[[str], bool] | None = None,
    ) -> None:
        self.prompt = list(prompt)
        self._seen = [i for i in self.prompt if not is_control(i)]  # penalties are for text
        self.params = params
        self.tokens: list[int] = []
        self.fed: list[int] = []  # what the engine has read behind the prompt, control tokens included
        self.logprobs: list[TokenLogprob] = []
        self.texts = [""]
        self.finish_reason: FinishReason | None = None
        self.reasons: list[FinishReason] = []
        self.stop_token: int | None = None
        self._tokenizer = tokenizer
        self._rng = row_rng(params.seed, index)
        self._holes_left = max(n_holes - 1, 0)
        self._forced: deque[int] = deque()
        self._budget = params.max_new_tokens
        self._enough = enough
        self._fresh_text()

    def _fresh_text(self) -> None:
        self._decoder = StreamDecoder(self._tokenizer) if self._tokenizer else None
        self._matcher = StopMatcher(self.params.stop)

    @property
    def stop_string(self) -> str | None:
        """Return the stop string that ended the row, None without one."""
        return self._matcher.matched

    def take(self, logits: np.ndarray, banned: np.ndarray | None) -> tuple[int, str]:
        """Choose the next token from logits (V,) and return it with the text that became certain."""
        if self._forced:
            return self._forced.popleft(), ""
        params = self.params
        adjusted = apply_bias(apply_penalties(logits, self._seen, self.tokens, params), params)
        token = choose(adjusted, params, self._rng, banned)
        if token in STOP_IDS:  # <|endoftext|> with holes left: the model is done with this one only
            self.stop_token = token
            return EOM, self._end_hole("stop")
        self.tokens.append(token)
        if params.top_logprobs:
            logp = log_softmax(logits)
            top = top_alternatives(logits, params.top_logprobs)
            self.logprobs.append(TokenLogprob(token, float(logp[token]), top))
        self._budget -= 1
        hole = len(self.texts)
        text = self._add_text(token)
        if self.finish_reason is None and len(self.texts) == hole and self._budget <= 0:
            text += self._end_hole("length")
            if self._forced:  # the hole ends here, its neighbour is still to come
                self._forced.appendleft(EOM)
        return token, text

    def _add_text(self, token: int) -> str:
        if self._decoder is None:
            return ""
        text = self._matcher.feed(self._decoder.feed(token))
        self.texts[-1] += text
        if self._matcher.stopped or (
            "\n" in text and self._enough is not None and self._enough(self.texts[-1])
        ):
            self._end_hole("stop")
            if self._forced:
                self._forced.appendleft(EOM)
        return text

    def _end_hole(self, reason: FinishReason) -> str:
        if not self._holes_left:
            return self.finish(reason)
        text = self._flush()
        self.reasons.append(reason)
        self._holes_left -= 1
        self.texts.append("")
        self._forced.append(mask(len(self.texts)))
        self._budget = self.params.max_new_tokens
        self.stop_token = None
        self._fresh_text()
        return text

    def _flush(self) -> str:
        if self._decoder is None:
            return ""
        if self._matcher.stopped:
            return ""
        text = self._matcher.feed(self._decoder.finish()) + self._matcher.finish()
        self.texts[-1] += text
        return text

    def finish(self, reason: FinishReason) -> str:
        """End the row and return the text that was held back."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = reason
        self.reasons.append(reason)
        return self._flush()

    def result(self) -> Generation:
        """Return the finished row."""
        assert self.finish_reason is not None
        return Generation(
            self.texts[0],
            self.tokens,
            self.finish_reason,
            self.stop_token,
            self.texts,
            self.reasons,
            self.logprobs,
        )


def check_ids(ids: Sequence[int], config: ModelConfig) -> None:
    """Raise ValueError for an empty prompt or an id outside the vocabulary."""
    if not len(ids):
        raise ValueError("prompt: no tokens; begin with 50256, the document start, to generate from nothing")
    wrong = next((i for i in ids if not 0 <= i < config.vocab_size), None)
    if wrong is not None:
        raise ValueError(
            f"prompt: token id {wrong} is outside this model's vocabulary 0..{config.vocab_size - 1}"
        )


def _interrupted(params: SamplingParams, started: float) -> FinishReason | None:
    if params.cancel is not None and params.cancel.is_set():
        return "cancel"
    if params.deadline_s is not None and time.monotonic() - started > params.deadline_s:
        return "deadline"
    return None


def _one_prompt(rows: list[Row]) -> bool:
    return all(row.prompt == rows[0].prompt for row in rows)


def _prefill(
    engine: Engine, rows: list[Row], capacity: int, started: float, kept: tuple[Any, int] | None
) -> tuple[Any, np.ndarray] | FinishReason:
    """Return the cache and logits (B, V) after the prompts, or why it was interrupted. One equal prompt is run once.

    kept: a session's cache, and how many of the prompt's tokens it holds.
    """
    same = _one_prompt(rows)
    prompts = [rows[0].prompt] if same else [row.prompt for row in rows]
    T = max(map(len, prompts))
    ids = np.zeros((len(prompts), T), dtype=np.int64)
    pad = np.array([T - len(p) for p in prompts], dtype=np.int64)
    for b, prompt in enumerate(prompts):
        ids[b, pad[b] :] = prompt
    cache, begin = kept or (engine.new_cache(len(prompts), capacity), 0)
    logits = np.empty((0, 0), dtype=np.float32)
    for start in range(begin, T, _PREFILL_TOKENS):
        if (reason := _interrupted(rows[0].params, started)) is not None:
            return reason
        try:
            logits = engine.prefill(
                ids[:, start : start + _PREFILL_TOKENS], cache, pad if start == 0 and pad.any() else None
            )
        except Cancelled:
            return "cancel"
    if np.isnan(logits).any():
        raise ValueError(
            "the model's logits are no numbers; its weights are damaged, fetch or convert them again"
        )
    if same and len(rows) > 1:
        cache, logits = cache.select_rows([0] * len(rows)), np.repeat(logits, len(rows), axis=0)
    return cache, logits


def run(
    engine: Engine,
    rows: list[Row],
    *,
    banned: Collection[int] = (),
    n_holes: int = 1,
    session: Session | None = None,
) -> Iterator[list[tuple[int, str]]]:
    """Grow rows until each has ended; yield after each step the (position in rows, new text) of those that grew.

    banned: ids that are never chosen. All rows share one SamplingParams but for their random state. session: keeps the
    prompt's cache for the next request. Raises ValueError for prompts that leave no room in the context.
    """
    config, params = engine.config, rows[0].params
    longest = max(len(row.prompt) for row in rows)
    for row in rows:
        check_ids(row.prompt, config)
    if longest >= config.n_ctx:
        raise ValueError(
            f"prompt: {longest} tokens leave no room in the context of {config.n_ctx}; shorten the prompt"
        )
    started = time.monotonic()
    ban = None
    if banned:
        ban = np.zeros(config.vocab_size, dtype=bool)
        ban[[i for i in banned if i < config.vocab_size]] = True
    capacity = min(config.n_ctx, longest + (params.max_new_tokens + 2) * n_holes)
    if session is not None and not _one_prompt(rows):
        raise ValueError(
            "session: holds one prompt, several different ones were given; leave the session out"
        )
    watched = getattr(engine, "cancelled_by", contextlib.nullcontext)(params.cancel)
    kept = session.open(rows[0].prompt) if session is not None else None
    try:
        with watched:
            first = _prefill(engine, rows, capacity, started, kept)
            if isinstance(first, str):
                yield [(i, row.finish(first)) for i, row in enumerate(rows)]
            elif params.max_new_tokens == 0:  # a client's warm-up
                yield [(i, row.finish("length")) for i, row in enumerate(rows)]
            elif len(rows) == 1:
                for text in _grow_one(engine, rows[0], *first, ban, capacity, started):
                    yield [(0, text)]
            else:
                yield from _grow_together(engine, rows, *first, ban, capacity, started)
    finally:
        if session is not None:
            session.close([*rows[0].prompt, *(rows[0].fed if len(rows) == 1 else ())])


def _grow_together(
    engine: Engine,
    rows: list[Row],
    cache: Any,
    logits: np.ndarray,
    ban: np.ndarray | None,
    capacity: int,
    started: float,
) -> Iterator[list[tuple[int, str]]]:
    """Grow several rows a token a step, each until it ends."""
    params = rows[0].params
    active = list(range(len(rows)))
    while active:
        drawn = {i: rows[i].take(logits[at], ban) for at, i in enumerate(active)}
        reason = _interrupted(params, started) or ("length" if cache.length >= capacity else None)
        grown = [(i, text + (rows[i].finish(reason) if reason else "")) for i, (_, text) in drawn.items()]
        yield grown
        going = [at for at, i in enumerate(active) if rows[i].finish_reason is None]
        if 0 < len(going) < len(active):
            cache = cache.select_rows(going)
        active = [active[at] for at in going]
        if active:
            try:
                logits = engine.decode_step(np.array([drawn[i][0] for i in active], dtype=np.int64), cache)
            except Cancelled:
                yield [(i, rows[i].finish("cancel")) for i in active]
                return


def _grow_one(
    engine: Engine,
    row: Row,
    cache: Any,
    logits: np.ndarray,
    ban: np.ndarray | None,
    capacity: int,
    started: float,
) -> Iterator[str]:
    """Grow one row, reading guessed tokens along with the drawn one where that pays; yield each token's text.

    The row draws from the same logits in the same order as without guesses, so they change nothing but the time.
    """
    lookup = Lookup(row.prompt) if row.params.speculate and getattr(engine, "exact_rows", False) else None
    pace: Pace = getattr(engine, "pace", None) or Pace()
    purse = Purse()
    ahead: list[np.ndarray] = [logits[0]]  # logits (V,) after the last right token, then after each guess
    guesses: list[int] = []
    match = checked = right = 0
    while True:
        token, text = row.take(ahead.pop(0), ban)
        n_read = cache.length - len(guesses)  # tokens of the cache that are right
        reason = _interrupted(row.params, started) or ("length" if n_read >= capacity else None)
        yield text + (row.finish(reason) if reason else "")
        if row.finish_reason is not None:
            cache.truncate(n_read)
            return
        row.fed.append(token)
        if lookup is not None:
            lookup.add(token)
        if guesses and guesses[0] == token:
            guesses.pop(0)
            right += 1
            continue
        cache.truncate(n_read)
        if lookup is not None:
            if checked:
                pace.note_guess(match, right, checked)
            purse.note(1 + right, pace.cost(1 + checked))
            guesses, match = lookup.guess(MOST_GUESSES)
            guesses = guesses[: min(pace.most(match, purse), capacity - n_read - 1)]
        checked, right = len(guesses), 0
        try:
            with Stopwatch() as watch:
                ahead = list(engine.extend(np.array([[token, *guesses]], dtype=np.int64), cache)[0])
        except Cancelled:
            row.fed.pop()
            yield row.finish("cancel")
            return
        pace.note_cost(1 + checked, watch.seconds)
