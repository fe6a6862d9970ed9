# SPDX-License-Identifier: Apache-2.0
"""Generators, image in and image out in one pass: pix2pix's U-Net and CycleGAN's ResNet.

They are those of Isola et al. (arXiv 1611.07004) and Zhu et al. (arXiv 1703.10593) as their code
has them (junyanz/pytorch-CycleGAN-and-pix2pix, models/networks.py): kernels begin as N(0, .02).

A batch norm takes the statistics of the batch that is before it, and keeps no running averages: the
original translates one image at a time in training mode (arXiv 1611.07004, section 3.4; its test.py
without --eval), dropout included. A norm over a batch of one image is an instance norm with a scale
and a bias.

Shapes: B batch, H rows, W columns, C channels (last).
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from contourdiff_jax import models
from contourdiff_jax.contracts import Params
from contourdiff_jax.models import convolution
from contourdiff_jax.models.segmenter import Double

DEVIATION = 0.02  # of new kernels, and of a new norm's scales about 1
EPSILON = 1e-5  # of norms
LEAK = 0.2  # slope of a leaky ReLU for negative values
FEW = 4  # features that count as such where a large kernel's form is chosen
WIDEST = 8  # times its `width` a U-Net's features grow, and a critic's


class Generator(NamedTuple):
    """Pure functions over params, a plain nested dict of arrays.

    init(key) -> params
    apply(params, x [B, H, W, C], *, key=None) -> [B, H, W, outputs] in [-1, 1]

    `key` turns dropout on.
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]


def unet(
    inputs: int, *, levels: int, width: int, norm: str, dropout: float, outputs: int = 1
) -> Generator:
    """pix2pix's U-Net: U-Net-256 has 8 levels and a width of 64.

    Args:
      inputs: channels that it sees.
      levels: how often it halves an image; both sides must be multiples of 2^levels.
      width: features of the first level.
      norm: batch or instance.
      dropout: probability of losing a feature in the inner levels: all from the fifth on but the
        last.
      outputs: channels that it draws.
    """
    return _functional(
        lambda: UNet(inputs, outputs, levels=levels, width=width, norm=norm, dropout=dropout)
    )


def resnet(inputs: int, *, blocks: int, width: int, norm: str, outputs: int = 1) -> Generator:
    """CycleGAN's ResNet: ResNet-9 has 9 blocks and a width of 64; sides are multiples of 4."""
    return _functional(lambda: ResNet(inputs, outputs, blocks=blocks, width=width, norm=norm))


def _functional(create: Callable[[], nnx.Module]) -> Generator:
    init, bind = models.functional(create, scatter)
    return Generator(init, apply=lambda params, x, *, key=None: bind(params)(x, key))


def scatter(key, params: Params) -> Params:
    """Parameters to begin with: kernels of N(0, .02), scales of N(1, .02), biases of 0.

    The noise is drawn in one piece, see blocks.deviation.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [path[-1].key for path, _ in paths]
    sizes = [
        0 if name == "bias" else leaf.size for name, (_, leaf) in zip(names, paths, strict=True)
    ]
    noise = DEVIATION * jax.random.normal(key, (sum(sizes),))
    begun = []
    for name, (_, leaf), size, end in zip(
        names, paths, sizes, itertools.accumulate(sizes), strict=True
    ):
        own = noise[end - size : end].reshape(leaf.shape) if size else leaf
        begun.append(1 + own if name == "scale" else own)
    return tree.unflatten(begun)


# --------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------


class Norm(nnx.Module):
    """A norm over [B, H, W, C] by name: batch, with scale and bias, or instance, without."""

    def __init__(self, features: int, kind: str):
        self.axes = (0, 1, 2) if kind == "batch" else (1, 2)
        self.scale = nnx.Param(jnp.ones(features)) if kind == "batch" else None
        self.bias = nnx.Param(jnp.zeros(features)) if kind == "batch" else None

    def __call__(self, x):
        mean = x.mean(self.axes, keepdims=True)
        centred = x - mean
        x = centred * jax.lax.rsqrt(jnp.square(centred).mean(self.axes, keepdims=True) + EPSILON)
        if self.scale is None:
            return x
        return x * self.scale[...].reshape(1, 1, 1, -1) + self.bias[...].reshape(1, 1, 1, -1)


class Convolution(nnx.Module):
    """A convolution of a form (x [B, H, W, C], kernel) -> [B, H', W', O], with a bias or without.

    The original leaves the bias out before a batch norm, and not before an instance norm.
    """

    def __init__(self, form: Callable, side: int, features: tuple[int, int], *, bias: bool):
        self.form = form
        self.kernel = nnx.Param(jnp.zeros((side, side, *features)))
        self.bias = nnx.Param(jnp.zeros(features[1])) if bias else None

    def __call__(self, x):
        y = self.form(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].reshape(1, 1, 1, -1)


def reflected(x, kernel):
    """A convolution with stride 1, of the image and what lies beyond its border, mirrored."""
    beyond = kernel.shape[0] // 2
    x = jnp.pad(x, ((0, 0), (beyond, beyond), (beyond, beyond), (0, 0)), mode="reflect")
    if beyond == 1:
        return convolution.convolve(x, kernel)[:, 1:-1, 1:-1]
    few = kernel.shape[3] <= FEW
    return convolution.to_few(x, kernel) if few else convolution.slide(x, kernel, 0)


def halved(x, kernel):
    """A convolution with stride 2 and a zero on every side."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(2, 2),
        padding=((1, 1),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def leaky(x):
    return jnp.where(x > 0, x, LEAK * x)


# --------------------------------------------------------------------------------------------------
# The networks
# --------------------------------------------------------------------------------------------------


class UNet(nnx.Module):
    """Down by convolutions of stride 2 and up again; what goes down also goes across."""

    def __init__(
        self, inputs: int, outputs: int, *, levels: int, width: int, norm: str, dropout: float
    ):
        widths = [width * min(2**level, WIDEST) for level in range(levels)]
        outside = (inputs, *widths[:-1])
        bias = norm != "batch"
        self.down = nnx.List(
            Convolution(convolution.halve, 4, (wide_in, wide), bias=bias)
            for wide_in, wide in zip(outside, widths, strict=True)
        )
        # Neither the first level nor the last, which may be a single pixel, has a norm.
        self.down_norm = nnx.List(Norm(wide, norm) for wide in widths[1:-1])
        self.up = nnx.List(
            Convolution(
                convolution.double,
                4,
                (wide if level == levels - 1 else 2 * wide, outside[level] if level else outputs),
                bias=bias or level == 0,
            )
            for level, wide in enumerate(widths)
        )
        self.up_norm = nnx.List(Norm(wide, norm) for wide in widths[:-1])
        self.dropout = dropout

    def __call__(self, x, key=None):
        """x [B, H, W, inputs] -> [B, H, W, outputs]; dropout only where a key is given."""
        last = len(self.down) - 1
        skips, h = [], x
        for level, conv in enumerate(self.down):
            h = conv(leaky(h) if level else h)
            if 0 < level < last:
                h = self.down_norm[level - 1](h)
            skips.append(h)
        for level in range(last, -1, -1):
            h = self.up[level](jax.nn.relu(h))
            if level == 0:
                return jnp.tanh(h)
            h = self.up_norm[level - 1](h)
            if key is not None and 4 <= level < last:
                h = dropped(jax.random.fold_in(key, level), h, self.dropout)
            h = jnp.concatenate([skips[level - 1], h], -1)


def dropped(key, x, rate: float):
    """x where each element is lost with that probability, and the others are as much larger."""
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


class ResNet(nnx.Module):
    """Two halvings, residual blocks, two doublings (Johnson et al., arXiv 1603.08155)."""

    def __init__(self, inputs: int, outputs: int, *, blocks: int, width: int, norm: str):
        bias = norm != "batch"
        widths = (width, 2 * width, 4 * width)
        self.first = Convolution(reflected, 7, (inputs, width), bias=bias)
        self.down = nnx.List(
            Convolution(halved, 3, (wide, 2 * wide), bias=bias) for wide in widths[:2]
        )
        self.blocks = nnx.List(Residual(widths[2], norm) for _ in range(blocks))
        self.up = nnx.List(Double(wide, wide // 2, bias=bias) for wide in widths[:0:-1])
        self.norms = nnx.List(Norm(wide, norm) for wide in (*widths, *widths[1::-1]))
        self.last = Convolution(reflected, 7, (width, outputs), bias=True)

    def __call__(self, x, key=None):
        """x [B, H, W, inputs] -> [B, H, W, outputs]; there is no dropout."""
        del key
        first, down, up = self.norms[:1], self.norms[1:3], self.norms[3:]
        h = jax.nn.relu(first[0](self.first(x)))
        for conv, norm in zip(self.down, down, strict=True):
            h = jax.nn.relu(norm(conv(h)))
        for block in self.blocks:
            h = block(h)
        for conv, norm in zip(self.up, up, strict=True):
            h = jax.nn.relu(norm(conv(h)))
        return jnp.tanh(self.last(h))


class Residual(nnx.Module):
    """Two convolutions with norms, and a shortcut."""

    def __init__(self, features: int, norm: str):
        bias = norm != "batch"
        self.conv_1 = Convolution(reflected, 3, (features, features), bias=bias)
        self.norm_1 = Norm(features, norm)
        self.conv_2 = Convolution(reflected, 3, (features, features), bias=bias)
        self.norm_2 = Norm(features, norm)

    def __call__(self, x):
        h = jax.nn.relu(self.norm_1(self.conv_1(x)))
        return x + self.norm_2(self.conv_2(h))
