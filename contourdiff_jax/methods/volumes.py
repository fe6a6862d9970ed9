# SPDX-License-Identifier: Apache-2.0
"""Volumes: what methods of three dimensions have in common.

They learn from patches of volumes. A volume is drawn alone and lies whole on every device, in one
piece or in tiles of the size of those patches, which devices share.

Shapes: B batch, D slices, H rows, W columns, C or c channels, last.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax.contracts import Example, Feed
from contourdiff_jax.data import examples
from contourdiff_jax.data.feeds import spread
from contourdiff_jax.diffusion import tiles
from contourdiff_jax.runtime import mesh as meshes

SAMPLES = 4  # slices of a picture of samples


def sides(config: ConfigDict, size: int) -> tuple[int, ...]:
    """Sides of what a network learns from: slices of `size` px, or patches of volumes.

    0 is the whole of a volume.
    """
    if config.model.dims == 2:
        return size, size
    side = config.volume.side or size
    return config.volume.depth, side, side


def in_tiles(
    denoiser: Callable, space: tuple[int, ...], tile: tuple[int, ...], sampler: ConfigDict, mesh
) -> Callable:
    """A denoiser of all that has the sides `space`, which may be larger than a tile.

    Of slices all B are denoised a tile at a time, of a volume so many tiles as a batch has.

    Args:
      denoiser: condition -> denoise, see diffusion/tiles.py.
      sampler: a `sampler` section; without tiles the denoiser is as it was.
    """
    if not sampler.tiles or not any(0 < t < size for t, size in zip(tile, space, strict=True)):
        return denoiser
    shared = {"batch": sampler.batch, "sharding": meshes.batch(mesh)} if len(tile) == 3 else {}
    return partial(tiles.blended, denoiser, tile=tile, overlap=sampler.tiles, **shared)


def parts(mesh: Mesh, example: Example, size: int) -> Iterator[tuple[slice, Example]]:
    """The images of an example on a mesh, `size` of them at a time, with their numbers."""
    count = len(example["x"])
    if size == count:
        yield slice(0, count), example
        return
    host = jax.tree.map(meshes.whole, example)
    for first in range(0, count, size):
        part = jax.tree.map(lambda a, first=first: a[first : first + size], host)
        yield slice(first, first + size), meshes.split(meshes.batch(mesh), part)


def shown(feed: Feed) -> Example:
    """A patch [1, D, H, W, c] on the host, to look at how it is drawn."""
    several, _ = feed.shown(1)  # as many as there are devices
    return jax.tree.map(lambda a: a[:1], several)


def picture(shown: Example, drawn: np.ndarray) -> np.ndarray:
    """Some slices of a patch and of what is drawn [1, D, H, W, 1], see examples.picture."""
    rows = spread(np.arange(drawn.shape[1]), SAMPLES)
    return examples.picture(jax.tree.map(lambda a: a[0, rows], shown), drawn[0, rows])


def training(config: ConfigDict) -> dict[str, str]:
    """What a model card says of the patches that are learnt from; nothing of slices."""
    if config.model.dims == 2:
        return {}
    depth, side = config.volume.depth, config.volume.side
    slices = f"{depth} slices" if depth else "all slices"
    return {"patches": slices + (f" of {side} x {side} px" if side else "")}
