# SPDX-License-Identifier: Apache-2.0
"""Coupling: neighbouring slices that agree while they are drawn.

At every step a slice's estimate of x_0 moves towards the mean of its two neighbours'. That takes
all slices of a volume at the same step; the network sees them in parts, so that memory grows by the
slices, not by what the network keeps of them.

Shapes: N slices, B of them at once (N a multiple of it), *S space, C channels (last).
"""

from collections.abc import Callable

import jax


def in_parts(denoiser: Callable, condition, batch: int) -> Callable:
    """denoise(z_t [N, *S, C], t) -> x_0, with `denoiser` (condition -> denoise) for B at a time."""

    # Parts take every n-th slice, so that each is spread over the devices as the whole is.
    def split(a):
        return a.reshape(batch, -1, *a.shape[1:]).swapaxes(0, 1)

    def denoise(z_t, t):
        def part(piece):
            z_t, condition = piece
            return denoiser(condition)(z_t, t)

        x_0 = jax.lax.map(part, jax.tree.map(split, (z_t, condition)))
        return x_0.swapaxes(0, 1).reshape(z_t.shape)

    return denoise


def coupled(denoise: Callable, beside, share: float) -> Callable:
    """`denoise` with estimates each of which is mixed with the mean of its two neighbours'.

    Args:
      beside: [N, 2] integers, the neighbours of each slice; at the ends twice the same.
      share: of the neighbours' mean in the mixture.
    """

    def agreed(z_t, t):
        x_0 = denoise(z_t, t)
        mean = (x_0[beside[:, 0]] + x_0[beside[:, 1]]) / 2
        return (1 - share) * x_0 + share * mean

    return agreed
