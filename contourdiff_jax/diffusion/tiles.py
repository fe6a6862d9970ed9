# SPDX-License-Identifier: Apache-2.0
"""Tiles: pictures and volumes larger than the network's, denoised piece by piece.

At every step each tile is denoised on its own and the estimates of x_0 are blended where tiles
overlap, so that they grow together (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113). Noise
is the whole picture's: no tile has a key of its own, and no seam. Tiles are denoised one group
after the other: memory grows by the pictures, not by what the network keeps of them.

Shapes: B batch, *S space (H W, or D H W), S elements along one of its axes, T of a tile there,
n tiles, G groups of them, d axes, C channels (last).
"""

import functools
import math
from collections.abc import Callable, Sequence

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
    """First elements [n] of the tiles along an axis, and their weights [n, T], which sum to 1.

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


def blended(
    denoiser: Callable,
    condition,
    tile: Sequence[int],
    overlap: float,
    batch: int = 1,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Callable:
    """denoise(z_t [B, *S, C], t) -> x_0, the estimates of the tiles blended.

    Weights are products of those along each axis, so they sum to 1. The last group of tiles is
    filled with tiles that weigh nothing.

    Args:
      denoiser: condition -> denoise, of what has the sides of a tile.
      condition: a tree of [B, *S, c].
      tile: sides *T, one for each axis; 0: the whole of it, as where there is no more.
      overlap: least share that tiles have in common.
      batch: tiles at once, n B pictures of them.
      sharding: of those pictures over devices, whose number divides n.
    """
    space = jax.tree.leaves(condition)[0].shape[1:-1]
    tile = tuple(min(t or size, size) for t, size in zip(tile, space, strict=True))
    groups = _groups(space, tile, overlap, batch, sharding.num_devices if sharding else 1)

    def cut(a, start):
        return jax.lax.dynamic_slice(a, start, (a.shape[0], *tile, a.shape[-1]))

    def denoise(z_t, t):
        def add(x_0, group):
            corners, weights = group
            starts = [(0, *corner, 0) for corner in corners]

            def cuts(a):
                pieces = jnp.concatenate([cut(a, start) for start in starts])
                if sharding is None:
                    return pieces
                return jax.lax.with_sharding_constraint(pieces, sharding)

            estimates = denoiser(jax.tree.map(cuts, condition))(cuts(z_t), t)
            estimates = jnp.split(estimates, len(starts))
            for start, *along, estimate in zip(starts, *weights, estimates, strict=True):
                weight = functools.reduce(jnp.multiply, jnp.ix_(*along))[None, ..., None]
                blend = cut(x_0, start) + weight * estimate
                x_0 = jax.lax.dynamic_update_slice(x_0, blend, start)
            return x_0, None

        return jax.lax.scan(add, jnp.zeros_like(z_t), groups)[0]

    return denoise


def _groups(space, tile, overlap: float, batch: int, devices: int):
    """Corners [G, n, d] of the tiles of a space and, for each axis, their weights [G, n, T].

    There are as few groups as hold them, `batch` at most in each, and n is as small as it then can
    be.
    """
    along = [windows(size, side, overlap) for size, side in zip(space, tile, strict=True)]
    corners, weights = zip(*along, strict=True)
    numbers = np.stack(np.meshgrid(*(range(len(c)) for c in corners), indexing="ij"), -1)
    numbers = numbers.reshape(-1, len(tile))
    groups = math.ceil(len(numbers) / batch)
    each = devices * math.ceil(len(numbers) / (groups * devices))
    spare = np.arange(groups * each) >= len(numbers)
    numbers = np.resize(numbers, (groups * each, len(tile)))

    def grouped(of):
        return of.reshape(groups, each, *of.shape[1:])

    corners = np.stack([c[n] for c, n in zip(corners, numbers.T, strict=True)], -1)
    weights = [w[n] * ~spare[:, None] for w, n in zip(weights, numbers.T, strict=True)]
    return grouped(corners), [grouped(w) for w in weights]
