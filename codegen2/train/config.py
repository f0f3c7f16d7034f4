"""TrainConfig: everything that decides the outcome of a run. Machine: what only decides how fast it comes.

Not here: the values of a recipe (recipes.py). Free of torch.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

from ..config import ModelConfig
from .corruption import CorruptionConfig
from .mixture import Mixture

# What a run may be resumed with: later stretches of it are then different, what was done stays.
MAY_CHANGE_ON_RESUME = (
    "max_steps", "cooldown_steps", "stages", "full_head_from_step", "checkpoint_every", "activation_checkpointing",
    "qat", "qat_from_step",
)  # fmt: skip
# Of earlier versions: fields that meant nothing with these values.
_GONE = {"snap": "none", "psm_probability": 0.0, "line_spans": [1, 1]}


@dataclass(frozen=True)
class Stage:
    """From this step on: sequences of seq_len tokens, micro_batch_size at a time.

    corruption: None keeps the run's. span_weight: how much a token of a hidden span counts in the loss, others 1.
    """

    from_step: int
    seq_len: int
    micro_batch_size: int
    corruption: CorruptionConfig | None = None
    span_weight: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a run; rates are peaks, lengths are tokens.

    A step reads grad_accum_steps micro-batches in all: so many processes at most share them, and however many do, the
    step is the same.
    """

    model: ModelConfig
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    stages: tuple[Stage, ...] = (Stage(0, 2048, 8),)
    piece_tokens: int | None = None  # documents are shuffled in pieces of at most so many; None: whole
    mixture: Mixture | None = None  # documents in pieces in an order by language; None: shuffled as they are
    document_mask: bool = False  # ours: no token sees another document of its sequence
    grad_accum_steps: int = 1
    streams: int | None = None  # walks over the documents, a multiple of grad_accum_steps, the default
    max_steps: int = 1000
    warmup_steps: int = 50
    cooldown_steps: int = 400
    schedule: Literal["trapezoid", "cosine"] = "trapezoid"
    final_lr: float = 0.0  # share of the peak at max_steps
    lr: float = 2e-3  # AdamW: embeddings, biases, LayerNorm, and the matrices where matrix_lr is None
    matrix_lr: float | None = None  # Muon on the blocks' matrices
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0
    z_loss: float = 1e-4
    head_candidates: int | None = None  # rows of the head in a batch's softmax; None: all
    full_head_from_step: int | None = None  # from this step on all rows, so that rare ones are calibrated
    bfloat16: bool = True  # of the arithmetic; weights and optimizer are float32
    activation_checkpointing: bool = False  # blocks keep their input only, and run again in the backward pass
    qat: Literal["int4"] | None = None  # round the layers' matrices in the forward pass ...
    qat_from_step: int = 0  # ... from this step on
    lora_rank: int | None = None  # train low-rank additions to the layers' matrices, and nothing else
    lora_alpha: float = 16.0  # they count alpha / rank times
    seed: int = 0
    checkpoint_every: int = 200  # steps

    def __post_init__(self) -> None:
        steps = [s.from_step for s in self.stages]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            raise ValueError(f"stages must start at step 0 and rise, got {steps}")
        if max(s.seq_len for s in self.stages) > self.model.n_ctx:
            raise ValueError(f"a stage's seq_len is beyond the model's context of {self.model.n_ctx} tokens")
        for name in ("max_steps", "warmup_steps", "cooldown_steps", "grad_accum_steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_streams < 1 or self.n_streams % self.grad_accum_steps:
            raise ValueError(
                f"streams must be a multiple of grad_accum_steps {self.grad_accum_steps}, got {self.streams}"
            )
        if self.mixture is not None and self.piece_tokens is not None:
            raise ValueError("a mixture has a piece_tokens of its own; set the run's to None")
        if self.schedule not in ("trapezoid", "cosine"):
            raise ValueError(f"schedule must be trapezoid or cosine, got {self.schedule!r}")
        if self.qat not in (None, "int4"):
            raise ValueError(f"qat must be int4 or None, got {self.qat!r}")
        if self.qat and self.model.n_embd % 32:
            raise ValueError(f"qat int4 needs n_embd a multiple of 32, got {self.model.n_embd}")
        if self.lora_rank is not None and (self.lora_rank < 1 or self.qat or self.matrix_lr is not None):
            raise ValueError("lora_rank must be at least 1, and neither qat nor matrix_lr go with it")

    @property
    def n_streams(self) -> int:
        """Return the number of walks over the documents."""
        return self.grad_accum_steps if self.streams is None else self.streams

    def stage(self, step: int) -> Stage:
        """Return the stage that a step belongs to."""
        return [s for s in self.stages if s.from_step <= step][-1]

    def quantised(self, step: int) -> bool:
        """Return whether a step rounds the layers' matrices."""
        return self.qat is not None and step >= self.qat_from_step

    def to_json(self) -> str:
        """Return the config as text, for a checkpoint."""
        return json.dumps(dataclasses.asdict(self))

    def check_same(self, saved: str, where: str) -> None:
        """Raise ValueError unless a checkpoint's text says the same, but for what may change on resume."""
        then, now = json.loads(saved, object_hook=_without_gone), json.loads(self.to_json())
        differing = [k for k in now if then.get(k) != now[k] and k not in MAY_CHANGE_ON_RESUME]
        if differing:
            raise ValueError(
                f"{where} was made with another {', '.join(differing)}; use the same recipe or another run directory"
            )


def _without_gone(said: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in said.items() if key not in _GONE or value != _GONE[key]}


def flops_per_token(model: ModelConfig, context: int) -> int:
    """Return the floating-point operations of training on one token: 6 a weight, and attention over `context` tokens.

    The input embedding is a look-up and does not count, unless it serves as the head too.

    >>> round(flops_per_token(ModelConfig(), 2048) / 1e9, 2)
    6.27
    """
    looked_up = 0 if model.tie_word_embeddings else model.vocab_size * model.n_embd
    return 6 * (model.n_params - looked_up) + 12 * model.n_layer * model.n_embd * context


@dataclass(frozen=True)
class Machine:
    """What a run computes on.

    compile: torch.compile of each block and of the loss. workers: processes that prepare batches, 0: none but the run's
    own; they must divide the streams of a process. peak_tflops: what MFU is a share of; None: known for some devices.
    """

    device: str = "cpu"
    compile: bool = False
    workers: int = 0
    peak_tflops: float | None = None
