# SPDX-License-Identifier: Apache-2.0
"""The transformer block by which a U-Net attends to more than its image, such as words.

It is latent diffusion's (Rombach et al. 2022, arXiv 2112.10752, section 3.3 and appendix E.2.1), as
diffusers' `Transformer2DModel` of depth 1 arranges it.

Shapes: B batch, *S space, N pixels, C channels (last), M tokens of the context.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from contourdiff_jax.models import blocks

NORM = 1e-6  # epsilon of the group normalisation, whatever that of the network is
LAYER_NORM = 1e-5
WIDER = 4  # times as many features within the feed-forward layers


class Transformer(nnx.Module):
    """norm, linear; self-attention, cross-attention, feed-forward; linear; + shortcut.

    Args:
      context: features of what is attended to beside the image.
      head_width: features of a head of attention.
    """

    def __init__(
        self,
        features: int,
        *,
        context: int,
        head_width: int,
        groups: int,
        fused: bool,
        dtype,
        rngs: nnx.Rngs,
    ):
        square = functools.partial(blocks.linear, features, features, dtype=dtype, rngs=rngs)
        self.norm = blocks.GroupNorm(features, groups=groups, epsilon=NORM)
        self.enter = square()
        self.block = Block(
            features, context=context, head_width=head_width, fused=fused, dtype=dtype, rngs=rngs
        )
        # As a residual block it starts as the identity.
        self.leave = square(zero=True)

    def __call__(self, x, context):
        """x [B, *S, C], context [B, M, width] -> [B, *S, C]."""
        tokens = self.enter(self.norm(x).reshape(x.shape[0], -1, x.shape[-1]))
        return x + self.leave(self.block(tokens, context)).reshape(x.shape)


class Block(nnx.Module):
    """Three layers of a transformer, each with a norm before it and a shortcut around it."""

    def __init__(
        self, features: int, *, context: int, head_width: int, fused: bool, dtype, rngs: nnx.Rngs
    ):
        layer = {"dtype": dtype, "rngs": rngs}
        norm = functools.partial(
            nnx.LayerNorm, features, epsilon=LAYER_NORM, use_fast_variance=False, **layer
        )
        attention = functools.partial(
            blocks.Attention, features, head_width=head_width, bias=False, **layer
        )
        self.norm_1 = norm()
        self.self_attention = attention(fused=fused)
        self.norm_2 = norm()
        # A context is short, its scores are few, and cuDNN's kernel asks for an even number of
        # tokens to learn, where a text has 77: not fused.
        self.cross_attention = attention(seen=context)
        self.norm_3 = norm()
        self.feed_forward = FeedForward(features, **layer)

    def __call__(self, x, context):
        """x [B, N, C], context [B, M, width] -> [B, N, C]."""
        tokens = self.norm_1(x)
        x = x + self.self_attention.mixed(tokens, tokens)
        x = x + self.cross_attention.mixed(self.norm_2(x), context)
        return x + self.feed_forward(self.norm_3(x))


class FeedForward(nnx.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202, equation 6): values, gated by the GELU of others."""

    def __init__(self, features: int, *, dtype, rngs: nnx.Rngs):
        wide = WIDER * features
        self.widen = blocks.linear(features, 2 * wide, dtype=dtype, rngs=rngs)
        self.narrow = blocks.linear(wide, features, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        values, gates = jnp.split(self.widen(x), 2, -1)
        return self.narrow(values * jax.nn.gelu(gates, approximate=False))
