# SPDX-License-Identifier: Apache-2.0
"""The network of FID and KID: InceptionV3 as released for TensorFlow on 2015-12-05.

Szegedy et al., arXiv 1512.00567, with the peculiarities of that release: averages leave out the
padding, the last block has a maximum in place of its average, and there are 1008 classes, which
features do not need. Names are those of the weights, https://github.com/mseitzer/pytorch-fid
(Apache-2.0), so that each line can be found in the file; normalisation by the training's statistics
is folded into the convolutions.

Legend: B batch, H rows, W columns, C channels; convolutions' kernels are [rows, columns, in, out].
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contourdiff_jax.errors import InputError

SIDE = 299  # pixels
FEATURES = 2048
EPSILON = 1e-3  # of batch normalisation
WINDOW = (1, 3, 3, 1)

# A convolution with a bias and a rectifier: (name, x, width, window, stride=1, padding="SAME").
Convolve = Callable[..., jax.Array]


def apply(params: dict, images: jax.Array) -> jax.Array:
    """Features [B, 2048] float32 of images [B, 299, 299, 3] float32 in about [-1, 1]."""
    return _network(functools.partial(_convolve, params), images)


def init(key: jax.Array) -> dict:
    """Random parameters {name: {"kernel", "bias"}} that keep the scale of what passes through."""
    params = {}
    for number, (name, shape) in enumerate(shapes().items()):
        scale = np.sqrt(2 / np.prod(shape[:3]))
        kernel = scale * jax.random.normal(jax.random.fold_in(key, number), shape)
        params[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
    return params


@functools.cache
def shapes() -> dict[str, tuple[int, int, int, int]]:
    """The shape of every convolution's kernel, by name, in the order they are applied."""
    kernels = {}

    def record(name, x, width, window, stride=1, padding="SAME"):
        kernels[name] = (*window, x.shape[-1], width)
        zeros = {"kernel": jnp.zeros(kernels[name]), "bias": jnp.zeros(width)}
        return _convolve({name: zeros}, name, x, width, window, stride, padding)

    jax.eval_shape(functools.partial(_network, record), jnp.zeros((1, SIDE, SIDE, 3)))
    return kernels


def fold(tensors: Mapping[str, np.ndarray]) -> dict:
    """Parameters from the tensors of the released file, by name.

    Raises:
      InputError: one is missing, or of another shape.
    """

    def tensor(name, *shape):
        if name not in tensors:
            raise InputError(f"{name} is missing")
        if tensors[name].shape != shape:
            raise InputError(f"{name} has shape {tensors[name].shape}, not {shape}")
        return tensors[name].astype(np.float64)

    params = {}
    for name, (rows, columns, inputs, width) in shapes().items():
        kernel = tensor(f"{name}.conv.weight", width, inputs, rows, columns)
        scale, shift, mean, variance = (
            tensor(f"{name}.bn.{field}", width)
            for field in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + EPSILON)
        params[name] = {
            "kernel": np.float32(kernel.transpose(2, 3, 1, 0) * scale),
            "bias": np.float32(shift - mean * scale),
        }
    return params


# ----------------------------------------------------------------------------------------------
# The network
# ----------------------------------------------------------------------------------------------


def _network(convolve: Convolve, x: jax.Array) -> jax.Array:
    x = convolve("Conv2d_1a_3x3", x, 32, (3, 3), 2, "VALID")
    x = convolve("Conv2d_2a_3x3", x, 32, (3, 3), 1, "VALID")
    x = convolve("Conv2d_2b_3x3", x, 64, (3, 3))
    x = _maximum(x, 2, "VALID")
    x = convolve("Conv2d_3b_1x1", x, 80, (1, 1))
    x = convolve("Conv2d_4a_3x3", x, 192, (3, 3), 1, "VALID")
    x = _maximum(x, 2, "VALID")
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _block_a(_within(convolve, name), x, pooled)
    x = _block_b(_within(convolve, "Mixed_6a"), x)
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _block_c(_within(convolve, name), x, width)
    x = _block_d(_within(convolve, "Mixed_7a"), x)
    x = _block_e(_within(convolve, "Mixed_7b"), x, _average)
    x = _block_e(_within(convolve, "Mixed_7c"), x, _maximum)
    return x.mean((1, 2))


def _within(convolve: Convolve, block: str) -> Convolve:
    return lambda name, *arguments: convolve(f"{block}.{name}", *arguments)


def _block_a(convolve: Convolve, x: jax.Array, pooled: int) -> jax.Array:
    five = convolve("branch5x5_1", x, 48, (1, 1))
    five = convolve("branch5x5_2", five, 64, (5, 5))
    three = convolve("branch3x3dbl_1", x, 64, (1, 1))
    three = convolve("branch3x3dbl_2", three, 96, (3, 3))
    three = convolve("branch3x3dbl_3", three, 96, (3, 3))
    pool = convolve("branch_pool", _average(x), pooled, (1, 1))
    return jnp.concatenate([convolve("branch1x1", x, 64, (1, 1)), five, three, pool], -1)


def _block_b(convolve: Convolve, x: jax.Array) -> jax.Array:
    three = convolve("branch3x3", x, 384, (3, 3), 2, "VALID")
    double = convolve("branch3x3dbl_1", x, 64, (1, 1))
    double = convolve("branch3x3dbl_2", double, 96, (3, 3))
    double = convolve("branch3x3dbl_3", double, 96, (3, 3), 2, "VALID")
    return jnp.concatenate([three, double, _maximum(x, 2, "VALID")], -1)


def _block_c(convolve: Convolve, x: jax.Array, width: int) -> jax.Array:
    seven = convolve("branch7x7_1", x, width, (1, 1))
    seven = convolve("branch7x7_2", seven, width, (1, 7))
    seven = convolve("branch7x7_3", seven, 192, (7, 1))
    double = convolve("branch7x7dbl_1", x, width, (1, 1))
    double = convolve("branch7x7dbl_2", double, width, (7, 1))
    double = convolve("branch7x7dbl_3", double, width, (1, 7))
    double = convolve("branch7x7dbl_4", double, width, (7, 1))
    double = convolve("branch7x7dbl_5", double, 192, (1, 7))
    pool = convolve("branch_pool", _average(x), 192, (1, 1))
    return jnp.concatenate([convolve("branch1x1", x, 192, (1, 1)), seven, double, pool], -1)


def _block_d(convolve: Convolve, x: jax.Array) -> jax.Array:
    three = convolve("branch3x3_1", x, 192, (1, 1))
    three = convolve("branch3x3_2", three, 320, (3, 3), 2, "VALID")
    seven = convolve("branch7x7x3_1", x, 192, (1, 1))
    seven = convolve("branch7x7x3_2", seven, 192, (1, 7))
    seven = convolve("branch7x7x3_3", seven, 192, (7, 1))
    seven = convolve("branch7x7x3_4", seven, 192, (3, 3), 2, "VALID")
    return jnp.concatenate([three, seven, _maximum(x, 2, "VALID")], -1)


def _block_e(convolve: Convolve, x: jax.Array, pooling: Callable) -> jax.Array:
    three = convolve("branch3x3_1", x, 384, (1, 1))
    double = convolve("branch3x3dbl_1", x, 448, (1, 1))
    double = convolve("branch3x3dbl_2", double, 384, (3, 3))
    pieces = [convolve("branch1x1", x, 320, (1, 1))]
    for name, y in (("branch3x3_2", three), ("branch3x3dbl_3", double)):
        pieces.append(convolve(f"{name}a", y, 384, (1, 3)))
        pieces.append(convolve(f"{name}b", y, 384, (3, 1)))
    pieces.append(convolve("branch_pool", pooling(x), 192, (1, 1)))
    return jnp.concatenate(pieces, -1)


# ----------------------------------------------------------------------------------------------
# Layers
# ----------------------------------------------------------------------------------------------


def _convolve(params, name, x, width, window, stride=1, padding="SAME"):
    # On CPUs, XLA takes three times as long without padding as with it and the border cut off.
    cut = padding == "VALID" and stride == 1
    y = lax.conv_general_dilated(
        x,
        params[name]["kernel"],
        (stride, stride),
        "SAME" if cut else padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    if cut:
        y = y[:, 1:-1, 1:-1]  # of a 3 x 3 window
    return jax.nn.relu(y + params[name]["bias"].reshape(1, 1, 1, -1))


def _maximum(x, stride=1, padding="SAME"):
    return lax.reduce_window(x, -jnp.inf, lax.max, WINDOW, (1, stride, stride, 1), padding)


def _average(x):
    """The mean of the 3 x 3 pixels around each, of those that are inside."""
    total = lax.reduce_window(x, 0.0, lax.add, WINDOW, (1, 1, 1, 1), "SAME")
    ones = jnp.ones((1, *x.shape[1:3], 1))
    return total / lax.reduce_window(ones, 0.0, lax.add, WINDOW, (1, 1, 1, 1), "SAME")
