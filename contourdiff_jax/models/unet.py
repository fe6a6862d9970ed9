# SPDX-License-Identifier: Apache-2.0
"""The U-Net: noisy image and its conditions, and timestep in, prediction out.

Shapes: B batch, *S space (H W or D H W), C channels (last).
The topology is that of DDPM's U-Net (Ho et al. 2020, appendix B) as diffusers' `UNet2DModel`
arranges it, the one ContourDiff uses; diffusers.py has their names for ours.
"""

import functools

import jax.numpy as jnp
from flax import nnx

from contourdiff_jax.models import blocks


class UNet(nnx.Module):
    """Encoder, bottleneck and decoder with a skip connection after every block of the encoder.

    Args:
      inputs: channels of the noisy image and of all conditions together.
      outputs: channels of the prediction.
      config: a `model` section, see config.py.
    """

    def __init__(self, config, *, dims: int, inputs: int, outputs: int, dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.centre_input = config.centre_input
        self.rematerialise = config.rematerialise
        channels = tuple(config.channels)
        width = 4 * channels[0]
        conv = functools.partial(blocks.convolution, dims=dims, dtype=dtype, rngs=rngs)
        norm = {"groups": config.groups, "epsilon": config.epsilon}
        residual = functools.partial(
            blocks.ResidualBlock,
            time_width=width,
            time_scale_shift=config.time_scale_shift,
            dims=dims,
            dropout=config.dropout,
            dtype=dtype,
            rngs=rngs,
            **norm,
        )
        attend = functools.partial(
            blocks.AttentionBlock,
            head_width=config.head_width,
            fused=config.fused_attention,
            dtype=dtype,
            rngs=rngs,
            **norm,
        )
        resample = {
            "convolve": config.resample_convolution,
            "dims": dims,
            "dtype": dtype,
            "rngs": rngs,
        }

        self.time = blocks.TimeEmbedding(
            channels[0],
            width,
            cosine_first=config.time_cosine_first,
            shift=config.time_shift,
            dtype=dtype,
            rngs=rngs,
        )
        self.conv_in = conv(inputs, channels[0])
        skips = [channels[0]]  # features of each skip connection, a stack

        down, features = [], channels[0]
        for level, (wide, attentive) in enumerate(zip(channels, config.attention, strict=True)):
            for _ in range(config.layers):
                down.append(Stage(residual(features, wide), attend(wide) if attentive else None))
                features = wide
                skips.append(features)
            if level < len(channels) - 1:
                down.append(
                    blocks.Downsample(features, padding=config.downsample_padding, **resample)
                )
                skips.append(features)
        self.down = nnx.List(down)

        first, last = (
            residual(features, features, divisor=config.middle_divisor) for _ in range(2)
        )
        attention = None
        if config.middle_attention:
            attention = attend(features, norm=config.middle_norm, divisor=config.middle_divisor)
        self.middle = nnx.List([Stage(first, attention), Stage(last, None)])

        up = []
        for level, (wide, attentive) in reversed(
            list(enumerate(zip(channels, decoder_attention(config), strict=True)))
        ):
            for _ in range(config.layers + 1):
                up.append(
                    Stage(
                        residual(features + skips.pop(), wide), attend(wide) if attentive else None
                    )
                )
                features = wide
            if level > 0:
                up.append(blocks.Upsample(features, **resample))
        self.up = nnx.List(up)

        self.norm_out = blocks.GroupNorm(features, **norm)
        self.conv_out = conv(features, outputs, zero=True)

    def __call__(self, x, t, rngs: nnx.Rngs | None = None):
        """x [B, *S, inputs], t [B] -> prediction [B, *S, outputs], float32."""
        time = self.time(t)
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


def decoder_attention(config) -> tuple[bool, ...]:
    """Per resolution, whether the decoder has self-attention; if unsaid, where the encoder has."""
    return tuple(config.decoder_attention) or tuple(config.attention)


class Stage(nnx.Module):
    """A residual block, and self-attention where the resolution has it."""

    def __init__(self, residual: blocks.ResidualBlock, attention: blocks.AttentionBlock | None):
        self.residual, self.attention = residual, attention

    def __call__(self, x, time, rngs):
        x = self.residual(x, time, rngs)
        return x if self.attention is None else self.attention(x)
