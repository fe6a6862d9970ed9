# SPDX-License-Identifier: Apache-2.0
"""From network to denoiser: (z_t, t) -> x_0.

Behind it hide the parameterisation and classifier-free guidance.

Shapes: B batch, *S space, C channels (last).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from contourdiff_jax.diffusion import process
from contourdiff_jax.diffusion.schedules import Schedule


def denoiser(
    apply: Callable,
    params,
    schedule: Schedule,
    prediction: str,
    condition,
    *,
    guidance: float = 1.0,
) -> Callable:
    """denoise(z_t [B, *S, C], t scalar) -> estimate of x_0 [B, *S, C], not clipped.

    With guidance w != 1, output = null + w (conditional - null) (Ho & Salimans
    2022, arXiv 2207.12598, equation 6, where w is our w - 1), taken on the
    network's own prediction; both halves go through the network in one batch.
    """

    def output(z_t, t):
        batch = jnp.full(z_t.shape[:1], t)
        if guidance == 1.0:
            return apply(params, z_t, batch, condition)
        both = jax.tree.map(lambda c: jnp.concatenate([c, jnp.zeros_like(c)]), condition)
        answers = apply(params, jnp.concatenate([z_t, z_t]), jnp.concatenate([batch, batch]), both)
        conditional, null = jnp.split(answers, 2)
        return null + guidance * (conditional - null)

    def denoise(z_t, t):
        return process.to_x_0(schedule, prediction, output(z_t, t), z_t, t)

    return denoise
