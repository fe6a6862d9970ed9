# SPDX-License-Identifier: Apache-2.0
"""A small U-Net that attends to a context, and what it is given; Stable Diffusion's section."""

import jax
import jax.numpy as jnp

from contourdiff_jax import config

WIDTH, TOKENS = 6, 5
STABLE_DIFFUSION = {
    **{"channels": (320, 640, 1280, 1280), "layers": 2, "attention": (True, True, True, False)},
    **{"context": 768, "heads": (8,), "groups": 32, "resample_convolution": True},
}


def section(**fields):
    """A small `model` section with a context, and without conditions."""
    model = config.default().model
    model.update(conditions=(), channels=(8, 16), attention=(True, False), groups=4)
    model.update(context=WIDTH, heads=(2,))
    model.update(fields)
    return model


def inputs(channels=4, size=8):
    """z_t [2, size, size, channels], t [2] and a context [2, TOKENS, WIDTH]."""
    keys = jax.random.split(jax.random.key(1), 2)
    z_t = jax.random.normal(keys[0], (2, size, size, channels))
    return z_t, jnp.array([3, 700]), jax.random.normal(keys[1], (2, TOKENS, WIDTH))
