"""The CodeGen2 vocabulary from GPT-2's merges and a few rules; text of the user never becomes a control token.

Not here: what the control tokens mean (infill.py). The byte-pair engine is the `tokenizers` library; this file only
tells it the vocabulary, and keeps control tokens out of its sight. Source: the released 1B tokenizer's files.
"""

from __future__ import annotations

import bisect
import functools
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from ..config import EOT, VOCAB_SIZE
from ..files.paths import check_regular

MERGES_SHA256 = "ac33235097fe06d4a8fff0feac994644809e6eb6ab70669e1e9fd40ae032428e"  # of the unpacked lines
N_MASKS = 899
_MOST_ADDED = 200_000  # the pattern that finds them is compiled
_MOST_IDS = 2**20  # as many as a model may have (checkpoint/layout.py)


def _byte_alphabet() -> list[str]:
    """Return GPT-2's stand-in for each byte 0..255: printable Latin-1 for itself, the others from 256 up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


_SURROGATE = re.compile("[\ud800-\udfff]")
_ALPHABET = _byte_alphabet()
_BYTE_OF = {c: b for b, c in enumerate(_ALPHABET)}


def _whitespace_runs() -> dict[str, int]:
    """Return the tokens for runs of spaces (31 down to 2) and tabs (9 down to 2)."""
    return {" " * n: 50288 - n for n in range(31, 1, -1)} | {"\t" * n: 50296 - n for n in range(9, 1, -1)}


def control_tokens() -> dict[str, int]:
    """Return every control token's text and id.

    >>> [control_tokens()[t] for t in ("<|endoftext|>", "<sep>", "<eom>", "<mask_1>", "<mask_899>")]
    [50256, 50299, 50300, 51199, 50301]
    """
    tokens = (
        {"<|endoftext|>": EOT}
        | {f"<dummy_{i}>": 50295 + i for i in range(4)}
        | {"<sep>": 50299, "<eom>": 50300}
    )
    return tokens | {f"<mask_{n}>": VOCAB_SIZE - n for n in range(N_MASKS, 0, -1)}


def _load_merges() -> list[tuple[str, str]]:
    packed = resources.files(__package__).joinpath("merges.txt.gz").read_bytes()
    body = gzip.decompress(packed)
    found = hashlib.sha256(body).hexdigest()
    if found != MERGES_SHA256:
        raise ValueError(f"merges.txt.gz: sha256 is {found}, expected {MERGES_SHA256}; reinstall the package")
    return [(a, b) for a, _, b in (line.partition(" ") for line in body.decode().splitlines())]


def _base_vocab(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return text (in stand-ins) to id: bytes first, in GPT-2's order (printable first), then merge k as 256 + k."""
    in_order = [c for c in _ALPHABET if ord(c) < 256] + [c for c in _ALPHABET if ord(c) >= 256]
    vocab = {c: i for i, c in enumerate(in_order)}
    for k, (a, b) in enumerate(merges):
        vocab[a + b] = 256 + k
    return vocab


def _build(model: models.Model, plain_added: Iterable[str]) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(t, normalized=True) for t in plain_added])
    return core


@functools.cache
def _released() -> dict[str, Any]:
    """Return the attributes that all released tokenizers of a process share and none changes (0.1 s to make)."""
    merges = _load_merges()
    vocab, runs = _base_vocab(merges), _whitespace_runs()
    made = Tokenizer.__new__(Tokenizer)
    made._setup(_build(models.BPE(vocab, merges), runs), vocab, runs, control_tokens())
    return vars(made)


class Tokenizer:
    """Turn text into token ids and back.

    DANGER: `<|endoftext|>`, `<sep>`, `<eom>`, `<mask_N>` and `<dummy_N>` steer the model, and source files may contain
    those very letters (this one does). `encode` therefore treats them as plain text. With allow_control=True they
    become their ids, exactly as in the released tokenizer; use that for text you wrote yourself only.

    >>> tok = Tokenizer()
    >>> tok.encode("def hello_world():\\n    ")
    [4299, 23748, 62, 6894, 33529, 198, 50284]
    >>> tok.encode("p<mask_1>s<|endoftext|><sep><mask_1>", allow_control=True)
    [79, 51199, 82, 50256, 50299, 51199]
    >>> 51199 in tok.encode("p<mask_1>s")
    False
    >>> tok.decode(tok.encode("p<mask_1>s"))
    'p<mask_1>s'
    """

    def __init__(self) -> None:
        self.__dict__ = _released()  # tables that are made later are made once for all, too

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a checkpoint's own tokenizer.json (byte-level BPE). Raises ValueError naming what is not understood."""
        self = cls.__new__(cls)
        try:
            self._read(json.loads(check_regular(Path(path)).read_text("utf-8")))
        except Exception as e:  # the library raises bare Exceptions, too
            why = f"{type(e).__name__}: {e!s:.500}"
            raise ValueError(f"{path}: not a tokenizer.json that can be read ({why})") from e
        return self

    def _read(self, raw: dict[str, Any]) -> None:
        model = raw["model"]
        kinds = [model.get("type", "BPE"), _kind(raw.get("pre_tokenizer")), _kind(raw.get("decoder"))]
        if kinds != ["BPE", "ByteLevel", "ByteLevel"] or raw.get("normalizer") is not None:
            raise ValueError(f"expected a byte-level BPE tokenizer without a normalizer, got {kinds}")
        if (raw["pre_tokenizer"] or {}).get("add_prefix_space"):
            raise ValueError("add_prefix_space is on; CodeGen2's tokenizer has it off")
        merges = [_pair(m) for m in model["merges"]]
        vocab = _ids(model["vocab"].items())
        entries = _ids((token["content"], token["id"]) for token in raw.get("added_tokens", ()))
        if (size := sum(map(len, entries))) > _MOST_ADDED:
            raise ValueError(f"its added tokens have {size} characters, at most {_MOST_ADDED} are read")
        if not all(_BYTE_OF.keys() >= set(text) for text in vocab if text not in entries):
            raise ValueError("the vocabulary has characters outside GPT-2's byte alphabet")
        runs = {t: i for t, i in entries.items() if t.strip(" \t\n\r") == ""}
        control = {t: i for t, i in entries.items() if t not in runs}
        plain = {t: i for t, i in vocab.items() if t not in control}
        for a, b in merges:  # of some that are none the library panics
            if a not in plain or b not in plain or a + b not in plain:
                raise ValueError(f"merge {a!r:.99} {b!r:.99} makes no text of the vocabulary")
        self._setup(_build(models.BPE(plain, merges), runs), plain, runs, control)

    def _setup(
        self, core: tokenizers.Tokenizer, vocab: dict[str, int], runs: dict[str, int], control: dict[str, int]
    ) -> None:
        self._core = core
        self._vocab, self._runs = vocab, runs
        self.control = control  # text -> id of every control token
        # The library numbers added tokens by itself, from the end of the vocabulary it sees; map its ids to ours.
        self._renumber = {theirs: i for t, i in runs.items() if (theirs := core.token_to_id(t)) != i}
        self._control_pattern = re.compile(
            "|".join(re.escape(t) for t in sorted(control, key=len, reverse=True)) or r"(?!)"
        )

    @property
    def can_infill(self) -> bool:
        """Whether the vocabulary has what infilling needs: <mask_1>, <sep> and <eom>."""
        return {"<mask_1>", "<sep>", "<eom>"} <= self.control.keys()

    @functools.cached_property
    def known(self) -> frozenset[int]:
        """Return all ids that have a meaning; a model may have rows for more."""
        return frozenset((*self._vocab.values(), *self._runs.values(), *self.control.values()))

    @functools.cached_property
    def vocab_size(self) -> int:
        """Return the number of rows that a model needs for these ids."""
        return 1 + max(self.known)

    def encode(self, text: str, *, allow_control: bool = False) -> list[int]:
        """Return the ids of text. Raises ValueError for text that is not Unicode (a lone surrogate)."""
        if not allow_control:
            return self.encode_batch([text])[0]
        ids: list[int] = []
        at = 0
        for match in self._control_pattern.finditer(text):
            ids += self.encode(text[at : match.start()])
            ids.append(self.control[match.group()])
            at = match.end()
        return ids + self.encode(text[at:])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, control strings as plain text, on all cores."""
        try:
            encoded = self._core.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                if (lone := _SURROGATE.search(text)) is not None:
                    raise ValueError(
                        f"text: character {lone.start()} is a lone surrogate (U+{ord(lone.group()):04X}), which no"
                        " UTF-8 text holds; read the file as UTF-8"
                    ) from None
            raise
        if not self._renumber:
            return [e.ids for e in encoded]
        return [[self._renumber.get(i, i) for i in e.ids] for e in encoded]

    @functools.cached_property
    def _sorted_texts(self) -> tuple[list[bytes], npt.NDArray[np.intp]]:
        """Return the bytes of every token that stands for text, ascending, and the tokens in that order."""
        table = self.bytes_of
        tokens = sorted(sorted(self.known - set(self.control.values())), key=table.__getitem__)
        return [table[token] for token in tokens], np.array(tokens, dtype=np.intp)

    def beginning_with(self, text: bytes) -> npt.NDArray[np.intp]:
        """Return the tokens whose bytes begin with `text`; never a control token.

        >>> tok = Tokenizer()
        >>> [tok.decode([i]) for i in tok.beginning_with(b" retu")]
        [' return', ' returned', ' returning', ' returns']
        """
        texts, tokens = self._sorted_texts
        start = bisect.bisect_left(texts, text)
        return tokens[
            start : bisect.bisect_left(texts, text + b"\xff" * 8)
        ]  # no token has eight bytes 0xff in a row

    def last_word(self, text: str) -> str:
        """Return the last piece that byte-pair merges stay within: what longer text may turn into other tokens.

        >>> [Tokenizer().last_word(t) for t in ("x = foo.retu", "return ", "a +", "if x:\\n    ")]
        ['retu', ' ', ' +', '    ']
        """
        run = re.search(r" +\Z|\t+\Z", text)
        if run is not None:
            return run.group()
        tail = text[max(0, len(text) - 256) :]
        rest = re.split(r" {2,}|\t{2,}", tail)[-1]  # runs are tokens, so what follows begins anew
        pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(rest)
        return rest[pieces[-1][1][0] :] if pieces else ""

    @functools.cached_property
    def bytes_of(self) -> dict[int, bytes]:
        """Return the bytes of every id, of a control token its own text; not to be changed."""
        table = {i: bytes(_BYTE_OF[c] for c in text) for text, i in self._vocab.items()}
        for text, i in [*self._runs.items(), *self.control.items()]:
            table[i] = text.encode()
        return table

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ids, control tokens as their own text. Raises ValueError for an unknown id."""
        table = self.bytes_of
        try:
            return b"".join([table[i] for i in ids])
        except KeyError as e:
            raise ValueError(
                f"token id {e.args[0]} is not in the vocabulary (0..{self.vocab_size - 1})"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; bytes that are no UTF-8 (a character cut in half) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def _ids(pairs: Iterable[tuple[Any, Any]]) -> dict[str, int]:
    """Return ids by their texts. Raises ValueError for what is none, or beyond any vocabulary."""
    found = {}
    for text, i in pairs:
        if not isinstance(text, str) or not text or type(i) is not int or not 0 <= i < _MOST_IDS:
            raise ValueError(f"{text!r:.200} has the id {i!r:.200}, expected text and one below {_MOST_IDS}")
        text.encode()  # a lone surrogate is in no text
        found[text] = i
    return found


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _kind(part: dict[str, Any] | None) -> str | None:
    return None if part is None else part.get("type")
