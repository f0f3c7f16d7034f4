"""Measure the memory that converting a large checkpoint takes: it must be about one block, not the file.

    python benchmarks/convert_memory.py [--gib 5] [--to hf] [--dtype bfloat16] [--keep DIR]
    python benchmarks/convert_memory.py --to native --dtype int4
    python benchmarks/convert_memory.py --to native --dtype int4 --sparse 16B

Writes a sharded .bin checkpoint of random weights in the 3.7B shape with as many layers as fill --gib, tensor by
tensor (torch.save would want a whole shard in memory), converts it in a subprocess, and prints one JSON line. --sparse
takes a whole released size instead, bfloat16 in .safetensors shards that are all holes: zeros, of which the disk keeps
nothing. Anonymous
memory is what counts: pages of the mapped input and of the output are the system's cache, which it drops when asked.
Linux only (/proc).
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from codegen2.checkpoint.layout import expected_tensors
from codegen2.config import PRESETS, ModelConfig

SHARD_BYTES = 2 * 2**30
CHUNK = 2**22  # values drawn at a time

# Runs in the subprocess: a thread samples the anonymous memory while convert works.
CONVERT = """
import json, sys, threading, time
from codegen2.checkpoint.convert import convert

def anonymous():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))

before = peak = anonymous()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())

thread = threading.Thread(target=watch)
thread.start()
start = time.perf_counter()
source, destination, to, dtype = sys.argv[1:]
convert(source, destination, to, dtype=dtype if dtype != "stored" else None, check=False)
seconds = time.perf_counter() - start
done.set()
thread.join()
print(json.dumps({"rss_anon_before": before, "rss_anon_peak": peak, "seconds": round(seconds, 1)}))
"""


class _Named:
    """Pickles as the mere mention of a name."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the Python one lets us write a GLOBAL by name
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, _Storage) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Named):
            module, _, name = obj.name.rpartition(".")
            self.write(f"c{module}\n{name}\n".encode())
        elif isinstance(obj, _Tensor):
            self.save(_Named("torch._utils._rebuild_tensor_v2"))
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


class _Storage:
    def __init__(self, key: int, numel: int) -> None:
        self.pid = ("storage", _Named("torch.FloatStorage"), str(key), "cpu", numel)


class _Tensor:
    def __init__(self, key: int, shape: tuple[int, ...]) -> None:
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        self.arguments = (_Storage(key, math.prod(shape)), 0, shape, stride, False, None)


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]], seed: int) -> None:
    """Write a torch archive of random float32 tensors, a chunk at a time."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w", allowZip64=True) as z:
        with z.open("shard/data.pkl", "w") as f:
            _Pickler(f, protocol=2).dump(
                {name: _Tensor(i, shape) for i, (name, shape) in enumerate(tensors.items())}
            )
        z.writestr("shard/byteorder", "little")
        for i, shape in enumerate(tensors.values()):
            with z.open(f"shard/data/{i}", "w", force_zip64=True) as f:
                left = math.prod(shape)
                while left:
                    n = min(left, CHUNK)
                    f.write(rng.standard_normal(n, dtype=np.float32).data)
                    left -= n


def shards(tensors: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Cut the list of tensors into runs of about SHARD_BYTES."""
    run: dict[str, tuple[int, ...]] = {}
    for name, shape in tensors.items():
        if run and 4 * sum(math.prod(s) for s in (*run.values(), shape)) > SHARD_BYTES:
            yield run
            run = {}
        run[name] = shape
    yield run


def write_sparse(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of bfloat16 zeros that takes no room on disk."""
    header, at = {}, 0
    for name, shape in tensors.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + at)


def shape_for(gib: float) -> ModelConfig:
    """Return the 3.7B shape with as many layers as fill gib; below its embeddings' size, narrower."""
    for n_embd, n_head in ((4096, 16), (2048, 16), (1024, 8), (512, 4), (256, 4)):
        empty = ModelConfig(n_embd=n_embd, n_head=n_head, n_layer=1).n_params
        layer = ModelConfig(n_embd=n_embd, n_head=n_head, n_layer=2).n_params - empty
        n_layer = 1 + int((gib * 2**28 - empty) // layer)
        if n_layer >= 1:
            return ModelConfig(n_embd=n_embd, n_head=n_head, n_layer=n_layer)
    raise SystemExit("convert_memory: --gib is too small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=5.0, help="size of the checkpoint")
    parser.add_argument("--to", default="hf", choices=["codegen2", "hf", "gptj", "native"])
    dtypes = ["stored", "float32", "bfloat16", "float16", "int8", "int4"]
    parser.add_argument("--dtype", default="stored", choices=dtypes, help="stored: int8 for native")
    parser.add_argument("--sparse", choices=["1B", "3.7B", "7B", "16B"], help="a released size, all zeros")
    parser.add_argument("--keep", type=Path, help="work in this directory and leave the files there")
    args = parser.parse_args()
    config = PRESETS[args.sparse] if args.sparse else shape_for(args.gib)
    size = 2 if args.sparse else 4  # bytes a value
    ending = "safetensors" if args.sparse else "bin"
    stem = "model" if args.sparse else "pytorch_model"
    tensors = expected_tensors(config)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.keep or Path(temporary)
        source = work / "source"
        source.mkdir(parents=True)
        raw = config.to_dict() | {"head_dim": config.head_dim}
        (source / "config.json").write_text(json.dumps(raw))
        runs = list(shards(tensors))
        weight_map = {}
        start = time.perf_counter()
        for i, run in enumerate(runs):
            name = f"{stem}-{i + 1:05d}-of-{len(runs):05d}.{ending}"
            if args.sparse:
                write_sparse(source / name, run)
            else:
                write_shard(source / name, run, seed=i)
            weight_map |= dict.fromkeys(run, name)
        (source / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        print(
            f"wrote {size * config.n_params / 2**30:.2f} GiB in {time.perf_counter() - start:.0f} s",
            file=sys.stderr,
        )
        command = [sys.executable, "-c", CONVERT, str(source), str(work / "out"), args.to, args.dtype]
        measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    largest = max(size * math.prod(s) for s in tensors.values())
    result = {
        "checkpoint_bytes": size * config.n_params,
        "n_shards": len(runs),
        "largest_tensor_bytes": largest,
    }
    print(json.dumps(result | measured | {"to": args.to, "dtype": args.dtype}))


if __name__ == "__main__":
    main()
