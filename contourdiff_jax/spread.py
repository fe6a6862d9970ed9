# SPDX-License-Identifier: Apache-2.0
"""Spread: where the samples of a slice differ, and where they show what no contour asked for.

    mean     of the samples, in the target's units
    std      their standard deviation, likewise
    unasked  the share of samples with an edge farther than TOLERANCE pixels from every contour that
             they were drawn from

Shapes: K samples, N slices, H rows, W columns. Samples are in [-1, 1].
"""

import dataclasses

import numpy as np
from scipy import ndimage

from contourdiff_jax.data import contours
from contourdiff_jax.data.contours import ContourSettings
from contourdiff_jax.data.intensity import Preset, Window

MAPS = ("mean", "std", "unasked")
TOLERANCE = 2  # pixels of the model's grid, diagonal neighbours are 1 apart


def edges(pictures, body, preset: Preset, settings: ContourSettings) -> np.ndarray:
    """Contours [N, H, W] uint8 of translated slices, taken on the model's grid.

    Settings that want a volume's own voxels are followed as far as pictures go that have none.
    """
    windows = settings.windows or (() if settings.curve else (dataclasses.astuple(preset.image),))
    settings = dataclasses.replace(settings, windows=windows, thin=0.0, native=False, clean=())
    return contours.stack(preset.image.inverse(pictures), body, settings)


def maps(samples, found, asked, resampling, preset: Preset, window: Window) -> dict:
    """{name: [X, Y, Z] float32} of one volume, on its own grid.

    Args:
      samples: [K, N, H, W].
      found: [K, N, H, W], the contours that they show.
      asked: [N, H, W], those they were drawn from.
      preset, window: of the target, as the translation's.
    """
    half = (preset.image.high - preset.image.low) / 2
    near = ndimage.maximum_filter(asked, size=(1, 2 * TOLERANCE + 1, 2 * TOLERANCE + 1))
    mean = resampling.volume(preset.image.inverse(samples.mean(0)), preset.air)
    deviation = preset.native(resampling.volume(half * samples.std(0), 0), window)
    return {
        "mean": preset.native(mean, window),
        "std": deviation - preset.native(0, window),
        "unasked": resampling.volume(np.mean(np.asarray(found) > near, 0), 0),
    }
