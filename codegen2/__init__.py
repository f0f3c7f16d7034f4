"""CodeGen2: complete and infill source code. The names below are the public ones.

Each is imported when it is first asked for, so that `import codegen2` and `--help` load nothing heavy.

>>> import codegen2
>>> codegen2.PRESETS["1B"].n_layer
16
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .api import HOLE, Model
    from .config import PRESETS, ModelConfig
    from .generation.params import SamplingParams
    from .generation.request import Request
    from .generation.results import Choice, Chunk, Result, Score
    from .loading import load
    from .text.tokenizer import Tokenizer

__all__ = [
    "HOLE",
    "PRESETS",
    "Choice",
    "Chunk",
    "Model",
    "ModelConfig",
    "Request",
    "Result",
    "SamplingParams",
    "Score",
    "Tokenizer",
    "__version__",
    "load",
]

_HOME = {
    "HOLE": "api",
    "PRESETS": "config",
    "Choice": "generation.results",
    "Chunk": "generation.results",
    "Model": "api",
    "ModelConfig": "config",
    "Request": "generation.request",
    "Result": "generation.results",
    "SamplingParams": "generation.params",
    "Score": "generation.results",
    "Tokenizer": "text.tokenizer",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
