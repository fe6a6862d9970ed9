# SPDX-License-Identifier: Apache-2.0
"""Whether two methods differ on the same subjects: paired differences, their interval and test."""

import numpy as np
from scipy import stats

from contourdiff_jax.metrics import bootstrap


def difference(values, others, seed: int = 0) -> dict:
    """Mean of values - others [N], a number per subject, with its interval and a paired test.

    Returns:
      `bootstrap.interval` of the differences, and "p", two-sided, of Wilcoxon's signed-rank test;
      1 where nothing differs.
    """
    differences = np.subtract(values, others, dtype=np.float64)
    p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    return bootstrap.interval(differences, seed) | {"p": p}


def least_p(subjects: int) -> float:
    """The smallest p that so many subjects can give: all differences have one sign."""
    return 2.0 ** (1 - subjects)


def holm(p) -> np.ndarray:
    """p values [M] of M tests, adjusted so that any of them is below 0.05 by chance in 5% at most.

    Holm 1979 (Scandinavian Journal of Statistics 6(2):65-70), step down: the k-th smallest, counted
    from 0, times M - k, none smaller than the one before it, at most 1.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted
