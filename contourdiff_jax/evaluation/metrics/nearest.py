# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours of images in groups of others, and which of two sets has nearer ones.

A distance is the root mean square of the difference. Groups are subjects. Slices of one subject
resemble each other, so that a small distance says little by itself; but a slice that is far nearer
to one subject than to any other says that this very image was seen.

Legend: N and M images, D pixels, S and T subjects, R resamples.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax.evaluation.metrics import bootstrap

QUERIES = 1024  # images compared at a time with those of a group
GROUP = 128  # images, of which groups are made multiples, so that few shapes are compiled


class Neighbours(NamedTuple):
    """Of each image [N]: the nearest other, and the nearest in any further group."""

    distance: np.ndarray
    group: np.ndarray  # number of the group
    number: np.ndarray  # of the image in its group
    elsewhere: np.ndarray  # distance; infinite where there is one group only

    @property
    def ratio(self) -> np.ndarray:
        """[N] in [0, 1], 0 for a copy; 1 where both distances are 0 or there is no other group."""
        known = np.isfinite(self.elsewhere) & (self.elsewhere > 0)
        return np.divide(
            self.distance, self.elsewhere, out=np.ones_like(self.distance), where=known
        )


def neighbours(images: np.ndarray, groups: Iterable[np.ndarray]) -> Neighbours:
    """The nearest neighbours of images [N, D] in groups [M, D], which are read one at a time."""
    best = np.full(len(images), np.inf)
    elsewhere, group, number = best.copy(), np.zeros(len(images), int), np.zeros(len(images), int)
    for count, others in enumerate(groups):
        # Repeating an image changes no minimum.
        others = jax.device_put(np.pad(others, ((0, -len(others) % GROUP), (0, 0)), mode="edge"))
        for first in range(0, len(images), QUERIES):
            part = slice(first, first + QUERIES)
            distance, chosen = jax.device_get(_nearest(jax.device_put(images[part]), others))
            nearer = distance < best[part]
            beaten = np.where(nearer, best[part], distance)
            elsewhere[part] = np.minimum(elsewhere[part], beaten)
            best[part] = np.where(nearer, distance, best[part])
            group[part] = np.where(nearer, count, group[part])
            number[part] = np.where(nearer, chosen, number[part])
    return Neighbours(best, group, number, elsewhere)


@jax.jit
def _nearest(images, others):
    """Distance [n] to the nearest of others [M, D], and its number [n], of images [n, D]."""
    # |x - y|^2 = |x|^2 - 2 x.y + |y|^2 finds it; its distance comes from the difference itself, for
    # in that sum the distance of a copy would be lost.
    products = jnp.matmul(images, others.T, precision="highest")
    number = jnp.argmin(jnp.square(others).sum(1)[None] - 2 * products, axis=1)
    return jnp.sqrt(jnp.square(images - others[number]).mean(1)), number


def nearer(values, subjects, others, other_subjects, seed: int = 0) -> dict:
    """The chance that one of `values` [N] lies below one of `others` [M]: 0.5 where they are alike.

    It is the area under the ROC curve, ties counting half, with a 95% percentile bootstrap interval
    over subjects; where both sides have the same subjects, these are drawn together.

    Returns:
      {"value", "low", "high", "n"}: n subjects of `values`. With one on either side low and high
      are None.
    """
    names, other_names = np.unique(subjects), np.unique(other_subjects)
    wins = _wins(values, subjects, names, others, other_subjects, other_names)
    value, low, high = float(wins.sum() / (len(values) * len(others))), None, None
    if min(wins.shape) > 1:
        sizes = [np.unique(of, return_counts=True)[1] for of in (subjects, other_subjects)]
        random = np.random.default_rng(seed)
        drawn = _counts(random, len(names))
        same = np.array_equal(names, other_names)
        other_drawn = drawn if same else _counts(random, len(other_names))
        won = ((drawn @ wins) * other_drawn).sum(1)
        tail = (1 - bootstrap.LEVEL) / 2
        rates = won / ((drawn @ sizes[0]) * (other_drawn @ sizes[1]))
        low, high = np.quantile(rates, [tail, 1 - tail]).tolist()
    return {"value": value, "low": low, "high": high, "n": len(names)}


def _wins(values, subjects, names, others, other_subjects, other_names) -> np.ndarray:
    """[S, T] numbers of pairs in which the first subject's value is the lower; ties count half."""
    wins = np.empty((len(names), len(other_names)))
    for column, other in enumerate(other_names):
        order = np.sort(others[other_subjects == other])
        above = len(order) - np.searchsorted(order, values, "right")
        with_ties = len(order) - np.searchsorted(order, values, "left")
        for row, name in enumerate(names):
            mine = subjects == name
            wins[row, column] = (above[mine] + with_ties[mine]).sum() / 2
    return wins


def _counts(random: np.random.Generator, subjects: int) -> np.ndarray:
    """How often each subject is drawn, [R, S]."""
    return random.multinomial(subjects, np.full(subjects, 1 / subjects), bootstrap.RESAMPLES)
