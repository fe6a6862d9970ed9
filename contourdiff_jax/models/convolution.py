# SPDX-License-Identifier: Apache-2.0
"""Convolutions of pictures, in the forms that compilers make the most of.

A convolution with one pixel is a product of matrices. With 3 x 3 pixels, XLA's own is as good as
any on an accelerator; on a CPU, three kinds that U-Nets are full of can be computed faster, and the
way is chosen when lowering. experiments/017_speed measured from where on each way is faster: the
numbers below. Patch critics and pix2pix's U-Net are made of convolutions with 4 x 4 pixels and a
stride of 2, of which the gradient would be slow there; as convolutions with 2 x 2 it is not.
Volumes are convolved there as pictures, slice by slice, several times as fast as by XLA's own
convolution in three dimensions (experiments/026_volumes).

Shapes: B batch, D slices, H rows, W columns, C features in, O features out.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from contourdiff_jax.models import winograd

# In pictures of up to SMALL pixels, a kernel of HEAVY elements a pixel costs more than the picture.
SMALL = 8 * 8
HEAVY = 512 * 512
MANY = 128  # from so many features in and out on, larger pictures are cut into tiles (winograd.py)
# Up to FEW features out, a kernel's gradient is computed from parts of ROWS rows, as if images.
FEW = 16
ROWS = 16
SAME = ((1, 1), (1, 1))  # padding of rows and columns around 3 x 3 pixels
# Of volumes, a kernel's gradient is that of parts of about PIXELS, of PARTS at most: each takes the
# compiler its time.
PIXELS = 4096
PARTS = 16


class Convolution1x1(nnx.Conv):
    """A convolution with one pixel over [B, *S, C], in any number of spatial dimensions."""

    def __call__(self, x):
        return _applied(self, lambda x, kernel: x @ kernel.reshape(kernel.shape[-2:]), x)


class Convolution3x3(nnx.Conv):
    """A convolution with stride 1 and a pixel of padding over [B, H, W, C]."""

    def __call__(self, x):
        return _applied(self, convolve, x)


class Convolution1x3x3(nnx.Conv):
    """The same within every slice of [B, D, H, W, C]."""

    def __call__(self, x):
        return _applied(self, convolve_slices, x)


class Convolution3x3x3(nnx.Conv):
    """A convolution with stride 1 and an element of padding over [B, D, H, W, C]."""

    def __call__(self, x):
        return _applied(self, convolve_volume, x)


def _applied(layer: nnx.Conv, convolved: Callable, x):
    """The layer's value, where `convolved` is (x, kernel) -> x, convolved."""
    x, kernel, bias = layer.promote_dtype(
        (x, layer.kernel[...], layer.bias[...]), dtype=layer.dtype
    )
    return convolved(x, kernel) + bias.reshape(*(1,) * (x.ndim - 1), -1)


@jax.custom_vjp
def convolve(x, kernel):
    """x [B, H, W, C], kernel [3, 3, C, O] -> [B, H, W, O], zeros beyond the border."""
    if _outweighed(x, kernel):
        form = _as_product
    elif _tiled(x, kernel):
        form = winograd.value
    else:
        return _by_xla(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=form, default=_by_xla)


def _forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _backward(saved, gradient):
    return jax.lax.platform_dependent(
        *saved,
        gradient,
        cpu=_gradients_on_a_cpu,
        cuda=_gradients_on_cuda,
        default=_gradients_by_xla,
    )


convolve.defvjp(_forward, _backward)


def _by_xla(x, kernel, padding=SAME):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _gradients_by_xla(x, kernel, gradient):
    return jax.vjp(_by_xla, x, kernel)[1](gradient)


def _gradients_on_cuda(x, kernel, gradient):
    """That of the kernel as kernels lie in memory.

    cuDNN gives it with O first. Left so, XLA brings all that is computed of it into that order, and
    back: the parameters, their average and both moments of Adam, in every step.
    """
    of_x, of_kernel = _gradients_by_xla(x, kernel, gradient)
    return of_x, with_layout_constraint(of_kernel, Layout(major_to_minor=(0, 1, 2, 3)))


def _gradients_on_a_cpu(x, kernel, gradient):
    if _outweighed(x, kernel):
        return jax.vjp(_as_product, x, kernel)[1](gradient)
    if _tiled(x, kernel):
        return winograd.gradients(x, kernel, gradient)
    of_x, of_kernel = _gradients_in_order(x, kernel, gradient)  # what is replaced is not computed
    if kernel.shape[3] <= FEW and x.shape[1] > ROWS and x.shape[1] % ROWS == 0:
        of_kernel = _of_kernel(_as_images(x, 1), _as_images(gradient, 0), kernel)
    return of_x, of_kernel


def _outweighed(x, kernel) -> bool:
    """Whether pictures are so small that reading the kernel, once and in order, counts most."""
    _, rows, columns, features = x.shape
    return rows * columns <= SMALL and features * kernel.shape[3] >= HEAVY


def _tiled(x, kernel) -> bool:
    """Whether in tiles most of the work would be products of matrices."""
    _, rows, columns, _ = x.shape
    even = rows % 2 == columns % 2 == 0 and rows * columns > SMALL
    return even and min(kernel.shape[2:]) >= MANY and x.dtype == jnp.float32


def _as_product(x, kernel):
    """The convolution as one product of matrices: every pixel's neighbourhood, and the kernel."""
    rows, columns = x.shape[1:3]
    padded = _padded(x)
    neighbours = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return jnp.concatenate(neighbours, -1) @ kernel.reshape(-1, kernel.shape[3])


def _padded(x):
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _as_images(x, beyond: int):
    """Parts of ROWS rows, with `beyond` more on either side, as images: [B n, ...].

    Parts of an image follow one another: where B is sharded, nothing has to move.
    """
    padded = jnp.pad(x, ((0, 0), (beyond, beyond), (0, 0), (0, 0)))
    parts = [padded[:, i : i + ROWS + 2 * beyond] for i in range(0, x.shape[1], ROWS)]
    return jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:])


def _of_kernel(x, gradient, kernel):
    """Gradient [3, 3, C, O] for x [B, H + 2, W, C], with a row more on either side."""
    return _kernel_in_order(x, gradient, ((0, 0), (1, 1)))


def _gradients_in_order(x, kernel, gradient, padding=SAME):
    """Gradients of `_by_xla`, as convolutions with their axes in the usual order.

    XLA brings others into that order, in which alone they are fast on a CPU, but not within a loop,
    such as that over the parts of a batch (config.train.accumulate).
    """
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    beyond = [
        (size - 1 - near, size - 1 - far)
        for size, (near, far) in zip(kernel.shape, padding, strict=False)
    ]
    return _by_xla(gradient, turned, beyond), _kernel_in_order(x, gradient, padding)


def _kernel_in_order(x, gradient, padding=SAME):
    """Gradient [n, n, C, O]: each of C features is a picture, the O of the result are kernels."""
    of_kernel = _by_xla(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), padding)
    return of_kernel.transpose(1, 2, 0, 3)


# --------------------------------------------------------------------------------------------------
# Others: volumes; 4 x 4 pixels with a stride of 2; and large kernels to few features
# --------------------------------------------------------------------------------------------------


def _by_platform(on_a_cpu, elsewhere):
    """A function of (x, kernel) with two forms, of which one is lowered, in its gradient too."""

    @jax.custom_vjp
    def function(x, kernel):
        return jax.lax.platform_dependent(x, kernel, cpu=on_a_cpu, default=elsewhere)

    def backward(saved, gradient):
        def of(form):
            return lambda x, kernel, gradient: jax.vjp(form, x, kernel)[1](gradient)

        return jax.lax.platform_dependent(*saved, gradient, cpu=of(on_a_cpu), default=of(elsewhere))

    function.defvjp(lambda x, kernel: (function(x, kernel), (x, kernel)), backward)
    return function


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def slide(x, kernel, padding: int):
    """A convolution with a stride of 1 and so many zeros around x [B, H, W, C]."""
    return _by_xla(x, kernel, ((padding, padding),) * 2)


def _slid(padding, saved, gradient):
    sides = ((padding, padding),) * 2

    def by_xla(x, kernel, gradient):
        return jax.vjp(lambda *given: _by_xla(*given, sides), x, kernel)[1](gradient)

    in_order = functools.partial(_gradients_in_order, padding=sides)
    return jax.lax.platform_dependent(*saved, gradient, cpu=in_order, default=by_xla)


slide.defvjp(lambda x, kernel, padding: (slide(x, kernel, padding), (x, kernel)), _slid)


def _convolved(x, kernel, stride: int = 1, padding: int = 0, dilation: int = 1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding),) * 2,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def convolve_slices(x, kernel):
    """x [B, D, H, W, C], kernel [1, 3, 3, C, O] -> [B, D, H, W, O]: `convolve` of every slice."""
    return convolve(_as_slices(x), kernel[0]).reshape(*x.shape[:-1], -1)


def _slices_backward(saved, gradient):
    return jax.lax.platform_dependent(
        *saved, gradient, cpu=_gradients_of_slices_on_a_cpu, default=_gradients_of_slices
    )


convolve_slices.defvjp(
    lambda x, kernel: (convolve_slices(x, kernel), (x, kernel)), _slices_backward
)


def _gradients_of_slices(x, kernel, gradient):
    pull = jax.vjp(convolve, _as_slices(x), kernel[0])[1]
    of_x, of_kernel = pull(_as_slices(gradient))
    return of_x.reshape(x.shape), of_kernel[None]


def _gradients_of_slices_on_a_cpu(x, kernel, gradient):
    """That of the kernel is summed over parts of the slices, each of which a cache holds.

    All of B are in every part: where B is sharded, nothing has to move.
    """
    of_x, of_kernel = _gradients_of_slices(x, kernel, gradient)
    batch, depth, rows, columns, _ = x.shape
    count = max(PIXELS // (batch * rows * columns), -(-depth // PARTS), 1)
    if count < depth and not _tiled(_as_slices(x), kernel[0]):
        parts = [slice(first, first + count) for first in range(0, depth, count)]
        of_kernel = sum(_gradients_of_slices(x[:, p], kernel, gradient[:, p])[1] for p in parts)
    return of_x, of_kernel


def _as_slices(x):
    return x.reshape(-1, *x.shape[2:])


def _summed_by_slices(x, kernel):
    """What every slice adds to the one before, to itself and to the one after, then their sums.

    The three are features of one convolution of pictures: nothing of x is copied for it.
    """
    depth, (features, outputs) = x.shape[1], kernel.shape[3:]
    flat = kernel.transpose(1, 2, 3, 0, 4).reshape(1, 3, 3, features, 3 * outputs)
    parts = convolve_slices(x, flat).reshape(*x.shape[:-1], 3, outputs)
    parts = jnp.pad(parts, ((0, 0), (1, 1), *((0, 0),) * 4))
    return sum(parts[:, i : i + depth, :, :, i] for i in range(3))


def _volume_by_xla(x, kernel):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1, 1),
        padding=((1, 1),) * 3,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def _halved_by_pairs(x, kernel):
    """Each 2 x 2 pixels become features of one, and the kernel's 4 x 4 become 2 x 2 of those."""
    batch, rows, columns, features = x.shape
    # Of an odd number of rows, the last is not centred on.
    x = jnp.pad(x, ((0, 0), (1, 1 - rows % 2), (1, 1 - columns % 2), (0, 0)))
    x = x.reshape(batch, x.shape[1] // 2, 2, x.shape[2] // 2, 2, features)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, x.shape[1], x.shape[3], -1)
    kernel = kernel.reshape(2, 2, 2, 2, features, -1).transpose(0, 2, 1, 3, 4, 5)
    return slide(x, kernel.reshape(2, 2, 4 * features, -1), 0)


def _doubled_by_pairs(x, kernel):
    """Outputs 2 i are x_{i-1} k_3 + x_i k_1, and outputs 2 i - 1 are x_{i-1} k_2 + x_i k_0.

    So along both axes all four kinds come of the same two pixels: features of one convolution.
    """
    _, rows, columns, features = x.shape
    # Turned, the kernel's rows and columns are those of the first pixel and those of the second.
    kernel = kernel[::-1, ::-1].reshape(2, 2, 2, 2, features, -1).transpose(0, 2, 4, 1, 3, 5)
    # With padding of its own, the kernel's gradient would take a hundred times as long.
    y = slide(_padded(x), kernel.reshape(2, 2, features, -1), 0)
    y = y.reshape(*y.shape[:3], 2, 2, -1)
    y = jnp.stack([y[:, :rows, :, 0], y[:, 1:, :, 1]], 2)
    y = jnp.stack([y[:, :, :, :columns, 0], y[:, :, :, 1:, 1]], 4)
    return y.reshape(-1, 2 * rows, 2 * columns, y.shape[-1])


def _reduced_by_products(x, kernel):
    """All elements of the kernel with every pixel, as one product of matrices, then their sums."""
    side, _, features, outputs = kernel.shape
    products = x @ kernel.transpose(2, 0, 1, 3).reshape(features, -1)
    products = products.reshape(*x.shape[:3], side, side, outputs)
    rows, columns = (extent - side + 1 for extent in x.shape[1:3])
    return sum(
        products[:, i : i + rows, j : j + columns, i, j] for i in range(side) for j in range(side)
    )


# convolve_volume: x [B, D, H, W, C], kernel [3, 3, 3, C, O] -> [B, D, H, W, O], zeros beyond.
convolve_volume = _by_platform(_summed_by_slices, _volume_by_xla)
# halve: x [B, H, W, C], kernel [4, 4, C, O] -> [B, H // 2, W // 2, O].
halve = _by_platform(_halved_by_pairs, lambda x, kernel: _convolved(x, kernel, stride=2, padding=1))
# to_few: to an image of few features, by a larger kernel and without padding:
# x [B, H, W, C], kernel [n, n, C, O] -> [B, H - n + 1, W - n + 1, O].
to_few = _by_platform(_reduced_by_products, _convolved)
# double: the transposed convolution, x [B, H, W, C], kernel [4, 4, C, O] -> [B, 2 H, 2 W, O], as
# torch's ConvTranspose2d(4, stride=2, padding=1).
double = _by_platform(
    _doubled_by_pairs,
    lambda x, kernel: _convolved(x, kernel[::-1, ::-1], padding=2, dilation=2),
)
