# SPDX-License-Identifier: Apache-2.0
"""Warping on the device: values between pixels, and the pixel next to a point.

Shapes: B images, K slices that move together, H rows, W columns.
"""

import jax.numpy as jnp


def linear(images, columns, rows, fill: float):
    """Images [B, K, H, W] float32 at points [B, H', W'] of theirs, between four pixels.

    A pixel outside is `fill`.
    """
    left, top = jnp.floor(columns), jnp.floor(rows)
    x, y = (columns - left)[:, None], (rows - top)[:, None]
    at = _Gather(images, fill)
    upper = (1 - x) * at(left, top) + x * at(left + 1, top)
    lower = (1 - x) * at(left, top + 1) + x * at(left + 1, top + 1)
    return (1 - y) * upper + y * lower


def nearest(images, columns, rows):
    """Images [B, K, H, W] at the pixel next to points [B, H', W']; 0 outside."""
    return _Gather(images, 0)(jnp.round(columns), jnp.round(rows))


class _Gather:
    """Pixels of images [B, K, H, W] by whole numbers (columns, rows), each [B, H', W'].

    A frame of `fill` a pixel wide takes all that lies outside, so that nothing has to be asked.
    """

    def __init__(self, images, fill):
        self.height, self.width = images.shape[-2:]
        frame = ((0, 0), (0, 0), (1, 1), (1, 1))
        framed = jnp.pad(images, frame, constant_values=fill)
        self.flat = framed.reshape(*images.shape[:2], -1)

    def __call__(self, columns, rows):
        x = jnp.clip(columns, -1, self.width).astype(jnp.int32) + 1
        y = jnp.clip(rows, -1, self.height).astype(jnp.int32) + 1
        index = (y * (self.width + 2) + x).reshape(len(x), 1, -1)
        pixels = jnp.take_along_axis(self.flat, index, axis=2, mode="promise_in_bounds")
        return pixels.reshape(*self.flat.shape[:2], *x.shape[1:])
