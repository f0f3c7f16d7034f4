"""Our own model under the problems: the requests that anybody makes of it."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from ...api import Model
from ...generation.params import SamplingParams
from ...generation.request import Request
from .base import COMPLETION_STOPS, ROWS, Answer, Decoding, Task, finished, seed_of

_SNIPPET = "def add(a, b):\n    return a + b\n"


class OwnModel:
    """Answer with a CodeGen2 model."""

    def __init__(self, model: Model, about: dict[str, Any] | None = None) -> None:
        """about: what else describes it (not threads: they change no answer)."""
        self.model = model
        self._about = about or {}
        self._fingerprint = _fingerprint(model)

    def describe(self) -> dict[str, Any]:
        """Return which model; the fingerprint is of its log-probabilities, so of weights, dtype and engine at once."""
        config = self.model.engine.config
        return {
            "kind": "codegen2",
            "name": self.model.name,
            **self._about,
            "parameters": config.n_params,
            "context": config.n_ctx,
            "max_prompt_tokens": self.model.max_prompt_tokens,
            "anchor": self.model.scheduler.rules.anchor,
            "fingerprint": self._fingerprint,
        }

    def answer(self, task: Task, numbers: range, how: Decoding) -> list[Answer]:
        """Draw one batch: the answers of a call share the prompt, which is read once."""
        begin = numbers.start - numbers.start % ROWS
        # Whatever part of a batch is asked for, all answers up to it are drawn: an answer's random state is its place.
        params = SamplingParams(
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            seed=seed_of(how.seed, task.task_id, begin),
            n=numbers.stop - begin,
            stop=COMPLETION_STOPS if task.suffix is None else (),
        )
        request = Request(
            task.prompt,
            task.suffix,
            params=params,
            stop_at=how.stop_at if how.early else None,
            raw=not how.early,
            language=task.language,
        )
        started = time.perf_counter()
        drawn = self.model.answer([request])[0].choices
        took = time.perf_counter() - started
        answers = [finished(task, c.raw, c.finish_reason, len(c.tokens), took, how) for c in drawn]
        return answers[numbers.start - begin :]


def _fingerprint(model: Model) -> str:
    """Return 16 hex digits of log-probabilities behind a snippet: other weights, another dtype or engine give others.

    It is the first call, too: what an engine does once does not count in the first answer's time.
    """
    drawn = model.complete(_SNIPPET, max_new_tokens=4, top_logprobs=5).choices[0]
    return hashlib.sha256(repr(drawn.logprobs).encode()).hexdigest()[:16]
