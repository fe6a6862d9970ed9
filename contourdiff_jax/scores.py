# SPDX-License-Identifier: Apache-2.0
"""Scores: all that is measured of one case, by slice, method and metric.

Shapes: [X, Y, Z] volumes, [N, H, W] slices, [H, W] one of them, all of values.
"""

from collections.abc import Iterator

import numpy as np

from contourdiff_jax.cases import Case
from contourdiff_jax.data.intensity import Preset
from contourdiff_jax.metrics import paired, structure

GRIDS = ("source", "model")  # on which images can be compared
LEAST_BODY = 0.01  # of a slice's pixels; with less body in it, it has no score inside the body
TOLERANCE = 1  # pixels that contours may lie apart


def rows(case: Case, others: dict[str, np.ndarray], grid: str) -> list[tuple]:
    """Rows (subject, slice, method, metric, value, seconds) of the translation and of `others`."""
    methods = {"translation": case.translation} | others
    found = []
    if case.truth is not None:
        found += _images(case, methods, grid)
    if case.source is not None:
        # What an image that is right would have: the truth's own contours.
        right = {} if case.truth is None else {"truth": case.truth}
        found += _contours(case, methods | right)
    seconds = {"translation": case.seconds}
    return [
        (case.subject, number, method, metric, value, seconds.get(method))
        for method, number, scores in found
        for metric, value in scores.items()
    ]


def _images(case: Case, methods: dict[str, np.ndarray], grid: str) -> Iterator[tuple]:
    """(method, slice, {metric: value}) of the comparison with the truth."""
    target = case.settings.target
    cut, mask = case.slices, case.body
    if grid == "source":
        cut, mask = case.resampling.planes, case.resampling.planes(case.mask)
    truth = cut(case.truth)
    for method, values in methods.items():
        for number, image in enumerate(cut(values)):
            yield method, number, _compare(image, truth[number], mask[number], target)


def _compare(image, truth, mask, target: Preset) -> dict[str, float]:
    """Paired scores of a slice [H, W] of values."""
    inside = mask if mask.mean() >= LEAST_BODY else None
    scores = paired.scores(target.image.fraction(image), target.image.fraction(truth), 1.0, inside)
    if target.modality == "ct":
        # HU within what a scanner stores: some fill what they do not see with -3024.
        limits = (target.storage.low, target.storage.high)
        image, truth = (np.clip(np.asarray(v, np.float64), *limits) for v in (image, truth))
        error = np.abs(image - truth)
        scores["mae_hu"] = float(error.mean())
        if inside is not None:
            scores["mae_hu_mask"] = float(error[inside].mean())
    return scores


def _contours(case: Case, methods: dict[str, np.ndarray]) -> Iterator[tuple]:
    """(method, slice, {metric: value}) of the agreement with the source's contours.

    They are compared on the model's grid, where the condition was made.
    """
    shown = np.flatnonzero(case.body.mean((1, 2)) >= LEAST_BODY).tolist()
    for method, values in methods.items():
        drawn = case.contours(values)
        for number in shown:
            scores = structure.contour_agreement(drawn[number], case.condition[number], TOLERANCE)
            yield method, number, scores
