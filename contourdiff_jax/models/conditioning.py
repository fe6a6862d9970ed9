# SPDX-License-Identifier: Apache-2.0
"""Conditions as a network sees them: channels beside the noisy image, themselves without noise.

In an example every condition has the channels of its values and one that is 1 where it is given; a
missing condition is zero in all of them (contracts.Condition). How much of that a network sees is
said by `null`:

    flag     all channels, so that a slice of air is not mistaken for a missing condition
    empty    the values alone, with an empty picture where they are missing: as published

Shapes: B batch, *S space, C channels (last).
"""

from collections.abc import Mapping

import jax.numpy as jnp

from contourdiff_jax.contracts import CONDITIONS, Condition


def channels(config) -> int:
    """Channels that the network of a `model` section sees beside the image."""
    flags = 1 if config.null == "flag" else 0
    return sum(CONDITIONS[name].channels + flags for name in config.conditions)


def concatenate(config, z_t, condition: Mapping):
    """z_t [B, *S, C] or None, condition {name: [B, *S, c]} -> the network's input [B, *S, ..]."""
    seen = [_seen(config.null, CONDITIONS[name], condition[name]) for name in config.conditions]
    return jnp.concatenate(seen if z_t is None else [z_t, *seen], -1)


def _seen(null: str, condition: Condition, array):
    if null == "flag":
        return array
    values, given = jnp.split(array, [condition.channels], -1)
    return values * given + condition.empty * (1 - given)
