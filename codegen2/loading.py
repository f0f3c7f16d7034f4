"""load: from a name or a directory to a Model that answers, on the engine that suits the machine.

Not here: what a Model does (api.py), the engines (engine/), reading checkpoints (checkpoint/).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .api import Model
from .checkpoint.layout import load_config
from .generation.confidence import Confidence
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .engine.protocol import Engine

ENGINES = ("native", "reference")
DTYPES = {"native": ("int8", "int4", "bfloat16", "float32"), "reference": ("float32", "bfloat16", "float16")}
# What the command line says of a model beside its name.
OPTIONS = ("adapter", "engine", "dtype", "head_dtype", "device", "threads", "revision", "max_prompt_tokens")
Progress = Callable[[int, int], None]


def choose_engine(engine: str | None, dtype: str | None, device: str) -> str:
    """Return the engine that is meant: the native one on a CPU, unless only the other knows the dtype.

    >>> choose_engine(None, None, "cpu"), choose_engine(None, None, "cuda"), choose_engine(None, "float16", "cpu")
    ('native', 'reference', 'reference')

    Raises ValueError for a combination that does not exist.
    """
    if engine is None:
        native = device == "cpu" and dtype in (None, *DTYPES["native"])
        engine = "native" if native else "reference"
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; choose {' or '.join(ENGINES)}")
    if engine == "native" and device != "cpu":
        raise ValueError(f"device {device!r} is not for the native engine (CPU only); choose reference")
    if dtype is not None and dtype not in DTYPES[engine]:
        raise ValueError(
            f"dtype {dtype!r} is unknown to the {engine} engine; choose one of {', '.join(DTYPES[engine])}"
        )
    return engine


def load(
    name_or_dir: str | Path | None = None,
    *,
    engine: str | None = None,
    dtype: str | None = None,
    head_dtype: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    revision: str | None = None,
    max_prompt_tokens: int | None = None,
    adapter: str | Path | None = None,
    cache_gib: float = 2.0,
    check: bool = True,
    progress: Progress = lambda done, total: None,
) -> Model:
    """Load a model: the one in the box, a checkpoint directory, or a name on the hub ("1B", "Salesforce/codegen2-7B").

    engine: "native" (compiled, CPU; int8 unless dtype says int4, bfloat16 or float32) or "reference" (PyTorch; float32
    on a CPU and bfloat16 elsewhere); None chooses by device and dtype. The native engine packs a checkpoint once, at
    its first use, and keeps the result (`codegen2 cache ls`); progress hears of it. head_dtype: int4 packs the head of
    an int4 model as small, too. threads: of the CPU, None for all cores that this process may use.
    max_prompt_tokens: the most text to show the model, for speed; unless given what config.json says under this name
    (the box says what suits it), else all that fits. adapter: what finetune --lora or peft wrote; the merged weights
    are kept in the cache, 4 bytes a weight. cache_gib: memory for what was read, so that it is not read again. check:
    compare both QKV groupings on a snippet once.
    Raises ValueError naming the file and the remedy for anything that is not a whole CodeGen2 checkpoint.
    """
    from .checkpoint.hub import resolve

    chosen = choose_engine(engine, dtype, device)
    if head_dtype is not None and chosen != "native":
        raise ValueError(f"head_dtype {head_dtype!r} is for the native engine; leave it out")
    directory, name = resolve(name_or_dir, revision), "box" if name_or_dir is None else str(name_or_dir)
    if adapter is not None:
        from .checkpoint.adapter import merged_directory

        directory = merged_directory(directory, adapter)
    if chosen == "native":
        from .checkpoint.native.cache import native_directory
        from .checkpoint.native.form import open_native
        from .engine.native import NativeEngine

        packed = native_directory(directory, dtype, head_dtype, progress, check=check)
        ready: Engine = NativeEngine(open_native(packed), threads=threads)
    else:
        ready = _reference(directory, dtype, device, threads, check)
    own = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(own) if own.is_file() else Tokenizer()
    said = load_config(directory)[1]
    most = said.get("max_prompt_tokens") if max_prompt_tokens is None else max_prompt_tokens
    try:
        return Model(
            ready, tokenizer, name, most, said.get("anchor"), said.get("together", True), cache_gib,
            Confidence.of_config(said), said.get("suggest_above", 0.0),
        )  # fmt: skip
    except ValueError as e:
        if max_prompt_tokens is not None and str(e).startswith("max_prompt_tokens"):
            raise
        raise ValueError(f"{directory / 'config.json'}: {str(e).removeprefix('config.json: ')}") from None


def from_args(args: argparse.Namespace, *, cache_gib: float = 2.0) -> Model:
    """Load the model that the command line's model options name (cli/main.py defines them); errors as load's."""
    options: dict[str, Any] = {name: getattr(args, name, None) for name in OPTIONS}
    return load(args.model, check=not args.no_check, cache_gib=cache_gib, **options)


def _reference(directory: Path, dtype: str | None, device: str, threads: int | None, check: bool) -> Engine:
    try:
        from .checkpoint.load import check_device, dtype_of, load_model, set_threads
        from .engine.reference import ReferenceEngine
    except ModuleNotFoundError as e:
        if e.name != "torch":
            raise
        raise ValueError("the reference engine needs PyTorch; install codegen2[train]") from e
    where = check_device(device)
    wanted = dtype_of(dtype or ("float32" if where.type == "cpu" else "bfloat16"))
    if threads is not None:
        set_threads(threads)
    return ReferenceEngine(load_model(directory, where, wanted, check))
