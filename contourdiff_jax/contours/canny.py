# SPDX-License-Identifier: Apache-2.0
"""Canny edges and the Gaussian blur before them, in JAX: OpenCV's, bit for bit, inside jit.

Canny 1986 (A Computational Approach to Edge Detection, IEEE PAMI 8(6)) leaves open how the gradient
is taken, how its direction is rounded and what happens at borders and ties. All this follows
OpenCV 5.0 (modules/imgproc/src/canny.cpp and smooth.dispatch.cpp), for one channel, 8 bits and the
3x3 Sobel gradient. Whole numbers are exact, so every device gives the same edges.

Shapes: B images, H rows, W columns, V = ceil(H / 32) words of a column.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# OpenCV's kernels of these widths and no given sigma; fractions of their sums, which are powers of
# two, so 8 bits of fraction hold them. Those of wider ones are rounded.
KERNELS = {
    1: (1,),
    3: (1, 2, 1),
    5: (1, 4, 6, 4, 1),
    7: (2, 7, 14, 18, 14, 7, 2),
    9: (4, 13, 30, 51, 60, 51, 30, 13, 4),
}
TANGENT = 13573  # of 22.5 degrees, times 2^15, rounded
LIMIT = 2048  # above every magnitude: the Sobel gradient of 8 bits has components up to 1020
DILATIONS = 4  # between two tests of convergence, which cost a GPU more than a few in vain


def gaussian_blur(image: jax.Array, width: int = 3) -> jax.Array:
    """cv2.GaussianBlur(image, (width, width), 0).

    Both directions are summed exactly and rounded once, half up. The image is mirrored about its
    border pixels (BORDER_REFLECT_101).

    Args:
      image: [B, H, W] uint8.
      width: of the kernel in pixels, one of KERNELS; static.

    Returns:
      [B, H, W] uint8.

    Raises ValueError for a width whose kernel 8 bits do not hold.
    """
    if width not in KERNELS:
        raise ValueError(f"width {width} is none of {', '.join(map(str, KERNELS))}")
    kernel = KERNELS[width]
    total = sum(kernel) ** 2
    # 16 bits vectorise twice as well, and suffice up to width 5.
    dtype = np.uint16 if 255 * total + total // 2 < 2**16 else np.uint32
    blurred = image.astype(dtype)
    for axis in (1, 2):
        border = [(0, 0)] * 3
        border[axis] = (width // 2, width // 2)
        padded = jnp.pad(blurred, border, mode="reflect")
        blurred = sum(
            dtype(weight) * lax.slice_in_dim(padded, i, i + image.shape[axis], axis=axis)
            for i, weight in enumerate(kernel)
        )
    return ((blurred + dtype(total // 2)) // dtype(total)).astype(jnp.uint8)


def canny(image: jax.Array, low, high, *, l2_gradient: bool = False) -> jax.Array:
    """cv2.Canny(image, low, high, apertureSize=3, L2gradient=l2_gradient).

    Args:
      image: [B, H, W] uint8.
      low, high: hysteresis thresholds, of all images or [B], in either order, whole or not, traced
        or not; traced ones have single precision. (From 2^31 on they overflow in OpenCV; here
        nothing exceeds them.)
      l2_gradient: whether the magnitude is the root of the sum of squares, not the sum of absolute
        values; static.

    Returns:
      [B, H, W] uint8, 255 on an edge and 0 elsewhere.
    """
    dx, dy = _sobel(image)
    x, y = jnp.abs(dx), jnp.abs(dy)
    magnitude = x.astype(jnp.int32) ** 2 + y.astype(jnp.int32) ** 2 if l2_gradient else x + y
    peaks = _peaks(magnitude, dx, dy)
    first, second = (_floor(threshold, l2_gradient) for threshold in (low, high))
    weak, strong = (
        _pack(peaks & (magnitude > threshold.astype(magnitude.dtype)))
        for threshold in (jnp.minimum(first, second), jnp.maximum(first, second))
    )
    return 255 * _unpack(_reached(weak, strong), image.shape[1])


def _floor(threshold, squared: bool) -> jax.Array:
    """The largest whole number [B or 1, 1, 1] that does not exceed a threshold, or its square.

    A negative threshold counts as 0: the magnitude of a peak is above 0 anyway.
    """
    if isinstance(threshold, jax.Array):
        threshold = jnp.clip(threshold.astype(jnp.float32), 0, LIMIT)
        floor = _floor_of_square(threshold) if squared else jnp.floor(threshold)
    else:
        threshold = np.clip(np.asarray(threshold, np.float64), 0, LIMIT)
        floor = np.floor(threshold**2 if squared else threshold)
    return jnp.reshape(jnp.asarray(floor, jnp.int32), (-1, 1, 1))


def _floor_of_square(x: jax.Array) -> jax.Array:
    """floor(x²) of float32 0 <= x <= 2048; in single precision the square itself is rounded."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    mantissa = bits & 0x7FFFFF | 0x800000  # x = mantissa · 2^(exponent - 150) from 1 on
    exponent = bits >> 23
    upper, lower = mantissa >> 12, mantissa & 0xFFF
    # Of mantissa² = upper²·2^24 + 2·upper·lower·2^12 + lower², what is left of the last 24 bits.
    square = upper**2 + ((2 * upper * lower + (lower**2 >> 12)) >> 12)
    return jnp.where(x < 1, 0, square >> (276 - 2 * exponent))


def _sobel(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The 3x3 Sobel gradient along columns and rows, [B, H, W] int16; border pixels continue."""
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge").astype(jnp.int16)
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return down[:, :, 2:] - down[:, :, :-2], across[:, 2:] - across[:, :-2]


def _peaks(magnitude: jax.Array, dx: jax.Array, dy: jax.Array) -> jax.Array:
    """Where the magnitude [B, H, W] is a maximum along the gradient: bool [B, H, W].

    Outside the image it is 0. Of equals along a row or column the last is the peak, along
    a diagonal none is.
    """
    _, height, width = magnitude.shape
    padded = jnp.pad(magnitude, ((0, 0), (1, 1), (1, 1)))

    def neighbour(row, column):
        return padded[:, 1 + row :, 1 + column :][:, :height, :width]

    x, y = jnp.abs(dx), jnp.abs(dy)
    # x·tan(22.5°), rounded down; tan(67.5°) is 2 more.
    tangent = ((x.astype(jnp.int32) * TANGENT) >> 15).astype(jnp.int16)
    horizontal, vertical, falling = y <= tangent, y > 2 * x + tangent, (dx ^ dy) >= 0
    before = jnp.where(
        horizontal,
        neighbour(0, -1),
        jnp.where(
            vertical, neighbour(-1, 0), jnp.where(falling, neighbour(-1, -1), neighbour(-1, 1))
        ),
    )
    after = jnp.where(
        horizontal,
        neighbour(0, 1),
        jnp.where(vertical, neighbour(1, 0), jnp.where(falling, neighbour(1, 1), neighbour(1, -1))),
    )
    ties = horizontal | vertical
    return (magnitude > before) & ((magnitude > after) | (ties & (magnitude == after)))


def _pack(mask: jax.Array) -> jax.Array:
    """[B, H, W] bool -> [B, V, W] uint32: bit i of a word is row i of its 32."""
    batch, height, width = mask.shape
    rows = jnp.pad(mask, ((0, 0), (0, -height % 32), (0, 0))).reshape(batch, -1, 32, width)
    return sum(rows[:, :, i].astype(jnp.uint32) << i for i in range(32))


def _unpack(words: jax.Array, height: int) -> jax.Array:
    """[B, V, W] uint32 -> [B, H, W] uint8 of 0 and 1."""
    batch, _, width = words.shape
    numbers = jnp.arange(32, dtype=jnp.uint32).reshape(1, 1, 32, 1)
    bits = (words[:, :, None] >> numbers & 1).astype(jnp.uint8)
    return bits.reshape(batch, -1, width)[:, :height]


def _reached(weak: jax.Array, strong: jax.Array) -> jax.Array:
    """The pixels of `weak` that chains of its pixels, side by side or cornerwise, join to `strong`.

    Both are packed [B, V, W], and so is what is returned.
    """

    def grow(state):
        _, edges = state
        grown = edges
        for _ in range(DILATIONS):
            grown = weak & _dilate(grown)
        return jnp.any(grown != edges), grown

    return lax.while_loop(lambda state: state[0], grow, (jnp.any(strong != 0), strong))[1]


def _dilate(words: jax.Array) -> jax.Array:
    """Packed pixels [B, V, W] and their eight neighbours."""
    padded = jnp.pad(words, ((0, 0), (1, 1), (1, 1)))
    across = padded[:, :, :-2] | padded[:, :, 1:-1] | padded[:, :, 2:]
    above, here, below = across[:, :-2], across[:, 1:-1], across[:, 2:]
    return here | here << 1 | here >> 1 | above >> 31 | below << 31
