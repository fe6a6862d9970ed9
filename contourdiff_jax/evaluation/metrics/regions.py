# SPDX-License-Identifier: Apache-2.0
"""Errors inside regions of an image, and how far a region stands out from what is around it."""

import numpy as np

from contourdiff_jax.evaluation.metrics import paired


def scores(image, truth, regions, data_range):
    """`mae_<name>`, `psnr_<name>` and `bias_<name>`, the mean of image - truth, of each region.

    Args:
      image, truth: arrays of one shape and unit.
      regions: {name: bool array of that shape}. Empty ones are left out.
      data_range: width of the interval the values lie in.

    Returns:
      A dict of floats; MAE and bias in the images' unit, PSNR in dB.
    """
    error, values = np.subtract(image, truth, dtype=np.float64), {}
    for name, region in regions.items():
        inside = error[region]
        if inside.size:
            values |= {
                f"mae_{name}": float(np.abs(inside).mean()),
                f"psnr_{name}": paired.psnr(np.square(inside).mean(), data_range),
                f"bias_{name}": float(inside.mean()),
            }
    return values


def contrasts(image, regions):
    """`contrast_<name>`: the mean inside a region less the mean around it, in the image's unit.

    Args:
      image: an array.
      regions: {name: (inside, around)}, bool arrays of its shape. Those that lack a voxel of either
        are left out.
    """
    return {
        f"contrast_{name}": float(image[inside].mean(dtype=float) - image[around].mean(dtype=float))
        for name, (inside, around) in regions.items()
        if inside.any() and around.any()
    }
