"""What a model is asked and what it answers: the Generator protocol, and what all generators share.

Not here: our own model (own.py), peers (endpoint.py, transformers_model.py), what becomes of answers (run.py). Random
state: an answer's follows by a hash from (the run's seed, task_id, number of the answer) alone, so that any part of a
run, in any order, gives the same answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ...generation.params import SamplingParams
from ...text.postprocess import postprocess
from ...text.stopping import DEFAULT_TRUNCATION, truncate_completion

StopAt = Literal["line", "block"] | None
ROWS = 16  # answers to one problem that are drawn together; part of the random state, so it never changes
# Ends generation early at what truncate_completion would cut at; each of these implies one of its patterns.
COMPLETION_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(")


@dataclass(frozen=True)
class Task:
    """One problem of a run: the text before and after a hole; suffix None asks to continue the prompt.

    language: how comments look, None is guessed. whole_lines: the hole ends with its last line's newline, as in
    HumanEval-Infill's sets of lines, whereas an editor's cursor stands before that newline. expected: what would be
    right, None where that is unknown. group: what it stands and falls with; category: what scores are broken down by.
    """

    task_id: str
    prompt: str
    suffix: str | None = None
    language: str | None = None
    whole_lines: bool = False
    expected: str | None = None
    group: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. stop_at: what an editor would ask for.

    early: end generation where stop_at does, as an editor does, so that raw ends there too; else raw ends at <eom>.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_at: StopAt = None
    early: bool = False

    def __post_init__(self) -> None:
        SamplingParams(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed
        )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True)
class Answer:
    """One answer: raw, and as an editor would show it; unindent: columns before the cursor that would go.

    latency_s: wall seconds until it and those drawn with it were there. tokens: None where a peer does not say.
    """

    raw: str
    shown: str
    unindent: int
    finish_reason: str
    tokens: int | None
    latency_s: float


class Generator(Protocol):
    """Answer problems."""

    def describe(self) -> dict[str, Any]:
        """Return who answers, as a plain JSON object; what is equal in two runs may be continued."""

    def answer(self, task: Task, numbers: range, how: Decoding) -> list[Answer]:
        """Return the answers of these numbers, which lie in one batch of ROWS. Raises ValueError."""


def seed_of(seed: int, task_id: str, number: int) -> int:
    """Return the random seed of one answer, 62 bits.

    >>> seed_of(0, "HumanEval/0", 0), seed_of(0, "HumanEval/0", 1)
    (3748822092753594209, 2806737267980893414)
    """
    digest = hashlib.sha256(f"{seed}\0{task_id}\0{number}".encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def show(task: Task, raw: str, stop_at: StopAt) -> tuple[str, int]:
    """Return what an editor shows of a raw answer, and the columns before the cursor that it takes away.

    >>> show(Task("t", "def f():\\n", "    return x\\n", whole_lines=True), "    x = 1\\n    return x\\n", None)
    ('    x = 1\\n', 0)
    """
    newline = "\n" if task.whole_lines else ""
    suffix = newline + (task.suffix or "")
    done = postprocess(raw, task.prompt, suffix, stop_at=stop_at, language=task.language)
    return done.text + newline, done.unindent


def cut_completion(text: str) -> str:
    """Return a completion up to the next top-level statement, as published harnesses do, without the newline before it.

    The newline goes because generation that ended at a stop string lacks it, and all models should be cut alike.

    >>> cut_completion("    return x\\n\\nprint(f(1))"), cut_completion("    return x\\n")
    ('    return x\\n', '    return x\\n')
    """
    cut = truncate_completion(text, DEFAULT_TRUNCATION)
    return cut if cut == text else cut.removesuffix("\n")


def finished(task: Task, text: str, reason: str, tokens: int | None, took: float, how: Decoding) -> Answer:
    """Make an answer of a generated text."""
    raw = text if task.suffix is not None else cut_completion(text)
    shown, unindent = show(task, raw, how.stop_at)
    return Answer(raw, shown, unindent, reason, tokens, took)
