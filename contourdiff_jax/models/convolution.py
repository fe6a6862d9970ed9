# SPDX-License-Identifier: Apache-2.0
"""Convolutions of pictures, in the forms that compilers make the most of.

Of one pixel, a convolution is a product of matrices. Of 3 x 3 pixels, XLA's is as good as any on
an accelerator; on a CPU its gradients run at a half to a fifth of the convolution's speed in three
cases that U-Nets are full of, and have forms of their own there, chosen when lowering. Where they
begin to pay, the numbers below, is measured in experiments/017_speed.

Shapes: B batch, H rows, W columns, C features in, O features out.
"""

import jax
import jax.numpy as jnp
from flax import nnx

SMALL = 8 * 8  # pixels, up to which a kernel of HEAVY elements a pixel costs more than the picture
HEAVY = 512 * 512
FEW = 16  # features out, up to which parts of ROWS rows are taken for further images
ROWS = 16
MANY = 128  # features in and out, from which the kernel's gradient is a sum over parts
PART = 8  # rows in each, in pictures of FROM rows or more
FROM = 32


class Convolution1x1(nnx.Conv):
    """A convolution of one pixel over [B, *S, C], S any number of spatial dimensions."""

    def __call__(self, x):
        x, kernel, bias = self.promote_dtype(
            (x, self.kernel[...], self.bias[...]), dtype=self.dtype
        )
        return x @ kernel.reshape(kernel.shape[-2:]) + bias.reshape(*(1,) * (x.ndim - 1), -1)


class Convolution3x3(nnx.Conv):
    """A convolution with stride 1 and a pixel of padding over [B, H, W, C]."""

    def __call__(self, x):
        x, kernel, bias = self.promote_dtype(
            (x, self.kernel[...], self.bias[...]), dtype=self.dtype
        )
        return convolve(x, kernel) + bias[None, None, None]


@jax.custom_vjp
def convolve(x, kernel):
    """x [B, H, W, C], kernel [3, 3, C, O] -> [B, H, W, O], zeros beyond the border."""
    if not _outweighed(x, kernel):
        return _by_xla(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_as_product, default=_by_xla)


def _forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _backward(saved, gradient):
    return jax.lax.platform_dependent(
        *saved, gradient, cpu=_gradients_on_a_cpu, default=_gradients_by_xla
    )


convolve.defvjp(_forward, _backward)


def _by_xla(x, kernel, rows_padded: int = 1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((rows_padded, rows_padded), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _gradients_by_xla(x, kernel, gradient):
    return jax.vjp(_by_xla, x, kernel)[1](gradient)


def _gradients_on_a_cpu(x, kernel, gradient):
    if _outweighed(x, kernel):
        return jax.vjp(_as_product, x, kernel)[1](gradient)
    of_x, of_kernel = _gradients_by_xla(x, kernel, gradient)  # what is replaced is not computed
    rows, (features_in, features_out) = x.shape[1], kernel.shape[2:]
    if features_out <= FEW and rows > ROWS and rows % ROWS == 0:
        pieces, gradients = _parts(x, gradient, ROWS)
        of_kernel = _of_kernel(_as_images(pieces), _as_images(gradients), kernel)
    elif min(features_in, features_out) >= MANY and rows >= FROM and rows % PART == 0:
        pairs = zip(*_parts(x, gradient, PART), strict=True)
        of_kernel = sum(_of_kernel(part, given, kernel) for part, given in pairs)
    return of_x, of_kernel


def _outweighed(x, kernel) -> bool:
    """Whether pictures are so small that a kernel should be read as it lies, and once."""
    _, rows, columns, features = x.shape
    return rows * columns <= SMALL and features * kernel.shape[3] >= HEAVY


def _as_product(x, kernel):
    """The convolution as one product of matrices: every pixel's neighbourhood, and the kernel."""
    rows, columns = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return jnp.concatenate(places, -1) @ kernel.reshape(-1, kernel.shape[3])


def _parts(x, gradient, size: int):
    """Parts of `size` rows: of x with the row before and the row after them, and of `gradient`."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    firsts = range(0, x.shape[1], size)
    pieces = [padded[:, first : first + size + 2] for first in firsts]
    return pieces, [gradient[:, first : first + size] for first in firsts]


def _as_images(parts):
    """n parts [B, ...] -> [B n, ...]; images stay where they are when B is sharded."""
    return jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:])


def _of_kernel(x, gradient, kernel):
    """Gradient [3, 3, C, O] of x [B, H + 2, W, C], whose rows have their neighbours."""
    return jax.vjp(lambda kernel: _by_xla(x, kernel, rows_padded=0), kernel)[1](gradient)[0]
