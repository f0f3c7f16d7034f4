"""Names, shapes and row orders of CodeGen2 weights in files: every layout accident ends here. Pure numpy.

Our layout (model.py): the released names, and qkv_proj.weight as Q, K, V, C rows each, heads in natural
order. In files the 3 C rows of qkv_proj.weight are g equal groups, and inside each the order is Q, V, K: the
TPU cores of the training run, g = 8 for 1B and 3.7B, 4 for 7B and 16B. Ours state it: "mp_num": 1.

Letters: C n_embd, V vocab_size, g groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from .formats.tensors import FLOATS, Array, TensorFile, damaged
from .reader import read_json, refuse_adapter

# Buffers that some releases store beside the weights; they follow from the shape.
_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(causal_mask|bias|masked_bias)")
# Far above any model, and low enough that what a file claims is refused before a list is built from it.
_LIMITS = {"vocab_size": 2**20, "n_embd": 2**16, "n_layer": 2**10, "n_ctx": 2**17}
QKV_NAME = re.compile(r"transformer\.h\.\d+\.attn\.qkv_proj\.weight")
NATIVE_KEY = "native"  # in config.json: the weights are packed for the compiled engine (native/form.py)
# Of config.json: how a model is best asked; loading.load.
PROMPT_KEYS = ("max_prompt_tokens", "anchor", "together", "confidence", "suggest_above")


def load_config(directory: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a directory's config.json: the shape, and all keys as they stand. Raises ValueError."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        refuse_adapter(path.parent)
        raise damaged(path, "not found", "give a checkpoint's directory, or download it again")
    raw = read_json(path)
    try:
        config = ModelConfig.from_dict(raw)
        for key, most in _LIMITS.items():
            if (value := getattr(config, key)) > most:
                raise ValueError(f"{key} is {value}, at most {most} is read; correct it")
        if type(tied := config.tie_word_embeddings) is not bool:
            raise ValueError(f"tie_word_embeddings is {tied!r:.200}, expected true or false; correct it")
        qkv_groups(raw)
        return config, raw
    except (ValueError, TypeError) as e:
        raise ValueError(f"{path}: {str(e).removeprefix('config.json: '):.1000}") from e


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return every weight's name and shape, in the order of the forward pass, without a tied lm_head.weight.

    >>> expected_tensors(ModelConfig(n_layer=1))["transformer.h.0.attn.qkv_proj.weight"]
    (6144, 2048)
    """
    C, V = config.n_embd, config.vocab_size
    out: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (V, C)}
    for n in range(config.n_layer):
        block = {
            "ln_1.weight": (C,), "ln_1.bias": (C,),
            "attn.qkv_proj.weight": (3 * C, C), "attn.out_proj.weight": (C, C),
            "mlp.fc_in.weight": (4 * C, C), "mlp.fc_in.bias": (4 * C,),
            "mlp.fc_out.weight": (C, 4 * C), "mlp.fc_out.bias": (C,),
        }  # fmt: skip
        out |= {f"transformer.h.{n}.{name}": shape for name, shape in block.items()}
    out |= {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = (V, C)
    return out | {"lm_head.bias": (V,)}


def check_tensors(config: ModelConfig, directory: Path, files: Mapping[str, TensorFile]) -> None:
    """Raise ValueError unless a directory's files have just the config's weights, in shape and as floats."""
    expected = expected_tensors(config)
    if missing := [n for n in expected if n not in files]:
        what = f"{missing[0]} is missing ({len(missing)} of {len(expected)} weights)"
        remedy = "download it again, or correct config.json if it describes another model"
        raise damaged(directory, what, remedy)
    # A tied lm_head.weight may be stored all the same.
    shapes = {"lm_head.weight": expected["transformer.wte.weight"]} | expected
    for name, file in files.items():
        if _BUFFER.fullmatch(name):
            continue
        path, (dtype, shape) = file.path, file.info(name)
        if name not in shapes:
            what = f"{name} is not a weight of a CodeGen2 model with {config.n_layer} layers"
            raise damaged(path, what, "remove it, or correct config.json")
        if shape != shapes[name]:
            what = f"{name} has shape {shape}, expected {shapes[name]} by config.json"
            raise damaged(path, what, "correct that or download the file again")
        if dtype not in FLOATS:
            what = f"{name} is {dtype}, expected one of {', '.join(FLOATS)}"
            raise damaged(path, what, "use the original weights")
    head, embedding = "lm_head.weight", "transformer.wte.weight"
    tied = config.tie_word_embeddings and head in files
    if tied and not np.array_equal(files[head].read(head), files[embedding].read(embedding)):
        what = f"{head} differs from {embedding}, though config.json says tie_word_embeddings true"
        raise damaged(files[head].path, what, "set it to false")


def qkv_groups(raw: Mapping[str, Any]) -> int:
    """Return g of a config.json's content: its mp_num if stated; else 8 with the key head_dim, 4 without.

    >>> qkv_groups({"n_embd": 4096, "head_dim": 256}), qkv_groups({"n_embd": 4096})
    (8, 4)
    >>> qkv_groups({"n_embd": 4096, "head_dim": 256, "mp_num": 1})
    1

    Raises ValueError when g is no whole number of at least 1 that divides n_embd.
    """
    # The key, not the head size, tells: 3.7B has it and 7B has not, and both have heads of 256.
    g = raw.get("mp_num", 8 if "head_dim" in raw else 4)
    if not isinstance(g, int) or isinstance(g, bool) or g < 1 or raw["n_embd"] % g:
        raise ValueError(
            f"config.json: {g!r} QKV groups, expected a whole number that divides n_embd {raw['n_embd']};"
            " correct mp_num (1, 4 or 8)"
        )
    return g


def qkv_row_order(n_embd: int, g: int) -> NDArray[np.intp]:
    """Return, for each of our rows Q, K, V, the row of the file that holds it.

    With C = 4 and g = 2 the file's 12 rows are two groups of Q, V, K with C / g = 2 rows each:

        row   0  1  2  3  4  5 |  6  7  8  9 10 11
              q0 q1 v0 v1 k0 k1|  q2 q3 v2 v3 k2 k3

    >>> qkv_row_order(4, 2).tolist()
    [0, 1, 6, 7, 4, 5, 10, 11, 2, 3, 8, 9]
    """
    rows = np.arange(3 * n_embd).reshape(g, 3, n_embd // g)
    q, v, k = rows.swapaxes(0, 1)  # (g, C/g) each
    return np.concatenate((q, k, v)).reshape(-1)


def ungroup_qkv(w: Array, g: int) -> Array:
    """Return a file's qkv_proj.weight (3 C, C) in our layout: Q, K, V. A copy."""
    return w[qkv_row_order(w.shape[0] // 3, g)]


def group_qkv(w: Array, g: int) -> Array:
    """Return our qkv_proj.weight (3 C, C) as g groups of Q, V, K: undoes ungroup_qkv. A copy.

    >>> w = np.arange(12)
    >>> bool((ungroup_qkv(group_qkv(w, 2), 2) == w).all())
    True
    """
    return w[np.argsort(qkv_row_order(w.shape[0] // 3, g))]


def as_stored(name: str, w: Array, g: int = 1) -> Array:
    """Return a weight of ours as a file with g QKV groups has it: qkv_proj.weight grouped, others as they are."""
    return group_qkv(w, g) if QKV_NAME.fullmatch(name) else w
