# SPDX-License-Identifier: Apache-2.0
"""The conditional U-Net: noisy image, timestep and named conditions in, prediction out.

Shapes: B batch, *S space (H W or D H W), C channels (last).
The topology is that of DDPM's U-Net (Ho et al. 2020, appendix B) as
diffusers' `UNet2DModel` arranges it, the one ContourDiff uses: conditions
are concatenated to the noisy image at every timestep and are not noised.
"""

import functools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from flax import nnx

from contourdiff_jax.models import blocks


class UNet(nnx.Module):
    """Encoder, bottleneck and decoder with a skip connection after every block of the encoder.

    Args:
      channels: features of each resolution; every further entry halves the image once more.
      layers: residual blocks per resolution (the decoder has one more).
      attention: per resolution, whether its residual blocks are followed by self-attention.
      resample_convolution: whether a convolution goes with each change of resolution (as
        published), or plain means and repetition, which saves a third of the work.
      conditions: name -> channels of each condition, concatenated in this order.
    """

    def __init__(
        self,
        *,
        dims: int,
        image_channels: int,
        conditions: Mapping[str, int],
        channels: Sequence[int],
        layers: int,
        attention: Sequence[bool],
        middle_attention: bool,
        resample_convolution: bool,
        head_width: int,
        groups: int,
        epsilon: float,
        dropout: float,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.conditions, self.dtype = tuple(conditions), dtype
        width = 4 * channels[0]
        conv = functools.partial(blocks.convolution, dims=dims, dtype=dtype, rngs=rngs)
        residual = functools.partial(
            blocks.ResidualBlock,
            time_width=width,
            dims=dims,
            groups=groups,
            epsilon=epsilon,
            dropout=dropout,
            dtype=dtype,
            rngs=rngs,
        )
        attend = functools.partial(
            blocks.AttentionBlock,
            head_width=head_width,
            groups=groups,
            epsilon=epsilon,
            dtype=dtype,
            rngs=rngs,
        )
        resample = {"convolve": resample_convolution, "dims": dims, "dtype": dtype, "rngs": rngs}

        self.time = blocks.TimeEmbedding(channels[0], width, dtype=dtype, rngs=rngs)
        self.conv_in = conv(image_channels + sum(conditions.values()), channels[0])
        skips = [channels[0]]  # features of each skip connection, a stack

        down, features = [], channels[0]
        for level, (wide, attentive) in enumerate(zip(channels, attention, strict=True)):
            for _ in range(layers):
                down.append(Stage(residual(features, wide), attend(wide) if attentive else None))
                features = wide
                skips.append(features)
            if level < len(channels) - 1:
                down.append(blocks.Downsample(features, **resample))
                skips.append(features)
        self.down = nnx.List(down)

        self.middle = nnx.List(
            [
                Stage(residual(features, features), attend(features) if middle_attention else None),
                Stage(residual(features, features), None),
            ]
        )

        up = []
        for level, (wide, attentive) in reversed(
            list(enumerate(zip(channels, attention, strict=True)))
        ):
            for _ in range(layers + 1):
                up.append(
                    Stage(
                        residual(features + skips.pop(), wide), attend(wide) if attentive else None
                    )
                )
                features = wide
            if level > 0:
                up.append(blocks.Upsample(features, **resample))
        self.up = nnx.List(up)

        self.norm_out = blocks.GroupNorm(features, groups=groups, epsilon=epsilon)
        self.conv_out = conv(features, image_channels, zero=True)

    def __call__(self, z_t, t, condition: Mapping, rngs: nnx.Rngs | None = None):
        """z_t [B, *S, C], t [B], condition {name: [B, *S, c]} -> prediction [B, *S, C], float32."""
        h = jnp.concatenate([z_t, *(condition[name] for name in self.conditions)], -1)
        time = self.time(t)
        h = self.conv_in(h.astype(self.dtype))
        skips = [h]
        for block in self.down:
            h = block(h, time, rngs) if isinstance(block, Stage) else block(h)
            skips.append(h)
        for block in self.middle:
            h = block(h, time, rngs)
        for block in self.up:
            if isinstance(block, Stage):
                h = block(jnp.concatenate([h, skips.pop()], -1), time, rngs)
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
