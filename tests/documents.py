"""Read a training document back: the inverse of infill.build_document."""

from __future__ import annotations

from collections.abc import Sequence

from codegen2.config import EOT, VOCAB_SIZE
from codegen2.text.infill import EOM, MAX_HOLES, SEP


def read_document(ids: Sequence[int]) -> list[int]:
    """Return the text with each span back in its place, without the final <|endoftext|>."""
    ids = list(ids)
    cut = ids.index(SEP)
    text, answers = ids[: cut - 1], ids[cut + 1 : -1]
    assert ids[cut - 1] == ids[-1] == EOT
    spans: dict[int, list[int]] = {}
    while answers:
        end = answers.index(EOM)
        spans[answers[0]] = answers[1:end]
        answers = answers[end + 1 :]
    out: list[int] = []
    for i in text:
        out.extend(spans.pop(i) if VOCAB_SIZE - MAX_HOLES <= i < VOCAB_SIZE else [i])
    assert not spans
    return out
