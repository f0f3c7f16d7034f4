"""Recipes: functions that give the whole configuration of a run, and RECIPES, the names they go by.

Not here: how a run is carried out (loop.py). What the paper does not say of the large ones (rates, batch, steps) is
taken from the same framework's run of the 1B shape (Nijkamp et al.), for the other sizes it is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ..config import PRESETS, ModelConfig
from .config import Stage, TrainConfig
from .corruption import CorruptionConfig
from .mixture import Mixture, Phase


def tiny() -> TrainConfig:
    """Return a recipe that shows within minutes, on any machine, that all works; the model is good for nothing."""
    return TrainConfig(
        model=ModelConfig(n_ctx=512, n_embd=128, n_layer=2, n_head=2, tie_word_embeddings=True),
        stages=(Stage(0, 512, 8),),
        max_steps=500,
        warmup_steps=50,
        schedule="cosine",
        final_lr=0.1,
        lr=2e-3,
        checkpoint_every=100,
    )


def _released(preset: str, lr: float, micro_batch_size: int) -> TrainConfig:
    """Return the recipe of a released shape: 524,288 tokens a step, 350,000 steps, a cosine down to a tenth.

    On one H100 the 1B would take two months; the rates of the other three are ours. However many processes share a
    step, up to its number of micro-batches, it is the same step.
    """
    return TrainConfig(
        model=PRESETS[preset],
        stages=(Stage(0, 2048, micro_batch_size),),
        grad_accum_steps=256 // micro_batch_size,
        max_steps=350_000,
        warmup_steps=3000,
        schedule="cosine",
        final_lr=0.1,
        lr=lr,
        betas=(0.9, 0.999),
        activation_checkpointing=PRESETS[preset].n_params > 2e9,
        checkpoint_every=1000,
        seed=20230503,
    )


def box() -> TrainConfig:
    """Return the recipe of the model in the box: docs/box.md has all from the packages to the weights.

    Shaped for two CPU cores and some hours: a sampled head, Muon, sequences of 512 until the last third, which learns
    the positions beyond (before, bits per byte in windows of 2,048 are half as many again as in windows of 512). Holes
    are cut in the text as an editor cuts them, since the paper's mixture alone does not teach so small a model to fill
    one in, and hidden text counts twice.
    """
    early = CorruptionConfig(causal_probability=0.40, line_span_piece=(48, 500), text_hole_probability=0.95)
    late = replace(early, causal_probability=0.25, line_span_piece=(64, 1000))
    files, small_functions = (
        Phase(74_000_000, {"python": 0.58, "functions": 0.12}),
        Phase(56_000_000, {"python": 0.40, "functions": 0.36}),
    )
    return TrainConfig(
        model=PRESETS["nano"],
        corruption=early,
        stages=(Stage(0, 512, 32, early, span_weight=2.0), Stage(5500, 1024, 16, late, span_weight=2.0)),
        mixture=Mixture((files, small_functions)),
        max_steps=7900,
        warmup_steps=150,
        cooldown_steps=4170,
        lr=4e-3,
        matrix_lr=0.02,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        head_candidates=6144,
        seed=20261127,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "tiny": tiny,
    "box": box,
    "1B": partial(_released, "1B", 2e-4, 8),
    "3.7B": partial(_released, "3.7B", 1.6e-4, 8),
    "7B": partial(_released, "7B", 1.2e-4, 4),
    "16B": partial(_released, "16B", 1e-4, 2),
}


def recipe(name: str) -> TrainConfig:
    """Return the recipe of a name. Raises ValueError for an unknown one."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
