# SPDX-License-Identifier: Apache-2.0
"""Fitting: how well the two images of a pair lie on one another.

Shapes: N slices, H rows, W columns, on one grid. Shifts are of the source, in pixels (columns,
rows) from where it fits best: with (2, 0) it lies 2 pixels too far to the right.
"""

import itertools
from typing import NamedTuple

import cv2
import numpy as np

PIXELS = 1 << 18  # that mutual information is measured on, at most
FEWEST, MOST = 8, 32  # bins of a histogram
FIRST = 4  # pixels, of the first search; then half as many, down to 1
SKIN = 3  # pixels around the body that count, so that its outline does


class Shift(NamedTuple):
    """How far the source lies from where it fits best, and how well it fits."""

    columns: float  # pixels
    rows: float
    information: float  # mutual, of the images as they lie, in nats


def dice(one: np.ndarray, other: np.ndarray, axis=None):
    """Overlap 2 |A and B| / (|A| + |B|) of masks (Dice 1945), over `axis`; 1 of two empty ones."""
    both, sizes = (one & other).sum(axis), one.sum(axis) + other.sum(axis)
    return np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0)


def shift(target: np.ndarray, source: np.ndarray, body: np.ndarray, reach: int, air: float):
    """The shift in plane that maximises mutual information (Wells et al. 1996), a `Shift`.

    All candidates are compared on the same pixels of the target: its body and a little around it.
    They are tried on coarser steps first, and the best is refined by a parabola.

    Args:
      target, source: [N, H, W] values.
      body: [N, H, W] bool, of the target.
      reach: pixels along each axis, at most.
      air: value of what lies outside the source.
    """
    region = _widened(body)
    numbers = np.flatnonzero(region)
    if not numbers.size:
        return Shift(0.0, 0.0, 0.0)
    numbers = numbers[:: -(-numbers.size // PIXELS)]
    bins = int(np.clip(numbers.size ** (1 / 3), FEWEST, MOST))
    wide = np.pad(source, ((0, 0), (reach, reach), (reach, reach)), constant_values=air)
    level = _levels(wide, bins)
    ours = _levels(target.ravel()[numbers], bins) * bins
    n, y, x = np.unravel_index(numbers, target.shape)
    at = np.ravel_multi_index((n, y + reach, x + reach), wide.shape)
    tried = {}

    def information(dx: int, dy: int) -> float:
        if (dx, dy) not in tried:
            theirs = level.ravel()[at + dy * wide.shape[2] + dx]
            tried[dx, dy] = mutual_information(np.bincount(ours + theirs, minlength=bins**2), bins)
        return tried[dx, dy]

    def best_of(candidates) -> tuple[int, int]:
        # Of equal ones the nearest to where the source lies: a source of air fits everywhere.
        return max(candidates, key=lambda at: (information(*at), -np.hypot(*at)))

    step = min(FIRST, reach)
    count = reach // step if reach else 0
    steps = [step * k for k in range(-count, count + 1)]
    best = best_of(itertools.product(steps, steps))
    while step > 1:
        step //= 2
        around = itertools.product(
            *([c for c in (at - step, at, at + step) if abs(c) <= reach] for at in best)
        )
        best = best_of(around)
    refined = []
    for axis in range(2):
        beside = [tuple(c + d * (i == axis) for i, c in enumerate(best)) for d in (-1, 0, 1)]
        known = all(abs(c) <= reach for at in beside for c in at)
        refined.append(best[axis] + (_peak(*(information(*at) for at in beside)) if known else 0))
    return Shift(*refined, information(0, 0))


def mutual_information(counts: np.ndarray, bins: int) -> float:
    """Mutual information in nats of two values, from their joint histogram of bins x bins."""
    joint = counts.reshape(bins, bins) / counts.sum()
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / alone[seen])).sum())


def _levels(values: np.ndarray, bins: int) -> np.ndarray:
    """Values as numbers of bins that hold equally many of them, but for ties: no unit matters."""
    sample = values.ravel()[:: -(-values.size // PIXELS)]
    edges = np.unique(np.quantile(sample, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def _widened(body: np.ndarray) -> np.ndarray:
    square = np.ones((2 * SKIN + 1,) * 2, np.uint8)
    return np.stack([cv2.dilate(np.uint8(plane), square) for plane in body]) > 0


def _peak(before: float, at: float, after: float) -> float:
    """Where a parabola through three values one apart has its peak, from the middle one."""
    bend = before - 2 * at + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0
