# SPDX-License-Identifier: Apache-2.0
"""Tiles: pictures larger than the network's, denoised piece by piece.

At every step each tile is denoised on its own and the estimates of x_0 are blended where tiles
overlap, so that they grow together (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113). Noise
is the whole picture's: no tile has a key of its own, and no seam. Tiles are denoised one after the
other: memory grows by the pictures, not by what the network keeps of them.

Shapes: B batch, S pixels a side of the picture, T of a tile, n tiles a side, C channels (last).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

STEP = 8  # pixels


def side(wanted: int, tile: int, unit: int = 1) -> int:
    """S for pictures of `wanted` pixels: T where one tile is enough, else a multiple of STEP.

    It is one of `unit`, too.

    There are few sizes, because each is compiled on its own. None is larger than needed, so that
    tiles overlap as much as they can and each sees as much of the picture as it can.
    """
    step = math.lcm(STEP, unit)
    return tile if wanted <= tile else step * math.ceil(wanted / step)


def windows(size: int, tile: int, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """First pixels [n] of the tiles along a side, and their weights [n, T], which sum to 1.

    The tiles are as few as overlap by at least that share, evenly spread. Weights rise and fall as
    a squared sine over the overlap, at most over half the tile (the window of Hann).
    """
    gaps = math.ceil((size - tile) / (tile - round(tile * overlap)))
    corners = np.rint(np.linspace(0, size - tile, gaps + 1)).astype(int)
    inside = np.arange(tile) + 0.5
    ramp = np.clip(tile - np.diff(corners).max(initial=0), 1, tile / 2)
    rising = np.clip(np.minimum(inside, tile - inside) / ramp, 0, 1)
    weight = np.sin(np.pi / 2 * rising) ** 2
    pixels = corners[:, None] + np.arange(tile)
    total = np.bincount(pixels.ravel(), np.tile(weight, len(corners)))
    return corners, (weight / total[pixels]).astype(np.float32)


def blended(denoiser: Callable, condition, tile: int, overlap: float) -> Callable:
    """denoise(z_t [B, S, S, C], t) -> x_0, the estimates of the tiles blended.

    Args:
      denoiser: condition -> denoise, of pictures of T pixels a side.
      condition: a tree of [B, S, S, c].
    """
    corners, weights = windows(jax.tree.leaves(condition)[0].shape[1], tile, overlap)
    rows, columns = np.meshgrid(corners, corners, indexing="ij")
    planes = weights[:, None, :, None] * weights[None, :, None, :]
    pieces = rows.ravel(), columns.ravel(), planes.reshape(-1, 1, tile, tile, 1)

    def denoise(z_t, t):
        def add(x_0, piece):
            row, column, weight = piece
            start = (0, row, column, 0)

            def cut(a):
                return jax.lax.dynamic_slice(a, start, (a.shape[0], tile, tile, a.shape[3]))

            estimate = denoiser(jax.tree.map(cut, condition))(cut(z_t), t)
            return jax.lax.dynamic_update_slice(x_0, cut(x_0) + weight * estimate, start), None

        return jax.lax.scan(add, jnp.zeros_like(z_t), pieces)[0]

    return denoise
