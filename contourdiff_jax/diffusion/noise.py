# SPDX-License-Identifier: Apache-2.0
"""Noise: which random numbers belong to which slice of a volume.

All randomness of a slice comes from two knots of noise, each with a key of its own, and from
nothing else: not from the batch, the device or the other slices. Slices on their own have one knot
each. Slices that share theirs have knots every so many mm along the slicing axis and lie between
two of them on the sphere (Shoemake 1985; along the slices of a volume it is the idea of ISCS, arXiv
2602.04162):

    n = cos(theta) n_k + sin(theta) n_k+1,   theta = pi / 2 times the fraction of the way

Two independent normals mixed in this way have unit variance everywhere; slices between the same two
knots correlate by the cosine of the angle between them, slices two knots apart not at all. Knot k
lies at k times the distance from the origin of the scanner's coordinates, so the noise depends on
where a slice lies and not on the thickness of slices or the extent of the volume.

Shapes: N slices, B batch.
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np


class Knots(NamedTuple):
    """What the noise of slices is made of."""

    keys: np.ndarray  # [N, 2, 2] uint32, key data
    weights: np.ndarray  # [N, 2] float32, their squares sum to 1


def keys(seed: int, subject: str, numbers: np.ndarray, sample: int = 0) -> np.ndarray:
    """Key data [N, 2] uint32: fold_in of seed, sample if not the first, subject, and a number."""
    name = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:4], "big")
    key = jax.random.key(seed)
    if sample:
        key = jax.random.fold_in(key, sample)
    key = jax.random.fold_in(key, np.uint32(name))
    numbers = np.asarray(numbers, np.int64).astype(np.uint32)  # knots may be negative
    folded = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return np.asarray(jax.random.key_data(folded))


def independent(seed: int, subject: str, count: int, sample: int = 0) -> Knots:
    """Knots of slices that share nothing: that of each is its number."""
    own = keys(seed, subject, np.arange(count), sample)
    return Knots(np.stack([own, own], 1), np.tile(np.float32([1, 0]), (count, 1)))


def along(
    seed: int, subject: str, positions: np.ndarray, distance: float, sample: int = 0
) -> Knots:
    """Knots every `distance` mm of slices at `positions` [N] mm along the slicing axis."""
    numbers = np.asarray(positions, np.float64) / distance
    first = np.floor(numbers).astype(np.int64)
    theta = np.pi / 2 * (numbers - first)
    ends = [keys(seed, subject, first + i, sample) for i in range(2)]
    weights = np.stack([np.cos(theta), np.sin(theta)], 1).astype(np.float32)
    return Knots(np.stack(ends, 1), weights)


def drawn(knots: Knots, shape: tuple[int, ...]) -> Callable:
    """The samplers' noise(i) -> [B, *shape] of slices with those knots."""
    slice_keys = jax.random.wrap_key_data(knots.keys)

    def noise(i):
        def of_slice(two_keys, weights):
            first, second = (
                jax.random.normal(jax.random.fold_in(key, i), shape) for key in two_keys
            )
            return weights[0] * first + weights[1] * second

        return jax.vmap(of_slice)(slice_keys, knots.weights)

    return noise


def of_volume(knots: Knots, shape: tuple[int, ...]) -> Callable:
    """The samplers' noise(i) -> [1, N, *shape] of a volume whose slices have those knots."""
    of_slices = drawn(knots, shape)
    return lambda i: of_slices(i)[None]
