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

from contourdiff_jax.contracts import CONDITIONS


def channels(config, *, image: int = 1, side: int = 1) -> int:
    """Channels that the network of a `model` section sees beside the image.

    Args:
      image, side: of the space that it computes in, see contracts.Codec.
    """
    flags = 1 if config.null == "flag" else 0
    conditions = [CONDITIONS[name] for name in config.conditions]
    return sum(image if c.image else c.channels * side**2 for c in conditions) + flags * len(
        conditions
    )


def concatenate(config, z_t, condition: Mapping, *, latent: bool = False):
    """z_t [B, *S, C] or None, condition {name: [B, *S, c]} -> the network's input [B, *S, ..].

    Args:
      latent: whether images are latents, of which an empty one is zero.
    """
    seen = []
    for name in config.conditions:
        known = CONDITIONS[name]
        empty = 0.0 if latent and known.image else known.empty
        seen.append(_seen(config.null, empty, condition[name]))
    return jnp.concatenate(seen if z_t is None else [z_t, *seen], -1)


def _seen(null: str, empty: float, array):
    if null == "flag":
        return array
    values, given = array[..., :-1], array[..., -1:]
    return values * given + empty * (1 - given)
