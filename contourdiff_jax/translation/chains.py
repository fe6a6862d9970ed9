# SPDX-License-Identifier: Apache-2.0
"""Chains: which slices of a volume are neighbours, and in which order they see one another.

Shapes: N slices, at `positions` [N] mm along the slicing axis.
"""

import numpy as np

from contourdiff_jax.volumes.geometry import runs

NONE = -1  # in place of the slice before


def neighbours(positions: np.ndarray) -> np.ndarray:
    """[N, 2] the slices on either side of each; at an end of a run, twice the one that there is."""
    beside = []
    for run in runs(positions):
        below, above = run - 1, run + 1
        below[0], above[-1] = run[1 % len(run)], run[-2 % len(run)]
        beside.append(np.stack([below, above], 1))
    return np.concatenate(beside).astype(np.int32)


def chains(positions: np.ndarray, *, anchor: int = 0, middle: bool = False):
    """The order in which slices are drawn, each shown the one before.

    Args:
      positions: [N] mm along the slicing axis.
      anchor: number of slices after which a new chain begins; 0: only behind gaps.
      middle: whether chains begin in their middle and go both ways.

    Returns:
      ([N] the slice before, NONE where a chain begins; [N] the distance in slices from there, of
      which equal ones are drawn together).
    """
    before, distance = (np.empty(len(positions), int) for _ in range(2))
    for run in runs(positions):
        for first in range(0, len(run), anchor or len(run)):
            chain = run[first : first + (anchor or len(run))]
            start = chain[len(chain) // 2 if middle else 0]
            distance[chain] = np.abs(chain - start)
            before[chain] = chain - np.sign(chain - start)
            before[start] = NONE
    return before, distance
