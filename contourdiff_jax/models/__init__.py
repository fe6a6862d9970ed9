# SPDX-License-Identifier: Apache-2.0
"""The networks, and the only place that knows Flax.

Outside, a model is two pure functions over plain dicts.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from contourdiff_jax.errors import InputError
from contourdiff_jax.models.unet import UNet

Params = dict[str, Any]

# Standard deviation of a standard normal variable truncated to [-2, 2].
TRUNCATED_DEVIATION = 0.8796256610342398


class Model(NamedTuple):
    """Two pure functions over params, a plain nested dict of arrays.

        init(key) -> params
        apply(params, z_t, t, condition, *, key=None) -> prediction

    z_t and prediction [B, *S, C], t [B], condition {name: [B, *S, c]}. `key` turns dropout on.
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]


def build(config, conditions: Mapping[str, int], *, channels: int = 1, dims: int = 2) -> Model:
    """The network of `config` (a `model` section, see config.py) for images of `channels` channels.

    Args:
      conditions: name -> channels of each condition of the example.
      dims: number of spatial dimensions.

    Raises:
      InputError: a setting that no network can be built from, named.
    """
    check(config)

    def create():
        return UNet(
            dims=dims,
            image_channels=channels,
            conditions=conditions,
            channels=tuple(config.channels),
            layers=config.layers,
            attention=tuple(config.attention),
            middle_attention=config.middle_attention,
            resample_convolution=config.resample_convolution,
            head_width=config.head_width,
            groups=config.groups,
            epsilon=config.epsilon,
            dropout=config.dropout,
            dtype=jnp.dtype(config.dtype),
            rngs=nnx.Rngs(0),
        )

    graph, template = nnx.split(nnx.eval_shape(create))

    def init(key):
        return _scatter(key, nnx.to_pure_dict(nnx.state(create())))

    def apply(params, z_t, t, condition, *, key=None):
        # Runs while tracing only: under jit the module costs nothing per step.
        state = jax.tree.map(lambda leaf: leaf, template)
        nnx.replace_by_pure_dict(state, params)
        rngs = None if key is None else nnx.Rngs(dropout=key)
        return nnx.merge(graph, state)(z_t, t, condition, rngs)

    return Model(init, apply)


def _scatter(key, params: Params) -> Params:
    """Multiply every kernel, which holds its standard deviation (blocks.deviation), by noise.

    Truncated at two standard deviations, as is usual, and brought back to unit variance.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    sizes = [leaf.size if path[-1].key == "kernel" else 0 for path, leaf in paths]
    noise = jax.random.truncated_normal(key, -2, 2, (sum(sizes),)) / TRUNCATED_DEVIATION
    ends = itertools.accumulate(sizes)
    return tree.unflatten(
        [
            leaf * noise[end - size : end].reshape(leaf.shape) if size else leaf
            for (_, leaf), size, end in zip(paths, sizes, ends, strict=True)
        ]
    )


def check(config) -> None:
    """Raise InputError for a `model` section that contradicts itself."""
    channels, attention = tuple(config.channels), tuple(config.attention)
    if not channels or not all(isinstance(c, int) and c > 0 for c in channels):
        raise InputError(
            f"config.model.channels: {channels} must be positive whole numbers, one a resolution"
        )
    if len(attention) != len(channels):
        raise InputError(
            f"config.model.attention: {len(attention)} entries for the {len(channels)} resolutions "
            f"of config.model.channels; give one for each"
        )
    for features in channels:
        if features % config.groups:
            raise InputError(
                f"config.model.channels: {features} is not a multiple of "
                f"config.model.groups={config.groups}"
            )
    attentive = [c for c, a in zip(channels, attention, strict=True) if a]
    attentive += channels[-1:] if config.middle_attention else []
    for features in attentive:
        if features % config.head_width:
            raise InputError(
                f"config.model.channels: {features} has attention and is not a multiple of "
                f"config.model.head_width={config.head_width}"
            )
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(f"config.model.dtype: {config.dtype!r} is not one of float32, bfloat16")


def check_size(config, size: int) -> None:
    """Raise InputError for an image that the network cannot halve often enough."""
    factor = 2 ** (len(tuple(config.channels)) - 1)
    if size % factor:
        raise InputError(
            f"the store's images of {size} px cannot be halved {len(tuple(config.channels)) - 1} "
            f"times: prepare with --size={-(-size // factor) * factor}, or shorten "
            f"config.model.channels"
        )
