# SPDX-License-Identifier: Apache-2.0
"""The U-Net: noisy image and its conditions, and timestep in, prediction out.

Without noise, its conditions in and an image out: the same network without all that is for time.

Shapes: B batch, *S space (H W or D H W), C channels (last).
The topology is that of DDPM's U-Net (Ho et al. 2020, appendix B) as diffusers' `UNet2DModel`
arranges it, the one ContourDiff uses; interop/unet2d.py has their names for ours.
"""

import functools

import jax.numpy as jnp
from flax import nnx

from contourdiff_jax.models import blocks


class UNet(nnx.Module):
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
        self.dtype = dtype
        self.centre_input = config.centre_input
        self.rematerialise = config.rematerialise
        make = _Builder(config, dims, timed, dtype, rngs)
        features = make.channels[0]  # at the network's two ends

        self.time = make.time() if timed else None
        self.conv_in = make.convolution(features_in=inputs, features_out=features)
        down, skips = make.encoder()
        self.down = nnx.List(down)
        self.middle = nnx.List(make.middle())
        self.up = nnx.List(make.decoder(skips))
        self.norm_out = make.norm(features)
        self.conv_out = make.convolution(features_in=features, features_out=outputs, zero=True)

    def __call__(self, x, t, rngs: nnx.Rngs | None = None):
        """x [B, *S, inputs], t [B] or None -> prediction [B, *S, outputs], float32."""
        time = None if self.time is None else self.time(t)
        if self.centre_input:
            x = 2 * x - 1
        stage = nnx.remat(Stage.__call__) if self.rematerialise else Stage.__call__
        h = self.conv_in(x.astype(self.dtype))
        skips = [h]
        for block in self.down:
            h = stage(block, h, time, rngs) if isinstance(block, Stage) else block(h)
            skips.append(h)
        for block in self.middle:
            h = stage(block, h, time, rngs)
        for block in self.up:
            if isinstance(block, Stage):
                h = stage(block, jnp.concatenate([h, skips.pop()], -1), time, rngs)
            else:
                h = block(h)
        return self.conv_out(self.norm_out.then_silu(h)).astype(jnp.float32)


class Stage(nnx.Module):
    """A residual block, and self-attention where the resolution has it."""

    def __init__(self, residual: blocks.ResidualBlock, attention: blocks.AttentionBlock | None):
        self.residual, self.attention = residual, attention

    def __call__(self, x, time, rngs):
        x = self.residual(x, time, rngs)
        return x if self.attention is None else self.attention(x)


class _Builder:
    """Makes the parts of a network of one configuration."""

    def __init__(self, config, dims: int, timed: bool, dtype, rngs: nnx.Rngs):
        self.config, self.channels = config, tuple(config.channels)
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
            dropout=config.dropout,
            **norm,
            **layer,
        )
        self.attention = functools.partial(
            blocks.AttentionBlock,
            head_width=config.head_width,
            fused=config.fused_attention,
            **norm,
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

    def stage(self, features_in: int, features_out: int, attentive: bool) -> Stage:
        attention = self.attention(features_out) if attentive else None
        return Stage(self.residual(features_in, features_out), attention)

    def encoder(self) -> tuple[list[nnx.Module], list[int]]:
        """Its blocks, and the features of the skip connections: of the input, then of each."""
        features, last = self.channels[0], len(self.channels) - 1
        made, skips = [], [features]
        for level, wide in enumerate(self.channels):
            for _ in range(self.config.layers):
                made.append(self.stage(features, wide, self.config.attention[level]))
                features = wide
                skips.append(features)
            if level < last:
                made.append(self.downsample(features))
                skips.append(features)
        return made, skips

    def middle(self) -> list[Stage]:
        """Two residual blocks, with self-attention between them or not."""
        features, config = self.channels[-1], self.config
        divisor = {"divisor": config.middle_divisor}
        first, last = (self.residual(features, features, **divisor) for _ in range(2))
        attention = None
        if config.middle_attention:
            attention = self.attention(features, norm=config.middle_norm, **divisor)
        return [Stage(first, attention), Stage(last, None)]

    def decoder(self, skips: list[int]) -> list[nnx.Module]:
        """Its blocks; each stage takes the last of the skip connections that are left."""
        features, left, made = self.channels[-1], list(skips), []
        attentive = decoder_attention(self.config)
        for level, wide in reversed(list(enumerate(self.channels))):
            for _ in range(self.config.layers + 1):
                made.append(self.stage(features + left.pop(), wide, attentive[level]))
                features = wide
            if level > 0:
                made.append(self.upsample(features))
        return made


def decoder_attention(config) -> tuple[bool, ...]:
    """Whether the decoder has self-attention, by resolution; where the encoder has it if unsaid."""
    return tuple(config.decoder_attention) or tuple(config.attention)
