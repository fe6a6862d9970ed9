# SPDX-License-Identifier: Apache-2.0
"""The mean over subjects with its bootstrap interval.

Subjects are what is resampled, never slices: the slices of one subject resemble each other, and an
interval over slices would claim a precision that the few subjects cannot give.
"""

import numpy as np

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


def text(entry):
    """An interval as people read it: "0.532 [0.501, 0.560]", "19.87 [18.90, 20.61]".

    Numbers below 0.01 get a decimal more, so that 0.0034 is not 0.003.
    """
    digits = len(str(int(abs(entry["value"]))))
    decimals = 4 if 0 < abs(entry["value"]) < 0.01 else max(0, 4 - digits)
    value = f"{entry['value']:.{decimals}f}"
    if entry["low"] is None:
        return value
    return f"{value} [{entry['low']:.{decimals}f}, {entry['high']:.{decimals}f}]"
