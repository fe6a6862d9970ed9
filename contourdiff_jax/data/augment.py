# SPDX-License-Identifier: Apache-2.0
"""Augmentation on the device: parameters are drawn from keys first and applied afterwards.

So each can be replayed, and an image, its mask and its neighbour move together. Contours are taken
from the augmented slice, at full sharpness, not warped along with it, unless they are those of
native pixels. A random crop of a padded slice, as in the original, is a random shift.

Shapes: B images, K slices that move together, H rows, W columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from contourdiff_jax.volumes import warp

DRAWS = 8  # random numbers of one transform


class Transform(NamedTuple):
    """Affine maps of the plane about the image's centre: flip, scale, rotate, then shift."""

    flip: jax.Array  # [B] bool, left and right exchanged
    scale: jax.Array  # [B, 2] along columns and rows, > 1 enlarges
    rotation: jax.Array  # [B] degrees, anticlockwise on screen
    shift: jax.Array  # [B, 2] along columns and rows, as fraction of the image's width

    def sources(self, height: int, width: int) -> tuple[jax.Array, jax.Array]:
        """(columns, rows), each [B, H, W]: where in its input every pixel of the output lies."""
        rows, columns = jnp.mgrid[:height, :width].astype(jnp.float32)
        middle = (width - 1) / 2, (height - 1) / 2
        x = columns[None] - middle[0] - self._per_image(self.shift[:, 0]) * width
        y = rows[None] - middle[1] - self._per_image(self.shift[:, 1]) * width
        angle = self._per_image(jnp.deg2rad(self.rotation))
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        x, y = cosine * x - sine * y, sine * x + cosine * y
        x = x / self._per_image(self.scale[:, 0]) * self._per_image(1 - 2.0 * self.flip)
        y = y / self._per_image(self.scale[:, 1])
        return x + middle[0], y + middle[1]

    @staticmethod
    def _per_image(values):
        return values.astype(jnp.float32)[:, None, None]


def draw(keys, config) -> Transform:
    """One transform for each of the keys [B], under an `augment` section (see config.py)."""
    u = jax.vmap(lambda key: jax.random.uniform(key, (DRAWS,)))(keys)
    either = 2 * u - 1
    scale = jnp.exp(either[:, 2:4] * jnp.log1p(config.scale))
    scale = scale * jnp.exp(either[:, 4:5] * jnp.log1p(config.zoom))
    rotation, shift = either[:, 5] * config.rotation, either[:, 6:8] * config.shift
    moved = u[:, 1] < config.probability
    return Transform(
        flip=u[:, 0] < config.flip,
        scale=jnp.where(moved[:, None], scale, 1.0),
        rotation=jnp.where(moved, rotation, 0.0),
        shift=jnp.where(moved[:, None], shift, 0.0),
    )


def flips(config) -> tuple[bool, ...] | None:
    """Whether left and right are exchanged, in all the transforms that may be drawn.

    None where they may move an image in other ways, of which there is no end.
    """
    if config.probability and any((config.scale, config.zoom, config.rotation, config.shift)):
        return None
    return (False,) * (config.flip < 1) + (True,) * (config.flip > 0)


def flipping(flip) -> Transform:
    """Transforms that exchange left and right where `flip` [B] says so, and nothing else."""
    nothing = jnp.zeros(flip.shape)
    both = jnp.zeros((*flip.shape, 2))
    return Transform(flip=flip, scale=both + 1, rotation=nothing, shift=both)


def apply(transform: Transform, values, masks, air: float):
    """Warp values [B, K, H, W] float32 (linear) and masks [B, K, H, W] uint8 (nearest).

    What moves in from outside is `air` in the values and 0 in the masks.
    """
    columns, rows = transform.sources(*values.shape[-2:])
    return warp.linear(values, columns, rows, air), warp.nearest(masks, columns, rows)


def apply_to_contours(transform: Transform, edges):
    """Warp contours [B, H, W] uint8 of 0 and 1; none move in from outside.

    Interpolation is linear, and what keeps more than 50 of 255 is a contour, as in the original
    (transform.py), so that lines a pixel wide do not break.
    """
    columns, rows = transform.sources(*edges.shape[-2:])
    warped = warp.linear(255.0 * edges[:, None], columns, rows, 0.0)[:, 0]
    return (warped > 50).astype(jnp.uint8)
