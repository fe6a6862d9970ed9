# SPDX-License-Identifier: Apache-2.0
"""How a network sees its conditions: as channels beside the noisy image, not noised.

Every condition of an example has two channels: its values, and 1 where it is given. A missing one
is zero in both (data/batches.py). Networks differ in how much of that they see:

    null='flag'     both channels, so that a slice of air is not mistaken for a missing one
    null='empty'    the values alone, and an empty picture where they are missing: as published

Shapes: B batch, *S space, C channels (last).
"""

from collections.abc import Mapping

import jax.numpy as jnp

from contourdiff_jax.errors import InputError

NULLS = ("flag", "empty")
# An empty picture: contours are 0 and 1, a neighbouring slice is an image in [-1, 1].
EMPTY = {"contour": 0.0, "neighbour": -1.0}


def check(config, conditions: Mapping[str, int]) -> None:
    """Raise InputError for a `model` section with conditions that there are not."""
    names = tuple(config.conditions)
    if names[:1] != ("contour",) or len(set(names)) < len(names) or set(names) - set(conditions):
        others = ", ".join(name for name in conditions if name != "contour")
        raise InputError(f"config.model.conditions: {names} must be contour, or with it {others}")
    if config.null not in NULLS:
        raise InputError(f"config.model.null: {config.null!r} is not one of {', '.join(NULLS)}")


def channels(config, conditions: Mapping[str, int]) -> int:
    """Channels that the network of a `model` section sees beside the image."""
    flags = 0 if config.null == "flag" else 1
    return sum(conditions[name] - flags for name in config.conditions)


def concatenate(config, z_t, condition: Mapping):
    """z_t [B, *S, C] and condition {name: [B, *S, 2]} -> the network's input [B, *S, inputs]."""
    seen = (_seen(config.null, name, condition[name]) for name in config.conditions)
    return jnp.concatenate([z_t, *seen], -1)


def _seen(null: str, name: str, condition):
    if null == "flag":
        return condition
    values, given = jnp.split(condition, 2, -1)
    return values * given + EMPTY[name] * (1 - given)
