"""Our vocabulary as Hugging Face's fast tokenizer reads it: tokenizer.json and its two companions.

Not here: encoding. A test holds these files, read by transformers, to codegen2.tokenizer with
allow_control=True.
"""

from __future__ import annotations

import json
from typing import Any

from ..config import EOT
from ..text.tokenizer import Tokenizer
from .reader import TOKENIZER_FILE
from .write import json_bytes


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


def tokenizer_files(n_ctx: int) -> dict[str, bytes]:
    """Return our tokenizer's three files by name."""
    names = {f"{kind}_token": "<|endoftext|>" for kind in ("bos", "eos", "unk", "pad")}
    config = names | {
        # The generic fast class: the slow GPT2Tokenizer eats white space around added tokens.
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    return {
        TOKENIZER_FILE: json.dumps(tokenizer_json(Tokenizer()), ensure_ascii=False).encode(),
        "tokenizer_config.json": json_bytes(config),
        "special_tokens_map.json": json_bytes(names),
    }
