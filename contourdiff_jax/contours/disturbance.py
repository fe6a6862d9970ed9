# SPDX-License-Identifier: Apache-2.0
"""Disturbances of the contours that a model is trained with, the image staying as it is.

Contours of another modality differ from those of the training images: they are missing here, too
many there, a little to the side, at other thresholds. A model that met such contours in training
may know how far to believe them. Which of this helps, and which does harm, is measured in
experiments/010_gap; what does not help is off by default. Parameters are drawn from keys first and
applied afterwards.

Of a patch of a volume, what is a scan's matter is the same in all its slices, so that contours
remain those of one body: thresholds, contrast, displacement. Noise and missing pieces are a slice's
own.

Shapes: B images, K pictures of each in which edges are sought, D slices of a patch, H rows,
W columns.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from contourdiff_jax.volumes import warp

KNOTS = 6  # of a change of contrast, evenly spread from black to white
CELL = 16  # px between the points of a displacement
PIECE = 8  # px, side of the squares in which contours go missing


class Disturbance(NamedTuple):
    """What disturbs the contours of B images; None for a kind that is off."""

    thresholds: jax.Array | None = None  # [B], factor of both
    contrast: jax.Array | None = None  # [B, KNOTS], added to the greys at the knots
    noise: jax.Array | None = None  # [B, H, W], added to the greys
    displacement: jax.Array | None = None  # [B, 2, H, W] px along columns and rows
    doubled: jax.Array | None = (
        None  # [B] uint8, 1 where both the moved contours and the others are drawn
    )
    missing: jax.Array | None = None  # [B, H, W] uint8, 1 where contours are missing

    def displaced(self, greys, masks):
        """Greys [B, K, H, W] and masks [B, H, W], pixels taken from a little to the side."""
        if self.displacement is None:
            return greys, masks
        height, width = masks.shape[-2:]
        rows, columns = jnp.mgrid[:height, :width].astype(jnp.float32)[:, None]
        columns, rows = columns + self.displacement[:, 0], rows + self.displacement[:, 1]
        columns, rows = jnp.clip(columns, 0, width - 1), jnp.clip(rows, 0, height - 1)
        masks = warp.nearest(masks[:, None], columns, rows)[:, 0]
        return warp.linear(greys, columns, rows, 0.0), masks

    def grey(self, grey):
        """Greys [B, H, W] in [0, 1], with another contrast and noise."""
        if self.contrast is not None:
            change = jnp.zeros_like(grey)
            for k in range(KNOTS):  # hat functions, straight lines between the knots
                hat = jnp.maximum(1 - jnp.abs(grey * (KNOTS - 1) - k), 0)
                change += self.contrast[:, k, None, None] * hat
            grey += change
        if self.noise is not None:
            grey += self.noise
        return jnp.clip(grey, 0, 1)

    def scaled(self, thresholds):
        """Thresholds [B]."""
        return thresholds if self.thresholds is None else thresholds * self.thresholds

    def kept(self, edges):
        """Contours [B, H, W] uint8 without those that are missing."""
        return edges if self.missing is None else edges * (1 - self.missing)


KINDS = Disturbance._fields


def draw(keys, config, size: tuple[int, ...]) -> Disturbance | None:
    """One disturbance for each of the keys [B], under a `disturbance` section (see config.py).

    How much of a kind an image gets is uniform between nothing and the section's number. Returns
    None where all kinds are off.

    Args:
      size: (H, W) of an image, or (D, H, W) of a patch: then noise and what is missing are
        [B, D, H, W].
    """
    drawn = {}
    for purpose, (kind, one) in enumerate(zip(KINDS, DRAWN, strict=True)):
        if config[kind]:
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)
            drawn[kind] = jax.vmap(functools.partial(one, most=config[kind], size=size))(own)
    return Disturbance(**drawn) if drawn else None


def _thresholds(key, most, size):
    return jnp.exp(jax.random.uniform(key, minval=-1, maxval=1) * jnp.log1p(most))


def _contrast(key, most, size):
    amount, change = jax.random.split(key)
    return _upto(amount, most) * jax.random.uniform(change, (KNOTS,), minval=-1, maxval=1)


def _noise(key, most, size):
    amount, noise = jax.random.split(key)
    return _upto(amount, most) * jax.random.normal(noise, size)


def _displacement(key, most, size):
    amount, moves = jax.random.split(key)
    coarse = jax.random.normal(moves, (2, *(-(-n // CELL) + 1 for n in size[-2:])))
    return _upto(amount, most) * jax.image.resize(coarse, (2, *size[-2:]), "linear")


def _doubled(key, most, size):
    return jax.random.bernoulli(key, most).astype(jnp.uint8)


def _missing(key, most, size):
    """Squares of a grid that is shifted at random, so that its lines cannot be learnt."""
    amount, which, where = jax.random.split(key, 3)
    *slices, height, width = size
    squares = (*slices, *(-(-n // PIECE) + 1 for n in (height, width)))
    gone = jax.random.uniform(which, squares) < _upto(amount, most)
    pixels = gone.astype(jnp.uint8).repeat(PIECE, -2).repeat(PIECE, -1)
    start = (*(0 for _ in slices), *jax.random.randint(where, (2,), 0, PIECE))
    return jax.lax.dynamic_slice(pixels, start, size)


DRAWN = (_thresholds, _contrast, _noise, _displacement, _doubled, _missing)  # in order of KINDS


def _upto(key, most):
    return most * jax.random.uniform(key)
