# SPDX-License-Identifier: Apache-2.0
"""ControlNet: a branch that shows a picture, the hint, to a U-Net that does not learn any more.

Zhang, Rao & Agrawala 2023, arXiv 2302.05543, section 3: a copy of the U-Net's encoder and middle
learns beside them, and what it sees is added to the skip connections and to the middle, through
convolutions that are zero at first. interop/unet2d_condition.py has diffusers' names for ours.

Shapes: B batch, H rows, W columns of latents, C channels (last), M tokens of a context; a pixel of
latents is n pixels of the hint wide, 8 in Stable Diffusion.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

from contourdiff_jax import models
from contourdiff_jax.contracts import Params
from contourdiff_jax.errors import InputError
from contourdiff_jax.models.unet import Builder, Encoder, skip_features

HINT_CHANNELS = (16, 32, 96, 256)
# What is copied from the U-Net: all that the branch has in common with it (section 3.2).
COPIED = ("conv_in", "time", "down", "middle")


class ControlNet(NamedTuple):
    """Two pure functions over params, a plain nested dict of arrays.

        init(key) -> params
        apply(params, z_t, t, hint, context=None, *, scale=1.0) -> residuals

    z_t [B, H, W, C], t [B], context [B, M, width], and hint [B, n H, n W, c] in [0, 1], unlike
    images. Residuals are ([to each skip connection], to the middle), multiplied by `scale`, as the
    U-Net's `apply` takes them.
    """

    init: Callable[..., Params]
    apply: Callable[..., tuple[list[jax.Array], jax.Array]]


def build(
    config, *, channels: int = 4, hint: int = 3, hint_channels: Sequence[int] = HINT_CHANNELS
) -> ControlNet:
    """The branch for a U-Net of `config` (a `model` section, see config.py).

    Args:
      channels: of the noisy image.
      hint: channels of the hint.
      hint_channels: features of the hint's layers; it is halved once from each to the next, so that
        with four a latent is 8 pixels wide, and with three 4.

    The same functions come back for the same network, so that what is traced of it once serves.
    """
    return _built(FrozenConfigDict(config), channels, hint, tuple(hint_channels))


@functools.cache
def _built(
    config: FrozenConfigDict, channels: int, hint: int, hint_channels: tuple[int, ...]
) -> ControlNet:
    def create():
        return Branch(
            config,
            inputs=channels,
            hint=hint,
            hint_channels=hint_channels,
            dtype=jnp.dtype(config.dtype),
            rngs=nnx.Rngs(0),
        )

    init, bind = models.functional(create)

    def apply(params, z_t, t, hint, context=None, *, scale=1.0):
        _check_hint(hint, z_t, 2 ** (len(hint_channels) - 1))
        residuals = bind(params)(z_t, t, hint, context)
        return jax.tree.map(lambda residual: scale * residual, residuals)

    return ControlNet(init, apply)


def _check_hint(hint, z_t, wide: int) -> None:
    wanted = tuple(wide * side for side in z_t.shape[1:3])
    if hint.shape[1:3] != wanted:
        raise InputError(
            f"hint: {hint.shape[1]} x {hint.shape[2]} px, where the latents' are {wide} px wide "
            f"and ask for {wanted[0]} x {wanted[1]}"
        )


def from_base(params: Params, base: Params) -> Params:
    """Parameters to begin with: those of a new branch, with a copy of what the U-Net has of them.

    They are copies, so that a step of training may overwrite them while the base stays.

    Args:
      params: of the branch.
      base: of the U-Net.

    Raises:
      InputError: a base of another `model` section.
    """
    ours, theirs = ({name: tree[name] for name in COPIED} for tree in (params, base))
    if _shapes(ours) != _shapes(theirs):
        odd = sorted({name for name, _ in _shapes(ours).items() ^ _shapes(theirs).items()})
        raise InputError(
            f"base: {odd[0]} is not that of the branch; build both from one config.model"
        )
    return params | jax.tree.map(jnp.copy, theirs)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}


class Branch(Encoder):
    """The U-Net's encoder and middle, with the hint beside what enters and zeros on what leaves."""

    def __init__(
        self,
        config,
        *,
        inputs: int,
        hint: int,
        hint_channels: tuple[int, ...],
        dtype,
        rngs: nnx.Rngs,
    ):
        make = Builder(config, dims=2, timed=True, dtype=dtype, rngs=rngs)
        super().__init__(make, inputs=inputs)

        def zero(features: int) -> nnx.Conv:
            return make.convolution(features, features, kernel=1, zero=True)

        self.hint = HintEmbedding(hint, hint_channels, make.channels[0], make.convolution)
        self.zeros = nnx.List(zero(features) for features in skip_features(config))
        self.zero_middle = zero(make.channels[-1])

    def __call__(self, x, t, hint, context=None):
        """x [B, H, W, inputs], t [B], hint [B, n H, n W, c] -> residuals, see `ControlNet`."""
        context = self.attended(context)
        h, time = self.enter(x, t)
        h, skips = self.encode(h + self.hint(hint.astype(self.dtype)), time, context)
        added = [zero(skip) for zero, skip in zip(self.zeros, skips, strict=True)]
        return added, self.zero_middle(h)


class HintEmbedding(nnx.Module):
    """The hint [B, n H, n W, c] as features [B, H, W, C] beside those of the noisy latents."""

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        features: int,
        convolution: Callable[..., nnx.Conv],
    ):
        self.conv_in = convolution(channels, widths[0])
        self.blocks = nnx.List(
            conv
            for narrow, wide in itertools.pairwise(widths)
            for conv in (convolution(narrow, narrow), convolution(narrow, wide, stride=2))
        )
        self.conv_out = convolution(widths[-1], features, zero=True)

    def __call__(self, hint):
        h = jax.nn.silu(self.conv_in(hint))
        for conv in self.blocks:
            h = jax.nn.silu(conv(h))
        return self.conv_out(h)
