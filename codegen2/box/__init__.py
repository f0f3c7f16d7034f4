"""The model in the box: a small member of the family, so that everything works offline. CARD.md says what it is."""

from __future__ import annotations

from pathlib import Path


def box_dir() -> Path:
    """Return the directory of the checkpoint. Raises ValueError where the package came without it."""
    directory = Path(__file__).parent
    if not (directory / "model.safetensors").is_file():
        raise ValueError(
            f"{directory}: the model in the box is missing; reinstall codegen2, or name a checkpoint"
        )
    return directory
