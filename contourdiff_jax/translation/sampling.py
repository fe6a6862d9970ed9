# SPDX-License-Identifier: Apache-2.0
"""Sampling: slices drawn from what is seen of them, in batches of one size.

Shapes: N slices, B batch, H rows, W columns, c channels of a condition.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding

from contourdiff_jax.contracts import Translator
from contourdiff_jax.diffusion.noise import Knots
from contourdiff_jax.runtime import mesh as meshes


def draw(
    translator: Translator,
    sharding: NamedSharding,
    seen: Mapping[str, np.ndarray],
    knots: Knots,
    beside: np.ndarray | None = None,
) -> np.ndarray:
    """Samples [N, H, W] of conditions {name: [N, H, W, c]} and knots.

    The first slice starts a new batch and the last is repeated to fill its own: what a slice
    becomes depends on nothing else. With `beside` [N, 2] all are one call.
    """
    count, batch = len(knots.keys), translator.batch
    size = batch if beside is None else -(-count // batch) * batch
    pictures = []
    for first in range(0, count, size):
        rows = np.minimum(np.arange(first, first + size), count - 1)
        part = meshes.put(sharding, _rows((seen, knots, beside), rows))
        pictures.append(np.asarray(translator(*part)))
    return np.concatenate(pictures)[:count, ..., 0]


def _rows(tree, rows: np.ndarray):
    return jax.tree.map(lambda array: array[rows], tree)
