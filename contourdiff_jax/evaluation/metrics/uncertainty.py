# SPDX-License-Identifier: Apache-2.0
"""Does a standard deviation know where the errors are? Rank correlation and sparsification.

Sparsification: leave out the voxels with the largest standard deviation and see how much error is
left in the others (Ilg et al. 2018, ECCV, "Uncertainty estimates and multi-hypotheses networks for
optical flow"). The oracle leaves out those with the largest error. Only ranks count, not the unit.
Legend: M voxels, F fractions.
"""

import numpy as np
from scipy import stats

REMOVED = np.linspace(0, 1, 100, endpoint=False)  # [F] fractions of the voxels left out


def scores(deviation, error):
    """`uncertainty_spearman`, `ause` and `ause_chance` of a standard deviation.

    Args:
      deviation: [M] standard deviations; error: [M] absolute errors of the same voxels.

    Returns:
      A dict of floats: Spearman's correlation of the two; the area between the curves of
      `sparsification` (0: errors are ranked right); the same area for ranks drawn by lot. None
      where it is not defined: no voxels, one standard deviation for all, no error at all.
    """
    left, oracle = sparsification(deviation, error)
    constant = not np.size(error) or np.ptp(deviation) == 0 or np.ptp(error) == 0
    area, chance = None, None
    if left is not None:
        area = float(np.trapezoid(left - oracle, REMOVED))
        chance = float(np.trapezoid(1 - oracle, REMOVED))
    return {
        "uncertainty_spearman": None if constant else float(stats.spearmanr(deviation, error)[0]),
        "ause": area,
        "ause_chance": chance,
    }


def sparsification(deviation, error):
    """Mean error left when fractions REMOVED of the voxels are left out, as a share of the whole.

    Args as of `scores`. Returns (curve [F] by standard deviation, curve [F] of the oracle), both 1
    at first; (None, None) where there is no voxel or no error. Voxels of equal standard deviation
    share their errors, so that their order in the array decides nothing.
    """
    deviation, error = np.asarray(deviation), np.asarray(error, np.float64)
    if not error.size or not error.any():
        return None, None
    order = np.argsort(deviation)
    ranked, values = error[order], deviation[order]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    sizes = np.diff(np.r_[first, values.size])
    ranked = np.repeat(np.add.reduceat(ranked, first) / sizes, sizes)
    kept = np.ceil((1 - REMOVED) * error.size).astype(int)
    curves = (np.cumsum(errors)[kept - 1] / kept for errors in (ranked, np.sort(error)))
    return tuple(curve / error.mean() for curve in curves)
