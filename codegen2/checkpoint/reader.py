"""open_checkpoint: a directory of weights, in any of four forms, as named tensors read one at a time.

Order of preference, the first that exists wins, the others are not looked at:
    model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json
No torch, no pickle is executed. Not here: what the names mean (layout.py), and config.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

from ..files.paths import check_regular, file_hash
from .formats.int8 import Int8Rows
from .formats.safetensors import MAX_HEADER_BYTES, load_json
from .formats.tensors import TensorFile, damaged
from .formats.torch_archive import TorchArchive

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAX_JSON_BYTES = 64 * 2**20
TOKENIZER_FILE = "tokenizer.json"
_WHOLE_BYTES = 64 * 2**20  # 0.05 s
_SAMPLE_BYTES = 64 * 2**10
_SAMPLES = 18  # the start, the end, and 16 places between


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises ValueError that names the file."""
    try:
        if check_regular(path).stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"has more than {MAX_JSON_BYTES} bytes")
        return load_json(path.read_bytes())
    except (OSError, ValueError) as e:
        raise damaged(path, f"cannot be read ({e})") from e


def shard_names(index: Path) -> dict[str, str]:
    """Read an index file: tensor name to file name. Raises ValueError for a name that leads elsewhere."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(index, "needs a weight_map, tensor names to file names")
    suffix = "." + index.name.removesuffix(".index.json").rpartition(".")[2]
    for name, file in weight_map.items():
        plain = isinstance(file, str) and file.isprintable() and not set(file) & set("/\\:")
        if not plain or file.startswith(".") or not file.endswith(suffix) or len(file.encode()) > 255:
            what = f"{name:.200} is mapped to {file!r}, expected the plain name of a {suffix} file"
            raise damaged(index, what, "do not trust this checkpoint")
    return weight_map


def open_checkpoint(directory: str | Path) -> dict[str, TensorFile]:
    """Return the file of each tensor of a directory, having checked every header, index and size; read no tensor yet.

    Raises ValueError that names the file, the tensor, what was expected and what to do.
    """
    directory = Path(directory)
    path = weight_file(directory)
    if path.suffix == ".json":
        return _sharded(directory, path)
    file = _open_file(path)
    return dict.fromkeys(file.names(), file)


def weight_file(directory: Path) -> Path:
    """Return the file of WEIGHT_FILES that counts in a directory. Raises ValueError when there is none."""
    if not directory.is_dir():
        what = "expected a directory with config.json and weights, found none"
        raise damaged(directory, what, "give its path")
    for name in WEIGHT_FILES:
        if (directory / name).exists():
            return directory / name
    refuse_adapter(directory)
    what = f"no weights; expected one of {', '.join(WEIGHT_FILES)}"
    raise damaged(directory, what, "is the download complete?")


def refuse_adapter(directory: Path) -> None:
    """Raise ValueError for the directory of an adapter, which was given as a model's."""
    if (directory / "adapter_config.json").is_file():
        what = "holds an adapter, and no model's weights"
        raise damaged(directory, what, "give its model by --model and this directory by --adapter")


def _open_file(path: Path) -> TensorFile:
    return Int8Rows(path) if path.suffix == ".safetensors" else TorchArchive(path)


def _sharded(directory: Path, index: Path) -> dict[str, TensorFile]:
    """Return the file of each tensor that an index names. Raises ValueError where index and shards differ."""
    weight_map = shard_names(index)
    shards = sorted(set(weight_map.values()))
    if absent := [s for s in shards if not (directory / s).is_file()]:
        raise damaged(index, f"missing {', '.join(absent)} of {len(shards)} shards", "download them again")
    where: dict[str, TensorFile] = {}
    for shard in shards:
        file = _open_file(directory / shard)
        for name in file.names():
            if weight_map.get(name) != shard:
                said = f"says {weight_map[name]}" if name in weight_map else "does not know it"
                raise damaged(file.path, f"holds {name}, but {index.name} {said}", "download both again")
            where[name] = file
    if lost := [n for n in weight_map if n not in where]:
        what = f"{lost[0]} is missing, though {index.name} names it ({len(lost)} in all)"
        raise damaged(directory / weight_map[lost[0]], what, "download the shard again")
    return where


def fingerprint(directory: Path, salt: str) -> str:
    """Return 16 hex digits that change with a directory's contents and with salt; 64 GB take milliseconds.

    Small weights are read whole. Of others only names, sizes, times, headers and samples are read, and of a file in the
    hub's cache, which is called by its hash, that name, not its time. Whoever trains, merges or quantises a model
    changes all of its values, which every sample sees; a download that ends early or has holes changes sizes or whole
    stretches; a torch archive's directory has a checksum of each tensor. What is left is a file edited in a few values
    by hand, its size kept and its time put back. Raises ValueError when there are no weights.
    """
    h = hashlib.sha256(salt.encode())
    first = weight_file(directory)
    files, weights = [directory / "config.json", directory / TOKENIZER_FILE], [first]
    if first.suffix == ".json":
        files.append(first)
        weights = [directory / shard for shard in sorted(set(shard_names(first).values()))]
    try:
        for path in files:
            data = path.read_bytes() if path.is_file() else b""
            h.update(f"{path.name} {len(data)}\n".encode() + data)
        for path in weights:
            _add_weights(h, path)
    except OSError as e:
        raise ValueError(f"{e.filename or directory}: cannot be read ({e.strerror or e})") from e
    return h.hexdigest()[:16]


def _add_weights(h: hashlib._Hash, path: Path) -> None:
    found, real = check_regular(path).stat(), path.resolve()
    if found.st_size <= _WHOLE_BYTES:  # so that installations of the box, whose times differ, are one
        h.update(f"{path.name} {file_hash(path)}\n".encode())
        return
    by_hash = real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name)
    h.update(f"{path.name} {found.st_size} {real.name if by_hash else found.st_mtime_ns}\n".encode())
    with open(path, "rb") as f:
        if path.suffix == ".safetensors":
            h.update(f.read(min(int.from_bytes(f.read(8), "little"), MAX_HEADER_BYTES)))
        else:
            # What is damaged is refused by whoever reads it.
            with (
                contextlib.suppress(zipfile.BadZipFile, NotImplementedError, ValueError),
                zipfile.ZipFile(f) as z,
            ):
                for e in z.infolist():
                    h.update(f"{e.filename} {e.header_offset} {e.file_size} {e.CRC}\n".encode())
        last = max(0, found.st_size - _SAMPLE_BYTES)
        for i in range(_SAMPLES):
            f.seek(last * i // (_SAMPLES - 1))
            h.update(f.read(_SAMPLE_BYTES))
