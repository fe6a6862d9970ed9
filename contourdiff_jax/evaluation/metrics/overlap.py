# SPDX-License-Identifier: Apache-2.0
"""How well two label maps agree: Dice, and the distance of their surfaces in mm.

    dice   2 |A and B| / (|A| + |B|), of voxels counted as whole numbers (Dice 1945, Ecology 26:297)
    assd   mean of the distances of both surfaces' voxels from the other surface, taken together
           (Heimann et al. 2009, IEEE TMI 28(8):1251-1265)
    hd95   the larger of the two 95th percentiles of these distances, one for each direction

A surface consists of the voxels of a label that share a face with a voxel of another; distances
are between centres. These are MONAI's definitions and numbers
(compute_average_surface_distance(symmetric=True), compute_hausdorff_distance(percentile=95)),
computed by the SciPy functions that MONAI uses. MedPy takes one percentile of both directions
together, and DeepMind's surface-distance places surfaces on the corners of voxels and weighs them
by area: their numbers are slightly different.

Legend: [X, Y, Z] label maps; n and m voxels of surfaces.
"""

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

PERCENTILE = 95


def dice(labels, truth, classes) -> dict[int, float | None]:
    """Dice of each of the classes; None where neither of the label maps has it.

    Args:
      labels, truth: whole numbers, of one shape.
      classes: label numbers.
    """
    labels, truth = np.asarray(labels), np.asarray(truth)
    values = {}
    for number in classes:
        ours, theirs = labels == number, truth == number
        both = np.count_nonzero(ours & theirs)
        sizes = np.count_nonzero(ours) + np.count_nonzero(theirs)
        values[number] = 2 * both / sizes if sizes else None
    return values


def surface(mask) -> np.ndarray:
    """The voxels of a mask that have a face on its outside, or on the array's; bool."""
    return mask & ~ndimage.binary_erosion(mask)


def surface_distances(mask, truth, spacing) -> tuple[np.ndarray, np.ndarray]:
    """Distances [n] of the surface of a mask from that of the truth, and [m] the other way.

    In the units of `spacing`, one number an axis. Neither mask may be empty.
    """
    points = [np.argwhere(surface(part)) * np.asarray(spacing, float) for part in (mask, truth)]
    if not all(map(len, points)):
        raise ValueError("an empty mask has no surface")
    trees = [KDTree(part) for part in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def distances(mask, truth, spacing) -> dict[str, float | None]:
    """`assd` and `hd95` of two masks, in the units of `spacing`; None where one of them is empty.

    There is no distance from nothing, and any number for it would be made up.
    """
    if not (mask.any() and truth.any()):
        return {"assd": None, "hd95": None}
    forth, back = surface_distances(mask, truth, spacing)
    return {
        "assd": float(np.concatenate([forth, back]).mean()),
        "hd95": float(max(np.percentile(forth, PERCENTILE), np.percentile(back, PERCENTILE))),
    }
