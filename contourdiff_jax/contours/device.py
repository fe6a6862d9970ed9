# SPDX-License-Identifier: Apache-2.0
"""Contours on the device: those of opencv.py for a batch of slices, in a jitted function.

Canny and the blur before it are equal to OpenCV's to the bit (canny.py). Greys are computed in
float32 here and in float64 there, so a value that lies between two of them may differ by one.

Shapes: B images, H rows, W columns of the model grid; values are in the preset's units.
"""

import itertools

import jax
import jax.numpy as jnp

from contourdiff_jax.contours import canny
from contourdiff_jax.contours.disturbance import Disturbance
from contourdiff_jax.contours.settings import ContourSettings


def contours(greys, masks, settings: ContourSettings, change: Disturbance | None = None):
    """Edges of slices.

    Args:
      greys: [B, K, H, W] float32 in [0, 1], the pictures whose edges are united; see `greys`.
      masks: [B, H, W] uint8, the body; what lies outside becomes black.
      settings: how contours are taken.
      change: what disturbs them.

    Returns:
      [B, H, W] uint8, 1 on a contour and 0 elsewhere.
    """
    if change is None:
        return _united(greys, masks, settings)
    edges = _united(*change.displaced(greys, masks), settings, change)
    if change.doubled is not None:
        edges |= change.doubled[:, None, None] * _united(greys, masks, settings, change)
    return change.kept(edges)


def greys(values, settings: ContourSettings):
    """Values [B, H, W] float32 in the preset's units -> greys [B, K, H, W], one for each curve."""
    return jnp.stack([_curve(values, points) for points in settings.curves], 1)


def _united(greys, masks, settings, change=None):
    low, high = (
        jnp.full(len(masks), value, jnp.float32) for value in (settings.low, settings.high)
    )
    if change is not None:
        low, high = change.scaled(low), change.scaled(high)
    united = jnp.zeros(masks.shape, jnp.uint8)
    for grey in jnp.unstack(greys, axis=1):
        if change is not None:
            grey = change.grey(grey)
        image = jnp.round(255 * grey).astype(jnp.uint8) * (masks > 0)
        edges = canny.canny(canny.gaussian_blur(image, settings.blur), low, high) > 0
        if settings.apart:
            edges &= ~_near(united, settings.apart)
        united |= edges.astype(jnp.uint8)
    return united


def _curve(values, points):
    """Straight lines between points ((value, grey), ..), level beyond the ends.

    A sum of ramps: a gather for every pixel would cost more.
    """
    grey = jnp.full_like(values, points[0][1])
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        grey += jnp.clip((values - x) / (next_x - x), 0, 1) * (next_y - y)
    return grey


def _near(edges, reach: int):
    """Whether an edge lies within `reach` rows and columns."""
    window = (1, 2 * reach + 1, 2 * reach + 1)
    dilated = jax.lax.reduce_window(edges, jnp.uint8(0), jax.lax.max, window, (1, 1, 1), "SAME")
    return dilated > 0
