"""Recipes: functions that give the whole configuration of a run.

Not here: how a run is carried out (loop.py).
"""

from __future__ import annotations

from ..config import PRESETS
from .corruption import CorruptionConfig
from .loop import Stage, TrainConfig


def nano(max_steps: int = 3400) -> TrainConfig:
    """Give the recipe of the model in the box: the official vocabulary and objective, sized for two CPU cores.

    Short sequences first, because attention over 2,048 tokens would halve the number of tokens seen; the full context
    for the last tenth, so that the model knows every position. Muon and the sampled head serve the same end: the run
    is bound by compute, not by data. So few steps do not teach so small a model to fill holes from the paper's mixture
    alone (after 1,500 it ignored what stood around the hole), so the second half shows it single runs of lines in
    short pieces, the case that editors ask for, and fewer plain files.
    """
    second_half, long_from = max_steps * 8 // 17, max_steps - max_steps // 10
    lines = CorruptionConfig(line_span_probability=0.9, causal_probability=0.35)
    return TrainConfig(
        model=PRESETS["nano"],
        corruption=CorruptionConfig(line_span_probability=0.5, line_span_piece=(2048, 2048)),
        stages=(Stage(0, 512, 8), Stage(second_half, 512, 8, lines), Stage(long_from, 2048, 2, lines)),
        max_steps=max_steps,
        warmup_steps=100,
        cooldown_steps=max(1, max_steps * 2 // 5),
        lr=2e-3,
        matrix_lr=0.02,
        weight_decay=0.05,
        betas=(0.9, 0.97),
        head_candidates=6144,
        full_head_from_step=max_steps - max_steps // 30,
        seed=20261123,
        checkpoint_every=100,
    )
