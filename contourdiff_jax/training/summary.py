# SPDX-License-Identifier: Apache-2.0
"""Summary: what a run is and how far it has come, for people to read."""

from pathlib import Path

from contourdiff_jax import config as configuration
from contourdiff_jax.training import checkpoint
from contourdiff_jax.training.run import Run
from contourdiff_jax.volumes.intensity import IDENTITY


def summary(folder: Path, ours: Run) -> dict[str, list[str]]:
    """What a run in its folder is: lines by heading.

    Args:
      ours: what `run.load` reads there.
    """
    grid, contours = ours.grid, ours.contours.to_dict()
    changes = configuration.changes(ours.config)
    subjects = f", {len(ours.subjects)} subjects" if ours.subjects else ""
    pixels = f"{grid.axis}, {grid.size} px of {grid.spacing:g} mm{grid.every}"
    images = [f"{ours.preset.described(ours.window)}, {pixels}"]
    if ours.source_preset is not None:
        how = "paired with" if ours.paired else "and, unpaired,"
        images.append(f"{how} {ours.source_preset.described(ours.source_window or IDENTITY)}")
    lines = {
        "method": [ours.config.method],
        "images": images,
        "contours": [", ".join(f"{name} {value}" for name, value in contours.items() if value)],
        "training": [_training(folder, ours.config.train) + subjects],
        "changed": [f"{name} = {value}" for name, value in changes.items()],
        "teacher": [ours.teacher[:16]] if ours.teacher else [],
        "labels": [", ".join(map(str, ours.labels))] if ours.labels else [],
    }
    return {heading: several for heading, several in lines.items() if several}


def _training(folder: Path, config) -> str:
    steps = checkpoint.steps(folder)
    if steps == [0]:
        return "elsewhere, the weights were imported"
    best = checkpoint.chosen(folder, checkpoint.BEST) if checkpoint.losses(folder) else None
    marks = {best: " (the best)"}
    listed = ", ".join(f"{step * config.batch:,}{marks.get(step, '')}" for step in steps) or "none"
    return f"checkpoints after {listed} of {config.images:,} images"
