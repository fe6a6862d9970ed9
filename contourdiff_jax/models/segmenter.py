# SPDX-License-Identifier: Apache-2.0
"""The segmenter: a small residual U-Net, image in, a logit for each class out.

It is MONAI's `UNet` with two-convolution residual units (monai/networks/nets/unet.py, after Kerfoot
et al. 2019, LNCS 11395), the network that ContourDiff's translations were judged by (Chen et al.,
arXiv 2403.10786): convolutions halve and transposed ones double, every one is followed by instance
normalisation and a PReLU.

Shapes: B batch, H rows, W columns, C channels (last).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from contourdiff_jax import models
from contourdiff_jax.contracts import Params
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import blocks

CHANNELS = (16, 32, 64, 128, 256)  # features at each resolution, each half the one before
FEATURES = CHANNELS[-1]  # of an image
EPSILON = 1e-5  # of instance normalisation
SLOPE = 0.25  # of a new PReLU for negative values


class Segmenter(NamedTuple):
    """Pure functions over params, a plain nested dict of arrays.

    init(key) -> params
    apply(params, images [B, H, W, 1]) -> logits [B, H, W, classes]
    encode(params, images [B, H, W, 1]) -> features [B, C] of the lowest resolution
    stages(params, images [B, H, W, 1]) -> features [B, h, w, c] at each resolution, a list
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]
    encode: Callable[..., jax.Array]
    stages: Callable[..., list[jax.Array]]


def build(classes: int, channels: tuple[int, ...] = CHANNELS) -> Segmenter:
    """The segmenter of that many classes, the background among them, of images in [-1, 1]."""

    def create():
        return UNet(classes, channels, rngs=nnx.Rngs(0))

    init, bind = models.functional(create)
    return Segmenter(
        init,
        apply=lambda params, images: bind(params)(images),
        encode=lambda params, images: bind(params).encode(images)[-1].mean((1, 2)),
        stages=lambda params, images: bind(params).encode(images),
    )


def check_size(size: int, channels: tuple[int, ...] = CHANNELS) -> None:
    """Raise InputError for an image that the network cannot halve often enough."""
    step = 2 ** (len(channels) - 1)
    if size % step:
        nearest = -(-size // step) * step
        raise InputError(f"--size={size}: must be a multiple of {step} px; take {nearest}")


class UNet(nnx.Module):
    """Encoder and decoder; at every resolution but the lowest, what goes down also goes across."""

    def __init__(self, classes: int, channels: tuple[int, ...], *, rngs: nnx.Rngs):
        *halved, lowest = channels
        inputs = (1, *halved)
        down = [
            Residual(wide_in, wide, stride=2, rngs=rngs)
            for wide_in, wide in zip(inputs, halved, strict=False)
        ]
        self.down = nnx.List([*down, Residual(halved[-1], lowest, stride=1, rngs=rngs)])
        outputs = (classes, *halved[:-1])
        below = (*(2 * wide for wide in halved[:-1]), halved[-1] + lowest)
        self.up = nnx.List(
            Up(wide_in, wide, last=level == 0, rngs=rngs)
            for level, (wide_in, wide) in enumerate(zip(below, outputs, strict=True))
        )

    def encode(self, x) -> list[jax.Array]:
        """x [B, H, W, 1] -> features of all resolutions, the lowest last."""
        features = []
        for block in self.down:
            x = block(x)
            features.append(x)
        return features

    def __call__(self, x):
        """x [B, H, W, 1] -> logits [B, H, W, classes]."""
        *skips, h = self.encode(x)
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            h = block(jnp.concatenate([skip, h], -1))
        return h


class Activated(nnx.Module):
    """A convolution, instance normalisation without parameters, PReLU."""

    def __init__(self, conv: nnx.Module):
        self.conv = conv
        self.slope = nnx.Param(jnp.full((), SLOPE))

    def __call__(self, x):
        x = self.conv(x)
        mean = x.mean((1, 2), keepdims=True)
        variance = x.var((1, 2), keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(variance + EPSILON)
        return jnp.where(x > 0, x, self.slope[...].reshape(1, 1, 1, 1) * x)


class Residual(nnx.Module):
    """Two activated convolutions, the first of which may halve, and a shortcut."""

    def __init__(self, features_in: int, features_out: int, *, stride: int, rngs: nnx.Rngs):
        def conv(wide_in, kernel=3, stride=1):
            return _convolution(wide_in, features_out, kernel=kernel, stride=stride, rngs=rngs)

        self.first = Activated(conv(features_in, stride=stride))
        self.second = Activated(conv(features_out))
        self.shortcut = conv(features_in, kernel=1 if stride == 1 else 3, stride=stride)

    def __call__(self, x):
        return self.second(self.first(x)) + self.shortcut(x)


class Up(nnx.Module):
    """An activated transposed convolution that doubles, then a residual one.

    The `last` of the network has neither norm nor activation after its residual convolution.
    """

    def __init__(self, features_in: int, features_out: int, *, last: bool, rngs: nnx.Rngs):
        self.double = Activated(Double(features_in, features_out))
        conv = _convolution(features_out, features_out, kernel=3, stride=1, rngs=rngs)
        self.conv = conv if last else Activated(conv)

    def __call__(self, x):
        x = self.double(x)
        return self.conv(x) + x


class Double(nnx.Module):
    """A transposed 3 x 3 convolution of stride 2, torch's with padding and output padding of 1.

    Along an axis, outputs 2 i are x_i k_1 and outputs 2 i + 1 are x_i k_0 + x_{i+1} k_2: the four
    kinds of outputs are an ordinary convolution of two inputs. With a dilated convolution in its
    place, the gradient takes so long on a CPU that a step of training takes twice the time.
    """

    TAPS = np.zeros((2, 2, 3), np.float32)  # parity of the output, input, element of the kernel
    TAPS[0, 0, 1] = TAPS[1, 0, 0] = TAPS[1, 1, 2] = 1

    def __init__(self, features_in: int, features_out: int, *, bias: bool = True):
        shape = (3, 3, features_in, features_out)
        self.kernel = nnx.Param(blocks.deviation(None, shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features_out)) if bias else None

    def __call__(self, x):
        taps = jnp.asarray(self.TAPS)
        kernel = jnp.einsum("ptk,qul,klio->tuipqo", taps, taps, self.kernel[...])
        batch, height, width, _ = x.shape
        y = jax.lax.conv_general_dilated(
            x,
            kernel.reshape(*kernel.shape[:3], -1),
            window_strides=(1, 1),
            padding=[(0, 1)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y.reshape(batch, height, width, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, 2 * height, 2 * width, -1)
        return y if self.bias is None else y + self.bias[...].reshape(1, 1, 1, -1)


def _convolution(features_in: int, features_out: int, *, kernel: int, stride: int, rngs: nnx.Rngs):
    return blocks.convolution(
        features_in,
        features_out,
        dims=2,
        kernel=kernel,
        stride=stride,
        dtype=jnp.float32,
        rngs=rngs,
    )
