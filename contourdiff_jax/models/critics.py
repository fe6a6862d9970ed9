# SPDX-License-Identifier: Apache-2.0
"""The patch critic: of every patch of an image, whether it looks real.

It is PatchGAN of pix2pix (Isola et al., arXiv 1611.07004, section 3.2.2), as its code has it
(junyanz/pytorch-CycleGAN-and-pix2pix, models/networks.py). With three layers a patch has 70 x 70
pixels.

Shapes: B batch, H rows, W columns, C channels (last), h x w patches.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx

from contourdiff_jax import models
from contourdiff_jax.contracts import Params
from contourdiff_jax.models import convolution
from contourdiff_jax.models.generators import WIDEST, Convolution, Norm, leaky, scatter


class Critic(NamedTuple):
    """Pure functions over params, a plain nested dict of arrays.

    init(key) -> params
    apply(params, images [B, H, W, C]) -> logits [B, h, w, 1]
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]


def build(inputs: int, *, layers: int, width: int, norm: str) -> Critic:
    """The critic of images of so many channels.

    Args:
      layers: how often it halves an image; a patch is 16, 34, 70, 142 .. pixels wide.
      width: features of the first layer.
      norm: batch or instance.
    """
    init, bind = models.functional(
        lambda: PatchGAN(inputs, layers=layers, width=width, norm=norm), scatter
    )
    return Critic(init, apply=lambda params, images: bind(params)(images))


class PatchGAN(nnx.Module):
    """Convolutions of 4 x 4 pixels, of stride 2 but for the last two."""

    def __init__(self, inputs: int, *, layers: int, width: int, norm: str):
        widths = [width * min(2**layer, WIDEST) for layer in range(layers + 1)]

        def conv(layer: int) -> Convolution:
            form = convolution.halve if layer < layers else _slid
            bias = layer == 0 or norm != "batch"
            return Convolution(form, 4, ((inputs, *widths)[layer], widths[layer]), bias=bias)

        self.convs = nnx.List(conv(layer) for layer in range(layers + 1))
        self.norms = nnx.List(Norm(wide, norm) for wide in widths[1:])
        self.last = Convolution(_slid, 4, (widths[-1], 1), bias=True)

    def __call__(self, x):
        """x [B, H, W, inputs] -> logits [B, h, w, 1]."""
        first, *others = self.convs
        h = leaky(first(x))
        for conv, norm in zip(others, self.norms, strict=True):
            h = leaky(norm(conv(h)))
        return self.last(h)


def _slid(x, kernel):
    return convolution.slide(x, kernel, 1)
