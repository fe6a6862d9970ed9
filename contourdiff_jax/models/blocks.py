# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the denoising networks, for any number of spatial dimensions.

Shapes: B batch, *S space (H W or D H W), C channels (last), E width of the time embedding.
Blocks are told the number of spatial dimensions once, when their kernels are made; a 3-D network is
the same code with `dims=3`. Of three dimensions, *planar* blocks see each slice alone: where slices
lie farther apart than pixels, as nnU-Net has it (Isensee et al. 2021, Nature Methods 18, 203).

Parameters are float32; `dtype` is what the layers compute in (bfloat16 on accelerators
that have it). Normalisation statistics and the softmax are float32 whatever the dtype.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import backend

from contourdiff_jax.models.convolution import (
    Convolution1x1,
    Convolution1x3x3,
    Convolution3x3,
    Convolution3x3x3,
)


def deviation(_key, shape, dtype, _sharding=None):
    """A new kernel that holds its standard deviation in every element: 1 / sqrt(fan-in).

    After LeCun et al. 1998, section 4.6. `models.functional` multiplies kernels by noise that it
    draws in one piece: a generator for each of a network's hundred kernels would take longer to
    compile than the network.
    """
    return jnp.full(shape, math.prod(shape[:-1]) ** -0.5, dtype)


def _kernel(zero: bool):
    return nnx.initializers.zeros_init() if zero else deviation


def over_space(value, dims: int, planar: bool, across=1) -> tuple:
    """`value` for each axis of space; where what is made is planar, `across` for the slices'."""
    return (across if planar else value, *(value,) * (dims - 1))


def convolution(
    features_in: int,
    features_out: int,
    *,
    dims: int,
    planar: bool = False,
    kernel: int = 3,
    stride: int = 1,
    near: int | None = None,
    zero: bool = False,
    dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution over [B, *S, C]; padding of kernel // 2 on both sides, as in PyTorch.

    Args:
      near: padding before the first pixel of every axis, in place of that.
    """
    far = kernel // 2
    near = far if near is None else near
    if (kernel, stride) == (1, 1):
        form = Convolution1x1
    elif dims > 1 and (kernel, stride, near) == (3, 1, 1):
        of_volumes = Convolution1x3x3 if planar else Convolution3x3x3
        form = Convolution3x3 if dims == 2 else of_volumes
    else:
        form = nnx.Conv
    return form(
        features_in,
        features_out,
        kernel_size=over_space(kernel, dims, planar),
        strides=over_space(stride, dims, planar),
        padding=over_space((near, far), dims, planar, across=(0, 0)),
        kernel_init=_kernel(zero),
        dtype=dtype,
        rngs=rngs,
    )


def linear(
    features_in: int,
    features_out: int,
    *,
    zero: bool = False,
    bias: bool = True,
    dtype,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A matrix product over the last axis, plus bias (or without)."""
    return nnx.Linear(
        features_in,
        features_out,
        use_bias=bias,
        kernel_init=_kernel(zero),
        dtype=dtype,
        rngs=rngs,
    )


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


def sinusoids(
    t, features: int, *, cosine_first: bool = True, shift: float = 0, max_period: float = 10_000.0
):
    """Timesteps [B] -> [B, features]: waves of frequencies from 1 down towards 1 / max_period.

    Vaswani et al. 2017, section 3.5. The lowest frequency is 1 / max_period with a `shift` of 1,
    as in DDPM's code, and one step above it with 0.
    """
    half = features // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - shift)
    frequencies = jnp.exp(-jnp.log(max_period) * exponents)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    waves = (jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate(waves if cosine_first else waves[::-1], -1)


class TimeEmbedding(nnx.Module):
    """Timesteps [B] -> [B, E]: sinusoids, then a two-layer perceptron."""

    def __init__(
        self,
        features: int,
        width: int,
        *,
        cosine_first: bool,
        shift: float,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.sinusoids = functools.partial(
            sinusoids, features=features, cosine_first=cosine_first, shift=shift
        )
        self.dtype = dtype
        self.first = linear(features, width, dtype=dtype, rngs=rngs)
        self.second = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, t):
        embedding = self.sinusoids(t).astype(self.dtype)
        return self.second(jax.nn.silu(self.first(embedding)))


def means(x, sides: tuple[int, ...]):
    """[B, *S, C] -> means over blocks with `sides`; at an end, of the part that is left there."""
    return x if set(sides) <= {1} else _means(x, sides, x.shape[1:-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _means(x, sides, space):
    beyond = [(0, -size % side) for size, side in zip(space, sides, strict=True)]
    whole = not any(after for _, after in beyond)
    return nnx.avg_pool(x, sides, sides, beyond, count_include_pad=whole)


def _means_backward(sides, space, _, gradient):
    """Every element's share of its block; XLA would sum windows as large as the blocks are."""
    sizes = [
        np.minimum(side, size - np.arange(0, size, side))
        for side, size in zip(sides, space, strict=True)
    ]
    counts = jnp.asarray(functools.reduce(np.multiply.outer, sizes), gradient.dtype)
    return (repeated(gradient / counts[None, ..., None], sides, space),)


_means.defvjp(lambda x, sides, space: (_means(x, sides, space), None), _means_backward)


def repeated(x, sides: tuple[int, ...], space: tuple[int, ...] = ()):
    """Every element as a block with `sides`; cut to the `space` that `means` were taken of."""
    for axis, side in enumerate(sides, 1):
        x = jnp.repeat(x, side, axis)
    return x[(slice(None), *map(slice, space))] if space else x


class Broader(nnx.Module):
    """A path for broader shape: means over 2 x 2 (x 2), a convolution, repetition.

    Beside a residual block's own path, which sees fine detail, it sees twice as far for an eighth
    of the work, in two dimensions a quarter. After Ma, Chen & Liang 2026 (Sci Rep 16, 14774), whose
    block splits what flows through it into a path for detail and one for shape; no code of theirs
    is public, and what the paths are made of is ours.
    """

    def __init__(self, features: int, *, dims: int, planar: bool, dtype, rngs: nnx.Rngs):
        self.sides = over_space(2, dims, planar)
        # It adds nothing at first, so that the block still starts as the identity.
        self.conv = convolution(
            features, features, dims=dims, planar=planar, zero=True, dtype=dtype, rngs=rngs
        )

    def __call__(self, x):
        return repeated(self.conv(means(x, self.sides)), self.sides, x.shape[1:-1])


class ResidualBlock(nnx.Module):
    """norm, SiLU, convolution, time; norm, SiLU, dropout, convolution; + shortcut.

    Ho et al. 2020, appendix B. The time embedding is added between convolution and norm, or with
    `time_scale_shift` it scales and shifts what the norm gives (Dhariwal & Nichol 2021, arXiv
    2105.05233, section 3.1); with a `time_width` of 0 there is none. The sum is divided by
    `divisor`. Of two `paths`, `Broader` is the second, beside the last convolution.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        time_width: int,
        *,
        dims: int,
        planar: bool = False,
        paths: int = 1,
        groups: int,
        epsilon: float,
        time_scale_shift: bool,
        dropout: float,
        divisor: float = 1.0,
        dtype,
        rngs: nnx.Rngs,
    ):
        layer = {"dims": dims, "planar": planar, "dtype": dtype, "rngs": rngs}
        kernel = functools.partial(convolution, **layer)
        self.time_scale_shift, self.divisor = time_scale_shift, divisor
        self.norm_1 = GroupNorm(features_in, groups=groups, epsilon=epsilon)
        self.conv_1 = kernel(features_in, features_out)
        time_features = 2 * features_out if time_scale_shift else features_out
        self.time = (
            linear(time_width, time_features, dtype=dtype, rngs=rngs) if time_width else None
        )
        self.norm_2 = GroupNorm(features_out, groups=groups, epsilon=epsilon)
        self.dropout = nnx.Dropout(dropout)
        # The block starts as the identity, so that depth does not slow the first steps.
        self.conv_2 = kernel(features_out, features_out, zero=True)
        self.broader = Broader(features_out, **layer) if paths == 2 else None
        self.shortcut = (
            None if features_in == features_out else kernel(features_in, features_out, kernel=1)
        )

    def __call__(self, x, time, rngs: nnx.Rngs | None):
        """x [B, *S, C_in], time [B, E] -> [B, *S, C_out]; dropout only where `rngs` is given."""
        h = self.timed(self.conv_1(self.norm_1.then_silu(x)), time)
        h = self.dropout(h, deterministic=rngs is None, rngs=rngs)
        detail = self.conv_2(h)
        h = detail if self.broader is None else detail + self.broader(h)
        h = h + (x if self.shortcut is None else self.shortcut(x))
        return h / self.divisor

    def timed(self, h, time):
        """The second norm and SiLU of h [B, *S, C_out], told the time [B, E] if there is one."""
        if self.time is None:
            return self.norm_2.then_silu(h)
        time = self.time(jax.nn.silu(time))
        time = time.reshape(time.shape[0], *(1,) * (h.ndim - 2), time.shape[-1])
        if not self.time_scale_shift:
            return self.norm_2.then_silu(h + time)
        scale, shift = jnp.split(time, 2, -1)
        return jax.nn.silu(self.norm_2(h) * (1 + scale) + shift)


def attend(query, key, value, mask=None):
    """Scaled dot-product attention over [B, N, heads, width] (Vaswani et al. 2017, equation 1).

    A mask [N, N] is true where a query, its row, may see a key, of which it must see one at least.

    The exponentials are normalised after the second product: N x width divisions
    instead of N x N, which on a CPU is most of the cost where heads are narrow.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[None, None], scores, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum(
        "bhqk,bkhd->bqhd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return (mixed / jnp.moveaxis(weights.sum(-1), 1, 2)[..., None]).astype(value.dtype)


# The same in one kernel that keeps no scores (Dao et al. 2022, arXiv 2205.14135). cuDNN must be
# there when it is traced.
_attend_in_cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def attend_fused(query, key, value):
    """`attend`, on an NVIDIA GPU in cuDNN's kernel."""
    if "cuda" not in backend.get_backend().platform_version:
        return attend(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cuda=_attend_in_cudnn, default=attend)


class Attention(nnx.Module):
    """Attention of tokens, by several heads (Vaswani et al. 2017, section 3.2.2).

    Args:
      head_width: features of a head; 0: all of them in one.
      seen: features of what is attended to; default: those of the tokens.
      bias: of queries, keys and values.
      zero: whether nothing comes out at first.
    """

    def __init__(
        self,
        features: int,
        *,
        head_width: int,
        seen: int | None = None,
        bias: bool = True,
        zero: bool = False,
        fused: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "rngs": rngs}
        seen = features if seen is None else seen
        self.query = linear(features, features, bias=bias, **layer)
        self.key, self.value = (linear(seen, features, bias=bias, **layer) for _ in range(2))
        self.out = linear(features, features, zero=zero, **layer)
        self.heads = features // head_width if head_width else 1
        self.attend = attend_fused if fused else attend

    def mixed(self, tokens, seen):
        """tokens [B, N, C], what they attend to [B, M, seen] -> [B, N, C]."""

        def split(y):
            return y.reshape(*y.shape[:2], self.heads, -1)

        mixed = self.attend(
            split(self.query(tokens)), split(self.key(seen)), split(self.value(seen))
        )
        return self.out(mixed.reshape(tokens.shape))


class AttentionBlock(Attention):
    """Self-attention over all positions of [B, *S, C], with norm (or without) and residual.

    With the sides of a block of positions as `pool`, the means over such blocks attend to one
    another, and what they find is added to all positions of each: of p^d positions a block, scores
    are p^(2 d) times fewer. After the memory-saving attention of Ma, Chen & Liang 2026 (Sci Rep 16,
    14774), which pools before and upsamples after; no code of theirs is public.
    """

    def __init__(
        self,
        features: int,
        *,
        head_width: int,
        groups: int,
        epsilon: float,
        pool: tuple[int, ...] = (),
        fused: bool = False,
        norm: bool = True,
        divisor: float = 1.0,
        dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            features, head_width=head_width, zero=True, fused=fused, dtype=dtype, rngs=rngs
        )
        self.norm = GroupNorm(features, groups=groups, epsilon=epsilon) if norm else None
        self.pool, self.divisor = pool, divisor

    def __call__(self, x):
        pooled = means(x if self.norm is None else self.norm(x), self.pool)
        tokens = pooled.reshape(x.shape[0], -1, x.shape[-1])
        mixed = self.mixed(tokens, tokens).reshape(pooled.shape)
        return (x + repeated(mixed, self.pool, x.shape[1:-1])) / self.divisor


class Downsample(nnx.Module):
    """Halve every spatial axis: with a stride-2 convolution, or with means of 2 x 2 (x 2).

    A planar one leaves the slices as many as they are.

    With `padding` = 1 the convolution is centred on the first pixel of each pair. With 0 it is
    centred on the second: that is 'SAME' of TensorFlow and XLA, and so of DDPM's code.
    """

    def __init__(
        self,
        features: int,
        *,
        convolve: bool,
        padding: int,
        dims: int,
        planar: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        layer = {"dims": dims, "planar": planar, "dtype": dtype, "rngs": rngs}
        self.sides = over_space(2, dims, planar)
        self.conv = (
            convolution(features, features, stride=2, near=padding, **layer) if convolve else None
        )

    def __call__(self, x):
        if self.conv is not None:
            return self.conv(x)
        return means(x, self.sides)


class Upsample(nnx.Module):
    """Double every spatial axis by repetition, with or without a convolution after it.

    A planar one leaves the slices as many as they are.
    """

    def __init__(
        self,
        features: int,
        *,
        convolve: bool,
        dims: int,
        planar: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        layer = {"dims": dims, "planar": planar, "dtype": dtype, "rngs": rngs}
        self.sides = over_space(2, dims, planar)
        self.conv = convolution(features, features, **layer) if convolve else None

    def __call__(self, x):
        x = repeated(x, self.sides)
        return x if self.conv is None else self.conv(x)
