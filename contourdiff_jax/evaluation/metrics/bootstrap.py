# SPDX-License-Identifier: Apache-2.0
"""The mean over subjects with its bootstrap interval.

Subjects are what is resampled, never slices: the slices of one subject resemble each other, and an
interval over slices would claim a precision that the few subjects cannot give.
"""

import numpy as np
from scipy import stats

RESAMPLES = 10_000
LEVEL = 0.95


def interval(values, seed=0):
    """Mean and 95% percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Args:
      values: [N], one number per subject, N >= 1. Calls with equal N and seed draw the same
        subjects, so the intervals of several methods come from the same resamples.
      seed: of the resampling.

    Returns:
      {"value": mean, "low": float, "high": float, "n": N}. One subject says nothing about the
      spread over subjects: with N = 1 low and high are None.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError("the bootstrap takes a list of finite numbers, one per subject")
    low = high = None
    if values.size > 1:
        draws = np.random.default_rng(seed).integers(values.size, size=(RESAMPLES, values.size))
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(values[draws].mean(axis=1), [tail, 1 - tail]).tolist()
    return {"value": float(values.mean()), "low": low, "high": high, "n": values.size}


def description(seed: int) -> str:
    """What `interval` gives, in words that a report can print."""
    return (
        f"{LEVEL:.0%} percentile bootstrap of the mean over subjects, {RESAMPLES} resamples, seed "
        f"{seed}"
    )


def text(entry):
    """An interval as people read it: "0.532 [0.501, 0.560]", "19.87 [18.90, 20.61]".

    Numbers below 0.01 get a decimal more, so that 0.0034 is not 0.003.
    """
    digits = len(str(int(abs(entry["value"]))))
    decimals = 4 if 0 < abs(entry["value"]) < 0.01 else max(0, 4 - digits)
    value = f"{entry['value']:.{decimals}f}"
    if None in (entry["low"], entry["high"]):
        return value
    return f"{value} [{entry['low']:.{decimals}f}, {entry['high']:.{decimals}f}]"


def difference(values, others, seed: int = 0) -> dict:
    """Mean of values - others [N], a number per subject, with its interval and a paired test.

    Returns:
      `interval` of the differences, and "p", two-sided, of Wilcoxon's signed-rank test;
      1 where nothing differs.
    """
    differences = np.subtract(values, others, dtype=np.float64)
    p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    return interval(differences, seed) | {"p": p}


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
