"""`codegen2 bench`: what this machine's memory allows, and what the native engine makes of it, with synthetic weights.

Not here: comparisons with other programs (benchmarks/). Weights are random bytes in a model's shape, packed as they
would be, in pages like a mapped file's: how fast they are read does not depend on what they say.

A token of decoding reads every block's matrices and the head once, so bytes a token times tokens a second is the
bandwidth that was used; bytes are nominal, 8 bits a weight for int8 and 4.5 for int4, scales included.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__, native
from ..checkpoint.native.form import Kinds, native_shapes
from ..config import PRESETS, ModelConfig
from ..engine.native import NativeCache, NativeEngine
from ..engine.protocol import Piece
from ..engine.system import check_threads, default_threads, peak_rss_gib
from ..files.progress import progress_bar

_NOMINAL_BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.0, "int4": 4.5}
_PROMPT = 128  # tokens in the cache while decoding
_PREFILL = 1024  # tokens of the prompt whose reading is timed
_PATTERNS = range(10)  # src/kernels_impl.h, read


@dataclass(frozen=True)
class SyntheticWeights:
    """A model of random bytes in one piece of memory."""

    config: ModelConfig
    matrices: dict[str, native.Packed]
    vectors: dict[str, NDArray[np.float32]]
    memory: NDArray[np.uint8]


def _like_a_file(n_bytes: int) -> NDArray[np.uint8]:
    """Return memory in the small pages that a mapped file has, where the system can; huge pages would flatter."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("codegen2-bench")
        try:
            os.ftruncate(handle, n_bytes)
            return np.frombuffer(mmap.mmap(handle, n_bytes), np.uint8)
        finally:
            os.close(handle)
    return np.empty(n_bytes, np.uint8)


def _pattern(kind: str) -> NDArray[np.uint8]:
    """Return about a mebibyte of packed weights of moderate size."""
    rng = np.random.default_rng(0)
    if kind == "int8":
        return rng.integers(1, 256, 2**20, dtype=np.uint8)
    if kind == "int4":
        blocks = rng.integers(0, 256, (2**11, 576), dtype=np.uint8)
        blocks[:, :64] = np.full(32, 3e-3, np.float16).view(np.uint8)
        return blocks.reshape(-1)
    values = rng.normal(0, 0.02, 2**18).astype(np.float32)
    if kind == "float32":
        return values.view(np.uint8)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def synthetic(config: ModelConfig, kinds: Callable[[str], str]) -> SyntheticWeights:
    """Build a model of random bytes; kinds gives the kind of a matrix by its name."""
    shapes, lengths = native_shapes(config)
    ones = {name for name in lengths if "ln_" in name and name.endswith("weight")}  # gains of layer norms
    vectors = {name: np.full(size, float(name in ones), np.float32) for name, size in lengths.items()}
    sizes = {name: native.packed_bytes(kinds(name), *shape) for name, shape in shapes.items()}
    memory = _like_a_file(sum(sizes.values()))
    patterns = {kind: _pattern(kind) for kind in {kinds(name) for name in shapes}}
    matrices, at = {}, 0
    for name, (n, k) in shapes.items():
        kind, data = kinds(name), memory[at : at + sizes[name]]
        at += sizes[name]
        fill = patterns[kind]
        for start in range(0, len(data), len(fill)):
            data[start : start + len(fill)] = fill[: len(data) - start]
        scale = np.full(native.padded(n, k)[0], 2e-4, np.float32) if kind == "int8" else None
        matrices[name] = native.Packed(kind, n, k, data, scale)
    return SyntheticWeights(config, matrices, vectors, memory)


def bytes_a_token(weights: SyntheticWeights) -> float:
    """Return the nominal bytes that writing one token reads: all matrices but the embedding, a tied head once."""
    return sum(
        m.n * m.k * _NOMINAL_BITS[m.kind] / 8 for name, m in weights.matrices.items() if "wte" not in name
    )


def read_limit(memory: NDArray[np.uint8], repeats: int = 1) -> dict[str, float]:
    """Return GB/s of each read pattern over the whole of memory, the best of `repeats`."""
    library = native.library()
    rate, at = library.cg2_read_bandwidth, native.address(memory)
    found = {f"pattern_{p}": rate(at, len(memory), p, repeats) for p in _PATTERNS}
    return {name: gb_s for name, gb_s in found.items() if gb_s > 0}


def measure(
    config: ModelConfig,
    dtype: str,
    head_dtype: str | None,
    *,
    repeats: int,
    n_decode: int,
    prefill: bool = True,
    threads: int | None = None,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Measure limit, decode and prefill in turn, `repeats` times, and return the medians.

    The limit is taken before and after each sample of decoding, and the better of the two is that sample's: virtual
    cores can be moved meanwhile, and the limit with them (docs/performance.md). fraction is the samples' median.
    """
    weights = synthetic(config, Kinds.choose(dtype, head_dtype).of)
    began = time.perf_counter()
    engine = NativeEngine(weights, threads=threads)
    load_s = time.perf_counter() - began
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, config.vocab_size, _PROMPT).tolist()
    long = rng.integers(0, config.vocab_size, min(_PREFILL, config.n_ctx)).tolist()
    patterns: dict[str, float] = {}
    limits: list[float] = []
    decode: list[float] = []
    read: list[float] = []
    for turn in range(repeats + 1):  # the first is a warm-up
        before = read_limit(weights.memory)
        cache = engine.new_cache(1, min(config.n_ctx, _PROMPT + n_decode))
        token = _next(engine, cache, 0, prompt, _PROMPT)
        began = time.perf_counter()
        for step in range(n_decode):
            token = _next(engine, cache, _PROMPT + step, [token], 0)
        decode_s = time.perf_counter() - began
        after = read_limit(weights.memory)
        for name in before:
            patterns[name] = max(patterns.get(name, 0.0), before[name], after[name])
        if turn:
            decode.append(n_decode / decode_s)
            limits.append(max(*before.values(), *after.values()))
        if prefill:
            began = time.perf_counter()
            _next(engine, engine.new_cache(1, len(long)), 0, long, len(long))
            if turn:
                read.append(time.perf_counter() - began)
        advance()
    gb = bytes_a_token(weights) / 1e9
    tok_s, ttft_s = statistics.median(decode), statistics.median(read) if read else None
    fraction = statistics.median(gb * d / limit for d, limit in zip(decode, limits, strict=True))
    return {
        "decode_tok_s": tok_s, "prefill_tok_s": len(long) / ttft_s if ttft_s else None, "ttft_s": ttft_s,
        "gb_s": gb * tok_s, "limit_gb_s": statistics.median(limits), "fraction": fraction,
        "peak_rss_gib": peak_rss_gib(), "load_s": load_s, "gb_a_token": gb,
        "decode_tok_s_all": decode, "prefill_s_all": read, "limit_gb_s_all": limits, "patterns_gb_s": patterns,
    }  # fmt: skip


def _next(engine: NativeEngine, cache: NativeCache, start: int, tokens: list[int], n_prompt: int) -> int:
    """Read tokens behind the row's first `start` ones and return the likeliest next one."""
    return int(engine.forward([Piece(0, start, tokens, 1, n_prompt)], cache)[0][0].argmax())


def run_bench(args: argparse.Namespace) -> int:
    """Measure a preset and print a table or JSON."""
    from .generate import print_json, print_pairs

    if args.preset not in PRESETS:
        raise ValueError(f"--preset {args.preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    if args.head_dtype and args.dtype != "int4":
        raise ValueError(f"--head-dtype {args.head_dtype} goes with --dtype int4 only; leave it out")
    if args.repeats < 1 or args.decode < 1:
        raise ValueError("--repeats and --decode must be at least 1")
    config = PRESETS[args.preset]
    threads = default_threads() if args.threads is None else check_threads(args.threads)
    with progress_bar(f"measuring {args.preset} {args.dtype}", args.repeats + 1) as bar:
        found = measure(
            config, args.dtype, args.head_dtype, repeats=args.repeats, n_decode=args.decode,
            prefill=not args.no_prefill, threads=threads, advance=bar.advance,
        )  # fmt: skip
    content: dict[str, Any] = {
        "preset": args.preset, "dtype": args.dtype, "head_dtype": args.head_dtype, "threads": threads,
        "instruction_set": native.instruction_sets()[0], "machine": platform.processor() or platform.machine(),
        "version": __version__, "date": time.strftime("%Y-%m-%d"), **found,
    }  # fmt: skip
    if args.json:
        print_json(content)
    else:
        print_pairs({k: v for k, v in content.items() if not isinstance(v, list | dict)})
    return 0
