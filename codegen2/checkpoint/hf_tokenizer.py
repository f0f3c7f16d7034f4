"""Our vocabulary as Hugging Face's fast tokenizer reads it: tokenizer.json and its two companions.

Not here: encoding. A test holds these files, read by transformers, to codegen2.tokenizer with
allow_control=True.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..config import EOT
from ..text.tokenizer import Tokenizer
from .reader import TOKENIZER_FILE


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of tokenizer.json: byte-level BPE, then the added tokens by ascending id.

    The library numbers added tokens by itself, from the vocabulary's end on, so <|endoftext|> stands in both.
    """
    content: dict[str, Any] = json.loads(tokenizer._core.to_str())
    control, runs = tokenizer.control, tokenizer._runs
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content |= {"pre_tokenizer": byte_level, "decoder": byte_level}
    content["added_tokens"] = [
        {
            "id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": i != EOT, "special": i == EOT,
        }
        for i, text in sorted((i, text) for text, i in (runs | control).items())
    ]  # fmt: skip
    merges = [
        " ".join(pair) for pair in content["model"]["merges"]
    ]  # pairs as lists are unknown to older readers
    content["model"] = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": False, "merges": merges,
        "vocab": tokenizer._vocab | {text: i for text, i in control.items() if i == EOT},
    }  # fmt: skip
    return content


def own_tokenizer(directory: Path, vocab_size: int) -> Tokenizer | None:
    """Read a checkpoint's own tokenizer.json, if it has one. Raises ValueError when it does not fit."""
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        return None
    tokenizer = Tokenizer.from_file(path)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{path}: has ids up to {tokenizer.vocab_size - 1}, the model {vocab_size} rows; use the one"
            " it was trained with"
        )
    return tokenizer


def write_tokenizer(directory: Path, n_ctx: int, own: Path | None) -> None:
    """Write the tokenizer's files; `own` is a tokenizer.json to take over as it stands, None means ours."""
    target = directory / TOKENIZER_FILE
    end = "<|endoftext|>"
    if own is None:
        target.write_text(json.dumps(tokenizer_json(Tokenizer()), ensure_ascii=False), "utf-8")
    else:
        shutil.copyfile(own, target)
    names = {f"{kind}_token": end for kind in ("bos", "eos", "unk", "pad")}
    config = names | {
        # The generic fast class: the slow GPT2Tokenizer eats white space around added tokens.
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
