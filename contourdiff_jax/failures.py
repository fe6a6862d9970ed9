# SPDX-License-Identifier: Apache-2.0
"""Failures that are known of a model: what holds of any, and what its evaluations measured.

An evaluation is its name and the content of its metrics.json, with "methods" and "data".
"""

from collections.abc import Iterator

import numpy as np

from contourdiff_jax.data.intensity import Preset
from contourdiff_jax.metrics import bootstrap

KEPT = 0.8  # of a label's contrast; with less, it is named


def known(evaluations: list[tuple[str, dict]], target: Preset) -> list[str]:
    """Sentences with their numbers."""
    tested = "every source but those scored above" if evaluations else "every source"
    lines = [
        "What the source's contours do not show cannot be in the image, and what the image shows "
        "without them is made up.",
        f"Training saw contours of {target.name.upper()} alone; {tested} is untested, as are other "
        f"anatomy, scanners and ages than those of the data.",
    ]
    for name, metrics in evaluations:
        ours, truth = (metrics["methods"].get(method, {}) for method in ("translation", "truth"))
        for sentences in (_contours, _contrasts, _flicker, _memory):
            lines += [f"{name}: {sentence}" for sentence in sentences(ours, truth)]
        failed = len(metrics["data"].get("failed", ()))
        if failed:
            lines.append(f"{name}: {failed} of the volumes could not be scored.")
    if not any("memory_distance" in m["methods"].get("translation", {}) for _, m in evaluations):
        lines.append("Whether it repeats training slices was not measured.")
    return lines


def _contours(ours: dict, truth: dict) -> Iterator[str]:
    """Contours that are missing, and those that nobody asked for."""
    if "contour_recall" not in ours or "contour_precision" not in ours:
        return
    missing, added = (
        f"{1 - ours[name]['value']:.1%}"
        + (f" (of the truth: {1 - truth[name]['value']:.1%})" if name in truth else "")
        for name in ("contour_recall", "contour_precision")
    )
    yield (
        f"{missing} of the source's contours are missing in the translation; {added} of the "
        f"translation's were not asked for."
    )


def _contrasts(ours: dict, truth: dict) -> Iterator[str]:
    """Labels that lose much of what makes them stand out."""
    lost = []
    for name, entry in truth.items():
        if name.startswith("contrast_label") and name in ours:
            kept = ours[name]["value"] / (entry["value"] or np.inf)
            if kept < KEPT:
                lost.append(f"{name.removeprefix('contrast_').replace('_', ' ')} {kept:.0%}")
    if lost:
        yield f"contrast is lost; of the truth's, {', '.join(lost)} are left."


def _flicker(ours: dict, truth: dict) -> Iterator[str]:
    """Slices that fit together less well than the truth's."""
    if "flicker" in ours and "flicker" in truth:
        flicker, right = (scores["flicker"]["value"] for scores in (ours, truth))
        if flicker > right:
            yield f"slices flicker by {flicker:.3f} of the window, the truth's by {right:.3f}."


def _memory(ours: dict, truth: dict) -> Iterator[str]:
    """How much nearer it comes to training slices than what was not seen."""
    if "memory_closer_ratio" in ours:
        yield (
            f"its slices resemble one training subject more than unseen real slices do with a "
            f"chance of {bootstrap.text(ours['memory_closer_ratio'])}; 0.5 where nothing is "
            f"remembered."
        )
