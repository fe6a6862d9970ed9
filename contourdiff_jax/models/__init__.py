# SPDX-License-Identifier: Apache-2.0
"""The networks, and the only place that knows Flax.

Outside, a model is two pure functions over plain dicts.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from contourdiff_jax.errors import InputError
from contourdiff_jax.models import conditioning
from contourdiff_jax.models.unet import UNet, decoder_attention

Params = dict[str, Any]

LAYERS = 64  # residual blocks a resolution at most: more is a slip, and would be built for hours
FUSED_WIDTH = 128  # features of a head at most that cuDNN's attention takes on every NVIDIA GPU
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
      conditions: name -> channels of each condition that an example can have; config.conditions
        says which of them the network takes.
      dims: number of spatial dimensions.

    Raises:
      InputError: a setting that no network can be built from, named.
    """
    check(config)
    conditioning.check(config, conditions)
    inputs = channels + conditioning.channels(config, conditions)

    def create():
        return UNet(
            config,
            dims=dims,
            inputs=inputs,
            outputs=channels,
            dtype=jnp.dtype(config.dtype),
            rngs=nnx.Rngs(0),
        )

    init, bind = functional(create)

    def apply(params, z_t, t, condition, *, key=None):
        rngs = None if key is None else nnx.Rngs(dropout=key)
        return bind(params)(conditioning.concatenate(config, z_t, condition), t, rngs)

    return Model(init, apply)


def functional(create: Callable[[], nnx.Module]) -> tuple[Callable, Callable]:
    """What a module is outside: init(key) -> params, and bind(params) -> the module with these.

    Args:
      create: makes the module, its kernels filled with their standard deviations.
    """
    graph, template = nnx.split(nnx.eval_shape(create))

    def init(key):
        return _scatter(key, nnx.to_pure_dict(nnx.state(create())))

    def bind(params):
        # Runs while tracing only: under jit the module costs nothing per step.
        state = jax.tree.map(lambda leaf: leaf, template)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return init, bind


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
    channels = tuple(config.channels)
    if not channels or not all(isinstance(c, int) and c > 0 for c in channels):
        raise InputError(
            f"config.model.channels: {channels} must be positive whole numbers, one a resolution"
        )
    for name in ("layers", "groups"):
        if config[name] < 1:
            raise InputError(f"config.model.{name}: {config[name]} must be at least 1")
    if config.layers > LAYERS:
        raise InputError(f"config.model.layers: {config.layers} is more than {LAYERS}")
    # Waves come in pairs, and their frequencies are spread over one step less with a shift of 1.
    if channels[0] % 2 or channels[0] // 2 == config.time_shift:
        raise InputError(
            f"config.model.channels: the first, {channels[0]}, is that of the time embedding too "
            f"and must be even and above {2 * config.time_shift}"
        )
    attention = tuple(config.attention), decoder_attention(config)
    for name, given in zip(("attention", "decoder_attention"), attention, strict=True):
        if len(given) != len(channels):
            raise InputError(
                f"config.model.{name}: {len(given)} entries for the {len(channels)} resolutions "
                f"of config.model.channels; give one for each"
            )
    for features in channels:
        if features % config.groups:
            raise InputError(
                f"config.model.channels: {features} is not a multiple of "
                f"config.model.groups={config.groups}"
            )
    attentive = [c for c, *a in zip(channels, *attention, strict=True) if any(a)]
    attentive += channels[-1:] if config.middle_attention else []
    for features in attentive:
        if config.head_width < 0 or (config.head_width and features % config.head_width):
            raise InputError(
                f"config.model.channels: {features} has attention and is not a multiple of "
                f"config.model.head_width={config.head_width}"
            )
    if config.fused_attention:
        _check_fused(config, attentive)
    for name in ("middle_divisor", "epsilon"):
        if not 0 < config[name] < math.inf:
            raise InputError(f"config.model.{name}: {config[name]} must be above 0 and finite")
    if not 0 <= config.dropout < 1:
        raise InputError(f"config.model.dropout: {config.dropout} must be at least 0 and below 1")
    if config.downsample_padding not in (0, 1):
        raise InputError(
            f"config.model.downsample_padding: {config.downsample_padding} is not 0 or 1"
        )
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(f"config.model.dtype: {config.dtype!r} is not one of float32, bfloat16")


def _check_fused(config, attentive: list[int]) -> None:
    """Raise InputError where cuDNN's kernel could not take the heads, once it is compiled."""
    if config.dtype != "bfloat16":
        raise InputError(
            f"config.model.fused_attention computes in bfloat16, "
            f"and config.model.dtype is {config.dtype}"
        )
    for features in attentive:
        width = config.head_width or features
        if width % 8 or width > FUSED_WIDTH:
            raise InputError(
                f"config.model.head_width: heads of {width} features, where "
                f"config.model.fused_attention takes multiples of 8 up to {FUSED_WIDTH}"
            )


def check_size(config, size: int) -> None:
    """Raise InputError for an image that the network cannot halve often enough."""
    halvings = len(tuple(config.channels)) - 1
    if size % 2**halvings:
        raise InputError(
            f"images of {size} px cannot be halved {halvings} times: "
            f"take --size={-(-size // 2**halvings) * 2**halvings}, or shorten config.model.channels"
        )
