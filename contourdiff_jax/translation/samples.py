# SPDX-License-Identifier: Apache-2.0
"""The samples of a slice: which is kept, where they differ, and what no contour asked for.

    rule(samples, shown, asked) -> numbers [N] of the samples kept

Maps of a volume:
    mean     of the samples, in the target's units
    std      their standard deviation, likewise
    unasked  the share of samples with an edge farther than TOLERANCE pixels from every contour that
             they were drawn from

Shapes: K samples, N slices in order along the axis, H rows, W columns. samples [K, N, H, W] in
[-1, 1]; shown [K, N, H, W] the contours that they show; asked [N, H, W] those they were drawn from.
"""

import numpy as np
from scipy import ndimage

from contourdiff_jax.contours.agreement import contour_agreement
from contourdiff_jax.volumes.intensity import Preset, Window

MAPS = ("mean", "std", "unasked")
TOLERANCE = 2  # pixels of the model's grid, diagonal neighbours are 1 apart


def first(samples, shown, asked) -> np.ndarray:
    """The first, which is the one that is drawn where a single sample is wanted."""
    del shown, asked
    return np.zeros(samples.shape[1], int)


def lowest_mean(samples, shown, asked) -> np.ndarray:
    """The darkest, by which the original starts a volume (mazurowski-lab/ContourDiff)."""
    del shown, asked
    return samples.mean((2, 3)).argmin(0)


def nearest(samples, shown, asked) -> np.ndarray:
    """Of the first slice the darkest, of every other the one that is nearest to the slice before.

    By the mean squared difference, as the original keeps slices together where it draws in 2D.
    """
    numbers = lowest_mean(samples[:, :1], shown, asked)
    for i in range(1, samples.shape[1]):
        before = samples[numbers[-1], i - 1]
        numbers = np.append(numbers, np.square(samples[:, i] - before).mean((1, 2)).argmin())
    return numbers


def best_contours(samples, shown, asked) -> np.ndarray:
    """The one whose contours agree best with those asked for, by the F-measure."""
    del samples
    scores = [
        [contour_agreement(s, a)["contour_f1"] for s, a in zip(of_sample, asked, strict=True)]
        for of_sample in shown
    ]
    return np.argmax(scores, 0)


RULES = {
    "first": first,
    "lowest_mean": lowest_mean,
    "nearest": nearest,
    "best_contours": best_contours,
}


NAMES = (*RULES, "mean")
OF_CONTOURS = ("best_contours",)  # rules that look at the contours shown; others may have None


def chosen(name: str, samples, shown, asked) -> np.ndarray:
    """The slices [N, H, W] that the rule of that name keeps, or the 'mean' of the samples."""
    if name == "mean":
        return samples.mean(0)
    return samples[RULES[name](samples, shown, asked), np.arange(samples.shape[1])]


def maps(samples, shown, asked, resampling, preset: Preset, window: Window) -> dict:
    """{name: [X, Y, Z] float32} of one volume, on its own grid.

    Args:
      resampling: from the volume to the model's grid and back.
      preset, window: of the translation.
    """
    half = (preset.image.high - preset.image.low) / 2
    near = ndimage.maximum_filter(asked, size=(1, 2 * TOLERANCE + 1, 2 * TOLERANCE + 1))
    mean = resampling.volume(preset.image.inverse(samples.mean(0)), preset.air)
    deviation = preset.native(resampling.interpolated(half * samples.std(0), 0), window)
    return {
        "mean": preset.native(mean, window),
        "std": deviation - preset.native(0, window),
        "unasked": resampling.interpolated(np.mean(np.asarray(shown) > near, 0), 0),
    }
