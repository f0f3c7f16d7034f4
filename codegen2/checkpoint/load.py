"""load_model: a checkpoint's directory to the PyTorch model. Only this one here imports torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..engine.system import check_threads
from ..model import CodeGen2
from .room import available_memory, check_memory
from .selfcheck import check_grouping
from .weights import Weights, open_weights

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def dtype_of(name: str) -> torch.dtype:
    """Return the torch dtype of a name among loading.DTYPES."""
    return {text: dtype for dtype, text in _DTYPES.items()}[name]


def set_threads(n: int) -> None:
    """Let PyTorch use n threads of the CPU. Raises ValueError for a number it cannot take."""
    torch.set_num_threads(check_threads(n))


def check_device(name: str) -> torch.device:
    """Return the torch device of a name. Raises ValueError when it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown; choose cpu, cuda or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        found = ", ".join(d for d, is_there in there.items() if is_there)
        raise ValueError(f"device {name!r} is not available here; choose one of {found}")
    return device


def load_model(
    directory: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    check: bool = True,
) -> CodeGen2:
    """Build the model of a directory, in evaluation mode, reading one tensor at a time.

    Memory beyond the model's own: a block of 16 MiB, on an accelerator one tensor. check=False skips the
    self-check of the QKV grouping. Raises ValueError for a bad checkpoint, a wrong grouping, or too
    little memory.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype}, expected one of {', '.join(map(str, _DTYPES))}")
    weights = open_weights(directory)
    device = torch.device(device)
    have = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    check_memory(f"{directory} in {_DTYPES[dtype]}", weights.config.n_params, dtype.itemsize, have)
    if check:
        check_grouping(weights)
    return build_model(weights, device, dtype)


def build_model(weights: Weights, device: torch.device, dtype: torch.dtype) -> CodeGen2:
    """Make the model from checked weights, without any check of memory or grouping."""
    with torch.device("meta"):
        model = CodeGen2(weights.config)
    for name in weights.names():
        tensor = _tensor(weights, name, dtype).to(device)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(tensor))
    if weights.config.tie_word_embeddings:
        # Assignment above has replaced the embedding's parameter, so the tie is made anew.
        model.lm_head.weight = model.get_parameter("transformer.wte.weight")
    return model.eval()


def _tensor(weights: Weights, name: str, dtype: torch.dtype) -> torch.Tensor:
    """Return one weight as a new CPU tensor."""
    wanted = _DTYPES[dtype]
    out = torch.empty(weights.info(name).shape, dtype=dtype)
    # numpy has no bfloat16: write its bit patterns through a view of the same size.
    target = out.view(torch.int16).numpy().view(np.uint16) if dtype == torch.bfloat16 else out.numpy()
    weights.fill(name, target, wanted)
    return out
