"""Sequence: one answer while it grows: the tokens drawn, the text they make, and why it ended.

Not here: whose turn it is and the engine (scheduler.py), choosing from logits (sampling.py), the prompt (request.py).
Everything follows from the request, the index and the logits: how tokens were batched, and whether somebody reads
along, changes nothing. Letters: V vocabulary.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence as Tokens

import numpy as np

from ..config import EOT, ModelConfig
from ..text import infill
from ..text.cursor import Place
from ..text.infill import EOM
from ..text.newlines import LineEnd, lf, normalise, restore
from ..text.overlap import may_repeat_above
from ..text.postprocess import Cut, Processed, process
from ..text.stopping import StopMatcher
from ..text.tokenizer import Tokenizer
from .confidence import Judge
from .kv_slots import Slot
from .params import SamplingParams
from .request import Prompt, Request
from .results import Choice, FinishReason, TokenLogprob
from .sampling import (
    apply_bias,
    apply_penalties,
    candidates,
    choose,
    log_norm,
    log_softmax,
    row_rng,
    top_alternatives,
)

_FINAL_CUTS = ("line", "block", "dedent")  # no further token can undo them
_LINES_BEHIND = 2  # that a line repeats what stands after the hole is known by the lines below it


class Vocabulary:
    """Which tokens may be drawn: never control tokens but those that end an answer, nor rows that mean nothing."""

    def __init__(self, tokenizer: Tokenizer | None, config: ModelConfig) -> None:
        self.tokenizer = tokenizer
        size = config.vocab_size
        known = range(size) if tokenizer is None else tokenizer.known
        self.only_text = np.ones(size, dtype=bool)  # (V,), True for what is banned
        self.only_text[np.fromiter(known, np.int64)] = False
        self.only_text[[t for t in range(EOT, size) if infill.is_control(t)]] = True  # none lies below EOT
        self.no_control = self.only_text.copy()
        self.no_control[[t for t in (EOT, EOM) if t < size and t in known]] = False

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token, none where no tokenizer belongs to the model."""
        return b"" if self.tokenizer is None else self.tokenizer.decode_bytes([token])


class Answer:
    """The text of one hole or continuation while it grows; inside, with LF line ends.

    raw: as the model writes it. What pieces show of a post-processed infill are whole lines, two lines late; the rest
    comes with the end. So pieces always join to the whole text.
    """

    def __init__(self, request: Request, place: Place | None, line_end: LineEnd, late: bool = False) -> None:
        """late: show nothing before the end, when it is known whether it is worth showing."""
        self.raw = ""
        self._late = late
        self._place, self._request, self._line_end = place, request, line_end
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._matcher = StopMatcher([lf(s) for s in request.params.stop])
        self._certain = ""  # LF text that will not change
        self._n_shown = 0  # characters that pieces have shown
        self._look_at = 0  # characters from which on the text is looked at again

    @property
    def stop_string(self) -> str | None:
        """Return the stop string that ended the text, None without one."""
        return self._matcher.matched

    @property
    def has_line(self) -> bool:
        """Whether one whole line has been written, or halves are worth showing."""
        return self._place is None or "\n" in self.raw.lstrip()

    def feed(self, new: bytes) -> bool:
        """Take the bytes of a token in; return whether they end the text."""
        text = self._matcher.feed(self._utf8.decode(new))
        self.raw += text
        if self._place is None:
            self._certain = self.raw
        elif "\n" in text and self.stop_string is None and len(self.raw) >= self._look_at:
            self._look_at = len(self.raw) // 32 * 33 if len(self.raw) > 2048 else 0  # a long text less often
            if any(cut.reason in _FINAL_CUTS for cut in self._process(self.raw).cuts):
                return True
            if self._late:
                return False
            whole = self._process(self.raw.rpartition("\n")[0]).text
            # Blank lines may go with what follows them.
            shown = "\n".join(whole.split("\n")[:-_LINES_BEHIND]).rstrip()
            if shown.startswith(self._certain) and not may_repeat_above(whole, self._place):
                self._certain = shown
        return self.stop_string is not None

    def _process(self, text: str) -> Processed:
        assert self._place is not None
        return process(
            text, self._place, stop_at=self._request.stop_at, trim_overlap=self._request.trim_overlap,
            whole=self._request.suggest,
        )  # fmt: skip

    def piece(self) -> str:
        """Return what has become certain since the last piece."""
        shown = restore(self._certain, self._line_end)
        new, self._n_shown = shown[self._n_shown :], len(shown)
        return new

    def hold_back(self) -> None:
        """Show nothing of the text after all."""
        self._certain = ""

    def finish(self, reason: FinishReason) -> tuple[str, tuple[Cut, ...], int]:
        """End the text; return it as it is to be inserted, the cuts made, and blanks before it that should go."""
        if self.stop_string is None:
            self.raw += self._matcher.feed(self._utf8.decode(b"", final=True)) + self._matcher.finish()
        if self._place is None or (reason == "cancel" and not self.raw):
            self._certain = self.raw
            return restore(self.raw, self._line_end), (), 0
        raw, cuts = self.raw, tuple[Cut, ...]()
        if reason == "deadline" and self.has_line:  # half a line helps nobody
            raw, _, half = raw.rpartition("\n")
            raw, cuts = raw + self._place.line_end, (Cut("deadline", half),)
        done = self._process(raw)
        if done.text.startswith(self._certain):
            self._certain = done.text
        return restore(self._certain, self._line_end), cuts + done.cuts, done.unindent


class Sequence:
    """One answer. The scheduler gives it a slot, reads `pending` and `draft`, and hands it the logits."""

    def __init__(
        self, request: Request, prompt: Prompt, vocabulary: Vocabulary, index: int, judge: Judge | None = None
    ) -> None:
        self.request, self.prompt, self.index, self._judge = request, prompt, index, judge
        self.params: SamplingParams = request.params
        self.slot: Slot | None = None
        self.reading = True  # the prompt
        self.pending: list[int] = list(prompt.tokens)  # tokens to read before the next one is drawn
        self.draft: list[int] = []  # tokens that may come then, read along with them
        self.finish_reason: FinishReason | None = None
        self.choices: list[Choice] = []  # of the holes that have ended
        self.n_drawn = 0  # tokens, without those that only spell the word before the cursor
        self.sum_logprob = 0.0
        self.logprobs: list[TokenLogprob] = []
        self.n_told = 0  # of these, shown in pieces
        self._vocabulary = vocabulary
        self._seen = [t for t in prompt.tokens if not infill.is_control(t)]  # penalties are for text
        self._rng = row_rng(self.params.seed, request.index + index) if self.params.temperature else None
        self._tokens: list[int] = []  # of all holes
        self._before = prompt.texts[0] if prompt.texts else ""
        self._begin_hole()

    def _begin_hole(self) -> None:
        request, texts = self.request, self.prompt.texts
        hole = len(self.choices)
        place = None
        if request.suffix is not None and not request.raw:
            place = Place.of(self._before, texts[hole + 1], request.language)
        self._judged = None if place is None else self._judge
        self.answer = Answer(
            request, place, self.prompt.line_end, self._judged is not None and self._judged.above > 0
        )
        self.draft = list(self.prompt.words[hole])
        self._word = b"".join(map(self._vocabulary.bytes_of, self.draft))
        self._n_left = self.params.max_new_tokens
        self._nats = 0.0  # of the hole's tokens, the ending one included
        # Behind half a line an editor wants its rest: training holes may end anywhere, and often would here.
        half = place is not None and bool(place.head.strip()) and not place.rest
        self._least = max(self.params.min_new_tokens, int(half))
        self._first_token, self._first_logprob = len(self._tokens), len(self.logprobs)

    def advance(self, logits: np.ndarray, room: int) -> int:
        """Draw tokens from logits (1 + k, V): after all of pending, then after each of the k drafted tokens.

        Draws on while what is drawn is what was drafted; sets pending, and draft where the next hole begins. room: how
        many tokens the context holds behind what was pending. Returns how many drafted tokens were right, and so are
        read. Raises ValueError where every token is banned, DamagedWeights for logits that are no numbers.

            draft  f o      drawn from row 0: f, right; from row 1: x, wrong  ->  1, pending [x]
        """
        draft, self.draft, self.pending, right = self.draft, [], [], 0
        while not self.pending and self.finish_reason is None:
            path = self._spell(logits, draft) if self._word else self._choose(logits, right)
            for token, row, n_spelled in path:
                between = self._take(token, logits[row], n_spelled)
                if right < len(draft) and token == draft[right]:
                    right += 1
                elif token not in (EOT, EOM):
                    self.pending.append(token)
                self.pending += between
        if self.finish_reason is None and right + len(self.pending) + len(self.draft) > room:
            self.finish("length")
        return right

    def _choose(self, logits: np.ndarray, row: int) -> list[tuple[int, int, int]]:
        token = choose(self._adjusted(logits[row]), self.params, self._rng, self._banned())
        if self._judged is not None:
            self._nats += log_norm(logits[row]) - float(logits[row][token])
        return [(token, row, 0)]

    def _banned(self) -> np.ndarray:
        early = len(self._tokens) - self._first_token < self._least
        return self._vocabulary.only_text if early else self._vocabulary.no_control

    def _adjusted(self, logits: np.ndarray) -> np.ndarray:
        return apply_bias(apply_penalties(logits, self._seen, self._tokens, self.params), self.params)

    def _spell(self, logits: np.ndarray, word: Tokens[int]) -> list[tuple[int, int, int]]:
        """Choose how the word before the cursor is spelled: (token, its row of logits, bytes that only spell).

        Along the word's own tokens, at each place, every token that begins with all that is left of it may follow. The
        likelihood of a way is that of its tokens together, so a short token is worth no more than what it leads to.

            word "ret" "u"    row 0: tokens that begin with "retu": "return" -5.2, "returns" -9.1
                              row 1: "ret" -3.9, then those that begin with "u": "u" -8.0, "urn" -4.4
                              greedy: "return", since -5.2 > -3.9 - 4.4; by single tokens "ret" would win
        """
        tokenizer = self._vocabulary.tokenizer
        assert tokenizer is not None
        left, self._word, before = self._word, b"", 0.0
        sizes = [len(tokenizer.decode_bytes([t])) for t in word]
        ways: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        for row, token in enumerate(word):
            x = logits[row]
            norm = log_norm(x)
            ways.append(tokenizer.beginning_with(left))
            likes = self._adjusted(x)[ways[-1]].astype(np.float64)
            likes[ways[-1] == token] = x[token]  # penalties and bias are for new text alone
            scores.append(before + likes - norm)
            before += float(x[token]) - norm
            left = left[sizes[row] :]
        every = np.concatenate(scores)
        at, row = choose(every, self.params, self._rng), 0
        self._nats += log_norm(every) - float(every[at])
        while at >= len(ways[row]):
            at, row = at - len(ways[row]), row + 1
        path = [(t, i, sizes[i]) for i, t in enumerate(word[:row])]
        return [*path, (int(ways[row][at]), row, sum(sizes[row:]))]

    def _take(self, token: int, logits: np.ndarray, n_spelled: int) -> list[int]:
        """Take a drawn token in; return the control tokens before the next hole, where this one has ended."""
        if token in (EOT, EOM):  # <|endoftext|> with holes left: the model is done with this one only
            self._note(token, logits)
            return self._end_hole("stop", token)
        raw = self._vocabulary.bytes_of(token)
        if n_spelled and len(raw) == n_spelled:
            return []
        self._note(token, logits, n_spelled)
        self._tokens.append(token)
        self._n_left -= 1
        if self.answer.feed(raw[n_spelled:]):
            return self._end_hole("stop")
        if self._judged is not None and self._judged.held_back(self._nats):
            return self._end_hole("stop")
        return self._end_hole("length") if self._n_left <= 0 else []

    def _note(self, token: int, logits: np.ndarray, n_spelled: int = 0) -> None:
        """Count a token, and keep its log-probability where somebody wants it."""
        self.n_drawn += 1
        if not self.params.top_logprobs and self.params.best_of is None:
            return
        # A healed token is drawn among ways to spell a word, so filters may have left it out here: the model's word.
        if self.params.drawn_logprobs and not n_spelled:
            adjusted = np.where(self._banned(), -np.inf, self._adjusted(logits))
            with np.errstate(divide="ignore"):  # what no draw takes has log p -inf
                logits = np.log(candidates(adjusted, self.params))
        self.logprobs.append(token_logprob(token, logits, self.params.top_logprobs, n_spelled))
        self.sum_logprob += self.logprobs[-1].logprob or 0.0

    def _end_hole(self, reason: FinishReason, stop_token: int | None = None) -> list[int]:
        """Close the hole's choice; begin the next hole and return the control tokens before it, or finish."""
        text, cuts, unindent = self.answer.finish(reason)
        judged = self._judged
        confidence = None if judged is None else judged.confidence.probability(self._nats)
        if judged is not None and self.answer.raw and (why := judged.held_back(self._nats)):
            cuts += (Cut(why, normalise(text)),)
            text, unindent = "", 0
            self.answer.hold_back()
        told = tuple(self.logprobs[self._first_logprob :]) if self.params.top_logprobs else ()
        choice = Choice(
            text, self.answer.raw, tuple(self._tokens[self._first_token :]), reason, stop_token,
            self.answer.stop_string, cuts, unindent, told, confidence=confidence,
        )  # fmt: skip
        self.choices.append(choice)
        if len(self.choices) >= max(1, self.request.n_holes):
            self.finish_reason = reason
            return []
        before = self._before[: len(self._before) - unindent]
        self._before = before + normalise(text) + self.prompt.texts[len(self.choices)]
        self._begin_hole()
        return [EOM, infill.mask(len(self.choices) + 1)]

    def finish(self, reason: FinishReason) -> None:
        """End the answer with what is there; holes not begun stay empty."""
        while self.finish_reason is None:
            self._end_hole(reason)


def token_logprob(token: int, logits: np.ndarray, top: int, n_spelled: int = 0) -> TokenLogprob:
    """Return a token's log-probability after logits (V,), with the `top` likeliest and the token itself among them."""
    logp = log_softmax(logits)
    likeliest = top_alternatives(logits, top, logp)
    if top and all(t != token for t, _ in likeliest):
        likeliest.append((token, float(logp[token])))
    return TokenLogprob(token, float(logp[token]), tuple(likeliest), n_spelled)
