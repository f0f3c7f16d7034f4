"""Model: complete, infill, score and embed, text in and text out.

Not here: loading (loading.py), prompts (generation/request.py), the token loop (generation/scheduler.py), the cuts for
an editor (text/postprocess.py). Letters: T tokens, C n_embd.
"""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, Unpack

import numpy as np

from .config import EOT
from .engine.protocol import Engine
from .generation.confidence import Confidence
from .generation.handle import RequestHandle
from .generation.params import SamplingOptions, SamplingParams
from .generation.request import AnchorAt, PromptRules, Request
from .generation.results import Chunk, Result, Score
from .generation.scheduler import Scheduler
from .text.postprocess import StopAt
from .text.tokenizer import Tokenizer
from .text.windows import windows

Pooling = Literal["mean", "last"]


class _Hole(enum.Enum):
    HOLE = "HOLE"


HOLE: Final = _Hole.HOLE  # marks a place to fill in infill_spans


class Options(SamplingOptions, total=False):
    """Keywords of what generates: the fields of SamplingParams, which replace those of `params`."""

    params: SamplingParams | None


class InfillOptions(Options, total=False):
    """Keywords of an infill.

    stop_at: end after the "line", or where the "block" closes. trim_overlap: do not repeat what stands around the hole.
    language: helps the cuts to see comments. anchor: where the hole begins for the model: at the "cursor", the
    beginning of its "line", or a number of lines above it; the text from there to the cursor is the beginning of the
    answer. None: what config.json says suits the model, else the line, with which a typed key costs a token or two.
    """

    stop_at: StopAt | None
    trim_overlap: bool
    language: str | None
    anchor: AnchorAt | None


_OF_INFILL = InfillOptions.__annotations__.keys() - Options.__annotations__.keys()


class Model:
    """A CodeGen2 model with its tokenizer, ready to use; codegen2.load returns one.

    What it has read is kept and not read again. Threads may share it: their requests are answered together.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        name: str = "",
        max_prompt_tokens: int | None = None,
        anchor: AnchorAt | None = None,
        together: bool = True,
        cache_gib: float = 2.0,
        confidence: Confidence | None = None,
        suggest_above: float = 0.0,
    ) -> None:
        """Join an engine and a tokenizer.

        max_prompt_tokens: the most text that the model reads at once, though it has room. anchor: where a hole begins
        (infill). together: whether several holes are filled at once. cache_gib: memory for what was read. confidence:
        how sure it is of an answer. suggest_above: how sure it must be to suggest one unasked, as editors do.
        """
        most = engine.config.n_ctx if max_prompt_tokens is None else max_prompt_tokens
        at = "line" if anchor is None else anchor
        rules = PromptRules(engine.config, most, at, confidence, suggest_above)
        if not isinstance(together, bool):
            raise ValueError(f"together must be true or false, got {together!r:.200}")
        self.engine, self.tokenizer, self.name, self.together = engine, tokenizer, name, together
        self.scheduler = Scheduler(engine, tokenizer, rules, name=name, cache_bytes=int(cache_gib * 2**30))
        self._lock = threading.Lock()  # of scheduler.step

    @property
    def max_prompt_tokens(self) -> int:
        """Return the most tokens of text that the model reads at once."""
        return self.scheduler.rules.max_prompt_tokens

    # ---- requests

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        """Answer several requests together, in their order; each gets what it would get alone."""
        handles = [self.scheduler.add(request) for request in requests]
        for handle in handles:
            for _ in self._chunks(handle, handles):
                pass
        return [h.result for h in handles if h.result is not None]

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer to a request piece by piece, then a chunk with the whole result."""
        handle = self.scheduler.add(request)
        yield from self._chunks(handle, [handle])

    def _chunks(self, handle: RequestHandle, together: Sequence[RequestHandle]) -> Iterator[Chunk]:
        try:
            while True:
                while handle.chunks:
                    yield handle.chunks.popleft()
                if handle.done:
                    break
                self._step(handle)
            if handle.error is not None:
                raise handle.error
        finally:
            ended = handle.done and handle.error is None
            for other in () if ended else tuple(together):
                self.scheduler.cancel(other)
                while not other.done:
                    self._step(other)

    def _step(self, handle: RequestHandle) -> None:
        with self._lock:
            if not handle.done:  # another thread may have brought it to its end
                self.scheduler.step()

    # ---- tokens

    def generate(self, ids: Sequence[int], **options: Unpack[Options]) -> Result:
        """Continue ids and return the new tokens, ended by <|endoftext|> or <eom>.

        Raises ValueError for ids outside the vocabulary or a prompt that fills the context.
        """
        return self.generate_batch([ids], **options)[0]

    def generate_batch(self, prompts: Sequence[Sequence[int]], **options: Unpack[Options]) -> list[Result]:
        """Continue several prompts at once, prompt i with random state (seed, i)."""
        if not all(map(len, prompts)):
            raise ValueError(
                "prompt: no tokens; begin with 50256, the document start, to generate from nothing"
            )
        several = enumerate(tuple(map(int, ids)) for ids in prompts)
        return self.answer([_request(options, tokens=ids, index=i) for i, ids in several])

    # ---- completion

    def complete(self, prompt: str, **options: Unpack[Options]) -> Result:
        """Continue a text from left to right; n (or best_of, the likeliest of which are kept) answers.

        The word before the cursor may be a half: it is continued. A prompt that is too long loses whole lines at its
        beginning; `dropped` says how much.
        """
        return self.answer([_request(options, prefix=prompt)])[0]

    def stream_complete(self, prompt: str, **options: Unpack[Options]) -> Iterator[Chunk]:
        """Yield what complete returns, piece by piece."""
        return self.stream(_request(options, prefix=prompt))

    # ---- infilling

    def infill(self, prefix: str, suffix: str, **options: Unpack[InfillOptions]) -> Result:
        """Write what belongs between prefix and suffix; where text follows on the cursor's line, it stays on that line.

        The keywords are those of InfillOptions above. best_of: draw so many middles, keep the n after which middle and
        suffix together are likeliest.
        """
        return self.answer([_request(options, prefix=prefix, suffix=suffix)])[0]

    def stream_infill(self, prefix: str, suffix: str, **options: Unpack[InfillOptions]) -> Iterator[Chunk]:
        """Yield what infill returns, piece by piece: whole lines, two lines late, and the rest at the end."""
        return self.stream(_request(options, prefix=prefix, suffix=suffix))

    def infill_spans(
        self, pieces: Sequence[str | _Hole], *, together: bool | None = None, **options: Unpack[InfillOptions]
    ) -> Result:
        """Fill several holes: infill_spans([text, HOLE, text, HOLE, text]); max_new_tokens is a hole's.

        together: all holes in one prompt, where `anchor` has no say, or one after the other with the earlier ones
        filled in; None: as the model's config says. Raises ValueError without a hole, with more than 899, with n or
        best_of, or when the text between the first and the last hole does not fit the context.
        """
        texts = _between_holes(pieces)
        request = _request(options, prefix=texts[0], suffix=texts[-1], between=tuple(texts[1:-1]))
        if request.params.n_drawn > 1:
            raise ValueError(
                "several holes get one answer each; leave n and best_of out, or fill them one by one"
            )
        if request.n_holes == 1 or (self.together if together is None else together):
            return self.answer([request])[0]
        return self._one_by_one(request, texts)

    def _one_by_one(self, request: Request, texts: Sequence[str]) -> Result:
        """Fill holes from the first to the last, with the earlier ones filled in and the later ones empty."""
        prefix, results = texts[0], list[Result]()
        for at in range(1, len(texts)):
            one = dataclasses.replace(request, prefix=prefix, suffix="".join(texts[at:]), between=())
            results += self.answer([one])
            choice = results[-1].choices[0]
            prefix = prefix[: len(prefix) - choice.unindent] + choice.text + texts[at]
        choices = tuple(r.choices[0] for r in results)
        n_drawn = sum(r.completion_tokens for r in results)
        return dataclasses.replace(results[-1], choices=choices, completion_tokens=n_drawn)

    # ---- judging and representing

    def score(self, text: str) -> Score:
        """Return each token's log-likelihood; a text of any length, in windows of the context with half overlap."""
        ids = self.tokenizer.encode(text)
        parts = [
            self.engine.token_logprobs(window)[0, known - 1 :].astype(np.float64)
            for window, known in self._windows([EOT, *ids])
        ]
        return Score(ids, np.concatenate([np.empty(0), *parts]).tolist(), len(text.encode()))

    def embed(self, text: str | Sequence[int], pooling: Pooling | None = None) -> np.ndarray:
        """Return the last hidden states, float32: (T, C), or (C,) for pooling "mean" or "last"; of any length.

        Raises ValueError for pooling over no tokens.
        """
        if pooling not in (None, "mean", "last"):
            raise ValueError(f"pooling must be mean, last or None, got {pooling!r}")
        ids = [EOT, *(self.tokenizer.encode(text) if isinstance(text, str) else text)]
        parts = [self.engine.hidden(window)[0, known:] for window, known in self._windows(ids)]
        states: np.ndarray = np.concatenate([np.empty((0, self.engine.config.n_embd), np.float32), *parts])
        if pooling is None:
            return states
        if not len(states):
            raise ValueError("text: empty, so there is nothing to pool; give at least one character")
        pooled: np.ndarray = states.mean(0) if pooling == "mean" else states[-1]
        return pooled

    def _windows(self, tokens: list[int]) -> Iterator[tuple[np.ndarray, int]]:
        """Yield ids (1, T) of each window over tokens, and how many of the first were in an earlier one, 1 at least."""
        size = self.engine.config.n_ctx
        for w in windows(len(tokens), size, size // 2):
            yield np.array([tokens[w.start : w.end]]), w.first - w.start


def _request(options: Options, **fields: Any) -> Request:
    """Return a Request of these fields; the options of a request with a suffix may name more of them."""
    sampling: dict[str, Any] = dict(options)
    if "suffix" in fields:
        fields |= {name: sampling.pop(name) for name in _OF_INFILL & sampling.keys()}
    params = sampling.pop("params", None) or SamplingParams()
    return Request(params=dataclasses.replace(params, **sampling), **fields)


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
