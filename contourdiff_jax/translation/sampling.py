# SPDX-License-Identifier: Apache-2.0
"""Sampling: any number of slices, drawn in batches of one size, or as the volume they are.

Shapes: N slices, B batch, H rows, W columns, c channels of a condition.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding

from contourdiff_jax.contracts import Translator
from contourdiff_jax.diffusion.noise import Knots
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes


def draw(
    translator: Translator,
    sharding: NamedSharding,
    seen: Mapping[str, np.ndarray],
    knots: Knots,
    beside: np.ndarray | None = None,
) -> np.ndarray:
    """Samples [N, H, W] of what is seen of slices, {name: [N, H, W, c]}, and their knots of noise.

    Batches hold these slices alone, and the last is filled by repeating the last slice, so that a
    slice depends on nothing else. With neighbours `beside` [N, 2], one call draws all, and so it
    does where volumes are drawn, of which N is a multiple of the translator's depth_unit.

    Args:
      sharding: of what is drawn at once, see runtime.mesh.drawing.

    Raises:
      InputError: a volume that the device's memory does not hold.
    """
    if translator.dims == 3:
        return _volume(translator, sharding, seen, knots)
    count, batch = len(knots.keys), translator.batch
    size = batch if beside is None else -(-count // batch) * batch
    pictures = []
    for first in range(0, count, size):
        rows = np.minimum(np.arange(first, first + size), count - 1)
        part = meshes.put(sharding, _rows((seen, knots, beside), rows))
        pictures.append(np.asarray(translator(*part)))
    return np.concatenate(pictures)[:count, ..., 0]


def _volume(translator: Translator, sharding: NamedSharding, seen, knots: Knots) -> np.ndarray:
    """Samples [N, H, W] of all slices of a volume together."""
    one = {name: array[None] for name, array in seen.items()}
    try:
        return np.asarray(translator(*meshes.put(sharding, (one, knots, None))))[0, ..., 0]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sides = " x ".join(map(str, next(iter(seen.values())).shape[:3]))
        raise InputError(
            f"{sides} voxels are more than the device's memory holds at once; give --tiles=0.25, "
            f"or with it a lower --batch"
        ) from None


def _rows(tree, rows: np.ndarray):
    return jax.tree.map(lambda array: array[rows], tree)
