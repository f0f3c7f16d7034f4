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


def nano() -> TrainConfig:
    """Return the recipe of the model in the box: the official vocabulary and objective, sized for two CPU cores.

    Sequences of 512, because attention over 2,048 tokens would halve the number of tokens seen, and the positions
    beyond turn out to work (bits per byte in windows of 2,048 is 2 % above that in windows of 512). Muon and the
    sampled head serve the same end: the run is bound by compute, not by data. So few steps do not teach so small a
    model to fill holes from the paper's mixture alone (after 1,500 it ignored what stood around the hole), so the
    later stages show it single runs of lines in short pieces, the case that editors ask for, fewer plain files, and
    count hidden text more. The first box was not trained so: see codegen2/box/CARD.md.
    """
    lines = CorruptionConfig(line_span_probability=0.9, causal_probability=0.25)
    near = replace(lines, line_span_probability=0.95, causal_probability=0.2, line_span_piece=(40, 200))
    nearer = replace(near, causal_probability=0.1, line_span_piece=(32, 160))
    return TrainConfig(
        model=PRESETS["nano"],
        corruption=CorruptionConfig(line_span_probability=0.5, line_span_piece=(2048, 2048)),
        stages=(
            Stage(0, 512, 8),
            Stage(1600, 512, 8, lines),
            Stage(2500, 512, 8, near, span_weight=4.0),
            Stage(3100, 512, 8, nearer, span_weight=6.0),
        ),
        max_steps=3900,
        warmup_steps=100,
        cooldown_steps=1280,
        lr=2e-3,
        matrix_lr=0.02,
        weight_decay=0.05,
        betas=(0.9, 0.97),
        head_candidates=6144,
        seed=20261123,
        checkpoint_every=100,
    )


def nano_infill() -> TrainConfig:
    """Return the recipe that taught the box to fill holes: it goes on from a trained nano (`--init`).

    Most sequences hide one to five runs of lines in a piece of 64 to 480 tokens, so that a step has some fifty holes
    and the whole piece to copy from; hidden text counts three times. A sixth of the sequences stay plain files, and a
    tenth of the corrupted pieces follow the paper's mixture, so that neither is unlearned. Files are shuffled in
    pieces: without that, one large generated file filled forty steps on end and the model wrote little else afterwards.
    """
    lines = CorruptionConfig(
        causal_probability=0.17, line_span_probability=0.9, line_span_piece=(64, 480), line_spans=(1, 5)
    )
    return replace(
        nano(),
        corruption=lines,
        stages=(Stage(0, 512, 8, span_weight=3.0),),
        piece_tokens=1024,
        max_steps=3000,
        warmup_steps=50,
        cooldown_steps=2000,
        lr=1e-3,
        matrix_lr=0.01,
        seed=20261124,
    )


def nano_functions() -> TrainConfig:
    """Return the recipe of the box's last run: it goes on from nano_infill on single functions (`--init`).

    Shards of small functions (`codegen2 data build --functions`) beside whole files. Sequences of 256 tokens hold such
    a function, attention costs half, and a step of 8,192 tokens fills some hundred holes of one or two runs of lines.
    The rate falls over most of the run: at a constant one, 600 steps on the same data taught little.
    """
    lines = CorruptionConfig(
        causal_probability=0.2, line_span_probability=0.9, line_span_piece=(48, 250), line_spans=(1, 2)
    )
    return replace(
        nano_infill(),
        corruption=lines,
        stages=(Stage(0, 256, 32, span_weight=2.0),),
        piece_tokens=512,
        max_steps=1750,
        cooldown_steps=1500,
        lr=1.2e-3,
        matrix_lr=0.012,
        seed=20261126,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "tiny": tiny,
    "nano": nano,
    "nano_infill": nano_infill,
    "nano_functions": nano_functions,
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
