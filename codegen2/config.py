"""ModelConfig: the shape of a CodeGen2 model, in the released config.json's own words; and the named presets.

Not here: anything about files (checkpoint/layout.py decides the QKV grouping) or about training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

VOCAB_SIZE = 51200  # every row is a real token; tokenizer.py has the rules
EOT = 50256  # <|endoftext|>, the end of a document

_NON_SHAPE_RULES = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "n_inner": (None,),
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; every field has the name that the released config.json uses.

    Raises ValueError when the numbers cannot make a model.
    """

    vocab_size: int = VOCAB_SIZE
    n_ctx: int = 2048  # longest context, tokens
    n_embd: int = 2048
    n_layer: int = 16
    n_head: int = 16
    rotary_dim: int = 64  # channels of each head that are rotated
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_ctx", "n_embd", "n_layer", "n_head", "rotary_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"config: {name} must be a whole number of at least 1, got {value!r}")
        if self.n_embd % self.n_head:
            raise ValueError(f"config: n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ValueError(
                f"config: rotary_dim must be even and at most the head size {self.head_dim}, got {self.rotary_dim}"
            )
        if not 0 < self.layer_norm_epsilon < 1:
            raise ValueError(f"config: layer_norm_epsilon must be in (0, 1), got {self.layer_norm_epsilon!r}")

    @property
    def head_dim(self) -> int:
        """Return the size of one head, channels."""
        return self.n_embd // self.n_head

    @property
    def n_params(self) -> int:
        """Count the parameters, a tied lm_head once.

        >>> PRESETS["16B"].n_params
        16032155648
        """
        C, V = self.n_embd, self.vocab_size
        block = 4 * C * C + (8 * C * C + 5 * C) + 2 * C  # attention, MLP with biases, LayerNorm
        head = V if self.tie_word_embeddings else V * C + V
        return V * C + self.n_layer * block + 2 * C + head

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read a config.json's content; keys that do not shape the model are passed over, odd ones refused.

        Raises ValueError for another architecture or for a setting that no CodeGen2 has.
        """
        model_type = raw.get("model_type")
        if model_type != "codegen":
            raise ValueError(
                f"config.json: model_type is {model_type!r}, expected 'codegen'; this program runs CodeGen models only"
            )
        for key, allowed in _NON_SHAPE_RULES.items():
            if (
                key in raw
                and raw[key] not in allowed
                and not (key == "n_inner" and raw[key] == 4 * raw.get("n_embd", 0))
            ):
                raise ValueError(f"config.json: {key} is {raw[key]!r}, expected one of {list(allowed)}")
        missing = [k for k in ("vocab_size", "n_embd", "n_layer", "n_head", "rotary_dim") if k not in raw]
        if missing:
            raise ValueError(f"config.json: missing {', '.join(missing)}")
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in raw.items() if k in known}
        values.setdefault("n_ctx", raw.get("n_positions", 2048))
        config = cls(**values)
        head_dim = raw.get("head_dim", config.head_dim)
        if head_dim != config.head_dim:
            raise ValueError(
                f"config.json: head_dim is {head_dim}, expected n_embd / n_head = {config.head_dim}"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the released config.json's keys; readers of CodeGen checkpoints find all they ask for."""
        return {
            "model_type": "codegen",
            "architectures": ["CodeGenForCausalLM"],
            "activation_function": "gelu_new",
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "bos_token_id": EOT,
            "eos_token_id": EOT,
            "n_positions": self.n_ctx,
            "n_inner": None,
            "scale_attn_weights": True,
            "use_cache": True,
            **{f.name: getattr(self, f.name) for f in fields(self)},
        }


PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(n_embd=256, n_layer=8, n_head=4, tie_word_embeddings=True),
    "1B": ModelConfig(n_embd=2048, n_layer=16, n_head=16),
    "3.7B": ModelConfig(n_embd=4096, n_layer=16, n_head=16),
    "7B": ModelConfig(n_embd=4096, n_layer=32, n_head=16),
    "16B": ModelConfig(n_embd=6144, n_layer=34, n_head=24),
}
