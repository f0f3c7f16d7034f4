"""The infilling format: the only file that knows <mask_N>, <sep> and <eom>. Builds prompts and documents, as ids.

Not here: text (tokenizer.py), choosing spans to hide (train/corruption.py), or cutting answers for an editor
(postprocess.py). Source: the CodeGen2 model card and paper (arXiv 2305.02309).

    prompt   prefix <mask_1> suffix <|endoftext|> <sep> <mask_1>            the model goes on: middle <eom>
    n holes  t0 <mask_1> t1 <mask_2> t2 <|endoftext|> <sep> <mask_1>        ... m1 <eom> <mask_2> m2 <eom>
    training t0 <mask_1> t1 ... <|endoftext|> <sep> <mask_1> m1 <eom> <mask_2> m2 <eom> <|endoftext|>
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import EOT, VOCAB_SIZE

SEP = 50299
EOM = 50300
MAX_HOLES = 899
PROMPT_OVERHEAD = 4  # <mask_1>, <|endoftext|>, <sep>, <mask_1>


def mask(n: int) -> int:
    """Return the id of <mask_n>, n from 1.

    >>> mask(1), mask(899)
    (51199, 50301)
    """
    if not 1 <= n <= MAX_HOLES:
        raise ValueError(f"<mask_{n}> does not exist; a prompt has 1 to {MAX_HOLES} holes")
    return VOCAB_SIZE - n


def is_control(token: int) -> bool:
    """Return whether an id steers the model instead of standing for text.

    >>> [is_control(i) for i in (50256, 50257, 50294, 50295, 51199)]
    [True, False, False, True, True]
    """
    return token == EOT or token >= 50295


def with_holes(pieces: Sequence[Sequence[int]]) -> list[int]:
    """Join pieces of text with <mask_1>, <mask_2>, ... between them.

    >>> with_holes([[11, 12], [13], [14]])
    [11, 12, 51199, 13, 51198, 14]
    """
    ids = list(pieces[0])
    for n, piece in enumerate(pieces[1:], start=1):
        ids.append(mask(n))
        ids.extend(piece)
    return ids


def build_prompt(pieces: Sequence[Sequence[int]]) -> list[int]:
    """Return the prompt that asks for the hole between pieces[0] and pieces[1], then for the next ones.

    >>> build_prompt([[79], [82]])
    [79, 51199, 82, 50256, 50299, 51199]
    """
    if len(pieces) < 2:
        raise ValueError(f"an infill prompt needs text before and after a hole, got {len(pieces)} piece(s)")
    return [*with_holes(pieces), EOT, SEP, mask(1)]


def build_document(pieces: Sequence[Sequence[int]], spans: Sequence[Sequence[int]]) -> list[int]:
    """Return a training document: the text with holes, then every span after its mask; len(pieces) == len(spans) + 1.

    >>> build_document([[31], [33, 34, 35, 36]], [[32]])
    [31, 51199, 33, 34, 35, 36, 50256, 50299, 51199, 32, 50300, 50256]
    """
    if len(pieces) != len(spans) + 1:
        raise ValueError(f"{len(spans)} spans leave {len(spans) + 1} pieces of text, got {len(pieces)}")
    ids = [*with_holes(pieces), EOT, SEP]
    for n, span in enumerate(spans, start=1):
        ids.append(mask(n))
        ids.extend(span)
        ids.append(EOM)
    return [*ids, EOT]
