# SPDX-License-Identifier: Apache-2.0
"""The U-Net: noisy image and its conditions, and timestep in, prediction out.

Without noise, its conditions in and an image out: the same network without all that is for time.

Shapes: B batch, *S space (H W or D H W), C channels (last), M tokens of a context.
The topology is that of DDPM's U-Net (Ho et al. 2020, appendix B) as diffusers' `UNet2DModel`
arranges it, the one ContourDiff uses; interop/unet2d.py has their names for ours. With a context it
is that of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, section 3.3), which Stable
Diffusion uses: `UNet2DConditionModel`, interop/unet2d_condition.py.
"""

import functools

import jax.numpy as jnp
from flax import nnx

from contourdiff_jax import config as configuration
from contourdiff_jax.contracts import Params
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import blocks
from contourdiff_jax.models.transformer import Transformer


class Encoder(nnx.Module):
    """The half that a ControlNet has too: from the image down to the bottleneck, and through it.

    Args:
      make: of the parts.
      inputs: channels of the noisy image and of all conditions together.
    """

    def __init__(self, make: "Builder", *, inputs: int):
        config = make.config
        self.dtype = make.dtype
        self.centre_input = config.centre_input
        self.rematerialise = config.rematerialise
        self.context = config.context
        self.time = make.time() if make.width else None
        self.conv_in = make.convolution(
            features_in=inputs, features_out=make.channels[0], planar=make.planar[0]
        )
        self.down = nnx.List(make.encoder())
        self.middle = nnx.List(make.middle())

    def enter(self, x, t):
        """x [B, *S, inputs], t [B] or None -> (features [B, *S, C], time embedding or None)."""
        time = None if self.time is None else self.time(t)
        if self.centre_input:
            x = 2 * x - 1
        return self.conv_in(x.astype(self.dtype)), time

    def encode(self, h, time, context, rngs: nnx.Rngs | None = None):
        """Features that entered -> (those of the bottleneck, [those of each skip connection])."""
        skips = [h]
        for block in self.down:
            h = self.through(block, h, time, context, rngs)
            skips.append(h)
        for block in self.middle:
            h = self.through(block, h, time, context, rngs)
        return h, skips

    def through(self, block: nnx.Module, h, time, context, rngs):
        """Features after a stage, or after a change of resolution."""
        if not isinstance(block, Stage):
            return block(h)
        stage = nnx.remat(Stage.__call__) if self.rematerialise else Stage.__call__
        return stage(block, h, time, context, rngs)

    def attended(self, context):
        """The context [B, M, width] as layers take it; InputError where it is not what is seen."""
        width = None if context is None else context.shape[-1]
        if width != (self.context or None):
            wanted = f"one [B, M, {self.context}]" if self.context else "none"
            given = "none" if context is None else f"{list(context.shape)}"
            raise InputError(
                f"context: {given}, where config.model.context={self.context} asks for {wanted}"
            )
        return None if context is None else context.astype(self.dtype)


class UNet(Encoder):
    """Encoder, bottleneck and decoder with a skip connection after every block of the encoder.

    Args:
      config: a `model` section, see config.py.
      dims: number of spatial dimensions.
      inputs: channels of the noisy image and of all conditions together.
      outputs: channels of the prediction.
      timed: whether it is told a timestep.
      dtype: that layers compute in.
    """

    def __init__(
        self, config, *, dims: int, inputs: int, outputs: int, timed: bool, dtype, rngs: nnx.Rngs
    ):
        make = Builder(config, dims, timed, dtype, rngs)
        super().__init__(make, inputs=inputs)
        features, planar = make.channels[0], make.planar[0]  # at the network's two ends
        self.up = nnx.List(make.decoder())
        self.norm_out = make.norm(features)
        self.conv_out = make.convolution(
            features_in=features, features_out=outputs, planar=planar, zero=True
        )

    def __call__(self, x, t, rngs: nnx.Rngs | None = None, context=None, residuals=None):
        """Draw the prediction [B, *S, outputs], float32.

        Args:
          x: [B, *S, inputs].
          t: [B], or None.
          context: [B, M, config.context], what is attended to.
          residuals: what a ControlNet adds: ([to each skip connection], to the bottleneck).

        Raises:
          InputError: a context that is not of this width, or one where none is attended to.
        """
        context = self.attended(context)
        h, time = self.enter(x, t)
        h, skips = self.encode(h, time, context, rngs)
        if residuals is not None:
            added, last = residuals
            skips = [s + r.astype(self.dtype) for s, r in zip(skips, added, strict=True)]
            h = h + last.astype(self.dtype)
        for block in self.up:
            if isinstance(block, Stage):
                h = jnp.concatenate([h, skips.pop()], -1)
            h = self.through(block, h, time, context, rngs)
        return self.conv_out(self.norm_out.then_silu(h)).astype(jnp.float32)


def widened(params: Params, channels: int, pixels: int = 1) -> Params:
    """Parameters of the same network for more channels in: the new ones have no effect at first.

    InstructPix2Pix's start from Stable Diffusion (Brooks et al. 2023, arXiv 2211.09800, section
    3.2): the first convolution has zeros for the latents of the source. Its bias stays.

    Args:
      pixels: that the network takes for one, each with channels of its own (patches.py).

    Raises:
      InputError: fewer channels than there are.
    """
    kernel = params["conv_in"]["kernel"]
    *sides, before, features = kernel.shape
    if channels < before:
        raise InputError(f"channels: {channels}, where the network has {before} already")
    kernel = kernel.reshape(*sides, pixels, before // pixels, features)
    more = (channels - before) // pixels
    kernel = jnp.pad(kernel, [*[(0, 0)] * (len(sides) + 1), (0, more), (0, 0)])
    kernel = kernel.reshape(*sides, channels, features)
    return params | {"conv_in": params["conv_in"] | {"kernel": kernel}}


class Stage(nnx.Module):
    """A residual block, and attention where the resolution has it."""

    def __init__(
        self,
        residual: blocks.ResidualBlock,
        attention: blocks.AttentionBlock | Transformer | None,
    ):
        self.residual, self.attention = residual, attention

    def __call__(self, x, time, context, rngs):
        x = self.residual(x, time, rngs)
        if self.attention is None:
            return x
        return self.attention(x) if context is None else self.attention(x, context)


class Builder:
    """Makes the parts of a network of one configuration."""

    def __init__(self, config, dims: int, timed: bool, dtype, rngs: nnx.Rngs):
        self.config, self.channels, self.dtype = config, tuple(config.channels), dtype
        self.head_widths = configuration.head_widths(config)
        levels = range(len(self.channels))
        self.planar = [dims == 3 and level < config.planar for level in levels]
        self.pools = [
            blocks.over_space(side, dims, planar)
            for side, planar in zip(configuration.pools(config), self.planar, strict=True)
        ]
        self.width = 4 * self.channels[0] if timed else 0  # of the time embedding
        self.layer = layer = {"dtype": dtype, "rngs": rngs}
        norm = {"groups": config.groups, "epsilon": config.epsilon}
        resample = layer | {"convolve": config.resample_convolution, "dims": dims}
        self.norm = functools.partial(blocks.GroupNorm, **norm)
        self.convolution = functools.partial(blocks.convolution, dims=dims, **layer)
        self.downsample = functools.partial(
            blocks.Downsample, padding=config.downsample_padding, **resample
        )
        self.upsample = functools.partial(blocks.Upsample, **resample)
        self.residual = functools.partial(
            blocks.ResidualBlock,
            time_width=self.width,
            time_scale_shift=config.time_scale_shift,
            dims=dims,
            paths=config.paths,
            dropout=config.dropout,
            **norm,
            **layer,
        )
        self.self_attention = functools.partial(
            blocks.AttentionBlock, fused=config.fused_attention, **norm, **layer
        )
        self.transformer = functools.partial(
            Transformer,
            context=config.context,
            groups=config.groups,
            fused=config.fused_attention,
            **layer,
        )

    def time(self) -> blocks.TimeEmbedding:
        return blocks.TimeEmbedding(
            self.channels[0],
            self.width,
            cosine_first=self.config.time_cosine_first,
            shift=self.config.time_shift,
            **self.layer,
        )

    def attention(self, level: int, **middle) -> blocks.AttentionBlock | Transformer:
        """Self-attention at a resolution, or with a context a transformer.

        Args:
          middle: what sets that of the bottleneck apart, of self-attention alone.
        """
        features, width = self.channels[level], {"head_width": self.head_widths[level]}
        if self.config.context:
            return self.transformer(features, **width)
        return self.self_attention(features, pool=self.pools[level], **width, **middle)

    def stage(self, features_in: int, level: int, attentive: bool) -> Stage:
        attention = self.attention(level) if attentive else None
        planar = self.planar[level]
        return Stage(self.residual(features_in, self.channels[level], planar=planar), attention)

    def encoder(self) -> list[nnx.Module]:
        """Its blocks: after each there is a skip connection."""
        features, last, made = self.channels[0], len(self.channels) - 1, []
        for level, wide in enumerate(self.channels):
            for _ in range(self.config.layers):
                made.append(self.stage(features, level, self.config.attention[level]))
                features = wide
            if level < last:
                made.append(self.downsample(features, planar=self.planar[level]))
        return made

    def middle(self) -> list[Stage]:
        """Two residual blocks, with attention between them or not."""
        features, config = self.channels[-1], self.config
        divisor, planar = {"divisor": config.middle_divisor}, self.planar[-1]
        first, last = (
            self.residual(features, features, planar=planar, **divisor) for _ in range(2)
        )
        attention = None
        if config.middle_attention:
            attention = self.attention(-1, norm=config.middle_norm, **divisor)
        return [Stage(first, attention), Stage(last, None)]

    def decoder(self) -> list[nnx.Module]:
        """Its blocks; each stage takes the last of the skip connections that are left."""
        features, left, made = self.channels[-1], skip_features(self.config), []
        attentive = decoder_attention(self.config)
        for level, wide in reversed(list(enumerate(self.channels))):
            for _ in range(self.config.layers + 1):
                made.append(self.stage(features + left.pop(), level, attentive[level]))
                features = wide
            if level > 0:
                made.append(self.upsample(features, planar=self.planar[level - 1]))
        return made


def skip_features(config) -> list[int]:
    """Features of the skip connections: of what enters, then of each block of the encoder."""
    first, stages = config.channels[0], config.layers + 1
    # The last resolution is not halved.
    return [first, *(wide for wide in config.channels for _ in range(stages))][:-1]


def decoder_attention(config) -> tuple[bool, ...]:
    """Whether the decoder has attention, by resolution; where the encoder has it if unsaid."""
    return tuple(config.decoder_attention) or tuple(config.attention)
