"""convert: a checkpoint in any released layout to one of four, block by block, written atomically.

    codegen2   our normal form: safetensors, the released names, one QKV group ("mp_num": 1)
    hf         a repaired Hugging Face directory: what transformers' CodeGenForCausalLM expects (4 groups),
               with the right end of text and context, a fast tokenizer, a generation_config that stops at
               <eom>, and no remote code
    gptj       GPT-J's names and order, for engines that know GPT-J (vLLM, SGLang)
    native     packed, and mostly quantised, for our compiled engine (native/form.py)

Not here: how the source's layout is recognised (layout.py), how a directory is written (write.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import EOT, VOCAB_SIZE
from ..text.infill import EOM
from ..text.tokenizer import Tokenizer
from . import write
from .formats.safetensors import Entry, total_bytes
from .formats.tensors import damaged
from .layout import QKV_NAME
from .native.form import Kinds
from .native.pack import native_entries, native_form
from .reader import TOKENIZER_FILE
from .room import human
from .selfcheck import check_grouping
from .weights import Weights, open_weights

FORMS = ("codegen2", "hf", "gptj", "native")
HF_GROUPS = 4  # fixed in transformers' CodeGenAttention


def convert(
    source: str | Path,
    destination: str | Path,
    to: str = "codegen2",
    *,
    dtype: str | None = None,
    head_dtype: str | None = None,
    max_shard_bytes: int = write.MAX_SHARD_BYTES,
    overwrite: bool = False,
    calibrate: Sequence[str] | None = None,
    check: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Convert the checkpoint directory `source` into a new directory; return notes for the user, if any.

    dtype (float32, bfloat16, float16, for codegen2 int8: rows with a scale each, all of them in memory at once) changes
    the element type, None keeps what is stored. For native it is int4,
    int8 (None), bfloat16 or float32, head_dtype (int8 or int4) that of lm_head beside int4, and there is one file
    whatever max_shard_bytes. calibrate: texts like those that the model will read, by which int4 is rounded better
    (calibration.py); None does so by our own sources where that takes seconds, for small models; () never. The
    destination appears whole or not at all; one that is not empty is refused unless overwrite. check=False skips the
    self-check of the QKV grouping. progress is called with bytes written and their total after each block. Memory: one
    block of 16 MiB, for native a few. Raises ValueError or OSError.
    """
    source, destination = Path(source), Path(destination)
    if to not in FORMS:
        raise ValueError(f"--to is {to!r}, expected one of {', '.join(FORMS)}")
    kinds = Kinds.choose(dtype, head_dtype) if to == "native" else None
    known = ["float32", "bfloat16", "float16", *(["int8"] if to == "codegen2" else [])]
    if kinds is None and dtype is not None and dtype not in known:
        raise ValueError(f"--dtype is {dtype!r}, expected {', '.join(known)}")
    if kinds is None and head_dtype is not None:
        raise ValueError(
            f"--head-dtype is {head_dtype!r}, which --to native knows and {to} does not; leave it out"
        )
    if calibrate and (kinds is None or kinds.dtype != "int4"):
        raise ValueError("--calibrate is for --to native --dtype int4; leave it out")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}, expected at least 1")
    _check_destination(source, destination, overwrite)
    weights = open_weights(source)
    if check:
        check_grouping(weights)
    notes: list[str] = []
    if kinds:
        form = native_form(weights, kinds, calibrate)
    elif to == "codegen2":
        form = write.own_form(weights, dtype, max_shard_bytes)
    else:
        entries = (_hf_entries if to == "hf" else _gptj_entries)(weights, dtype)
        files, notes = _others_files(weights, to, entries[0].info.dtype)
        form = write.Form(entries, files, max_shard_bytes)
    write.write_directory(form, destination, _smaller(weights, form.entries, kinds), progress)
    return notes


def _check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    here, there = source.resolve(), destination.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise damaged(destination, f"lies in or around the source {source}", "choose a directory elsewhere")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise ValueError(f"{destination}: exists and is no directory; choose another name")
    if any(destination.iterdir()) and not overwrite:
        raise ValueError(f"{destination}: is not empty; choose another directory, or ask to overwrite it")


def _smaller(weights: Weights, entries: list[Entry], kinds: Kinds | None) -> str:
    """Return what to do where the disk is too small for these entries."""
    if kinds and kinds.dtype != "int4":
        least = total_bytes(native_entries(weights, Kinds.choose("int4")))
        return f"convert to int4, which takes {human(least)}, or choose another disk"
    if entries[0].info.dtype in ("float32", "float64"):
        least = 2 * weights.config.n_params
        return f"convert to bfloat16, which takes {human(least)}, or choose another disk"
    return "choose another disk, or convert a smaller model"


def _hf_entries(weights: Weights, dtype: str | None) -> list[Entry]:
    if (n := weights.config.n_head) % HF_GROUPS:
        raise ValueError(f"--to hf: n_head is {n}, expected a multiple of {HF_GROUPS}; use codegen2 or gptj")
    return [write.own_entry(weights, name, dtype, HF_GROUPS) for name in weights.names()]


def _gptj_entries(weights: Weights, dtype: str | None) -> list[Entry]:
    C = weights.config.n_embd
    entries: list[Entry] = []
    for name in weights.names():
        if not QKV_NAME.fullmatch(name):
            entries.append(write.entry(weights, name, name, dtype))
            continue
        for k, letter in enumerate("qkv"):
            rows = np.arange(k * C, (k + 1) * C)
            entries.append(
                write.entry(weights, name, name.replace("qkv_proj", f"{letter}_proj"), dtype, rows)
            )
    if weights.config.tie_word_embeddings:
        # Written out, because vLLM's GPT-J refuses tied embeddings.
        entries.append(write.entry(weights, "transformer.wte.weight", "lm_head.weight", dtype))
    return entries


def _others_files(weights: Weights, to: str, dtype: str) -> tuple[dict[str, bytes], list[str]]:
    """Return config.json and its companions for hf and gptj, and notes for the user."""
    config = weights.config
    out = write.own_config(config, dtype) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    del out["mp_num"]
    if to == "gptj":
        out |= {"model_type": "gptj", "architectures": ["GPTJForCausalLM"], "tie_word_embeddings": False}
        del out["n_ctx"]  # GPT-J's config has n_positions only
    files, own = {"config.json": write.json_bytes(out)}, write.own_tokenizer(weights)
    if not own and config.vocab_size < VOCAB_SIZE:
        return files, [
            f"no tokenizer written: CodeGen2's has {VOCAB_SIZE} tokens, this model {config.vocab_size};"
            f" put your own {TOKENIZER_FILE} beside the weights"
        ]
    generation = {"bos_token_id": EOT, "eos_token_id": [EOT, EOM], "pad_token_id": EOT}
    files["generation_config.json"] = write.json_bytes(generation)
    return files | tokenizer_files(config.n_ctx) | own, []


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
    """Return our tokenizer's three files for transformers by name."""
    names = {f"{kind}_token": "<|endoftext|>" for kind in ("bos", "eos", "unk", "pad")}
    config = names | {
        # The generic fast class: the slow GPT2Tokenizer eats white space around added tokens.
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    return {
        TOKENIZER_FILE: json.dumps(tokenizer_json(Tokenizer()), ensure_ascii=False).encode(),
        "tokenizer_config.json": write.json_bytes(config),
        "special_tokens_map.json": write.json_bytes(names),
    }
