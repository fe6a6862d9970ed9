# SPDX-License-Identifier: Apache-2.0
"""Convolutions of 3 x 3 pixels, with gradients that a CPU computes as fast as the convolutions.

XLA's gradients run there at a third of the speed, or a fifth, in three cases that U-Nets are full
of; elsewhere, and on every other device, XLA's own are used. Measured in experiments/017_speed,
where the numbers below come from.

Shapes: B batch, H rows, W columns, C features in, O features out.
"""

import jax
import jax.numpy as jnp
from flax import nnx

FEW = 16  # features out, up to which rows are taken for further images
MANY = 128  # features in, from which pictures of LARGE rows or more are taken in parts
LARGE = 96
ROWS = 16  # in a part
SMALL = 8 * 8  # pixels, up to which a kernel of HEAVY elements a pixel costs more than the picture
HEAVY = 512 * 512


class Convolution3x3(nnx.Conv):
    """A convolution with stride 1 and a pixel of padding over [B, H, W, C]."""

    def __call__(self, x):
        x, kernel, bias = self.promote_dtype(
            (x, self.kernel[...], self.bias[...]), dtype=self.dtype
        )
        return convolve(x, kernel) + bias[None, None, None]


def _plain(x, kernel, rows_padded: int = 1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((rows_padded, rows_padded), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def convolve(x, kernel):
    """x [B, H, W, C], kernel [3, 3, C, O] -> [B, H, W, O], zeros beyond the border."""
    return _plain(x, kernel)


def _forward(x, kernel):
    return _plain(x, kernel), (x, kernel)


def _backward(saved, gradient):
    return jax.lax.platform_dependent(*saved, gradient, cpu=_on_a_cpu, default=_by_xla)


convolve.defvjp(_forward, _backward)


def _by_xla(x, kernel, gradient):
    return jax.vjp(_plain, x, kernel)[1](gradient)


def _on_a_cpu(x, kernel, gradient):
    of_x, of_kernel = _by_xla(x, kernel, gradient)  # what is replaced below is never computed
    _, rows, columns, features = x.shape
    if rows * columns <= SMALL and features * kernel.shape[3] >= HEAVY:
        of_x = _of_picture(kernel, gradient)
    if rows > ROWS and rows % ROWS == 0:
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
        firsts = range(0, rows, ROWS)
        parts = [padded[:, first : first + ROWS + 2] for first in firsts]
        gradients = [gradient[:, first : first + ROWS] for first in firsts]
        if kernel.shape[3] <= FEW:
            of_kernel = _of_kernel(_as_images(parts), _as_images(gradients), kernel)
        elif features >= MANY and rows >= LARGE:
            pairs = zip(parts, gradients, strict=True)
            of_kernel = sum(_of_kernel(part, given, kernel) for part, given in pairs)
    return of_x, of_kernel


def _as_images(parts):
    """n parts [B, ...] -> [B n, ...]; images stay where they are when B is sharded."""
    return jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:])


def _of_kernel(x, gradient, kernel):
    """Gradient [3, 3, C, O] of x [B, H + 2, W, C], whose rows have their neighbours."""
    return jax.vjp(lambda kernel: _plain(x, kernel, rows_padded=0), kernel)[1](gradient)[0]


def _of_picture(kernel, gradient):
    """Gradient [B, H, W, C]: a product of matrices for each of the nine places, none transposed."""
    rows, columns = gradient.shape[1:3]
    padded = jnp.pad(gradient, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        jnp.einsum("bhwo,co->bhwc", padded[:, 2 - i : 2 - i + rows, 2 - j : 2 - j + columns], tap)
        for i, line in enumerate(kernel)
        for j, tap in enumerate(line)
    )
