# SPDX-License-Identifier: Apache-2.0
"""The autoencoder of latent diffusion: images to smaller ones of a few channels, and back.

Of an image the encoder gives a normal distribution of *latents* with independent elements (Kingma &
Welling 2014, arXiv 1312.6114); the decoder draws the image again from any of them. The topology is
that of Rombach et al. 2022 (arXiv 2112.10752, appendix E.1) as diffusers' `AutoencoderKL` arranges
it; interop/autoencoder_kl.py has their names for ours.

Shapes: B batch, H rows, W columns, C channels of images (last), f pixels a side of a latent, Z
channels of latents.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

from contourdiff_jax import models
from contourdiff_jax.contracts import Params
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import blocks
from contourdiff_jax.models.unet import Stage

LOG_VARIANCES = (-30.0, 20.0)  # to which they are clipped
LAST = ("decoder", "conv_out", "kernel")  # where the decoder's last kernel is in params


class Autoencoder(NamedTuple):
    """Pure functions over params, a plain nested dict of arrays.

    init(key) -> params
    encode(params, images [B, H, W, C] in [-1, 1]) -> mean and log-variance [B, H / f, W / f, Z]
    decode(params, latents [B, H / f, W / f, Z]) -> images [B, H, W, C], not clipped
    """

    init: Callable[..., Params]
    encode: Callable[..., tuple[jax.Array, jax.Array]]
    decode: Callable[..., jax.Array]


def build(config) -> Autoencoder:
    """The autoencoder of an `autoencoder` section (see config.py).

    The same functions come back for the same network, so that what is traced of it once serves.
    """
    return _built(FrozenConfigDict(config))


@functools.cache
def _built(config: FrozenConfigDict) -> Autoencoder:
    init, bind = models.functional(lambda: KLAutoencoder(config, rngs=nnx.Rngs(0)))
    return Autoencoder(
        init,
        encode=lambda params, images: bind(params).encode(images),
        decode=lambda params, latents: bind(params).decode(latents),
    )


def coloured(config, images):
    """Greys [B, H, W, 1] as the channels [B, H, W, C] that an autoencoder sees."""
    return jnp.repeat(images, config.image_channels, -1)


def grey(images):
    """What an autoencoder draws, [B, H, W, C], as greys [B, H, W, 1]."""
    return images.mean(-1, keepdims=True)


def sampled(mean, log_variance, key):
    """Latents drawn from their distribution."""
    return mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)


def side(config) -> int:
    """f, the pixels a side of a latent."""
    return 2 ** (len(config.channels) - 1)


def check_size(config, size: int) -> None:
    """Raise InputError for an image that cannot be made latents of."""
    if size % side(config):
        raise InputError(
            f"images of {size} px, and a latent of the autoencoder stands for {side(config)} px a "
            f"side; prepare a store with a size that is a multiple of it"
        )


def described(config) -> str:
    """In words, for a model card: the network of an `autoencoder` section."""
    f = side(config)
    return (
        f"KL autoencoder, channels {'-'.join(map(str, config.channels))}, {config.latents} numbers "
        f"for {f} x {f} pixels"
    )


class KLAutoencoder(nnx.Module):
    """Encoder and decoder, and a product of matrices on either side of the latents."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        make = _Builder(config, rngs)
        double = 2 * config.latents  # a mean and a log-variance each
        self.encoder = Encoder(make, config.image_channels, double)
        self.quantise = make.convolution(double, double, kernel=1)
        self.dequantise = make.convolution(config.latents, config.latents, kernel=1)
        self.decoder = Decoder(make, config.latents, config.image_channels)

    def encode(self, images):
        mean, log_variance = jnp.split(self.quantise(self.encoder(images)), 2, -1)
        return mean, log_variance.clip(*LOG_VARIANCES)

    def decode(self, latents):
        return self.decoder(self.dequantise(latents))


class _Builder:
    """Makes the parts of an autoencoder of one configuration: those of the U-Net without time."""

    def __init__(self, config, rngs: nnx.Rngs):
        self.config, self.channels = config, tuple(config.channels)
        layer = {"dtype": jnp.float32, "rngs": rngs}
        norm = {"groups": config.groups, "epsilon": config.epsilon}
        self.norm = functools.partial(blocks.GroupNorm, **norm)
        self.convolution = functools.partial(blocks.convolution, dims=2, **layer)
        resample = layer | {"convolve": True, "dims": 2}
        self.downsample = functools.partial(blocks.Downsample, padding=0, **resample)
        self.upsample = functools.partial(blocks.Upsample, **resample)
        self._residual = functools.partial(
            blocks.ResidualBlock, time_width=0, time_scale_shift=False, dims=2, dropout=0.0
        )
        self._attention = functools.partial(blocks.AttentionBlock, head_width=0, **norm, **layer)
        self._options = norm | layer

    def stage(self, features_in: int, features_out: int, *, attentive: bool = False) -> Stage:
        attention = self._attention(features_out) if attentive else None
        return Stage(self._residual(features_in, features_out, **self._options), attention)

    def middle(self) -> nnx.List:
        """Two residual blocks, with self-attention between them or not."""
        features = self.channels[-1]
        first = self.stage(features, features, attentive=self.config.attention)
        return nnx.List([first, self.stage(features, features)])


def _through(stages, h):
    for block in stages:
        h = block(h, None, None, None) if isinstance(block, Stage) else block(h)
    return h


class Encoder(nnx.Module):
    """[B, H, W, inputs] -> [B, H / f, W / f, outputs]."""

    def __init__(self, make: _Builder, inputs: int, outputs: int):
        features = make.channels[0]
        self.conv_in = make.convolution(inputs, features)
        down = []
        for level, wide in enumerate(make.channels):
            for _ in range(make.config.layers):
                down.append(make.stage(features, wide))
                features = wide
            if level < len(make.channels) - 1:
                down.append(make.downsample(features))
        self.down, self.middle = nnx.List(down), make.middle()
        self.norm_out = make.norm(features)
        self.conv_out = make.convolution(features, outputs)

    def __call__(self, x):
        h = _through(self.middle, _through(self.down, self.conv_in(x)))
        return self.conv_out(self.norm_out.then_silu(h))


class Decoder(nnx.Module):
    """[B, H / f, W / f, inputs] -> [B, H, W, outputs]; a residual block more a resolution."""

    def __init__(self, make: _Builder, inputs: int, outputs: int):
        features = make.channels[-1]
        self.conv_in = make.convolution(inputs, features)
        self.middle, up = make.middle(), []
        for level, wide in reversed(list(enumerate(make.channels))):
            for _ in range(make.config.layers + 1):
                up.append(make.stage(features, wide))
                features = wide
            if level > 0:
                up.append(make.upsample(features))
        self.up = nnx.List(up)
        self.norm_out = make.norm(features)
        self.conv_out = make.convolution(features, outputs)

    def __call__(self, z):
        h = _through(self.up, _through(self.middle, self.conv_in(z)))
        return self.conv_out(self.norm_out.then_silu(h))
