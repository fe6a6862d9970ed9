# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the denoising networks, for any number of spatial dimensions.

Shapes: B batch, *S space (H W or D H W), C channels (last), E width of the time embedding.
The number of spatial dimensions is read off the kernels, never written twice: a 3-D network is
the same code with `dims=3`.

Parameters are float32; `dtype` is what the layers compute in (bfloat16 on accelerators
that have it). Normalisation statistics and the softmax are float32 whatever the dtype.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx


def deviation(_key, shape, dtype, _sharding=None):
    """Standard deviation of a new kernel, in every element: 1 / sqrt(fan-in).

    After LeCun et al. 1998, section 4.6.

    `models.build` multiplies kernels by noise it draws in one piece: a generator for
    each of a network's hundred kernels would take longer to compile than the network.
    """
    return jnp.full(shape, math.prod(shape[:-1]) ** -0.5, dtype)


def _kernel(zero: bool):
    return nnx.initializers.zeros_init() if zero else deviation


def convolution(
    features_in: int,
    features_out: int,
    *,
    dims: int,
    kernel: int = 3,
    stride: int = 1,
    zero: bool = False,
    dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution over [B, *S, C]; padding of kernel // 2 on both sides, as in PyTorch.

    XLA's 'SAME' pads a stride-2 convolution on the far side only: a shift of half a pixel.
    """
    return nnx.Conv(
        features_in,
        features_out,
        kernel_size=(kernel,) * dims,
        strides=(stride,) * dims,
        padding=[(kernel // 2, kernel // 2)] * dims,
        kernel_init=_kernel(zero),
        dtype=dtype,
        rngs=rngs,
    )


def linear(
    features_in: int, features_out: int, *, zero: bool = False, dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    """A matrix product over the last axis, plus bias."""
    return nnx.Linear(features_in, features_out, kernel_init=_kernel(zero), dtype=dtype, rngs=rngs)


@functools.partial(jax.checkpoint, static_argnums=(3, 4))
def normalise_and_activate(x, scale, bias, groups: int, epsilon: float):
    """SiLU(GroupNorm(x)) (Wu & He 2018, arXiv 1803.08494), statistics in float32.

    Rematerialised: recomputing this elementwise chain in the backward pass costs
    less memory traffic than keeping its intermediates, on a CPU as on a GPU.
    """
    return jax.nn.silu(_group_norm(x, scale, bias, groups, epsilon))


def _group_norm(x, scale, bias, groups: int, epsilon: float):
    """Moments per channel first, then per group.

    On a CPU this is ten times faster than reducing [.., groups, C / groups].
    """
    batch, features = x.shape[0], x.shape[-1]
    space = tuple(range(1, x.ndim - 1))
    wide = x.astype(jnp.float32)

    def pooled(moments):
        return moments.reshape(batch, groups, -1).mean(-1)

    mean = pooled(wide.mean(space))
    variance = jnp.maximum(pooled(jnp.square(wide).mean(space)) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + epsilon)

    def per_channel(values):
        return jnp.repeat(values, features // groups, -1)

    gain = per_channel(inverse) * scale[None]
    offset = bias[None] - per_channel(mean) * gain
    spread = (batch, *(1,) * len(space), features)
    return (wide * gain.reshape(spread) + offset.reshape(spread)).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation over [B, *S, C], alone or followed by SiLU."""

    def __init__(self, features: int, *, groups: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x):
        return _group_norm(x, self.scale[...], self.bias[...], self.groups, self.epsilon)

    def then_silu(self, x):
        return normalise_and_activate(x, self.scale[...], self.bias[...], self.groups, self.epsilon)


def sinusoids(t, features: int, max_period: float = 10_000.0):
    """Timesteps [B] -> [B, features], cosines first.

    Vaswani et al. 2017, section 3.5; Ho et al. 2020, appendix B.
    """
    half = features // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class TimeEmbedding(nnx.Module):
    """Timesteps [B] -> [B, E]: sinusoids, then a two-layer perceptron."""

    def __init__(self, features: int, width: int, *, dtype, rngs: nnx.Rngs):
        self.features, self.dtype = features, dtype
        self.first = linear(features, width, dtype=dtype, rngs=rngs)
        self.second = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, t):
        embedding = sinusoids(t, self.features).astype(self.dtype)
        return self.second(jax.nn.silu(self.first(embedding)))


class ResidualBlock(nnx.Module):
    """norm, SiLU, convolution, + time; norm, SiLU, dropout, convolution; + shortcut.

    Ho et al. 2020, appendix B.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        time_width: int,
        *,
        dims: int,
        groups: int,
        epsilon: float,
        dropout: float,
        dtype,
        rngs: nnx.Rngs,
    ):
        kernel = functools.partial(convolution, dims=dims, dtype=dtype, rngs=rngs)
        self.norm_1 = GroupNorm(features_in, groups=groups, epsilon=epsilon)
        self.conv_1 = kernel(features_in, features_out)
        self.time = linear(time_width, features_out, dtype=dtype, rngs=rngs)
        self.norm_2 = GroupNorm(features_out, groups=groups, epsilon=epsilon)
        self.dropout = nnx.Dropout(dropout)
        # The block starts as the identity, so that depth does not slow the first steps.
        self.conv_2 = kernel(features_out, features_out, zero=True)
        self.shortcut = (
            None if features_in == features_out else kernel(features_in, features_out, kernel=1)
        )

    def __call__(self, x, time, rngs: nnx.Rngs | None):
        """x [B, *S, C_in], time [B, E] -> [B, *S, C_out]; dropout only where `rngs` is given."""
        h = self.conv_1(self.norm_1.then_silu(x))
        shift = self.time(jax.nn.silu(time))
        h = h + shift.reshape(shift.shape[0], *(1,) * (h.ndim - 2), shift.shape[-1])
        h = self.dropout(self.norm_2.then_silu(h), deterministic=rngs is None, rngs=rngs)
        return self.conv_2(h) + (x if self.shortcut is None else self.shortcut(x))


def attend(query, key, value):
    """Scaled dot-product attention over [B, N, heads, width] (Vaswani et al. 2017, equation 1).

    The exponentials are normalised after the second product: N x width divisions
    instead of N x N, which on a CPU is most of the cost where heads are narrow.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum(
        "bhqk,bkhd->bqhd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return (mixed / jnp.moveaxis(weights.sum(-1), 1, 2)[..., None]).astype(value.dtype)


class AttentionBlock(nnx.Module):
    """Self-attention over all positions of [B, *S, C], with norm and residual."""

    def __init__(
        self, features: int, *, head_width: int, groups: int, epsilon: float, dtype, rngs: nnx.Rngs
    ):
        square = functools.partial(linear, features, features, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(features, groups=groups, epsilon=epsilon)
        self.query, self.key, self.value = square(), square(), square()
        self.out = square(zero=True)
        self.heads = features // head_width

    def __call__(self, x):
        tokens = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])

        def split(y):
            return y.reshape(*y.shape[:2], self.heads, -1)

        mixed = attend(*(split(f(tokens)) for f in (self.query, self.key, self.value)))
        return x + self.out(mixed.reshape(tokens.shape)).reshape(x.shape)


class Downsample(nnx.Module):
    """Halve every spatial axis: with a stride-2 convolution, or with means of 2 x 2 (x 2)."""

    def __init__(self, features: int, *, convolve: bool, dims: int, dtype, rngs: nnx.Rngs):
        self.conv = (
            convolution(features, features, dims=dims, stride=2, dtype=dtype, rngs=rngs)
            if convolve
            else None
        )

    def __call__(self, x):
        if self.conv is not None:
            return self.conv(x)
        return nnx.avg_pool(x, *((2,) * (x.ndim - 2),) * 2)


class Upsample(nnx.Module):
    """Double every spatial axis by repetition, followed by a convolution or not."""

    def __init__(self, features: int, *, convolve: bool, dims: int, dtype, rngs: nnx.Rngs):
        self.conv = (
            convolution(features, features, dims=dims, dtype=dtype, rngs=rngs) if convolve else None
        )

    def __call__(self, x):
        for axis in range(1, x.ndim - 1):
            x = jnp.repeat(x, 2, axis)
        return x if self.conv is None else self.conv(x)
