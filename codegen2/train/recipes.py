"""Recipes: functions that give the whole configuration of a run.

Not here: how a run is carried out (loop.py).
"""

from __future__ import annotations

from dataclasses import replace

from ..config import PRESETS
from .corruption import CorruptionConfig
from .loop import Stage, TrainConfig


def nano() -> TrainConfig:
    """Give the recipe of the model in the box: the official vocabulary and objective, sized for two CPU cores.

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
    """Give the recipe that taught the box to fill holes: it goes on from a trained nano (`--init`).

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
