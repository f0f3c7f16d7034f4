"""convert: a checkpoint in any released layout to one of four, block by block, written atomically.

    codegen2   our normal form: safetensors, the released names, one QKV group ("mp_num": 1)
    hf         a repaired Hugging Face directory: what transformers' CodeGenForCausalLM expects (4 groups),
               with the right end of text and context, a fast tokenizer, a generation_config that stops at
               <eom>, and no remote code
    gptj       GPT-J's names and order, for engines that know GPT-J (vLLM, SGLang)
    native     packed, and mostly quantised, for our compiled engine (native_form.py)

Not here: how the source's layout is recognised (layout.py).
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import EOT, VOCAB_SIZE, ModelConfig
from ..files.paths import sync_folder
from ..text.infill import EOM
from ..text.tokenizer import Tokenizer
from .formats.safetensors import Entry, split_shards, total_bytes, write_safetensors
from .formats.tensors import Array, TensorInfo, damaged
from .hf_tokenizer import own_tokenizer, write_tokenizer
from .layout import PROMPT_KEYS, QKV_NAME, qkv_row_order
from .native.calibration import GROUP, SEQUENCE_TOKENS, is_small, own_texts, sequences
from .native.form import ALIGN, METADATA, WEIGHT_FILE, Kinds, native_entries, native_json
from .reader import TOKENIZER_FILE
from .room import check_disk, human
from .selfcheck import check_grouping
from .weights import Weights, open_weights

FORMS = ("codegen2", "hf", "gptj", "native")
MAX_SHARD_BYTES = 5_000_000_000  # as on the hub: a broken download costs one shard, not the model
HF_GROUPS = 4  # fixed in transformers' CodeGenAttention
SMALL_FILES_BYTES = 8_000_000  # tokenizer.json and the configs

Order = NDArray[np.intp]


def convert(
    source: str | Path,
    destination: str | Path,
    to: str = "codegen2",
    *,
    dtype: str | None = None,
    head_dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    calibrate: Sequence[str] | None = None,
    check: bool = True,
    remedy: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Convert the checkpoint directory `source` into a new directory; give notes for the user, if any.

    dtype (float32, bfloat16, float16) changes the element type, None keeps what is stored. For native it is int4,
    int8 (None), bfloat16 or float32, head_dtype (int8 or int4) that of lm_head beside int4, and there is one file
    whatever max_shard_bytes. calibrate: texts like those that the model will read, by which int4 is rounded better
    (calibration.py); None does so by our own sources where that takes seconds, for small models; () never. The
    destination appears whole or not at all; one that is not empty is refused unless overwrite. check=False skips the
    self-check of the QKV grouping. remedy: what to say where the disk is too small; None names a smaller form. progress
    hears of bytes written and their total after each block. Memory: one block of 16 MiB, for native a few. Raises
    ValueError or OSError.
    """
    source, destination = Path(source), Path(destination)
    if to not in FORMS:
        raise ValueError(f"--to is {to!r}, expected one of {', '.join(FORMS)}")
    kinds = _kinds(to, dtype, head_dtype)
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}, expected at least 1")
    _check_destination(source, destination, overwrite)
    weights = open_weights(source)
    if check:
        check_grouping(weights)
    texts = _sequences(weights, kinds, calibrate)
    entries = _reported(
        native_entries(weights, kinds, texts) if kinds else plan(weights, to, dtype), progress
    )
    remedy = remedy or _smaller(weights, entries, kinds)
    if kinds:
        max_shard_bytes = total_bytes(entries)
    return write_form(weights, destination, to, entries, kinds, max_shard_bytes, remedy)


def write_form(
    weights: Weights,
    destination: Path,
    to: str,
    entries: list[Entry],
    kinds: Kinds | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    remedy: str = "choose another disk",
) -> list[str]:
    """Write a form's tensors and what belongs beside them as a new directory, whole or not at all; return notes.

    Raises ValueError with the remedy where the disk has no room, and OSError.
    """
    check_disk(destination, total_bytes(entries) + SMALL_FILES_BYTES, f"writing {destination}", remedy)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Beside the destination, because a rename is atomic within one file system only.
    part = destination.with_name(f".{destination.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        _write_weights(part, entries, max_shard_bytes, *((METADATA, ALIGN) if kinds else (None, 8)))
        notes = _write_companions(part, weights, to, entries[0].info.dtype, kinds)
        for path in part.iterdir():
            _sync(path)
        sync_folder(part)
        _swap(part, destination)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return notes


def _kinds(to: str, dtype: str | None, head_dtype: str | None) -> Kinds | None:
    """Check the element types asked for; give the kinds of the native form, None for another."""
    if to == "native":
        return Kinds.choose(dtype, head_dtype)
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype is {dtype!r}, expected float32, bfloat16 or float16")
    if head_dtype is not None:
        raise ValueError(
            f"--head-dtype is {head_dtype!r}, which --to native knows and {to} does not; leave it out"
        )
    return None


def _sequences(weights: Weights, kinds: Kinds | None, calibrate: Sequence[str] | None) -> list[list[int]]:
    """Return the sequences of ids to calibrate on, none where that is not wanted."""
    config = weights.config
    int4 = kinds is not None and kinds.dtype == "int4"
    if calibrate and not int4:
        raise ValueError("--calibrate is for --to native --dtype int4; leave it out")
    own = weights.checkpoint.directory / TOKENIZER_FILE
    known = own.is_file() or config.vocab_size == VOCAB_SIZE
    possible = known and config.n_embd % GROUP == 0 and config.n_ctx >= SEQUENCE_TOKENS
    if calibrate and not possible:
        raise ValueError(
            f"{weights.checkpoint.directory}: cannot be calibrated: it needs {TOKENIZER_FILE} or our vocabulary,"
            f" n_embd a multiple of {GROUP} and n_ctx of {SEQUENCE_TOKENS} or more; leave --calibrate out"
        )
    if not int4 or calibrate == () or not possible or (calibrate is None and not is_small(config)):
        return []
    tokenizer = Tokenizer.from_file(own) if own.is_file() else Tokenizer()
    return sequences(own_texts() if calibrate is None else calibrate, tokenizer)


def _reported(entries: list[Entry], progress: Callable[[int, int], None]) -> list[Entry]:
    """Return the same entries, whose blocks are told to progress as they are written."""
    done, total = 0, total_bytes(entries)

    def blocks(entry: Entry) -> Iterator[Array]:
        nonlocal done
        for block in entry.blocks():
            yield block
            done += block.nbytes
            progress(done, total)

    return [Entry(e.name, e.info, functools.partial(blocks, e)) for e in entries]


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
    if kinds and kinds.dtype != "int4":
        least = total_bytes(native_entries(weights, Kinds.choose("int4")))
        return f"convert to int4, which takes {human(least)}, or choose another disk"
    if entries[0].info.dtype in ("float32", "float64"):
        return (
            f"convert to bfloat16, which takes {human(2 * weights.config.n_params)}, or choose another disk"
        )
    return "choose another disk, or convert a smaller model"


def plan(weights: Weights, to: str, dtype: str | None) -> list[Entry]:
    """List the tensors to write for a form: names, element types and shapes, and where their rows come from.

    Raises ValueError when the model cannot be laid out so.
    """
    config = weights.config
    C = config.n_embd
    if to == "hf" and config.n_head % HF_GROUPS:
        raise ValueError(
            f"--to hf: n_head is {config.n_head}, expected a multiple of {HF_GROUPS}; use codegen2 or gptj"
        )
    entries: list[Entry] = []
    for name in weights.names():
        if not QKV_NAME.fullmatch(name):
            entries.append(_entry(weights, name, name, dtype))
        elif to == "gptj":
            for k, letter in enumerate("qkv"):
                rows = np.arange(k * C, (k + 1) * C)
                entries.append(_entry(weights, name, name.replace("qkv_proj", f"{letter}_proj"), dtype, rows))
        else:
            order = np.argsort(qkv_row_order(C, HF_GROUPS if to == "hf" else 1))
            entries.append(_entry(weights, name, name, dtype, order))
    if to == "gptj" and config.tie_word_embeddings:
        # Written out, because vLLM's GPT-J refuses tied embeddings.
        entries.append(_entry(weights, "transformer.wte.weight", "lm_head.weight", dtype))
    return entries


def _entry(weights: Weights, source: str, name: str, dtype: str | None, order: Order | None = None) -> Entry:
    stored, shape = weights.info(source)
    if order is not None:
        shape = (len(order), *shape[1:])
    wanted = stored if dtype is None else dtype
    blocks: Callable[[], Iterator[Array]] = functools.partial(weights.converted, source, wanted, order)
    return Entry(name, TensorInfo(wanted, shape), blocks)


def _write_weights(
    directory: Path, entries: list[Entry], max_shard_bytes: int, metadata: dict[str, str] | None, align: int
) -> None:
    shards = list(split_shards(entries, max_shard_bytes))
    if len(shards) == 1:
        write_safetensors(directory / WEIGHT_FILE, entries, metadata, align)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(directory / file, shard)
        weight_map |= {entry.name: file for entry in shard}
    index = {"metadata": {"total_size": total_bytes(entries)}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)


def _write_companions(
    directory: Path, weights: Weights, to: str, dtype: str, kinds: Kinds | None
) -> list[str]:
    """Write config.json and, where they belong, generation_config.json and the tokenizer's. Give notes."""
    config = weights.config
    source = weights.checkpoint.directory
    own = source / TOKENIZER_FILE if own_tokenizer(source, config.vocab_size) else None
    content = config_json(config, to, dtype)
    if kinds:
        content |= native_json(kinds)
    if to in ("codegen2", "native"):  # what the box recommends, see loading.load
        content |= {key: weights.raw[key] for key in PROMPT_KEYS if key in weights.raw}
    _write_json(directory / "config.json", content)
    if to in ("codegen2", "native"):
        if own:
            shutil.copyfile(own, directory / TOKENIZER_FILE)
        return []
    if own is None and config.vocab_size < VOCAB_SIZE:
        return [
            (
                f"no tokenizer written: CodeGen2's has {VOCAB_SIZE} tokens, this model {config.vocab_size};"
                f" put your own {TOKENIZER_FILE} beside the weights"
            )
        ]
    write_tokenizer(directory, config.n_ctx, own)
    generation = {"bos_token_id": EOT, "eos_token_id": [EOT, EOM], "pad_token_id": EOT}
    _write_json(directory / "generation_config.json", generation)
    return []


def config_json(config: ModelConfig, to: str, dtype: str) -> dict[str, Any]:
    """Return the content of config.json for a form; no head_dim, no mp_num but our own, no auto_map."""
    out = config.to_dict() | {"torch_dtype": dtype}
    if config.vocab_size <= EOT:  # a toy vocabulary has no such ids
        out |= {"bos_token_id": None, "eos_token_id": None}
    if to in ("codegen2", "native"):
        return out | {"mp_num": 1}
    if to == "gptj":
        out |= {"model_type": "gptj", "architectures": ["GPTJForCausalLM"], "tie_word_embeddings": False}
        del out["n_ctx"]  # GPT-J's config has n_positions only
    return out | {"tokenizer_class": "PreTrainedTokenizerFast"}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _sync(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())


def _swap(part: Path, destination: Path) -> None:
    """Put the finished directory in its place; an old one is moved aside first and removed last."""
    if not destination.exists():
        os.rename(part, destination)
    else:
        old = part.with_suffix(".old")
        os.rename(destination, old)
        try:
            os.rename(part, destination)
        except BaseException:
            os.rename(old, destination)
            raise
        shutil.rmtree(old)
    sync_folder(destination.parent)
