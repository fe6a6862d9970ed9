# SPDX-License-Identifier: Apache-2.0
"""The text encoder of CLIP, by which Stable Diffusion reads its prompts.

Radford et al. 2021, arXiv 2103.00020, section 2.4: a transformer that normalises before each of its
parts (Radford et al. 2019, GPT-2, section 2.3) and in which a token sees itself and those before
it. Rombach et al., arXiv 2112.10752, condition on what comes of every token after the last norm.
interop/clip_text.py has transformers' names for ours.

New parameters are like those of the other networks here, not CLIP's: it is read from a file, and
not learnt.

Shapes: B batch, N tokens, W width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from contourdiff_jax import models
from contourdiff_jax.contracts import Params
from contourdiff_jax.models import blocks

DEVIATION = 0.02  # of new embeddings, as of CLIP's of tokens


def quick_gelu(x):
    """x sigmoid(1.702 x), near to a GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": functools.partial(jax.nn.gelu, approximate=False)}


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """What an encoder is made of; by default CLIP ViT-L/14's, which Stable Diffusion 1 has.

    Attributes:
      vocabulary: number of tokens.
      positions: most tokens of a prompt.
      width: features of a token; a multiple of `heads`.
      layers: number of them.
      heads: of attention.
      mlp: features within a layer's perceptron.
      activation: of the perceptron, a name of ACTIVATIONS.
      epsilon: of the norms.
    """

    vocabulary: int = 49408
    positions: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    activation: str = "quick_gelu"
    epsilon: float = 1e-5


class TextEncoder(NamedTuple):
    """Two pure functions over params, a plain nested dict of float32 arrays.

    init(key) -> params
    encode(params, ids [B, N] int32) -> [B, N, W] float32, the last hidden state after its norm

    N is `positions` at most.
    """

    init: Callable[..., Params]
    encode: Callable[..., jax.Array]


@functools.cache
def build(config: TextConfig) -> TextEncoder:
    """The encoder of `config`; the same functions for the same one."""
    init, bind = models.functional(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return TextEncoder(init, encode=lambda params, ids: bind(params)(ids))


class Transformer(nnx.Module):
    """Embeddings of tokens and of their positions, layers, and a norm."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        embedding = functools.partial(
            nnx.Embed,
            features=config.width,
            embedding_init=nnx.initializers.constant(DEVIATION),
            rngs=rngs,
        )
        self.token = embedding(config.vocabulary)
        self.position = embedding(config.positions)
        self.layers = nnx.List(Layer(config, rngs=rngs) for _ in range(config.layers))
        self.norm = norm(config, rngs=rngs)

    def __call__(self, ids):
        """ids [B, N] -> [B, N, W]."""
        x = self.token(ids) + self.position(jnp.arange(ids.shape[1]))[None]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Layer(nnx.Module):
    """norm, attention, + shortcut; norm, perceptron, + shortcut."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        linear = functools.partial(blocks.linear, dtype=jnp.float32, rngs=rngs)
        self.norm_1 = norm(config, rngs=rngs)
        self.attention = CausalAttention(config, rngs=rngs)
        self.norm_2 = norm(config, rngs=rngs)
        self.first = linear(config.width, config.mlp)
        self.second = linear(config.mlp, config.width)
        self.activate = ACTIVATIONS[config.activation]

    def __call__(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.second(self.activate(self.first(self.norm_2(x))))


class CausalAttention(nnx.Module):
    """Self-attention over [B, N, W] of each token with itself and those before it."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        square = functools.partial(
            blocks.linear, config.width, config.width, dtype=jnp.float32, rngs=rngs
        )
        self.query, self.key, self.value, self.out = square(), square(), square(), square()
        self.heads = config.heads

    def __call__(self, x):
        projections = (self.query, self.key, self.value)
        heads = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in projections)
        seen = jnp.tri(x.shape[1], dtype=bool)
        return self.out(blocks.attend(*heads, seen).reshape(x.shape))


def norm(config: TextConfig, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450, equation 3)."""
    # The fast variance is the difference of two means, which loses digits.
    return nnx.LayerNorm(config.width, epsilon=config.epsilon, use_fast_variance=False, rngs=rngs)
