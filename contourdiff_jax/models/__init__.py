# SPDX-License-Identifier: Apache-2.0
"""The networks, and the only place that knows Flax.

Outside, a model is two pure functions over plain dicts.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from clu import parameter_overview
from flax import nnx
from ml_collections import FrozenConfigDict

from contourdiff_jax.contracts import Params
from contourdiff_jax.models import conditioning, patches
from contourdiff_jax.models.unet import UNet

# Standard deviation of a standard normal variable truncated to [-2, 2].
TRUNCATED_DEVIATION = 0.8796256610342398
# Names of parameters that begin as noise.
NOISY = ("kernel", "embedding")


class Model(NamedTuple):
    """Two pure functions over params, a plain nested dict of arrays.

        init(key) -> params
        apply(params, z_t, t, condition, *, key=None, context=None, residuals=None) -> prediction

    z_t and prediction [B, *S, C], t [B], condition {name: [B, *S, c]}. `key` turns dropout on.
    Of a network that sees its conditions alone, z_t and t are None. A context [B, M, width] is
    attended to where config.model.context says so; residuals are a ControlNet's (controlnet.py).
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]


def described(config) -> str:
    """In words, for a model card: the network of a `model` section."""
    kind = "U-Net" if config.dims == 2 else "3D U-Net"
    paths = " of two paths" if config.paths == 2 else ""
    return f"{kind}{paths}, channels {'-'.join(map(str, config.channels))}"


def build(
    config,
    *,
    channels: int = 1,
    side: int = 1,
    outputs: int | None = None,
    denoises: bool = True,
) -> Model:
    """The network of `config` (a `model` section, see config.py) for images of `channels` channels.

    Args:
      side: pixels a side of an element of such an image, see contracts.Codec.
      outputs: channels of the prediction, where z_t comes with others beside its own, as in
        InstructPix2Pix with the latents of the source; default: those of z_t.
      denoises: whether it sees a noisy image and its timestep, or its conditions alone.

    The same functions come back for the same network, so that what is traced of it once serves.
    """
    outputs = channels if outputs is None else outputs
    return _built(FrozenConfigDict(config), channels, side, outputs, denoises)


@functools.cache
def _built(
    config: FrozenConfigDict, channels: int, side: int, outputs: int, denoises: bool
) -> Model:
    inputs = channels * denoises + conditioning.channels(config, image=channels, side=side)

    def create():
        return UNet(
            config,
            dims=config.dims,
            inputs=inputs * config.patch**config.dims,
            outputs=outputs * config.patch**config.dims,
            timed=denoises,
            dtype=jnp.dtype(config.dtype),
            rngs=nnx.Rngs(0),
        )

    init, bind = functional(create)

    def apply(params, z_t, t, condition, *, key=None, context=None, residuals=None):
        rngs = None if key is None else nnx.Rngs(dropout=key)
        # Of two resolutions at least, an autoencoder makes latents of several pixels.
        x = conditioning.concatenate(config, z_t, condition, latent=side > 1)
        x = patches.fold(x, config.patch)
        return patches.unfold(bind(params)(x, t, rngs, context, residuals), config.patch)

    return Model(init, apply)


def functional(
    create: Callable[[], nnx.Module], scatter: Callable | None = None
) -> tuple[Callable, Callable]:
    """A module as two functions: init(key) -> params, and bind(params) -> the module with these.

    Args:
      create: makes the module, with kernels and embeddings that hold their standard deviations.
      scatter: (key, params so made) -> params to begin with; without it, those become noise.
    """
    scatter = scatter or _scatter
    graph, template = nnx.split(nnx.eval_shape(create))

    def init(key):
        return scatter(key, nnx.to_pure_dict(nnx.state(create())))

    def bind(params):
        # Runs while tracing only: under jit the module costs nothing per step.
        state = jax.tree.map(lambda leaf: leaf, template)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return init, bind


def overview(params: Params) -> str:
    """A table of parameters, which may be ShapeDtypeStructs: names, shapes and sizes."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def count(params: Params) -> int:
    """How many parameters there are; they may be ShapeDtypeStructs."""
    return int(parameter_overview.count_parameters(params))


def _scatter(key, params: Params) -> Params:
    """Multiply all that holds its standard deviation (blocks.deviation) by noise.

    The noise is normal, truncated at two standard deviations, as is usual, and of unit variance.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    sizes = [leaf.size if path[-1].key in NOISY else 0 for path, leaf in paths]
    noise = jax.random.truncated_normal(key, -2, 2, (sum(sizes),)) / TRUNCATED_DEVIATION
    ends = itertools.accumulate(sizes)
    return tree.unflatten(
        [
            leaf * noise[end - size : end].reshape(leaf.shape) if size else leaf
            for (_, leaf), size, end in zip(paths, sizes, ends, strict=True)
        ]
    )
