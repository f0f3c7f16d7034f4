"""Write the native form: what a checkpoint's tensors become, packed on all cores, a few blocks of rows at a time.

Not here: the form (form.py), its bytes (native/src/layout.h), and int4 rounded with text in view (calibration.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ... import native
from ...config import VOCAB_SIZE
from ...engine.system import allowed_cores
from ...text.tokenizer import Tokenizer
from ..formats.safetensors import Entry, total_bytes
from ..formats.tensors import Array, TensorInfo, damaged
from ..layout import NATIVE_KEY
from ..reader import TOKENIZER_FILE
from ..weights import Weights
from ..write import Form, own_files
from . import calibration
from .form import ALIGN, EMBEDDING, FORMAT, HEAD, SCALE, Kinds, native_infos, native_shapes


def native_form(weights: Weights, kinds: Kinds, calibrate: Sequence[str] | None = None) -> Form:
    """Return the native form of a checkpoint; calibrate as convert takes it."""
    entries = native_entries(weights, kinds, _sequences(weights, kinds, calibrate))
    said = {"format": FORMAT, "dtype": kinds.dtype, "head_dtype": kinds.head_dtype}
    files = own_files(weights, kinds.dtype, {NATIVE_KEY: said})
    return Form(entries, files, total_bytes(entries), {"format": "codegen2-native"}, ALIGN, digests=True)


def _sequences(weights: Weights, kinds: Kinds, calibrate: Sequence[str] | None) -> list[list[int]]:
    """Return the sequences of ids to calibrate on, none where that is not asked for."""
    config, directory = weights.config, weights.directory
    G, T = calibration.GROUP, calibration.SEQUENCE_TOKENS
    takes_seconds = 12 * config.n_layer * config.n_embd**2 <= calibration.SMALL_BODY
    if kinds.dtype != "int4" or calibrate == () or (calibrate is None and not takes_seconds):
        return []
    own = directory / TOKENIZER_FILE
    known = own.is_file() or config.vocab_size == VOCAB_SIZE
    if known and config.n_embd % G == 0 and config.n_ctx >= T:
        tokenizer = Tokenizer.from_file(own) if own.is_file() else Tokenizer()
        return calibration.sequences(calibration.own_texts() if calibrate is None else calibrate, tokenizer)
    if calibrate:
        needs = f"{TOKENIZER_FILE} or our vocabulary, n_embd a multiple of {G} and n_ctx of {T} or more"
        raise damaged(directory, f"cannot be calibrated: it needs {needs}", "leave --calibrate out")
    return []


def native_entries(weights: Weights, kinds: Kinds, texts: Sequence[list[int]] = ()) -> list[Entry]:
    """List the tensors of the file: matrices and their scales by forward pass, then the vectors.

    texts: sequences of ids to calibrate the layers' int4 on, see calibration.py; none of them: plain rounding. Vectors
    come last, because their sizes are no multiples of 64 bytes and would shift matrices behind them.
    """
    matrices, vectors = native_shapes(weights.config)
    entries: list[Entry] = []
    rounded = calibration.quantized(weights, texts) if texts and kinds.dtype == "int4" else None
    for name, (n, k) in matrices.items():
        kind = kinds.of(name)
        if rounded and name not in (HEAD, EMBEDDING):
            ((stored, info),) = native_infos(name, kind, n, k).items()
            entries.append(Entry(stored, info, functools.partial(_next_packed, rounded, name)))
            continue
        tied = name == HEAD and weights.config.tie_word_embeddings
        scales: list[NDArray[np.float32]] = []
        packing = functools.partial(_packed, weights, EMBEDDING if tied else name, kind, scales)
        for stored, info in native_infos(name, kind, n, k).items():
            is_scale = stored == name + SCALE
            entries.append(Entry(stored, info, functools.partial(iter, scales) if is_scale else packing))
    for name, size in vectors.items():
        entries.append(Entry(name, TensorInfo("float32", (size,)), functools.partial(_finite, weights, name)))
    return entries


def _next_packed(
    rounded: Iterator[tuple[str, calibration.Codes, calibration.Halves]], name: str
) -> list[Array]:
    """Return what a file holds of the next matrix that was rounded, which has this name: files are written in order."""
    found, codes, scales = next(rounded)
    assert found == name
    return [calibration.pack_codes(codes, scales)]


def _packed(weights: Weights, source: str, kind: str, scales: list[NDArray[np.float32]]) -> Iterator[Array]:
    """Yield a weight's packed bytes in runs of panels, and put their scales into `scales`, which follow in the file.

    Packed on all cores: the library runs without Python's lock.
    """
    scales.clear()
    cores = allowed_cores()
    with ThreadPoolExecutor(cores) as pool:
        for rows in _whole_panels(weights.converted(source, "float32")):
            panels = -(-len(rows) // native.PANEL_ROWS)
            step = -(-panels // cores) * native.PANEL_ROWS
            if kind == "int4":
                calibration.check_range(weights, source, rows)
            runs = [rows[at : at + step] for at in range(0, len(rows), step)]
            try:
                packed = list(pool.map(functools.partial(native.pack, kind), runs))
            except ValueError as e:
                raise ValueError(f"{weights.files[source].path}: {source}: {e}") from e
            for values, scale in packed:
                if scale is not None:
                    scales.append(scale)
                yield values


def _whole_panels(blocks: Iterable[Array]) -> Iterator[NDArray[np.float32]]:
    """Return the rows of all blocks as float32, cut between panels of 16; the last run may end inside one.

    >>> [len(rows) for rows in _whole_panels([np.ones((20, 2)), np.ones((20, 2))])]
    [16, 16, 8]
    """
    rest: NDArray[np.float32] | None = None
    for block in blocks:
        rows = block if rest is None else np.concatenate((rest, block))
        whole = len(rows) // native.PANEL_ROWS * native.PANEL_ROWS
        # A copy, as a view would keep the block alive.
        rest = rows[whole:].copy() if whole < len(rows) else None
        if whole:
            yield rows[:whole]
    if rest is not None:
        yield rest


def _finite(weights: Weights, name: str) -> list[Array]:
    return [weights.finite(name)]
