"""Scheduler: continuous batching. Requests are added at any time; each step is one forward pass for all that can go on.

The one token loop: Python, command line, server, language server and evaluation all drive it. A step:

    1. take in new requests; end those that are cancelled or past their deadline
    2. give sequences that wait a slot, those first for whom least was done
    3. one forward pass: a token for every sequence that writes (and its draft), and a piece of the prompts that are
       being read: short ones first (a typed key is a token or two), then those for whom least was done
    4. draw tokens, hand out text, finish

    request A   read 300 . . w w w w w            r: a piece of prompt, w: a token written
    request B        read 20 r w w w w            B joins A's passes as soon as it is there

A pass lasts about a tenth of a second at most, so that nobody waits long; one that is not wanted is broken off.
Not here: prompts (request.py), one answer's tokens and text (sequence.py), keys and values (kv_slots.py), threads
(worker.py). Letters: V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..engine.protocol import Cancelled, Engine, Piece
from ..text.tokenizer import Tokenizer
from .handle import MostlyUnwanted, RequestHandle
from .kv_slots import KVSlots
from .ranking import ranked
from .request import PromptRules, Request, build_prompt
from .results import Chunk, FinishReason, Result, TokenLogprob
from .sequence import Sequence as Answering
from .sequence import Vocabulary, token_logprob
from .speculate import Drafter

_PASS_SECONDS = 0.1  # of a pass that reads prompts
_PREPARE_SECONDS = 0.05  # of a step, after which no further prompt is built
_LEAST_READ, _MOST_READ = 32, 348  # tokens of prompts a pass; the native engine works in chunks of up to 348
_MOST_ECHO = 128  # prompt tokens a pass whose logits are all wanted: 51,200 numbers each
_MOST_AHEAD = 1024  # tokens that a group has been served more than one that writes, and still reads as fast
_MOST_ROWS = 4  # that write in a pass for one group, while others are there
_SHORT = 32  # a prompt with so little left is read first


class Observer:
    """Who counts and measures what a scheduler does; this one does neither."""

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""

    def observe(self, name: str, seconds: float) -> None:
        """Add to a histogram."""


class _Planned(NamedTuple):
    """A sequence's part of a pass: tokens read as a prompt, then decode steps; how many of the last want logits."""

    handle: RequestHandle
    sequence: Answering
    n_prompt: int
    tokens: list[int]
    n_logits: int


class Scheduler:
    """Own an engine's cache and all requests that are under way. `add` and `cancel` from any thread, `step` from one.

    cache_bytes: memory for keys and values. max_running: answers written at once; the last `reserved` places are for
    first answers, so that nobody's twenty keep others out, and a user who is named has no more than all but these.
    clock: seconds, for deadlines.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        rules: PromptRules,
        *,
        name: str = "",
        cache_bytes: int = 2**31,
        max_running: int = 64,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine, self.tokenizer, self.rules, self.name = engine, tokenizer, rules, name
        self.slots = KVSlots(engine, cache_bytes)
        self.max_running, self.reserved = max_running, 0
        self.observer, self.clock = observer or Observer(), clock
        fits = tokenizer.vocab_size <= engine.config.vocab_size
        self._vocabulary = Vocabulary(tokenizer if fits else None, engine.config)
        self.drafter = Drafter()
        self._lock = threading.Lock()  # of the inbox
        self._inbox: list[RequestHandle] = []
        self.waiting: list[RequestHandle] = []
        self.running: list[RequestHandle] = []
        self._served: dict[str, float] = {}  # tokens of work done by group
        self._read_tok_s = 500.0
        self._unwanted = MostlyUnwanted()
        self._watch = contextlib.ExitStack()
        self._watching = False

    # ---- from any thread

    def add(self, request: Request, handle: RequestHandle | None = None) -> RequestHandle:
        """Take a request in. What is wrong with it becomes the handle's error in a later step (a ValueError)."""
        handle = handle or RequestHandle(request)
        handle.request, handle.arrived = request, self.clock()
        with self._lock:
            self._inbox.append(handle)
        return handle

    def cancel(self, handle: RequestHandle) -> None:
        """End a request early: within a piece of work, with what is there."""
        handle.interrupt("cancelled", self.clock())

    # ---- from one thread

    def step(self) -> bool:
        """Run one forward pass for all that can go on; return whether anything is left to do.

        A fault of the engine is raised after all that was running got it as its error.
        """
        self._take_in()
        try:
            self._end_early()
            self._admit()
            if self.running:
                self._pass()
                self._rank()
        except Exception as error:
            for handle in [*(self.running or self.waiting)]:
                self._end(handle, error)
            self.slots.forget()
            self.rest()
            raise
        if self.waiting or self.running or self._inbox:
            return True
        self.rest()
        return False

    def rest(self) -> None:
        """End the watch on the engine; the next pass begins it again."""
        self._watch.close()
        self._watching = False

    def _take_in(self) -> None:
        with self._lock:
            new, self._inbox = self._inbox, []
        least = min((self._served.get(h.group, 0.0) for h in [*self.waiting, *self.running]), default=0.0)
        for handle in new:  # somebody new has no claim on all the time before
            self._served[handle.group] = max(self._served.get(handle.group, 0.0), least)
        self.waiting += new

    def _end_early(self) -> None:
        """End what nobody wants any more, and what ran past its deadline."""
        now = self.clock()
        for handle in [*self.waiting, *self.running]:
            deadline_s = handle.request.params.deadline_s
            if handle.unwanted:
                phase = "queue" if handle in self.waiting else "write" if handle.read_at else "read"
                reason = str(handle.why or "cancelled")
                self.observer.count("codegen2_cancelled_total", reason=reason, phase=phase)
                self.observer.observe("codegen2_cancel_seconds", now - (handle.cancelled_at or now))
                self._finish_all(handle, "cancel")
            elif deadline_s is not None and now - handle.arrived > deadline_s:
                self._finish_all(handle, "deadline")

    def _finish_all(self, handle: RequestHandle, reason: FinishReason) -> None:
        """End all answers of a request; at its deadline an infill goes on until it has one whole line."""
        if not handle.sequences:
            if reason == "cancel" or handle.request.suffix is None or handle.request.raw:
                self._end(handle, handle.outcome(self.clock(), reason))
            return
        for sequence in handle.sequences:
            if sequence.finish_reason is None and (reason == "cancel" or sequence.answer.has_line):
                sequence.finish(reason)
                self._after_tokens(handle, sequence)

    # ---- slots

    def _admit(self) -> None:
        """Give sequences slots: first more of what runs, then what waits, the least served first."""
        held = Counter(h.request.user for h in self.running for s in h.sequences if s.slot is not None)
        room, most = self.max_running - held.total(), self.max_running - self.reserved
        self.waiting.sort(key=lambda h: (self._served[h.group], h.arrived))
        began = time.perf_counter()
        for handle in [*self.running, *self.waiting]:
            if room <= 0 or not self.slots.idle():
                break
            late = time.perf_counter() - began > _PREPARE_SECONDS
            if handle.prompt is None and (late or not self._prepare(handle)):
                continue
            for sequence in handle.sequences:
                if sequence.slot is not None or sequence.finish_reason is not None:
                    continue
                user = handle.request.user
                if room <= (self.reserved if sequence.index else 0) or (user and held[user] >= most):
                    break
                if sequence.index and not handle.read_at:
                    break  # the others copy what the first one has read
                if not self._give_slot(handle, sequence):
                    break
                room -= 1
                held[user] += 1

    def _prepare(self, handle: RequestHandle) -> bool:
        """Build the prompt and the sequences; False where the request is wrong."""
        request, vocab_size = handle.request, self.engine.config.vocab_size
        try:
            if (worst := max(request.params.logit_bias, default=0)) >= vocab_size:
                raise ValueError(f"logit_bias: token {worst} is not in the vocabulary 0..{vocab_size - 1}")
            judge = self.rules.judge(request)
            handle.prompt = prompt = build_prompt(request, self.tokenizer, self.rules)
            n = request.params.n_drawn
            handle.sequences = [Answering(request, prompt, self._vocabulary, i, judge) for i in range(n)]
        except ValueError as error:
            self._end(handle, error)
            return False
        return True

    def _give_slot(self, handle: RequestHandle, sequence: Answering) -> bool:
        tokens = sequence.prompt.tokens
        known = tokens[:1] if handle.request.echo and not sequence.index else tokens
        slot = self.slots.take(known, handle.request.user)
        if slot is None:
            return False
        sequence.slot = slot
        sequence.pending = list(tokens[len(slot.tokens) :])
        if not handle.started:
            handle.started = self.clock()
        if not sequence.index:
            handle.n_cached = len(slot.tokens)
        handle.n_evaluated += len(sequence.pending)
        if handle in self.waiting:
            self.waiting.remove(handle)
            self.running.append(handle)
        return True

    # ---- a pass

    def _pass(self) -> None:
        """Run the engine once for all that can go on; nothing is changed where the pass was broken off."""
        plan = self._plan([(h, s) for h in self.running for s in h.sequences if s.slot is not None])
        if not plan:
            return
        pieces = [
            Piece(s.slot.number, len(s.slot.tokens), tokens, n_logits, n_prompt)
            for _, s, n_prompt, tokens, n_logits in plan
            if s.slot is not None
        ]
        self._unwanted.shares = tuple((p.handle, len(p.tokens)) for p in plan)
        if not self._watching:
            self._watch.enter_context(self.engine.cancelled_by(self._unwanted))
            self._watching = True
        began = time.perf_counter()
        try:
            found = self.engine.forward(pieces, self.slots.cache)
        except Cancelled:
            self.rest()  # its flag stays up until then
            return
        finally:
            self._unwanted.shares = ()
        self._note_pass(plan, time.perf_counter() - began)
        for planned, logits in zip(plan, found, strict=True):
            try:
                self._go_on(planned, logits)
            except ValueError as error:
                # Of this request alone: every token banned, weights that are no numbers.
                self._end(planned.handle, error)

    def _plan(self, active: list[tuple[RequestHandle, Answering]]) -> list[_Planned]:
        """Choose what a pass does."""
        writing = [(h, s) for h, s in active if not s.reading]
        reading = [(h, s) for h, s in active if s.reading]
        reading.sort(key=lambda both: (len(both[1].pending) > _SHORT, self._served[both[0].group]))
        if len({h.group for h, _ in active}) > 1:
            # A pass is as long for those with one answer in it, so one with many has a few of them in each, in turn.
            rows, all_writing, writing = Counter[str](), writing, []
            for handle, sequence in sorted(all_writing, key=lambda both: both[1].n_drawn):
                rows[handle.group] += 1
                if rows[handle.group] <= _MOST_ROWS:
                    writing.append((handle, sequence))
        if len(writing) == 1 and not reading:
            self._draft(writing[0][1])
        plan = [_Planned(h, s, 0, [*s.pending, *s.draft], 1 + len(s.draft)) for h, s in writing]
        room = max(_LEAST_READ, min(_MOST_READ, int(self._read_tok_s * _PASS_SECONDS)))
        least = min((self._served[h.group] for h, _ in writing), default=math.inf)
        room_of_echo = _MOST_ECHO
        for handle, sequence in reading:
            if self._served[handle.group] > least + _MOST_AHEAD:
                room = min(room, _LEAST_READ)  # a pass is as long for those who write in it
            echo = handle.request.echo and not sequence.index
            n = min(room, len(sequence.pending), room_of_echo if echo else _MOST_READ)
            if n <= 0:
                continue
            room -= n
            room_of_echo -= n if echo else 0
            writes = n == len(sequence.pending) and sequence.params.max_new_tokens > 0
            tokens = [*sequence.pending[:n], *(sequence.draft if writes else [])]
            n_logits = n if echo else (1 + len(sequence.draft)) if writes else 0
            plan.append(_Planned(handle, sequence, n, tokens, n_logits))
        return plan

    def _draft(self, sequence: Answering) -> None:
        """Draft what the one sequence that writes says next: several tokens a pass cost a single row little more."""
        slot = sequence.slot
        if slot is not None and not sequence.draft and sequence.params.speculate and self.engine.exact_rows:
            tokens = [*slot.tokens, *sequence.pending]
            sequence.draft = self.drafter.draft(sequence, tokens, self.engine.config.n_ctx - len(tokens) - 1)

    def _note_pass(self, plan: Sequence[_Planned], seconds: float) -> None:
        n_read = sum(p.n_prompt for p in plan)
        for planned in plan:
            self._served[planned.handle.group] += len(planned.tokens)
        if n_read >= _LEAST_READ:
            self._read_tok_s = 0.7 * self._read_tok_s + 0.3 * n_read / max(seconds, 1e-6)
        if len(plan) == 1 and not n_read:
            self.drafter.policy.note_cost(len(plan[0].tokens), seconds)
        self.observer.count("codegen2_passes_total")
        self.observer.count("codegen2_pass_rows_total", len(plan))
        self.observer.count("codegen2_prompt_tokens_total", n_read)

    def _go_on(self, planned: _Planned, logits: np.ndarray) -> None:
        """Take in what a pass brought to one sequence: more of the prompt is read, or tokens are drawn."""
        handle, sequence, n_prompt, tokens, _ = planned
        slot = sequence.slot
        assert slot is not None
        if sequence.reading:
            slot.tokens += tokens[:n_prompt]
            slot.n_prompt = len(slot.tokens)
            sequence.pending = sequence.pending[n_prompt:]
            if handle.request.echo and not sequence.index:
                if not handle.prompt_logprobs:
                    handle.prompt_logprobs.append(TokenLogprob(tokens[0], None))
                # Logits (T, V) stand after each of the tokens read.
                behind, top = [*tokens[1:n_prompt], *sequence.pending[:1]], sequence.params.top_logprobs
                handle.prompt_logprobs += [
                    token_logprob(t, row, top) for t, row in zip(behind, logits, strict=False)
                ]
                logits = logits[-1:]
            if sequence.pending:
                return
            sequence.reading = False
            if not handle.read_at:
                handle.read_at = self.clock()
                self.observer.count("codegen2_cached_tokens_total", handle.n_cached)
            if sequence.params.max_new_tokens == 0:  # a client's warm-up, or its prompt's log-probabilities
                sequence.finish("length")
                self._after_tokens(handle, sequence)
                return
        else:
            slot.tokens += sequence.pending
        if not sequence.n_drawn and not sequence.index:
            self.observer.observe("codegen2_first_token_seconds", self.clock() - handle.arrived)
        draft = sequence.draft
        right = sequence.advance(logits, self.engine.config.n_ctx - len(slot.tokens))
        slot.tokens += draft[:right]
        self.drafter.note(sequence, right)
        self._after_tokens(handle, sequence)

    # ---- what comes of it

    def _after_tokens(self, handle: RequestHandle, sequence: Answering) -> None:
        """Hand out what has become certain; free the slot of an ended answer, and end the request with its last."""
        ended = sequence.finish_reason is not None
        if ended:
            self._free(sequence)
        if handle.request.params.best_of is None and handle.request.n_holes <= 1:
            text = sequence.answer.piece()
            told = tuple(sequence.logprobs[sequence.n_told :]) if sequence.params.top_logprobs else ()
            sequence.n_told = len(sequence.logprobs)
            if text or told or ended:
                handle.chunks.append(Chunk(text, sequence.index, sequence.finish_reason, told))
                handle.notify()
        if all(s.finish_reason is not None for s in handle.sequences) and not handle.done:
            if handle.request.params.best_of is None or handle.unwanted:
                self._end(handle, handle.outcome(self.clock(), "cancel"))
            elif handle.ranking is None:
                handle.ranking = ranked(handle, self.engine, self.tokenizer)

    def _rank(self) -> None:
        """Judge a piece of one request's answers, where the likeliest are wanted; the last piece ends it."""
        handle = next((h for h in self.running if h.ranking is not None), None)
        if handle is not None and handle.ranking is not None:
            chosen = () if handle.unwanted else next(handle.ranking)
            if chosen or handle.unwanted:
                self._end(handle, handle.outcome(self.clock(), "cancel", chosen))

    def _end(self, handle: RequestHandle, end: Result | Exception) -> None:
        """Give a handle its result or error, and its slots back."""
        if handle.done:
            return
        for sequence in handle.sequences:
            self._free(sequence)
        for where in (self.waiting, self.running):
            if handle in where:
                where.remove(handle)
        if not any(h.group == handle.group for h in [*self.waiting, *self.running]):
            self._served.pop(handle.group, None)
        if isinstance(end, Result):
            handle.chunks.append(Chunk("", 0, end.finish_reason, result=end))
            handle.result = end
        else:
            handle.error = end
        handle.notify()

    def _free(self, sequence: Answering) -> None:
        if sequence.slot is not None:
            self.slots.release(sequence.slot)
            sequence.slot = None
