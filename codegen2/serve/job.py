"""Job: one Ask under way: its prompt, its rows, what of the text may be shown yet, and the Answer in the end.

Not here: whose turn it is and the engine's calls (worker.py), keys and values (slots.py). Everything here runs in the
worker's thread, but for `cancel`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..api import Model
from ..config import EOT
from ..generation.generate import Row, TokenLogprob, check_ids
from ..generation.results import Middle
from ..generation.sampling import log_softmax, top_alternatives
from ..generation.session import Session
from ..generation.speculate import Lookup, Purse
from ..text import context, infill
from ..text.context import Dropped
from ..text.cursor import Place
from ..text.postprocess import Cut, Processed, process
from ..text.tokenizer import Tokenizer
from .answers import Answer, Choice, Interruption, Piece, Timings
from .schema import Ask, BadField, TokenInfo
from .slots import Slot, Slots

_EARLY = ("line", "block", "dedent")  # cuts that no further token can undo
_LINES_BEHIND = 2


class Lane:
    """One row of a job: it waits for a slot, reads what is missing of the prompt, and writes."""

    def __init__(self, row: Row, index: int) -> None:
        self.row, self.index = row, index
        self.slot: Slot | None = None
        self.todo: list[int] = list(row.prompt)  # ids to read before the next one is drawn
        self.reading = True
        self.guesses: list[int] = []
        self.match = 0
        self.lookup: Lookup | None = None
        self.purse = Purse()
        self.sent = ""  # what pieces have shown
        self.told = 0  # tokens that pieces have shown
        self.held = ""  # text that no piece has shown yet, of one that is shown as it comes

    @property
    def done(self) -> bool:
        """Return whether the row has ended."""
        return self.row.finish_reason is not None


class Job:
    """Everything about one Ask but its turn."""

    def __init__(
        self, ask: Ask, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any], pieces: bool
    ) -> None:
        self.ask = ask
        self.group = ask.session or ask.client
        self.why: Interruption | None = None  # set by cancel, from any thread
        self.cancelled_at = 0.0
        self.arrived = time.monotonic()
        self.started = self.read_at = 0.0
        self.load_s = 0.0
        self.lanes: list[Lane] = []
        self.prompt_tokens = self.cached = self.evaluated = 0
        self.echo: list[TokenInfo] = []
        self.dropped = Dropped()
        self._loop, self._queue, self._pieces = loop, queue, pieces
        self._shown: list[str] = []  # the texts as the model saw them, for best_of
        self.finished = False

    # ---- from any thread

    def cancel(self, why: Interruption) -> None:
        """Ask for an early end."""
        if self.why is None and not self.finished:
            self.cancelled_at = time.monotonic()
            self.why = why

    def put(self, item: Piece | Answer | Exception) -> None:
        """Hand something to the one who waits."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop is closed, so nobody waits
            self.finished = True

    # ---- the prompt

    def prepare(self, model: Model, slots: Slots, most_new: int) -> None:
        """Make the prompt and the rows. Raises ValueError for what the client got wrong."""
        ask, config = self.ask, model.engine.config
        worst = max(ask.params.logit_bias, default=0)
        if worst >= config.vocab_size:
            raise BadField(
                "logit_bias", f"logit_bias: token {worst} is not in the vocabulary 0..{config.vocab_size - 1}"
            )
        budget = min(ask.params.max_new_tokens, most_new, config.n_ctx // 2)
        rank = ask.params.best_of is not None and ask.suffix is None
        params = dataclasses.replace(
            ask.params,
            max_new_tokens=budget,
            top_logprobs=max(ask.params.top_logprobs, int(rank)),
            deadline_s=None,
            cancel=None,
        )
        self._session: Session | None = None
        ids = self._completion(model, budget) if ask.suffix is None else self._infill(model, slots, budget)
        check_ids(ids, config)
        self.prompt_tokens = len(ids)
        n_rows = params.best_of or params.n
        holes = int(ask.suffix is not None)
        self.lanes = [
            Lane(Row(ids, params, model.tokenizer, index=i, n_holes=holes, enough=self._enough()), i)
            for i in range(n_rows)
        ]

    def _completion(self, model: Model, budget: int) -> list[int]:
        most = min(model.room(budget, 0), model.max_prompt_tokens)
        if self.ask.tokens is not None:
            ids = list(self.ask.tokens)[-most:]
            self.dropped = Dropped(len(model.tokenizer.decode(list(self.ask.tokens)[:-most])))
        else:
            side = context.keep_end(model.tokenizer, self.ask.prefix, most)
            ids, self.dropped = side.ids, Dropped(len(self.ask.prefix) - len(side.text))
        return ids or [EOT]

    def _infill(self, model: Model, slots: Slots, budget: int) -> list[int]:
        prefix = self.ask.prefix if self.ask.tokens is None else model.tokenizer.decode(list(self.ask.tokens))
        suffix = self.ask.suffix or ""
        self._place = Place.of(prefix, suffix)
        anchor = (
            0 if model.anchor == "cursor" else model.anchor
        )  # a line's beginning at least: typing keeps the cache
        plain = prefix.replace("\r\n", "\n").removeprefix("\ufeff")
        found = slots.continued(plain, suffix)
        # A slot's own session may still move its anchor for another request, so each slot keeps its last one.
        self._session = (found.session if found is not None else None) or Session(model.engine)
        pieces, typed, self.dropped = model.place(prefix, suffix, anchor, self._session, budget)
        self._shown = [pieces[0] + typed, pieces[1]]
        return infill.build_prompt([model.tokenizer.encode(p) for p in pieces]) + model.tokenizer.encode(
            typed
        )

    def _enough(self) -> Callable[[str], bool] | None:
        if self.ask.suffix is None or self.ask.raw or self.ask.stop_at is None:
            return None
        return lambda text: any(cut.reason in _EARLY for cut in self._process(text).cuts)

    def _process(self, text: str) -> Processed:
        return process(text, self._place, stop_at=self.ask.stop_at)

    # ---- lanes

    def admit(self, lane: Lane, slots: Slots) -> bool:
        """Return the lane a slot; False when none is free."""
        prompt = lane.row.prompt
        taken = slots.take(prompt if lane.index or not self.ask.echo_logprobs else prompt[:1])
        if taken is None:
            return False
        lane.slot, got = taken
        lane.slot.session = self._session
        lane.todo = list(prompt[got:])
        if not self.started:
            self.started = time.monotonic()
        if lane.index == 0:
            self.cached = got
        self.evaluated += len(lane.todo)
        return True

    def note_prompt(self, ids: Sequence[int], logits: np.ndarray, first: bool, tokenizer: Tokenizer) -> None:
        """Keep the log-probabilities of prompt tokens: logits (T, V) stand after each of ids, the last one's next."""
        if first and not infill.is_control(ids[0]):
            self.echo.append(TokenInfo(ids[0], tokenizer.decode_bytes([ids[0]])))
        top = self.ask.params.top_logprobs
        for token, row in zip(ids[1:], logits, strict=False):
            said = TokenLogprob(token, float(log_softmax(row)[token]), top_alternatives(row, top))
            self.echo.append(_info(said, tokenizer))

    def grown(self, lane: Lane, text: str, tokenizer: Tokenizer) -> None:
        """Show what has become certain of a lane's text."""
        if not self._pieces or self.ask.params.best_of is not None:
            return
        row = lane.row
        if self.ask.suffix is None or self.ask.raw:
            new = text
        elif lane.done:
            new = self._text(lane).text[len(lane.sent) :]
        else:
            new = self._certain(lane, text)
        lane.sent += new
        infos: tuple[TokenInfo, ...] = ()
        if row.params.top_logprobs:
            infos = tuple(_info(t, tokenizer) for t in row.logprobs[lane.told :])
            lane.told = len(row.logprobs)
        if new or infos or lane.done:
            self.put(Piece(new, lane.index, infos, row.finish_reason))

    def _certain(self, lane: Lane, text: str) -> str:
        if "\n" not in text:
            return ""
        whole = lane.row.texts[0].rpartition("\n")[0]
        lines = self._process(whole).text.split("\n")[:-_LINES_BEHIND]
        shown = "\n".join(lines).rstrip()  # blank lines may go with what follows them
        return shown[len(lane.sent) :] if shown.startswith(lane.sent) else ""

    def line_exists(self, lane: Lane) -> bool:
        """Return whether one whole line has been written."""
        return "\n" in lane.row.texts[0].lstrip()

    # ---- the answer

    def _text(self, lane: Lane) -> Processed:
        """Return a lane's text as an editor should insert it, but never less than what was shown already."""
        raw = lane.row.texts[0]
        if self.ask.suffix is None or self.ask.raw:
            return Processed(raw)
        cuts: tuple[Cut, ...] = ()
        if lane.row.finish_reason == "deadline" and self.line_exists(lane):  # half a line helps nobody
            raw, _, half = raw.rpartition("\n")
            cuts = (Cut("deadline", "\n" + half),)
        done = self._process(raw)
        text = done.text if done.text.startswith(lane.sent) else lane.sent
        return Processed(text, cuts + done.cuts, done.unindent)

    def result(self, model: Model) -> Answer:
        """Return the answer, of lanes that never began an empty one."""
        now = time.monotonic()
        self.started = self.started or now
        self.read_at = self.read_at or now
        params = self.ask.params
        choices = [self._choice(lane, model.tokenizer) for lane in self.lanes]
        choices = choices or [Choice("", "", "cancel")] * params.n  # it never had its turn
        if params.best_of is not None and self.why is None:
            choices = self._best(model, choices)[: params.n]
        drawn = sum(len(lane.row.tokens) for lane in self.lanes)
        timings = Timings(
            1e3 * (self.started - self.arrived - self.load_s),
            1e3 * self.load_s,
            self.evaluated,
            1e3 * (self.read_at - self.started),
            self.cached,
            drawn,
            1e3 * (now - self.read_at),
        )
        return Answer(
            tuple(choices[: params.n]),
            self.prompt_tokens,
            drawn,
            self.dropped,
            timings,
            self.why,
            tuple(self.echo),
        )

    def _choice(self, lane: Lane, tokenizer: Tokenizer) -> Choice:
        row, shown = lane.row, self._text(lane)
        tokens = tuple(_info(t, tokenizer) for t in row.logprobs)
        return Choice(
            shown.text,
            row.texts[0],
            row.finish_reason or "cancel",
            row.stop_string,
            row.stop_token is not None,
            shown.cuts,
            shown.unindent,
            tokens,
        )

    def _best(self, model: Model, choices: list[Choice]) -> list[Choice]:
        """Sort by what is likeliest, as Model.complete and Model.infill do."""
        if self.ask.suffix is None:
            scores = [_mean([t.logprob for t in c.tokens if t.logprob is not None]) for c in choices]
            order = sorted(range(len(choices)), key=lambda i: -scores[i])
            return [choices[i] for i in order]
        done = [lane.row.result() for lane in self.lanes]
        of = {id(generation): choice for generation, choice in zip(done, choices, strict=True)}
        made = [
            Middle(c.text, c.raw, c.cuts, c.unindent, c.finish_reason, g)
            for c, g in zip(choices, done, strict=True)
        ]
        return [of[id(m.generation)] for m in model.likeliest(self._shown, made)]


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def _info(said: TokenLogprob, tokenizer: Tokenizer) -> TokenInfo:
    """Return a token and its alternatives; those that steer the model are no text and left out."""
    top = tuple((tokenizer.decode_bytes([i]), p) for i, p in said.top if not infill.is_control(i))
    return TokenInfo(said.token, tokenizer.decode_bytes([said.token]), said.logprob, top)
